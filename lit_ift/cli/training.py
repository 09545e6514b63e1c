"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with this package's defaults."""

import errno
import re
import sys
from argparse import SUPPRESS, ArgumentError, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lightning as L
import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_ift.callbacks import (
    AnswerWriter,
    HuggingFaceExport,
    LossCurves,
    LostRanks,
    MetricEntry,
    RunCheckpoint,
    Samples,
    ValidationMetrics,
)
from lit_ift.callbacks.loggers import RunTable
from lit_ift.callbacks.progress import ParameterCount, ProgressLines, TextProgress
from lit_ift.checkpoints.resume import Resume, ResumePoint, check_checkpoint, resume_point
from lit_ift.checkpoints.run_folder import RUNS, Claims, unwritable_runs
from lit_ift.checkpoints.writing import why_not_writable
from lit_ift.cli.batch_limits import keep_whole_numbers
from lit_ift.cli.command import COMMANDS
from lit_ift.cli.explain import essence, explained, unknown_options
from lit_ift.cli.fsdp import fsdp2_instead
from lit_ift.cli.help import name_class_of_help
from lit_ift.cli.injected import CopyableArguments, NumberedSaveConfig
from lit_ift.cli.objects import BUILDERS, check_objects
from lit_ift.cli.quiet import quiet
from lit_ift.cli.tree import add_options, tree

# The data modules are imported for their names: a class_path may then be as short as `TasksDataModule`.
from lit_ift.data import FeedbackDataModule, InstructionDataModule, TasksDataModule  # noqa: F401
from lit_ift.distributed.processes import check_processes
from lit_ift.errors import UserError, did_you_mean, nearest, told_as
from lit_ift.modules import CausalLMModule

OUTPUT_ROOT = "checkpoints"
"""Where runs are written unless ``trainer.default_root_dir`` says otherwise."""

CALLBACKS: Final[dict[str, type[L.Callback]]] = {
    "checkpoint": RunCheckpoint,
    "curves": LossCurves,
    "samples": Samples,
    "export": HuggingFaceExport,
    "predictions": AnswerWriter,
    "lost_ranks": LostRanks,
}
"""Callbacks that every run has, by the name of their group of options."""

EXTENDS: Final = "recipes, or files beside this one, that are read before it; of files only"


METRICS_HELP: Final = (
    "metrics of torchmetrics for validation and test, by name, such as "
    "{perplexity: {on: logits, metric: torchmetrics.text.Perplexity}}; on is logits or answers"
)


@dataclass
class RunOptions:
    """How ``fit`` begins.

    Args:
        resume: go on where the same command was stopped: auto begins anew if there is nothing to go on with, require
            fails then, never always begins anew.
        run_name: folder of the run in <default_root_dir>/runs; version_<n> by default.
    """

    resume: Resume = "never"
    run_name: str | None = None


