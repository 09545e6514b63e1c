"""Ask the Hugging Face hub for a whole model, and give up within seconds where it does not answer."""

import json
import logging
import os
from pathlib import Path
from typing import Final

from lit_ift.errors import UserError

logger = logging.getLogger("lit_ift")

HUB_TIMEOUT_S: Final = 10.0

# The folders inside a model repository hold other formats of the same weights (ONNX and the like).
_SUBFOLDERS: Final = ["*/*"]
_OTHER_FORMATS: Final = ["*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf"]


def is_offline() -> bool:
    """Whether the user asked for no request to the hub (``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``)."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").strip().upper() in {"1", "ON", "YES", "TRUE"} for name in names)


def fetch_snapshot(hub_id: str, revision: str | None, offline: bool) -> Path:
    """Return the local snapshot of a safetensors model, downloading what is missing unless offline.

    A snapshot that is already in the Hugging Face cache serves where the hub does not answer.

    Args:
        hub_id: of the model.
        revision: branch, tag or commit; None for the default branch.
        offline: use the cache only.

    Returns:
        The snapshot folder in the Hugging Face cache.

    Raises:
        UserError: the snapshot is incomplete.
        Exception: whatever the hub client raises: connection errors of its HTTP client, hub errors, OSError.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        cached = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except FileNotFoundError:
        cached = None
    if cached is not None and _is_complete(cached):
        return cached
    if not offline:
        # snapshot_download has no timeout for its first request and waits for ever on a host that
        # accepts connections and stays silent, so ask with a timeout first. This also pins the commit.
        commit = HfApi().model_info(hub_id, revision=revision, timeout=HUB_TIMEOUT_S).sha
        cached = Path(
            snapshot_download(
                hub_id,
                revision=commit,
                etag_timeout=HUB_TIMEOUT_S,
                ignore_patterns=[*_SUBFOLDERS, *_OTHER_FORMATS],
            )
        )
    if cached is None:
        raise UserError("HF_HUB_OFFLINE is set and the Hugging Face cache holds no snapshot")
    if not _is_complete(cached):
        raise UserError(f"the snapshot {cached} in the Hugging Face cache is incomplete")
    return cached


def must_use_cache(hub_id: str, revision: str | None) -> bool:
    """Ask the hub once, with a timeout, whether a model is to be loaded from it or from the cache alone.

    ``from_pretrained`` retries every file for 24 s where the hub cannot be reached, even for a model in the
    cache; after this question it need not.

    Args:
        hub_id: of the model.
        revision: branch, tag or commit; None for the default branch.

    Returns:
        True to load with ``local_files_only``: offline, or the hub does not answer and the model is cached
        (announced as a warning).

    Raises:
        Exception: the repository or revision does not exist, or the hub does not answer and nothing is
            cached; an error of the hub client or its HTTP client.
    """
    if is_offline():
        return True
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

    definite = (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    try:
        HfApi().model_info(hub_id, revision=revision, timeout=HUB_TIMEOUT_S)
    except definite:
        raise
    except errors.HfHubHTTPError:
        return False  # it answers; a mirror may lack this request, so let the download itself decide
    except Exception as error:  # of the HTTP library that the hub client is built on
        if not isinstance(try_to_load_from_cache(hub_id, "config.json", revision=revision), str):
            raise
        logger.warning("The Hugging Face hub does not answer (%s); using the cached copy of %s.", error, hub_id)
        return True
    return False


def _is_complete(snapshot: Path) -> bool:
    index = snapshot / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    names = {"config.json", "tokenizer_config.json", *shards}
    return all((snapshot / name).is_file() for name in names)
