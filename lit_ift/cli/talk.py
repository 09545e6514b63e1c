"""``lit-ift chat`` and ``lit-ift generate``: the answers of a trained model."""

import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from lit_ift.cli.tree import function_parser, parse
from lit_ift.options import NonNegative, PositiveInt, Share

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


def chat(
    trained: str,
    *,
    system: str | None = None,
    max_new_tokens: PositiveInt = 512,
    temperature: NonNegative = 0.0,
    top_p: Share | None = None,
    top_k: PositiveInt | None = None,
    seed: int = 0,
    model: str | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Talk to a model on the terminal. /help shows the commands; /compare asks the base model too.

    Args:
        trained: folder of a run, an export or an adapter, a checkpoint, a GGUF file, or a hub id.
        system: system message to begin with.
        max_new_tokens: longest answer in tokens.
        temperature: 0 gives the likeliest answer (greedy); above 0 tokens are drawn.
        top_p: draw from the smallest set of tokens that holds this probability; as the model says by default.
        top_k: draw from so many of the likeliest tokens; as the model says by default.
        seed: of the draws.
        model: what training started from, if it is not where the run, the adapter or the card says.
        dtype: of the weights; that of the files by default.
        device: such as cuda or cpu; a GPU by default if there is one.
        chat_template: chatml, zephyr, a file or jinja text, for a model that has none.
        trust_remote_code: run the code that the model brings.
    """
    from lit_ift.generation.engine import GenerationOptions
    from lit_ift.generation.find import find_model
    from lit_ift.generation.opened import LoadOptions, opened

    options = GenerationOptions(max_new_tokens, temperature, top_p, top_k, seed=seed)
    place = find_model(trained)
    with opened(place, LoadOptions(model, dtype, device, chat_template, trust_remote_code)) as found:
        from lit_ift.generation.talk import Talk
        from lit_ift.generation.terminal import ChatTerminal

        print(f"{place.kind}: {place.path}")
        ChatTerminal(Talk(found, options, system)).run()


def generate(
    trained: str,
    prompts: str,
    output: Path,
    *,
    num_answers: PositiveInt = 1,
    max_new_tokens: PositiveInt = 512,
    temperature: NonNegative = 0.0,
    top_p: Share | None = None,
    top_k: PositiveInt | None = None,
    seed: int = 0,
    batch_size: PositiveInt | None = None,
    format: Literal["rows", "alpaca_eval"] = "rows",
    generator: str | None = None,
    overwrite: bool = False,
    max_rows: PositiveInt | None = None,
    split: str | None = None,
    layout: str | None = None,
    columns: dict[str, str | None] | None = None,
    engine: Literal["transformers", "vllm"] = "transformers",
    model: str | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Let a model answer the prompts of a file, and write the answers to another one.

    The prompt of a row is what stands before its first answer; the row's own answer is written beside the model's. The
    output appears whole. A call that was stopped goes on where it was, when it is repeated.

    Args:
        trained: folder of a run, an export or an adapter, a checkpoint, a GGUF file, or a hub id.
        prompts: rows of any data format, with answers or without, of a file, a folder, a pattern or a hub id.
        output: .jsonl or .json file to write.
        num_answers: answers to each prompt, which take a temperature if there are several.
        max_new_tokens: longest answer in tokens.
        temperature: 0 gives the likeliest answer (greedy); above 0 tokens are drawn.
        top_p: draw from the smallest set of tokens that holds this probability; as the model says by default.
        top_k: draw from so many of the likeliest tokens; as the model says by default.
        seed: of the draws.
        batch_size: answers generated at a time, by transformers; 32 by default.
        format: rows have prompt and completion, as lit-ift reads them; alpaca_eval has instruction, output, generator.
        generator: name of the model in alpaca_eval; that of its folder by default.
        overwrite: replace the output, and drop kept answers of another call.
        max_rows: answer the first so many rows only.
        split: of prompts that have several splits.
        layout: of the rows; recognised by the columns by default.
        columns: what columns are, where their names do not say it, as in '{prompt: Question}'.
        engine: vllm needs the extra of that name; it was tested against a stand-in only, never against vLLM.
        model: what training started from, if it is not where the run, the adapter or the card says.
        dtype: of the weights; that of the files by default.
        device: such as cuda or cpu; a GPU by default if there is one.
        chat_template: chatml, zephyr, a file or jinja text, for a model that has none.
        trust_remote_code: run the code that the model brings.
    """
    if generator is not None and format != "alpaca_eval":
        raise ArgumentError(None, "--generator is written to alpaca_eval alone: add --format alpaca_eval")
    for name, value in {"device": device, "batch_size": batch_size}.items():
        if engine == "vllm" and value is not None:
            raise ArgumentError(None, f"--{name} is for transformers: vLLM chooses its own")
    from lit_ift.data.read.sources import Source
    from lit_ift.generation import answer_file as files
    from lit_ift.generation.engine import GenerationOptions
    from lit_ift.generation.find import find_model
    from lit_ift.generation.opened import LoadOptions
    from lit_ift.generation.prompts import read_prompts
    from lit_ift.generation.run import answered

    at_a_time = GenerationOptions.batch_size if batch_size is None else batch_size
    options = GenerationOptions(max_new_tokens, temperature, top_p, top_k, num_answers, at_a_time, seed)
    files.check_output(output, overwrite=overwrite)
    place = find_model(trained)
    rows = read_prompts(Source(prompts, max_rows=max_rows, split=split, layout=layout, columns=columns))
    files.check_form(rows, options, format)
    load = LoadOptions(model, dtype, device, chat_template, trust_remote_code)
    print(f"{len(rows)} prompts of {prompts} to {place.kind} {place.path}", file=sys.stderr)
    try:
        answers = answered(place, rows, output, options=options, load=load, engine=engine, overwrite=overwrite)
    except KeyboardInterrupt:
        print(f"The answers so far are kept: the same command goes on to {output}.", file=sys.stderr)
        raise
    name = generator or Path(trained).name
    written = files.write_answers(rows, answers, output, form=format, generator=name, overwrite=overwrite)
    print(f"{output}: {written} answers")


FUNCTIONS: Final[dict[str, Callable[..., None]]] = {"chat": chat, "generate": generate}


def run(words: Sequence[str]) -> int:
    """Run ``chat`` or ``generate``, given from there on, and return 0.

    Raises:
        argparse.ArgumentError: the call is wrong.
        UserError: the model or the prompts cannot be used, or the answers cannot be written.
    """
    function = FUNCTIONS[words[0]]
    function(**vars(parse(words, words[0], function_parser(function))))
    return 0
