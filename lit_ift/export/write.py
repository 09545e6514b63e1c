"""Write a trained model as a folder that ``AutoModelForCausalLM.from_pretrained`` loads, an adapter as peft does."""

import copy
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from lit_ift.errors import UserError
from lit_ift.export.card import ExportMetadata, check_metadata, model_card
from lit_ift.export.tokenizer_files import write_tokenizer
from lit_ift.models.lora import is_adapted
from lit_ift.staging import staged_folder

logger = logging.getLogger("lit_ift")

EXPORT_DTYPES: Final = ("float32", "bfloat16", "float16", "float64")

_MODES: Final = ("do_sample", "num_beams", "cache_implementation", "return_dict_in_generate")
"""Fields of a generation config that say which others have an effect."""

MODEL_FILES: Final = ("config.json", "adapter_config.json")
"""What tells a model's folder, or an adapter's."""


def export_model(
    model: Any,
    folder: Path,
    *,
    tokenizer: Any,
    tokenizer_source: str | None,
    metadata: ExportMetadata,
    dtype: str | None = None,
    state_dict: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    max_shard_size: str | None = None,
) -> Path:
    """Write weights, configuration, tokenizer, generation config and model card.

    The folder appears whole or not at all. Tokenizer files are byte for byte those of ``tokenizer_source``
    unless the tokenizer or its template was changed. The model itself is left as it was.

    Of a model with an adapter, the adapter alone is written, which ``peft.AutoPeftModelForCausalLM`` opens together
    with the base model that it names.

    Args:
        model: a Hugging Face model, or a ``PeftModel``.
        folder: to create. An existing one with content is refused, so that no model is lost by accident.
        tokenizer: as used in training.
        tokenizer_source: folder or hub id that it was loaded from; None to save it anew.
        metadata: for the model card; ``stop_token_ids`` also go into the generation config.
        dtype: of the written weights; None for the model's own.
        state_dict: weights to write instead of the model's, gathered from shards; of an adapter, its own at least.
        overwrite: replace an existing export (a folder with a model or an adapter, and nothing else).
        max_shard_size: of a file of a whole model's weights, such as ``5GB``; that of transformers by default.

    Returns:
        The folder.

    Raises:
        UserError: the folder is in the way or cannot be written, or the base of an adapter has no name.
        ValueError: ``dtype`` or an entry of ``metadata`` is unknown.
    """
    check_metadata(metadata)
    if dtype is not None and dtype not in EXPORT_DTYPES:
        raise ValueError(f"dtype is '{dtype}'; allowed: {', '.join(EXPORT_DTYPES)}")
    is_adapter = is_adapted(model)
    if is_adapter:
        base_of(model)
    folder = Path(folder).expanduser()
    check_free(folder, overwrite)

    from safetensors import SafetensorError

    try:
        with staged_folder(folder, replace=overwrite) as stage:
            generation_config = _generation_config(model, tokenizer, metadata)
            if is_adapter:
                _write_adapter(model, stage, dtype, state_dict)
                generation_config.save_pretrained(stage)  # For whoever merges it.
            else:
                _write_weights(model, stage, dtype, state_dict, generation_config, max_shard_size)
            copied = write_tokenizer(tokenizer, tokenizer_source, stage)
            chat = bool(tokenizer.chat_template)
            card = model_card(metadata, folder_name=folder.name, chat_example=chat, is_adapter=is_adapter)
            (stage / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the export cannot be written: {error}. Nothing was left behind. Free space or name "
            "another folder."
        ) from error
    logger.info("Exported to %s (%d tokenizer files copied unchanged).", folder, len(copied))
    return folder


def stop_token_ids(model: Any, tokenizer: Any, trained: Iterable[int] = ()) -> list[int]:
    """Every token that should end generation: the trained turn ends, the tokenizer's and the model's own."""
    known: list[int] = [int(token_id) for token_id in trained]
    if tokenizer.eos_token_id is not None:
        known.append(int(tokenizer.eos_token_id))
    current = getattr(model.generation_config, "eos_token_id", None)
    known += [current] if isinstance(current, int) else list(current or [])
    return list(dict.fromkeys(known))


def check_free(folder: Path, overwrite: bool) -> None:
    """Check that an export may be written to ``folder``; asked before training, it saves the time.

    Raises:
        UserError: something is in the way.
    """
    if folder.is_dir():
        content = any(folder.iterdir())
        if not content:
            return
        if overwrite and any((folder / name).is_file() for name in MODEL_FILES):
            return
        remedy = "empty it or name another; a run replaces its model with export.overwrite"
        if overwrite:
            remedy = f"it has no {' or '.join(MODEL_FILES)}, so it is no model to replace: name another"
        raise UserError(f"{folder}: the folder exists and is not empty; {remedy}.")
    if folder.exists():
        raise UserError(f"{folder}: a file is in the way; name another folder.")


