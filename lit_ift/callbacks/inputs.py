"""What a run is made from, its model's files and its rows: a run that goes on goes on with the same."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from lit_ift.checkpoints.writing import raise_together
from lit_ift.models.digest import file_digest, file_digests
from lit_ift.models.obtain import obtain_model
from lit_ift.models.source import ModelSource
from lit_ift.modules.base import CausalLMModule

Digests = dict[str, dict[str, str]]
"""A digest for each part of each input, as in ``{"model": {"config.json": "…"}, "train rows": {"rows": "…"}}``."""

KEY: Final = "inputs"
"""Where a checkpoint has them."""


class RunInputs:
    """The digests of a run's inputs, taken in the background, and compared with those of a checkpoint.

    Args:
        may_change: a checkpoint of other inputs is gone on from with a warning.
    """

    def __init__(self, may_change: bool = False) -> None:
        self.may_change = may_change
        self._found: Future[Digests] | None = None

    def forget(self) -> None:
        """Another fit may have others."""
        self._found = None

    def begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin to take the digests, on rank 0, once model and data are set up."""
        if self._found is None and trainer.is_global_zero:
            pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="digests")
            self._found = pool.submit(_digests, module, getattr(trainer, "datamodule", None))
            pool.shutdown(wait=False)

    def digests(self) -> Digests:
        """Those of this run; none on other ranks and before `begin`."""
        try:
            return {} if self._found is None else self._found.result()
        except OSError as error:  # No reason to lose a checkpoint.
            rank_zero_warn(f"{error}. Whoever goes on with this run will not hear whether its inputs are the same.")
            return {}

    def check(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Compare with the checkpoint that the run goes on from, if it says what it was made from.

        Raises:
            UserError: something is another one; raised on all ranks.
        """
        before, problem = checkpoint.get(KEY), None
        if trainer.is_global_zero and before:
            self.begin(trainer, module)
            changed = list(differences(before, self.digests()))
            if changed:
                problem = (
                    f"{trainer.ckpt_path} was written by a run with other inputs: {'; '.join(changed)} changed since. "
                    "What was trained until now and what comes would not be one run. Go on with the files of before, "
                    "or begin a new run."
                )
        if problem is not None and self.may_change:
            rank_zero_warn(f"{problem} It goes on, because checkpoint.allow_changed_inputs is set.")
            problem = None
        raise_together(problem and f"{problem} To go on all the same, set checkpoint.allow_changed_inputs to true.")


def differences(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """What differs of the inputs that both have: ``the model (config.json)``, ``the train rows``."""
    for name in sorted(before.keys() & now.keys()):
        then, found = before[name], now[name]
        parts = sorted(part for part in then.keys() | found.keys() if then.get(part) != found.get(part))
        if parts:
            yield f"the {name}" if parts == [name] else f"the {name} ({', '.join(parts)})"


def _digests(module: L.LightningModule, data: Any) -> Digests:
    found: Digests = {}
    for name, source in _models(module):
        if files := file_digests(source):
            found[name] = files
    for name, path in _files(module):
        found[name] = {name: file_digest(Path(path))}
    for split, dataset in getattr(data, "datasets", {}).items():
        if digest := getattr(dataset, "training_digest", None):
            name = f"{split} rows"
            found[name] = {name: str(digest)}
    return found


def _models(module: Any, prefix: str = "") -> Iterator[tuple[str, ModelSource]]:
    """Models that a module loads: its own, and those that it compares with."""
    if not prefix and isinstance(module, CausalLMModule) and module.model_source is not None:
        yield "model", module.model_source
    reference, weights = getattr(module, "reference", None), getattr(module, "token_weights", None)
    others = {
        "reference model": getattr(reference, "model", None),
        "positive model": getattr(getattr(weights, "positive", None), "model", None),
        "negative model": getattr(getattr(weights, "negative", None), "model", None),
    }
    for name, spec in others.items():
        if isinstance(spec, str):
            yield f"{name}{prefix}", obtain_model(spec)
    for name, part in _parts(module):
        yield from _models(part, f" of {name}")


def _files(module: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Other files that a module reads."""
    confidence = getattr(module, "confidence", "online")
    if isinstance(confidence, str) and confidence != "online":
        yield f"confidence of rows{prefix}", confidence
    for name, part in _parts(module):
        yield from _files(part, f" of {name}")


def _parts(module: Any) -> list[tuple[str, Any]]:
    parts = getattr(module, "parts", None)
    return list(parts.items()) if isinstance(parts, Mapping) else []