class LitIFTCLI(LightningCLI):
    """LightningCLI that is strict about keys, seeds runs, and adds the package's callbacks as flat groups."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with Claims() as self._claims:
            super().__init__(*args, **kwargs)

    @classmethod
    def run(cls) -> "LitIFTCLI":
        """Parse ``sys.argv`` and run its subcommand.

        Raises:
            argparse.ArgumentError: an option is unknown or has a wrong value.
            UserError: the configuration cannot be used.
        """
        with quiet():
            # Where an option takes any value, what looks like an object stays a value.
            set_parsing_settings(instantiate_subclass_spec_in_any=False)
            take_on_for_a_key()
            keep_whole_numbers()
            return cls(
                CausalLMModule,
                L.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=NumberedSaveConfig,
                seed_everything_default=42,
                trainer_defaults={"max_epochs": 1, "log_every_n_steps": 1},
                auto_configure_optimizers=False,
            )

    def setup_parser(self, *_: Any) -> None:
        """Make the options of the command that is called; Lightning would make those of all four, which takes time."""
        command = sys.argv[1]
        self._subcommand_method_arguments: dict[str, list[str]] = {}
        self._subcommand_parsers = {command: self._prepare_subcommand_parser(L.Trainer, command)}
        self.parser = tree(LightningArgumentParser, self._subcommand_parsers)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        take_paths_as_they_are(parser)
        for group, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, group)
        parser.add_argument("--metrics", type=dict[str, MetricEntry], default={}, help=METRICS_HELP)
        parser.add_argument("--tasks", type=dict[str, Any], default={}, help=SUPPRESS)  # As `samples` was called.
        parser.add_argument("--extends", type=list[str] | str | None, help=EXTENDS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        # Those files have been read, and what is saved holds all that they say.
        self.config[self.config.subcommand].pop("extends")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        usage, description = f"lit-ift {subcommand} --config FILE [options]", COMMANDS[subcommand].sentence
        parser = super()._prepare_subcommand_parser(klass, subcommand, usage=usage, description=description, **kwargs)
        if subcommand == "fit":
            add_options(parser, RunOptions)
        return parser

    def _add_instantiators(self) -> None:
        for key, kind in (("model", CausalLMModule), ("data", L.LightningDataModule)):
            self.parser.add_instantiator(CopyableArguments(cli=self, key=key), kind, subclasses=True)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: Lightning would let the checkpoint's hyperparameters overrule it."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if old := config.pop("tasks"):
            rank_zero_warn("The options tasks.* are now samples.*; the old name goes in the next release.")
            for name, value in old.items():
                config.samples[name] = value
        with told_as(ValueError, lambda error: UserError(f"The configuration cannot be used: {error}")):
            check_objects(config, self.parser)
            fsdp2 = fsdp2_instead(config.trainer.strategy, config.trainer.num_nodes)
        if fsdp2 is not None:
            rank_zero_info("trainer.strategy=fsdp runs FSDP2 (lit_ift.distributed.FSDP2Strategy).")
            config.trainer.strategy = fsdp2

    def instantiate_classes(self) -> None:
        self._resumed = self._resume_point() if self.subcommand == "fit" else None
        self._check_ckpt_path()
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            raise UserError(f"The configuration cannot be used: {essence(str(error))}") from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer", default={})
        if self._has_folder(config):
            kwargs["logger"] = [*self._own_loggers(config.get("default_root_dir")), *given_loggers(config["logger"])]
        given = config.get("callbacks") or []
        callbacks = list(given) if isinstance(given, list) else [given]
        if entries := self._get(self.config_init, "metrics"):
            callbacks.append(ValidationMetrics(entries))
        for option, kind, make in (
            ("enable_progress_bar", ProgressBar, TextProgress if sys.stdout.isatty() else ProgressLines),
            ("enable_model_summary", ModelSummary, ParameterCount),
        ):
            is_wanted = config.get(option) is not False and not config.get("barebones")
            if is_wanted and not any(isinstance(callback, kind) for callback in callbacks):
                callbacks.append(make())
        kwargs["callbacks"] = callbacks
        trainer = super().instantiate_trainer(**kwargs)
        check_processes(trainer)
        return trainer

    @staticmethod
    def _has_folder(trainer: Mapping[str, Any]) -> bool:
        """Whether the run has a folder of its own: not where all loggers are switched off, and in trial runs."""
        return trainer["logger"] not in (False, []) and not trainer.get("fast_dev_run")

    def _own_loggers(self, root: str | None) -> list[Logger]:
        """Those that write to the run's folder, which this process claims."""
        folder = Path(root or OUTPUT_ROOT) / RUNS
        if problem := why_not_writable(folder):
            raise unwritable_runs(folder, problem)
        resumed = self._resumed
        name = self._get(self.config_init, "run_name") if resumed is None else resumed.run
        if name is None:
            name = self._claims.claim_new(folder, "version" if self.subcommand == "fit" else str(self.subcommand))
        else:
            self._claims.claim(folder / name)
        # What a killed run logged after its checkpoint is logged again; all of it where it had none.
        return default_loggers(folder, name, first_step=0 if resumed is None else resumed.next_logged_step)

    def _resume_point(self) -> ResumePoint | None:
        """What ``--resume`` finds, and says so.

        Raises:
            UserError: it fits neither the other options nor what is there.
        """
        config = self.config[self.subcommand]
        mode: Resume = config["resume"]
        if mode != "never" and config.get("ckpt_path") is not None:
            raise UserError(
                f"--resume {mode} looks for a checkpoint, and --ckpt_path gives one. Leave one of them out."
            )
        if config.trainer.logger in (False, []):
            if config["run_name"] is not None:
                raise UserError(
                    "--run_name names the folder to which a run logs, and trainer.logger=false switches that off. "
                    "Leave one out."
                )
            if mode != "never" and config.checkpoint.dirpath is None:
                raise UserError(
                    f"--resume {mode} does not know where a run without loggers keeps its checkpoints. Set "
                    "checkpoint.dirpath."
                )
            if config.checkpoint.dirpath is not None:
                self._claims.claim(Path(config.checkpoint.dirpath))
        parser = self._parser(self.subcommand)
        found, notes = resume_point(
            mode,
            Path(config.trainer.default_root_dir or OUTPUT_ROOT),
            config=yaml.safe_load(parser.dump(config, skip_none=False)),
            run_name=config["run_name"],
            dirpath=None if config.checkpoint.dirpath is None else str(config.checkpoint.dirpath),
            claims=self._claims,
        )
        for note in notes:
            rank_zero_info(note)
        if mode != "never" and found is None:
            rank_zero_info("--resume auto: this run begins anew.")
        return found

    def _check_ckpt_path(self) -> None:
        """See `check_checkpoint`.

        Raises:
            UserError: the checkpoint cannot be used.
        """
        path = self._get(self.config, "ckpt_path")
        # Lightning has names for checkpoints, and reads from other machines; weights_only=False may run code.
        is_a_path = path is not None and str(path) not in ("best", "last", "hpc", "registry") and "://" not in str(path)
        if is_a_path and self._get(self.config, "weights_only") is not False:
            check_checkpoint(str(path), to_train=self.subcommand == "fit")

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            again = ", then start again with --resume auto" if subcommand == "fit" else ""
            raise UserError(f"{error}. Make room{again}.") from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("weights_only") is None:
            kwargs["weights_only"] = True  # A checkpoint is data; one that needs code to be restored is refused.
        if self._resumed is not None:
            kwargs["ckpt_path"] = str(self._resumed.checkpoint)
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RunCheckpoint):
                    callback.found = f"{self._resumed.checkpoint} of step {self._resumed.header['global_step']}"
        return kwargs


