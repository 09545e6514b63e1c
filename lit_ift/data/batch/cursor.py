"""Where in the training rows a run is, so that a resumed one goes on with the very next batch."""

import warnings
from typing import Any, Final, NamedTuple, cast

import lightning as L
from torch.utils.data import DataLoader

from lit_ift.data.batch.sampler import LengthGroupedBatchSampler
from lit_ift.errors import UserError

ORDER_OPTIONS: Final = {
    "world_size": "number of processes",
    "batch_size": "data.batch_size",
    "accumulate": "trainer.accumulate_grad_batches",
    "tokens_per_batch": "data.tokens_per_batch",
    "packing": "data.packing",
    "pad_to_multiple_of": "data.pad_to_multiple_of",
    "seed": "data.seed or data.order_seed",
    "group_by_length": "data.group_by_length",
    "weights": "weights of the sources",
    "parts": "data.interleave_parts or model.schedule (checksum of the rows' parts)",
    "rows": "number of training rows",
    "lengths": "checksum of the lengths of the training rows",
}
"""What a checkpoint says of the order of the training rows, with its name for messages."""


class Position(NamedTuple):
    """Where the current epoch, or its rest, began.

    Args:
        epoch: which order the rows are in.
        done: batches of a rank that an earlier run took of that epoch.
        total: batches of a rank that were trained on until then, over all epochs and runs.
    """

    epoch: int
    done: int
    total: int


class TrainingCursor:
    """Tells the sampler of the training rows which epoch comes next and where in it to begin.

    Args:
        data_module: the one whose rows they are; it knows the trainer.
    """

    def __init__(self, data_module: L.LightningDataModule) -> None:
        self._data_module = data_module
        self._loader: DataLoader[Any] | None = None
        self._resumed: dict[str, Any] | None = None
        self._position: Position | None = None

    @property
    def _trainer(self) -> L.Trainer | None:
        return self._data_module.trainer

    def clear(self) -> None:
        """Forget what another run was resumed from."""
        self._loader = self._resumed = self._position = None

    def prepare(self, sampler: LengthGroupedBatchSampler) -> None:
        """Let the sampler begin where the run is, and ask here for the epoch from then on.

        Raises:
            UserError: the run was resumed inside an epoch, and the training rows now come in another order.
        """
        if self._trainer is not None:
            sampler.epoch_of = self._begin_epoch
        # Lightning sets the epoch only after it made the iterator, and worker processes prefetch at once.
        self._begin_epoch()
        self._seek(sampler)

    def follow(self, loader: DataLoader[Any]) -> None:
        """Take `loader` for the one that is trained on."""
        self._loader = loader

    def state_dict(self) -> dict[str, Any]:
        """Plain values; empty if no run is under way."""
        trainer = self._trainer
        if trainer is None or self._loader is None or self._position is None:
            return {}
        epoch, done, origin = self._position
        total = self._batches_trained()
        done += total - origin
        if done >= trainer.num_training_batches:
            epoch, done = epoch + 1, 0
        return {"epoch": epoch, "batches_done": done, "batches_total": total, **self._sampler().order_options}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the run was that wrote `state_dict`.

        Raises:
            UserError: it was inside an epoch, and the training rows now come in another order.
        """
        trainer = self._trainer
        if trainer is not None and trainer.state.fn != "fit":
            return
        self._resumed = dict(state_dict)
        self._position = Position(state_dict["epoch"], state_dict["batches_done"], state_dict["batches_total"])
        if self._position.done:
            # Lightning looks for a position in the loader, and would warn that there is none.
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
        if self._loader is not None:
            self._seek(self._sampler())
            if self._loader.num_workers > 0:
                # Its workers have begun with the first batches already; a new iterator makes them drop these.
                iter(self._loader)

    def _begin_epoch(self, counted: int | None = None) -> int:
        """The epoch whose order comes next. Lightning's own count is off after it was resumed.

        It counts an epoch without any batch after a checkpoint of a finished run, and a whole one for an epoch that
        max_steps ended early.
        """
        total = self._batches_trained()
        self._begin_what_was_only_announced()
        if self._position is None:
            trainer = self._trainer
            progress = None if trainer is None else trainer.fit_loop.epoch_progress.current
            self._position = Position(0 if progress is None else progress.processed, 0, total)  # type: ignore[attr-defined]
        elif total > self._position.total:
            self._position = Position(self._position.epoch + 1, 0, total)
        return self._position.epoch

    def _begin_what_was_only_announced(self) -> None:
        """Have Lightning train an epoch of which the checkpoint, written in on_train_epoch_start, saw no batch.

        It restores the batches of the epoch before, and would take the new one for done.
        """
        if self._trainer is not None and self._trainer.fit_loop.restarted_on_epoch_start:
            epoch = self._trainer.fit_loop.epoch_loop
            epoch.restarting = False
            epoch.reset_restart_stage()

    def _seek(self, sampler: LengthGroupedBatchSampler) -> None:
        assert self._position is not None
        epoch, done, _ = self._position
        if done and self._resumed is not None:
            # A checkpoint from before an option existed was written without it.
            now = sampler.order_options
            then = {key: self._resumed.get(key) for key in now}
            shared = _global_batch(now) is not None and _global_batch(now) == _global_batch(then)
            changed = [
                f"{name} {then[key]} (now {now[key]})"
                for key, name in ORDER_OPTIONS.items()
                if then[key] != now[key] and not (shared and key in ("world_size", "batch_size"))
            ]
            if changed:
                raise UserError(
                    f"The checkpoint was written inside epoch {epoch}, after {done} batches of a run with "
                    f"{', '.join(changed)}. The rest of that epoch cannot be told under other values: resume with the "
                    "same ones, or from a checkpoint written at the end of an epoch. Another number of processes will "
                    "do where data.batch_size times that number stays the same."
                )
        sampler.resume(epoch=epoch, start=done)

    def _sampler(self) -> LengthGroupedBatchSampler:
        assert self._loader is not None
        return cast(LengthGroupedBatchSampler, self._loader.sampler)

    def _batches_trained(self) -> int:
        """Batches of this rank that the run has trained on, those before it was resumed included."""
        trainer = self._trainer
        if trainer is None:
            return 0
        # `completed` is one behind in the hooks in which checkpoints are written.
        return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]


def _global_batch(options: dict[str, Any]) -> int | None:
    """Rows a batch over all processes, on which alone the order hangs; None where batches are cut by tokens."""
    rows, processes = options["batch_size"], options["world_size"]
    return None if rows is None or processes is None else int(rows) * int(processes)
