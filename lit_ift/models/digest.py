"""Digests of the files that a model is loaded from."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lit_ift.models.source import ModelSource

FILES: Final = ("*.safetensors", "*.bin", "*.gguf", "config.json", "adapter_config.json", "*.py")
"""Files of a model's folder that decide what it computes."""


def file_digests(source: ModelSource) -> dict[str, str]:
    """SHA-256 of each file that decides what a model computes, by name.

    Returns:
        Nothing for a model of the hub that is not in its cache.

    Raises:
        OSError: a file cannot be read.
    """
    if source.gguf_file is not None:
        return {source.gguf_file: file_digest(Path(source.path) / source.gguf_file)}
    folder = Path(source.path) if source.is_local else _in_cache(source.path, source.revision)
    return {} if folder is None else {path.name: file_digest(path) for path in _files(folder)}


def _in_cache(hub_id: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _files(folder: Path) -> Iterator[Path]:
    found = {pattern: sorted(folder.glob(pattern)) for pattern in FILES}
    if found["*.safetensors"]:
        found["*.bin"] = []  # Another form of the same weights, which is not read.
    for paths in found.values():
        yield from paths


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name  # The hub's cache names large files by their digest.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
