"""``lit-ift fit --resume``: find the checkpoint at which an earlier run of the same command ended."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from lit_ift.checkpoints.checksums import check_checksums
from lit_ift.checkpoints.run_folder import RUNS, Claims, holds_results, numbered
from lit_ift.checkpoints.writing import read_header
from lit_ift.errors import UserError

Resume = Literal["auto", "require", "never"]

MAY_DIFFER: Final = (
    "resume",
    "run_name",
    "ckpt_path",
    "weights_only",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.enable_progress_bar",
    "trainer.logger",
    "checkpoint.allow_changed_inputs",
    "data.init_args.num_workers",
)
"""Options in which two commands may differ and yet be the same: where it runs, how the run is looked for and shown."""


@dataclass(frozen=True)
class ResumePoint:
    """What to go on with.

    Attributes:
        checkpoint: file, or folder of shards.
        header: its content, without the tensors.
        notes: what was found and why, for the user.
    """

    checkpoint: Path
    header: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...]

    @property
    def run(self) -> str | None:
        """Name of the run's folder of metrics, if it had one."""
        folder = self.header.get("logged", {}).get("folder")
        return None if folder is None else Path(folder).name

    @property
    def next_logged_step(self) -> int:
        """The first step whose metrics the checkpoint does not know of."""
        return int(self.header["logged"]["next_step"])


def resume_point(
    mode: Resume,
    root: Path,
    *,
    config: Mapping[str, Any],
    run_name: str | None,
    dirpath: str | None,
    claims: Claims | None = None,
) -> tuple[ResumePoint | None, list[str]]:
    """Look for the newest whole checkpoint of the run that a command began before.

    It is looked for in `dirpath`, else in the folder of the run called `run_name`, else in the newest run whose
    configuration was the same.

    Args:
        mode: ``never`` looks for none, ``require`` insists on one.
        root: root of outputs.
        config: the composed configuration, as plain values.
        run_name: the run's name, if it has one.
        dirpath: folder of checkpoints, if one is configured.
        claims: given the folders that the run goes on in before they are looked through.

    Returns:
        The point, or None for a new run, and what was seen, a line each.

    Raises:
        UserError: none was found, but is required; another process is at work in the folder; or a new run would take
            the name of an earlier one.
    """
    notes: list[str] = []
    claims = claims or Claims()
    if run_name is not None and (run_name in ("", ".", "..") or Path(run_name).name != run_name):
        raise UserError(f"--run_name {run_name!r} must be the name of one folder, which is made in {root / RUNS}.")
    if run_name is not None:
        claims.claim(root / RUNS / run_name)
    if mode == "never":
        if run_name is not None and holds_results(root / RUNS / run_name):
            raise UserError(
                f"The run {root / RUNS / run_name} exists already. Continue it with --resume auto, or give another "
                "--run_name."
            )
        return None, notes
    found = None
    for folder in _folders(root, config, run_name, dirpath, notes, claims):
        found = newest_checkpoint(folder, notes)
        if found is not None:
            break
    if found is None:
        where = dirpath or (root / RUNS / run_name if run_name else f"{root / RUNS}/*")
        notes.append(f"No checkpoint to resume from in {where}.")
        if mode == "require":
            raise UserError("--resume require: " + "\n".join(notes))
        return None, notes
    path, header = found
    notes.append(f"Resuming from {path}, after optimizer step {header['global_step']}.")
    return ResumePoint(path, header, tuple(notes)), notes


def check_checkpoint(path: str, *, to_train: bool) -> None:
    """Make sure that what ``--ckpt_path`` names can be used, before anything is loaded.

    Args:
        path: file, or folder of shards.
        to_train: training is to go on from it, which takes more than weights.

    Raises:
        UserError: it is missing, no checkpoint, damaged, holds code, or has weights alone.
    """
    file = Path(path)
    if not file.exists():
        raise UserError(f"--ckpt_path {path}: no such file or folder (looked at {file.resolve()}).")
    if (file / "config.json").is_file() or (file / "adapter_config.json").is_file():
        raise UserError(
            f"--ckpt_path {path} is a model's folder, not a checkpoint of a run. To start from that model, set "
            "model.init_args.model."
        )
    header = read_header(file)
    check_checksums(file)
    if "lr_schedulers" not in header and to_train:
        raise UserError(
            f"--ckpt_path {path} has weights alone, so training cannot go on from it. Give a checkpoint of a run "
            "without checkpoint.save_weights_only, or make a model of it with `lit-ift export` and start from that."
        )


def newest_checkpoint(folder: Path, notes: list[str]) -> tuple[Path, dict[str, Any]] | None:
    """The whole checkpoint of the latest step in a folder, and its header; what is passed over goes to `notes`."""
    found: list[tuple[tuple[int, bool], Path, dict[str, Any]]] = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            header = read_header(path)
        except UserError as error:
            notes.append(f"Passed over: {error}")
            continue
        if "lr_schedulers" not in header:
            notes.append(f"Passed over: {path} has weights alone.")
        elif "logged" not in header:
            notes.append(f"Passed over: {path} is of another program, or of a run without RunCheckpoint.")
        elif header.get("accumulated_batches"):
            notes.append(f"Passed over: {path} was written inside an optimizer step.")
        else:
            found.append(((int(header["global_step"]), path.name.startswith("last")), path, header))
    for _, path, header in sorted(found, key=lambda one: one[0], reverse=True):
        try:
            check_checksums(path)  # All of it is read, so no more are than must be.
        except UserError as error:
            notes.append(f"Passed over: {error}")
        else:
            return path, header
    return None


def _folders(
    root: Path,
    config: Mapping[str, Any],
    run_name: str | None,
    dirpath: str | None,
    notes: list[str],
    claims: Claims,
) -> Iterator[Path]:
    """Where checkpoints may be, the likeliest first; a run's folder is claimed before it is looked through."""
    if dirpath is not None:
        yield Path(dirpath)
        return
    named = root / RUNS / run_name if run_name is not None else None
    runs = [named] if named is not None else [run for _, run in reversed(numbered(root / RUNS))]
    for run in runs:
        saved = _saved_configuration(run, notes)
        if saved is None and named is None:
            continue
        changed = differences(saved, config) if saved is not None else []
        if changed and named is None:
            notes.append(f"Passed over: {run} had another configuration ({'; '.join(changed)}).")
            continue
        notes += [f"The command line wins over what {run} had: {change}" for change in changed]
        claims.claim(run)
        yield run / "checkpoints"
        if named is None:  # Nothing was found in it.
            claims.drop(run)


def _saved_configuration(run: Path, notes: list[str]) -> Mapping[str, Any] | None:
    """The latest configuration in a run's folder; one that was being written when the run was killed is passed over."""
    for path in sorted(run.glob("config*.yaml"), key=_number, reverse=True):
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            values = None
            reason = str(error).splitlines()[0]
        else:
            reason = "it is not whole"
        if isinstance(values, Mapping):
            return values
        notes.append(f"Passed over: {path} cannot be read as a configuration: {reason}.")
    return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The options in which two configurations differ, ``data.seed: 0 -> 1``, but for those of `MAY_DIFFER`."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(f"{key}.".startswith(f"{name}.") for name in MAY_DIFFER)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _number(path: Path) -> int:
    """The last number in a name, as of ``version_3`` and ``config.1.yaml``; -1 for none."""
    found = re.findall(r"\d+", path.name)
    return int(found[-1]) if found else -1
