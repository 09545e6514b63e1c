"""``lit-ift eval``: scores of models on tasks."""

import sys
from collections.abc import Sequence
from pathlib import Path

from lit_ift.cli.console import table_console
from lit_ift.cli.talk import Dtype
from lit_ift.cli.tree import function_parser, parse
from lit_ift.options import NonNegativeInt, PositiveInt


def evaluate(
    models: list[str],
    *,
    tasks: list[str],
    output: Path = Path("eval"),
    max_rows: PositiveInt | None = None,
    num_fewshot: NonNegativeInt | None = None,
    max_new_tokens: PositiveInt | None = None,
    batch_size: PositiveInt = 8,
    model: str | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    plain: bool = False,
    overwrite: bool = False,
) -> None:
    """Score models on tasks: each score with its standard error, and paired differences to the first model.

    A model and task that have their result in the output are not scored again, unless the model's files, the rows or an
    option have changed: a call that was stopped goes on.

    Args:
        models: folders of runs, exports or adapters, checkpoints, GGUF files, or hub ids; the first is compared with.
        tasks: KIND=FILE for rows of your own (gsm8k, arc, multiple_choice, truthfulqa_mc1, truthfulqa_mc2, ifeval,
            exact_match), reasoning_gym=TASK or =RUN, a YAML file of lm-evaluation-harness, or a name of its tasks.
        output: folder for results.json and results.png.
        max_rows: score the first so many rows of each task.
        num_fewshot: examples before each question; as the task says by default, none for rows of your own.
        max_new_tokens: longest answer in tokens; as the task says by default.
        batch_size: items scored at a time.
        model: what training started from, if it is not where the run, the adapter or the card says.
        dtype: of the weights; that of the files by default.
        device: such as cuda or cpu; a GPU by default if there is one.
        chat_template: chatml, zephyr, a file or jinja text, for a model that has none.
        trust_remote_code: run the code that the model brings.
        plain: give prompts as plain text, without the chat template, as for a base model.
        overwrite: score again what has its result.
    """
    from lit_ift.evaluation import show
    from lit_ift.evaluation.run import RESULTS, evaluate
    from lit_ift.evaluation.tasks import TaskOptions
    from lit_ift.generation.opened import LoadOptions

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        results = evaluate(
            models,
            tasks,
            output,
            options=TaskOptions(num_fewshot, max_rows, max_new_tokens, plain),
            load=LoadOptions(model, dtype, device, chat_template, trust_remote_code),
            batch_size=batch_size,
            overwrite=overwrite,
            say=say,
        )
    except KeyboardInterrupt:
        say(f"The results so far are kept in {output}: the same command goes on.")
        raise
    console = table_console(160)
    console.print(show.scores_table(results))
    if (differences := show.differences_table(results)) is not None:
        console.print(differences)
    for note in show.notes_of(results):
        console.print(note, soft_wrap=True, markup=False)
    picture = output / RESULTS.replace(".json", ".png")
    show.save_picture(results, picture)
    console.print(f"{output / RESULTS}\n{picture}", soft_wrap=True, markup=False)


def run(words: Sequence[str]) -> int:
    """Run ``eval``, given from there on, and return 0.

    Raises:
        argparse.ArgumentError: the call is wrong.
        UserError: a model or a task cannot be used, or the results cannot be written.
    """
    evaluate(**vars(parse(words, words[0], function_parser(evaluate, several=["models", "tasks"]))))
    return 0
