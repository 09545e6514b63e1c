"""What this package uses of Lightning that Lightning does not promise to keep; all of it is named here.

`READ` is used by the functions below, and nowhere else. `INHERITED` is used where this package derives from Lightning's
classes. A test looks for each of them, and for others in the package.
"""

import signal
from collections.abc import Callable
from typing import Any, Final

import lightning as L
from lightning.fabric.connector import _convert_precision_to_unified_args
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

READ: Final[dict[str, tuple[str, ...]]] = {
    "lightning.pytorch.trainer.trainer.Trainer": (
        *("_checkpoint_connector", "_logger_connector", "_results", "_signal_connector"),
    ),
    "lightning.pytorch.trainer.connectors.checkpoint_connector._CheckpointConnector": ("dump_checkpoint",),
    "lightning.pytorch.trainer.connectors.logger_connector.logger_connector._LoggerConnector": (
        *("should_update_logs", "metrics"),
    ),
    "lightning.pytorch.trainer.connectors.signal_connector._SignalConnector": ("_sigterm_notifier_fn",),
    "lightning.pytorch.trainer.connectors.logger_connector.result._ResultCollection": ("reset",),
    "lightning.pytorch.loops.fit_loop._FitLoop": ("_should_accumulate", "_data_fetcher", "epoch_loop"),
    "lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop": (
        *("_batches_that_stepped", "_num_ready_batches_reached", "_should_check_val_fx", "batch_progress", "val_loop"),
    ),
    "lightning.pytorch.strategies.model_parallel.ModelParallelStrategy": ("_save_distributed_checkpoint",),
    "lightning.pytorch.strategies.launchers.subprocess_script._SubprocessScriptLauncher": ("kill",),
    "lightning.pytorch.core.module.LightningModule": ("_current_fx_name",),
    "lightning.fabric.connector._convert_precision_to_unified_args": (),
}
"""Members that the functions of this file use, by their class."""

INHERITED: Final[dict[str, tuple[str, ...]]] = {
    "lightning.pytorch.core.module.LightningModule": ("_trainer", "_device"),
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint": (
        *("_enable_version_counter", "_every_n_train_steps", "_generate_state_key", "_last_checkpoint_saved"),
        *("_last_global_step_saved", "_monitor_candidates", "_remove_checkpoint", "_save_checkpoint"),
        *("_save_last_checkpoint", "_save_topk_checkpoint"),
    ),
    "lightning.pytorch.loggers.csv_logs.CSVLogger": ("_experiment",),
    "lightning.fabric.loggers.csv_logs._ExperimentWriter": ("_check_log_dir_exists",),
    "lightning.pytorch.strategies.model_parallel.ModelParallelStrategy": (
        *("_data_parallel_size", "_process_group_backend"),
    ),
    "lightning.pytorch.cli.LightningCLI": (
        *("_get", "_parse_ckpt_path", "_parser", "_prepare_subcommand_kwargs", "_prepare_subcommand_parser"),
        *("_run_subcommand", "_subcommand_method_arguments", "_subcommand_parsers"),
    ),
    "lightning.pytorch.cli._InstantiatorFn": ("__call__",),
}
"""Members that classes of this package override, or use of themselves, by the class that they derive from."""


def precision_name(precision: Any) -> str:
    """A Trainer's option ``precision`` as it is called in full: 32-true for 32 or None."""
    return _convert_precision_to_unified_args(precision) or "32-true"


def is_accumulating(trainer: L.Trainer) -> bool:
    """Whether the batch that was just trained on does not end an optimizer step."""
    return bool(trainer.fit_loop._should_accumulate())


def validation_or_epoch_end_follows(trainer: L.Trainer) -> bool:
    """At the end of a training batch: whether a validation, or the end of the epoch, comes before the next one."""
    fetcher, epoch = trainer.fit_loop._data_fetcher, trainer.fit_loop.epoch_loop
    assert fetcher is not None
    return bool(epoch._should_check_val_fx(fetcher) or epoch._num_ready_batches_reached())


def logged_steps(trainer: L.Trainer) -> int:
    """Optimizer steps as loggers count them."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def not_yet_logged(trainer: L.Trainer) -> dict[str, float]:
    """Metrics of the optimizer step that was just taken, if Lightning is yet to log them."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    connector = trainer._logger_connector
    if progress.processed == progress.completed or not trainer.training or not connector.should_update_logs:
        return {}
    metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
    return metrics and {**metrics, "epoch": trainer.current_epoch}


def metrics_of_this_step(trainer: L.Trainer) -> Any:
    """Those that the latest batch logged for callbacks; ``callback_metrics`` has what earlier ones logged as well."""
    return trainer._logger_connector.metrics["callback"]


def forget_logged(module: L.LightningModule) -> None:
    """Drop what the hook that runs now has logged before, so that it is not logged once more."""
    results = module.trainer._results
    if results is not None:
        results.reset(fx=module._current_fx_name)


def dump_checkpoint(trainer: L.Trainer, *, weights_only: bool) -> dict[str, Any]:
    """A checkpoint of the run as it is now."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only)


def writes_shards(strategy: Strategy) -> bool:
    """Whether a strategy's checkpoints are folders, to which every rank adds its part."""
    return isinstance(strategy, ModelParallelStrategy) and bool(strategy._save_distributed_checkpoint)


def handle_sigterm(trainer: L.Trainer, handler: Callable[[int, Any], None] | None) -> None:
    """Have the Trainer register another handler of SIGTERM than its own; None for its own again.

    It does so after all set-up, and puts back in the end what was there before it began.
    """
    if handler is None:
        vars(trainer._signal_connector).pop("_sigterm_notifier_fn", None)
    else:
        trainer._signal_connector._sigterm_notifier_fn = handler  # type: ignore[method-assign, assignment]


def signal_launched(launcher: Any, number: signal.Signals) -> None:
    """Send a signal to the processes that this one has launched, if it has."""
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(number)
