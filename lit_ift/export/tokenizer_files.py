"""Write a tokenizer to an export: the original files byte for byte where it was not changed."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Final

from lit_ift.errors import UserError

logger = logging.getLogger("lit_ift")

TEMPLATE_FILES: Final = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
"""Chat templates; ``chat_template.json`` is that of a processor."""

PROCESSOR_FILES: Final = (
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    *("processing_*.py", "image_processing_*.py", "video_processing_*.py", "feature_extraction_*.py"),
)
"""What turns images and sound into inputs; training on text leaves it as it is."""

VOCABULARY_FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "vocab.bpe", "encoder.json", "merges.txt", "normalizer.json"),
    *("*.model", "tokenizer.model.*", "*.spm", "*.tiktoken", "tekken.json", "tokenization_*.py"),
)
"""The tokenizer itself, in every form that programs read it in."""

TOKENIZER_FILES: Final = (*VOCABULARY_FILES, *TEMPLATE_FILES, *PROCESSOR_FILES)
"""Patterns of the files that belong to a model's tokenizer and processor."""

_TEMPLATE: Final = "chat template changed"


def original_files(source: str | None) -> dict[str, Path]:
    """Find the tokenizer's and the processor's files of a local folder or, without a request, of a hub id in the cache.

    Args:
        source: folder, hub id, or None.

    Returns:
        Path by name in the folder; empty where there are none on this machine (a GGUF file, a hub id not in the cache).

    Raises:
        UserError: one is a link that leads out of the folder.
    """
    folder = _folder_of(source)
    return {} if folder is None else _matching(folder, TOKENIZER_FILES)


def write_tokenizer(tokenizer: Any, source: str | None, folder: Path) -> list[str]:
    """Write the tokenizer into ``folder``, and the processor's files beside it.

    Args:
        tokenizer: as used in training.
        source: where it was loaded from.
        folder: existing folder to write to.

    Returns:
        Names of the files that are copies of the original ones; of a tokenizer that had to be saved anew, because it
        was changed or no original files exist, those of its parts that stayed the same.

    Raises:
        OSError: the folder cannot be written to.
        UserError: an original file is a link that leads out of its folder.
    """
    origin = _folder_of(source)
    originals = original_files(source)
    changed = ["no original files on this machine"]
    if origin is not None and _matching(origin, VOCABULARY_FILES):
        changed = _differences(tokenizer, origin)
    if changed:
        logger.info("Tokenizer saved anew (%s) instead of copied from %s.", " and ".join(changed), source)
        tokenizer.save_pretrained(folder)
        originals = {} if origin is None else _still_right(origin, folder, changed)
    for name, file in originals.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
    return sorted(originals)


def _still_right(origin: Path, folder: Path, changed: list[str]) -> dict[str, Path]:
    """Files that go with a tokenizer which was saved anew into ``folder``.

    With another chat template alone, these are also the other forms of the vocabulary.
    """
    patterns = (*PROCESSOR_FILES, *(VOCABULARY_FILES if changed == [_TEMPLATE] else ()))
    return {name: file for name, file in _matching(origin, patterns).items() if not (folder / name).exists()}


def named_templates(tokenizer: Any) -> dict[str, str]:
    """Every chat template of a tokenizer by its name; ``default`` is that of one with a single one."""
    template = tokenizer.chat_template or {}
    return dict(template) if isinstance(template, dict) else {"default": template}


def _differences(tokenizer: Any, folder: Path) -> list[str]:
    """What distinguishes the tokenizer from its original, in words; empty if nothing that is exported does."""
    from transformers import AutoTokenizer

    try:
        original = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        return [f"its files cannot be read again: {type(error).__name__}: {error}"]
    pairs = {
        _TEMPLATE: (named_templates(tokenizer), named_templates(original)),
        "vocabulary changed": (tokenizer.get_vocab(), original.get_vocab()),
        "special tokens changed": (_special_tokens(tokenizer), _special_tokens(original)),
        "rules changed": (_rules(tokenizer), _rules(original)),
    }
    return [what for what, (now, before) in pairs.items() if now != before]


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items()}


def _rules(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    rules: dict[str, Any] = json.loads(backend.to_str())
    # Calls that pad or truncate leave their settings in the backend; they are no part of the tokenizer.
    return {name: rule for name, rule in rules.items() if name not in {"padding", "truncation"}}


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder that match, by their names in it.

    Raises:
        UserError: one is a link that leads out of the folder: an export is for others to see.
    """
    found = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    # The hub's cache has links in its snapshots, to a folder beside these.
    inside = [folder.resolve(), *([folder.resolve().parents[1] / "blobs"] if folder.parent.name == "snapshots" else [])]
    for file in found:
        target = file.resolve()
        if not any(target.is_relative_to(place) for place in inside):
            raise UserError(
                f"{file} is a link to {target}, outside of the model's folder, and is not copied into an export. Put a "
                "copy of that file in its place, or set export.enabled=false."
            )
    return {file.relative_to(folder).as_posix(): file for file in found}


def _folder_of(source: str | None) -> Path | None:
    """A local folder, or the snapshot of a hub id in the cache."""
    if source is None:
        return None
    folder = Path(source).expanduser()
    if folder.exists():
        return folder if folder.is_dir() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("tokenizer_config.json", "tokenizer.json", "config.json"):
        try:
            file = try_to_load_from_cache(source, name)
        except HFValidationError:  # not a hub id: a folder that is gone
            return None
        if isinstance(file, str):
            return Path(file).parent
    return None
