"""Find the model that the user names: a run, an export, an adapter, a checkpoint, or a model of the hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_ift.checkpoints.run_folder import RUNS
from lit_ift.checkpoints.shards import SHARDS_INDEX, SHARDS_REST
from lit_ift.errors import UserError, did_you_mean
from lit_ift.export.run_facts import config_in, options_of, read_config

Kind = Literal["model", "adapter", "checkpoint"]


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is, and of what kind.

    Attributes:
        kind: a whole Hugging Face model (or GGUF file), an adapter's folder, or a checkpoint of a run.
        path: folder, file or hub id.
        run: folder of the run that it is from; None if it stands alone.
    """

    kind: Kind
    path: str
    run: Path | None = None

    @property
    def folder(self) -> Path:
        """The path as one."""
        return Path(self.path)

    def base(self) -> str | None:
        """What the card of a whole model, or the configuration of its run, names as the model that training began from.

        None if neither does.
        """
        named = _card(self.folder / "README.md").get("base_model") or options_of(self._config().get("model")).get(
            "model"
        )
        return named if isinstance(named, str) else None

    def chat_template(self) -> str | None:
        """What the configuration of the run names as chat template; None if it names none."""
        named = options_of(self._config().get("data")).get("chat_template")
        return named if isinstance(named, str) else None

    def _config(self) -> dict[str, Any]:
        file = None if self.run is None else config_in(self.run)
        return {} if file is None else read_config(file)


def find_model(named: str) -> ModelPlace:
    """Tell what the user names.

    Of a run's folder it is the newest of what it exported and its last checkpoint, else its best checkpoint.

    Args:
        named: folder of a run, of a model or of an adapter; checkpoint (``.ckpt`` file or folder of shards); GGUF file;
            or hub id of a whole model. A hub id is not looked up.

    Raises:
        UserError: there is nothing of the name, or it is none of these.
    """
    path = Path(named).expanduser()
    if not named.strip() or not path.exists():
        _check_may_be_of_hub(named, path)
        return ModelPlace("model", named)
    kind = _kind(path)
    if kind is not None:
        return ModelPlace(kind, str(path), _run_of(path))
    return _of_run(path)


def _kind(path: Path) -> Kind | None:
    if path.is_file():
        return "model" if path.suffix == ".gguf" else "checkpoint"
    if (path / "adapter_config.json").is_file():
        return "adapter"
    if (path / "config.json").is_file():
        return "model"
    return "checkpoint" if any((path / name).is_file() for name in (SHARDS_INDEX, SHARDS_REST)) else None


def _run_of(path: Path) -> Path | None:
    """The folder of the run that left a model or a checkpoint there."""
    folders = [path.resolve().parent, path.resolve().parent.parent]
    return next((folder for folder in folders if config_in(folder) is not None), None)


def _of_run(run: Path) -> ModelPlace:
    found: dict[Path, Kind] = {}
    for folder in run.glob("model*"):
        if folder.is_dir() and (kind := _kind(folder)) is not None:
            found[folder] = kind
    checkpoints = sorted((run / "checkpoints").glob("*.ckpt"))
    found |= dict.fromkeys((path for path in checkpoints if path.name.startswith("last")), "checkpoint")
    if not found:
        found |= dict.fromkeys(checkpoints, "checkpoint")
    if found:
        newest = max(found, key=lambda path: path.stat().st_mtime)
        return ModelPlace(found[newest], str(newest), run.resolve())
    if (run / RUNS).is_dir():
        run /= RUNS
    if runs := [folder for folder in run.iterdir() if folder.is_dir() and (folder / "checkpoints").is_dir()]:
        newest = max(runs, key=lambda path: path.stat().st_mtime)
        raise UserError(f"{run} is a folder of {len(runs)} runs. Name one of them, such as the newest: {newest}")
    gguf = next(iter(sorted(run.glob("*.gguf"))), None)
    remedy = f"Name the file: {gguf}" if gguf else "Name the folder of a `fit` run, an export or a checkpoint."
    raise UserError(f"{run}: the folder holds neither a model nor checkpoints. {remedy}")


def _check_may_be_of_hub(named: str, path: Path) -> None:
    """Refuse what is rather a path that does not exist: its folder is here."""
    is_path = named.startswith((".", "/", "~")) or named.endswith((".ckpt", ".gguf")) or named.count("/") > 1
    if not is_path and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", named) and not ("/" in named and path.parent.is_dir()):
        return
    hint = ""
    if path.parent.is_dir():
        near = did_you_mean(path.name, [other.name for other in path.parent.iterdir()])
        hint = near or f" In {path.parent} there are: {', '.join(sorted(p.name for p in path.parent.iterdir())[:10])}."
    raise UserError(f"Model '{named}': there is no such file or folder.{hint}")


def _card(file: Path) -> dict[str, Any]:
    """The front matter of a model card."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    found = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    try:
        values = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:  # A card is for people: what cannot be read of it says nothing.
        values = {}
    return values if isinstance(values, dict) else {}