def base_of(model: Any) -> str:
    """The folder, file or hub id of the model that an adapter was put on.

    Raises:
        UserError: it is not known, as of a model that was built in memory.
    """
    config = model.peft_config[model.active_adapter]
    name = getattr(model.config, "_name_or_path", None) or config.base_model_name_or_path
    if not name:
        raise UserError(
            "The adapter cannot be exported, because its base model has no name to load it by. Save the base model "
            "to a folder (save_pretrained) and train from there, or set export.enabled=false."
        )
    return str(Path(name).resolve()) if Path(name).exists() else str(name)


def _generation_config(model: Any, tokenizer: Any, metadata: ExportMetadata) -> Any:
    """The model's generation config with the stop tokens, in a form that transformers agrees to save."""
    ids = stop_token_ids(model, tokenizer, metadata.get("stop_token_ids", ()))
    config = copy.deepcopy(model.generation_config)
    config.eos_token_id = ids or None
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return _without_contradictions(config)


def _without_contradictions(config: Any) -> Any:
    """A generation config without the fields that transformers refuses to save beside the others.

    Many published models ask for a temperature but not for sampling.
    """
    from transformers import GenerationConfig

    kept, dropped = GenerationConfig(), []
    values = {name: value for name, value in vars(config).items() if value is not None and name != "_from_model_config"}
    for name in sorted(values, key=lambda name: name not in _MODES):
        before = getattr(kept, name, None)
        setattr(kept, name, values[name])
        try:
            kept.validate(strict=True)
        except ValueError:
            setattr(kept, name, before)
            dropped.append(f"{name}={values[name]}")
    kept._from_model_config = False  # It would be derived from config.json again, without the stop tokens.
    if dropped:
        logger.warning(
            "The model's generation config is contradictory. It is exported without what contradicts the rest: %s.",
            ", ".join(dropped),
        )
    return kept


def _write_weights(
    model: Any,
    stage: Path,
    dtype: str | None,
    state_dict: Mapping[str, Any] | None,
    generation_config: Any,
    max_shard_size: str | None,
) -> None:
    weights = dict(state_dict) if state_dict is not None else model.state_dict()
    if dtype is not None:
        weights = _cast(weights, dtype, stage.with_name("cast"))
    options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    with _untouched(model):
        model.generation_config = generation_config
        model.save_pretrained(stage, state_dict=weights, **options)
    if dtype is not None:
        file = stage / "config.json"
        values = json.loads(file.read_text(encoding="utf-8"))
        values["dtype"] = dtype
        file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_adapter(model: Any, stage: Path, dtype: str | None, state_dict: Mapping[str, Any] | None) -> None:
    config = model.peft_config[model.active_adapter]
    kept = config.base_model_name_or_path
    config.base_model_name_or_path = base_of(model)
    try:
        # Embeddings are written where the adapter holds them; to tell more, peft would ask the hub.
        model.save_pretrained(
            stage,
            selected_adapters=[model.active_adapter],
            save_embedding_layers=False,
            state_dict=None if state_dict is None else dict(state_dict),
        )
    finally:
        config.base_model_name_or_path = kept
    if dtype is not None:
        from safetensors.torch import load_file, save_file

        file = stage / "adapter_model.safetensors"
        cast = _cast(load_file(file), dtype, stage.with_name("cast"))
        save_file(cast, file, metadata={"format": "pt"})


@contextmanager
def _untouched(model: Any) -> Iterator[None]:
    # save_pretrained writes architecture and dtype into the live config.
    kept = model.generation_config, model.config.__dict__.copy()
    try:
        yield
    finally:
        model.generation_config = kept[0]
        model.config.__dict__.clear()
        model.config.__dict__.update(kept[1])


def _cast(weights: Mapping[str, Any], dtype: str, file: Path) -> dict[str, Any]:
    """Weights in another dtype, held in a file so that memory holds one of them at a time."""
    import torch

    from lit_ift.export.memory_mapped import memory_mapped

    wanted = getattr(torch, dtype)
    # Tied weights are one tensor under two names and must stay so, or both are written.
    of_place: dict[tuple[int, int, tuple[int, ...]], str] = {}
    same_as: dict[str, str] = {}
    for name, tensor in weights.items():
        same_as[name] = of_place.setdefault((tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape)), name)

    def entries() -> Iterator[tuple[str, Any]]:
        for name in dict.fromkeys(same_as.values()):
            tensor = weights[name].detach().cpu()
            yield name, tensor.to(wanted) if tensor.is_floating_point() else tensor

    written = memory_mapped(entries(), file)
    return {name: written[first] for name, first in same_as.items()}
