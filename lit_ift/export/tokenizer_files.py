"""Write a tokenizer to an export: the original files byte for byte where it was not changed."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Final

logger = logging.getLogger("lit_ift")

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def original_files(source: str | None) -> dict[str, Path]:
    """Find the tokenizer files of a local folder or, without a request, of a hub id in the cache.

    Args:
        source: folder, hub id, or None.

    Returns:
        Path by file name; empty where there are none on this machine (a GGUF file, a hub id not in the cache).
    """
    if source is None:
        return {}
    folder = Path(source).expanduser()
    if folder.is_dir():
        return {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
    if folder.exists():
        return {}
    return _cached_files(source)


def write_tokenizer(tokenizer: Any, source: str | None, folder: Path) -> list[str]:
    """Write the tokenizer into ``folder``.

    Args:
        tokenizer: as used in training.
        source: where it was loaded from.
        folder: existing folder to write to.

    Returns:
        Names of the files that are copies of the original ones; empty if the tokenizer had to be saved anew
        because it was changed or no original files exist.

    Raises:
        OSError: the folder cannot be written to.
    """
    originals = original_files(source)
    reason = "no original files on this machine" if not originals else _difference(tokenizer, originals, source)
    if reason is not None:
        logger.info("Tokenizer saved anew (%s) instead of copied from %s.", reason, source)
        tokenizer.save_pretrained(folder)
        return []
    for name, file in originals.items():
        shutil.copyfile(file, folder / name)
    return sorted(originals)


def _difference(tokenizer: Any, originals: dict[str, Path], source: str | None) -> str | None:
    """What distinguishes the tokenizer from its original, in words; None if nothing that is exported does."""
    from transformers import AutoTokenizer

    folder = next(iter(originals.values())).parent
    try:
        original = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        return f"the files of {source} cannot be read again: {type(error).__name__}: {error}"
    pairs = {
        "chat template": (tokenizer.chat_template, original.chat_template),
        "vocabulary": (tokenizer.get_vocab(), original.get_vocab()),
        "special tokens": (_special_tokens(tokenizer), _special_tokens(original)),
        "rules": (_rules(tokenizer), _rules(original)),
    }
    changed = [name for name, (now, before) in pairs.items() if now != before]
    return f"{' and '.join(changed)} changed" if changed else None


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items()}


def _rules(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    rules: dict[str, Any] = json.loads(backend.to_str())
    # Calls that pad or truncate leave their settings in the backend; they are no part of the tokenizer.
    return {name: rule for name, rule in rules.items() if name not in {"padding", "truncation"}}


def _cached_files(hub_id: str) -> dict[str, Path]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    found: dict[str, Path] = {}
    for name in TOKENIZER_FILES:
        try:
            file = try_to_load_from_cache(hub_id, name)
        except HFValidationError:  # not a hub id: a folder that is gone
            return {}
        if isinstance(file, str):
            found[name] = Path(file)
    return found
