"""A trained model that is ready to answer, and the model that it was trained from."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_ift.chat.templates import TEMPLATE_FOLDER, check_fast, tokenizer_name
from lit_ift.errors import UserError
from lit_ift.export.card import turn_ends
from lit_ift.export.checkpoint_model import TrainedCheckpoint
from lit_ift.export.merge import adapter_base, adapter_generation_config, adapter_tokenizer, open_adapter
from lit_ift.export.run_facts import template_for
from lit_ift.export.write import stop_token_ids
from lit_ift.generation.find import ModelPlace
from lit_ift.models.head import base_model
from lit_ift.models.limits import limits_of
from lit_ift.models.load import load_model, load_tokenizer
from lit_ift.models.lora import adapters_off, is_adapted


@dataclass(frozen=True)
class LoadOptions:
    """How a model is opened.

    Args:
        model: folder, file or hub id of the model that training started from; what the run, the adapter or the card
            says by default.
        dtype: of the weights; that of the files by default.
        device: such as ``cuda`` or ``cpu``; by default a GPU if there is one.
        chat_template: built-in name, file or jinja text, for a model that has none.
        trust_remote_code: run the code that the model brings.
    """

    model: str | None = None
    dtype: str | None = None
    device: str | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False


@dataclass
class OpenedModel:
    """A model to answer with.

    Attributes:
        place: where it was found.
        model: in eval mode, with the tokens that end an answer in its generation config.
        tokenizer: with the chat template of training, if there is one.
        base_name: what the model is called that training started from; None if it is not known.
        options: as it was opened.
    """

    place: ModelPlace
    model: Any
    tokenizer: Any
    base_name: str | None
    options: LoadOptions = field(default_factory=LoadOptions)

    @contextmanager
    def base(self) -> Iterator[Any]:
        """The model before training: an adapter is switched off meanwhile; of a whole model the base is loaded once.

        Raises:
            UserError: nothing names the base model, it cannot be loaded, or it lacks tokens that the trained model has.
        """
        if is_adapted(self.model):
            with adapters_off(self.model):
                yield self.model
        else:
            yield self._whole_base

    @cached_property
    def _whole_base(self) -> Any:
        if self.base_name is None:
            raise UserError(
                f"{self.place.path} does not say which model it was trained from. Name that with --model, a folder or "
                "a hub id."
            )
        dtype = str(self.model.dtype).removeprefix("torch.")
        base = load_model(self.base_name, dtype=dtype, trust_remote_code=self.options.trust_remote_code)
        rows = base.get_input_embeddings().weight.shape[0]
        if rows <= max(self.tokenizer.get_vocab().values()):
            raise UserError(
                f"{self.base_name} has no rows for the tokens that training added, so it cannot read these prompts."
            )
        base.generation_config.eos_token_id = stop_token_ids(base, self.tokenizer, stop_ids_of(self.model))
        return base.eval().to(self.model.device)


def stop_ids_of(model: Any) -> list[int]:
    """The tokens that end an answer."""
    found = base_model(model).generation_config.eos_token_id
    return [found] if isinstance(found, int) else list(found or [])


def room_for_prompt(model: Any, max_new_tokens: int) -> int | None:
    """Tokens that a prompt may have beside the longest answer; None if the model names no bound.

    Raises:
        UserError: the answer alone fills the model's context.
    """
    positions = limits_of(model).positions
    if positions is not None and max_new_tokens >= positions:
        raise UserError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt: the model reads {positions} tokens in all. "
            "Lower --max_new_tokens."
        )
    return None if positions is None else positions - max_new_tokens


@contextmanager
def opened(place: ModelPlace, options: LoadOptions | None = None) -> Iterator[OpenedModel]:
    """Load what `find_model` found, for as long as the block lasts.

    Raises:
        UserError: it cannot be loaded; the chat template is not that of training.
    """
    options = options or LoadOptions()
    device = _device(options.device)
    with tempfile.TemporaryDirectory(prefix="lit-ift-") as scratch:  # Weights of shards are put together there.
        if place.kind == "checkpoint":
            found = _open_checkpoint(place, options, Path(scratch) / "weights")
        elif place.kind == "adapter":
            found = _open_adapter(place, options)
        else:
            found = _open_whole(place, options)
        set_chat_template(found.tokenizer, place, options.chat_template)
        found.model = found.model.eval().to(device)
        yield found


def tokenizer_of_place(place: ModelPlace, model: str | None = None) -> str:
    """Folder or hub id of the tokenizer of a whole model or an adapter."""
    return adapter_tokenizer(place.folder, adapter_base(place.folder, model)) if place.kind == "adapter" else place.path


def set_chat_template(tokenizer: Any, place: ModelPlace, given: str | None) -> None:
    """Give a tokenizer without chat template the one that is given, and refuse any that was not trained with.

    Raises:
        UserError: the given one is none, or differs from that of the model; or the run was trained with another one
            than the model has.
    """
    check_fast(tokenizer)
    if given is not None:
        template = template_for(given, tokenizer)
        if tokenizer.chat_template and tokenizer.chat_template != template:
            raise UserError(
                f"chat_template={given!r} is not the chat template of {place.path}, so the model would read prompts in "
                "a form that it was not trained on. Leave --chat_template out."
            )
        tokenizer.chat_template = template
    named = place.chat_template()
    if named is None or not _is_there(named):
        return
    if tokenizer.chat_template != template_for(named, tokenizer):
        shown = named if len(named) < 80 else "given as text"
        raise UserError(
            f"{place.path} has another chat template than the one that {place.run} was trained with "
            f"(data.chat_template: {shown}), so the model would read prompts in a form that it was not trained on. Put "
            "that template back into the folder, or export the checkpoint again: lit-ift export"
        )


def check_chat_template(tokenizer: Any) -> None:
    """Do nothing if a tokenizer can write conversations.

    Raises:
        UserError: it has no chat template.
    """
    if not tokenizer.chat_template:
        built_in = ", ".join(sorted(path.stem for path in TEMPLATE_FOLDER.glob("*.jinja")))
        raise UserError(
            f"The tokenizer {tokenizer_name(tokenizer)} has no chat template: it is that of a base model, which only "
            f"goes on from texts. Name the export of a run instead, or the template that the model was trained with: "
            f"--chat_template {built_in} or a file."
        )


def _is_there(template: str) -> bool:
    """Whether a template is a text, a built-in name, or a file that still exists."""
    is_text = "{%" in template or "{{" in template
    return is_text or (TEMPLATE_FOLDER / f"{template}.jinja").is_file() or Path(template).expanduser().is_file()


def _open_whole(place: ModelPlace, options: LoadOptions) -> OpenedModel:
    dtype = options.dtype or ("float32" if place.path.endswith(".gguf") else "auto")
    model = load_model(place.path, dtype=dtype, trust_remote_code=options.trust_remote_code)
    tokenizer = load_tokenizer(place.path, trust_remote_code=options.trust_remote_code)
    return OpenedModel(place, model, tokenizer, options.model or place.base(), options)


def _open_adapter(place: ModelPlace, options: LoadOptions) -> OpenedModel:
    name = adapter_base(place.folder, options.model)
    dtype = options.dtype or ("float32" if name.endswith(".gguf") else "auto")
    model = open_adapter(place.folder, name, dtype=dtype)
    if (generation := adapter_generation_config(place.folder)) is not None:
        base_model(model).generation_config = model.generation_config = generation
    tokenizer = load_tokenizer(adapter_tokenizer(place.folder, name), trust_remote_code=options.trust_remote_code)
    return OpenedModel(place, model, tokenizer, name, options)


def _open_checkpoint(place: ModelPlace, options: LoadOptions, scratch: Path) -> OpenedModel:
    import torch

    found = TrainedCheckpoint.find(place.folder, model=options.model)
    model, tokenizer = found.build(scratch, trust_remote_code=options.trust_remote_code)
    if options.dtype is not None:
        model = model.to(getattr(torch, options.dtype))
    report = (found.facts.header.get("data_reports") or {}).get("train") or {}
    base_model(model).generation_config.eos_token_id = stop_token_ids(model, tokenizer, turn_ends(report, tokenizer))
    return OpenedModel(place, model, tokenizer, found.base, options)


def _device(named: str | None) -> Any:
    import torch

    try:
        device = torch.device(named or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA fails an assertion.
        raise UserError(
            f"device={named} cannot be used: {str(error).splitlines()[0]} Name another, such as cpu."
        ) from error
    return device