def run(words: Sequence[str]) -> int:
    """Run a command that has a Trainer, given from there on, and return 0.

    Raises:
        argparse.ArgumentError: an option is unknown or has a wrong value.
        UserError: the configuration, the data or the machine cannot be used.
    """
    # Lightning reads the command line again where it launches further processes.
    sys.argv = [sys.argv[0], *name_class_of_help(words)]
    with told_as(ArgumentError, lambda error: explained_for_trainer(error, words[0])):
        LitIFTCLI.run()
    return 0


def take_paths_as_they_are(parser: ArgumentParser) -> None:
    """Keep the parser from opening the files that the options of model and data name.

    For an option that may be a class or a dataclass, as ``data.train`` may be a `Source`, jsonargparse takes a path for
    that of a configuration, reads the file, and passes on what is in it: of a CSV file or a JSON list its rows.
    """
    for action in parser._actions:
        if action.dest in ("model", "data") and hasattr(action, "sub_add_kwargs"):
            action.sub_add_kwargs["sub_configs"] = False


def take_on_for_a_key() -> None:
    """Let the parser read a key ``on`` as it is written: in YAML 1.1 it stands for true, which is no key of ours."""
    load = get_loader("yaml")

    def written(value: Any) -> Any:
        if isinstance(value, list):
            return [written(item) for item in value]
        if isinstance(value, dict):
            return {"on" if key is True else key: written(item) for key, item in value.items()}
        return value

    set_loader("yaml", lambda text: written(load(text)), (yaml.YAMLError,))


