"""From a model's place and prompts to answers, by the engine that the user chose."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lit_ift.generation.answer_file import answer_all, identity
from lit_ift.generation.engine import Engine, GenerationOptions
from lit_ift.generation.find import ModelPlace
from lit_ift.generation.opened import LoadOptions, opened, room_for_prompt, set_chat_template
from lit_ift.generation.prompts import Prompt, encode_prompts
from lit_ift.models.load import load_tokenizer

EngineName = Literal["transformers", "vllm"]


def answered(
    place: ModelPlace,
    prompts: list[Prompt],
    output: Path,
    *,
    options: GenerationOptions,
    load: LoadOptions,
    engine: EngineName = "transformers",
    overwrite: bool = False,
) -> list[list[str]]:
    """Load a model and answer all prompts; see `answer_all`.

    Raises:
        UserError: the model cannot be loaded, or a prompt is too long for it or cannot be written by its chat template.
    """
    with _started(place, load, options, engine) as (running, tokenizer, room):
        ids = encode_prompts(prompts, tokenizer, max_length=room)
        model = [engine, place.kind, identity(place.path), asdict(load)]
        return answer_all(running, ids, output, options=options, model=model, overwrite=overwrite)


@contextmanager
def _started(
    place: ModelPlace, load: LoadOptions, options: GenerationOptions, engine: EngineName
) -> Iterator[tuple[Engine, Any, int | None]]:
    """The engine, the tokenizer, and how long prompts may be [tokens]."""
    if engine == "vllm":
        from lit_ift.generation.vllm_engine import VllmEngine

        running = VllmEngine(place, load)
        tokenizer = load_tokenizer(running.tokenizer_source, trust_remote_code=load.trust_remote_code)
        set_chat_template(tokenizer, place, load.chat_template)
        yield running, tokenizer, None  # vLLM refuses prompts that are too long.
        return
    from lit_ift.generation.transformers_engine import TransformersEngine

    with opened(place, load) as found:
        room = room_for_prompt(found.model, options.max_new_tokens)
        yield TransformersEngine(found.model, found.tokenizer), found.tokenizer, room