def default_loggers(runs: Path, name: str | None, *, first_step: int = 0) -> list[Logger]:
    """CSV and TensorBoard in one folder of a run; left alone they would number it twice.

    Args:
        runs: folder of all runs.
        name: of the run's folder; None on ranks other than 0, which write nothing.
        first_step: first step that the run logs; what is there of later ones is dropped.
    """
    table = RunTable(save_dir=runs.parent, name=runs.name, version=name)
    version = table.version if isinstance(table.version, str) else f"version_{table.version}"
    return [table, TensorBoardLogger(save_dir=runs.parent, name=runs.name, version=version, purge_step=first_step)]


def given_loggers(value: Any) -> list[Logger]:
    """The loggers that a configuration names."""
    if value is None or value is True:
        return []
    return [value] if isinstance(value, Logger) else list(value)


def explained_for_trainer(error: ArgumentError, command: str) -> ArgumentError:
    """The error of a command that has a Trainer, with where an option of another name or of another class belongs."""

    def hints(message: str) -> list[str]:
        found = [_nearest_option(name) for name in unknown_options(message)]
        classes = set(re.findall(r"Expected a dot import path string: (\w+)", message))
        return [hint for hint in (*found, *map(_nearest_class, sorted(classes))) if hint]

    return explained(error, command, hints)


ELSEWHERE: Final = {
    "learning_rate": "model.init_args.optimizer.init_args.lr",
    "lr": "model.init_args.optimizer.init_args.lr",
    "weight_decay": "model.init_args.optimizer.init_args.weight_decay",
    "warmup_ratio": "model.init_args.lr_scheduler.init_args.warmup",
    "per_device_train_batch_size": "data.init_args.batch_size",
    "per_device_eval_batch_size": "data.init_args.eval_batch_size",
    "max_seq_length": "data.init_args.max_length",
    "num_train_epochs": "trainer.max_epochs",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_grad_norm": "trainer.gradient_clip_val",
    "output_dir": "trainer.default_root_dir",
}
"""Options under the names that other trainers have for them, and where they are here."""


def _nearest_option(name: str) -> str | None:
    """``Did you mean …?`` for an option that no class that has been imported knows; else the class that has it."""
    from inspect import signature

    sections: list[tuple[str, list[type]]] = [
        ("trainer", [L.Trainer]),
        ("model.init_args", _family(CausalLMModule)),
        ("data.init_args", _family(L.LightningDataModule)),
        *((group, [callback]) for group, callback in CALLBACKS.items()),
    ]
    owners: dict[str, list[str]] = {}
    for section, classes in sections:
        for cls in classes:
            for parameter in signature(cls).parameters:
                owners.setdefault(parameter, []).append(f"{cls.__name__} ({section})")
    known = {"trainer", "model", "data", "seed_everything", *CALLBACKS, *owners} - {"args", "kwargs"}
    last = name.split(".")[-1]
    if last in ELSEWHERE:
        return f"Did you mean '{ELSEWHERE[last]}' for '{last}'?"
    if last in owners:
        return f"'{last}' is an option of {', '.join(owners[last])}."
    if last in known:
        return None
    close = nearest(last, known)
    return f"Did you mean '{close}' for '{last}'?" if close else None


def _nearest_class(name: str) -> str | None:
    """``Did you mean …?`` for a module, data module, optimizer or scheduler that there is not."""
    parents = (CausalLMModule, L.LightningDataModule, *BUILDERS.values())
    hint = did_you_mean(name.split(".")[-1], {cls.__name__ for parent in parents for cls in _family(parent)})
    return f"There is no class '{name}'.{hint}" if hint else None


def _family(cls: type) -> list[type]:
    """A class and everything that derives from it, users' classes included."""
    children: list[type] = cls.__subclasses__()
    return [cls, *(member for child in children for member in _family(child))]
