"""The plan of a configuration: makes what ``fit`` makes, and collects what it refuses."""

import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_ift.cli.data_configuration import DataOnly
from lit_ift.cli.explain import essence
from lit_ift.cli.training import explained_for_trainer, take_paths_as_they_are
from lit_ift.data.modules.conversation import ConversationDataModule
from lit_ift.distributed import FSDP2Strategy
from lit_ift.distributed.strategy import check_strategy
from lit_ift.errors import UserError
from lit_ift.lightning_private import precision_name
from lit_ift.models.added_tokens import add_tokens
from lit_ift.models.source import ModelSource
from lit_ift.modules import CausalLMModule
from lit_ift.planning.hardware import DEVICES, Device, this_machine
from lit_ift.planning.plan import Plan, Run, make_plan
from lit_ift.planning.rows import planned_rows
from lit_ift.planning.source import NoTokenizer, source_with_config, tokenizer_or_stand_in
from lit_ift.recipes import with_files


class Parsed(DataOnly):
    """Parses what ``fit`` parses, and makes nothing."""

    def instantiate_classes(self) -> None:
        """Keep the configuration."""
        self.found = self.config["fit"]


def planned(words: Sequence[str], hardware: str, *, alternatives: bool = True) -> Plan:
    """The plan of a configuration.

    Args:
        words: options of ``fit``.
        hardware: name of a device, or ``here``.
        alternatives: look for ways that need less memory.

    Raises:
        argparse.ArgumentError: an option is unknown or has a wrong value.
        UserError: the model's configuration cannot be obtained.
    """
    return _Planner(parsed(with_files(words))).plan(hardware, alternatives=alternatives)


def parsed(words: Sequence[str]) -> Namespace:
    """The configuration, with all defaults."""
    argv = sys.argv
    sys.argv = [argv[0], "fit", *words]
    try:
        config: Namespace = vars(Parsed.run())["found"]
        return config
    except ArgumentError as error:
        raise explained_for_trainer(error, "fit") from error
    finally:
        sys.argv = argv


class _Planner:
    def __init__(self, config: Namespace) -> None:
        self.config = config
        self.conflicts: list[str] = []

    def plan(self, hardware: str, *, alternatives: bool) -> Plan:
        """Conflicts alone if there are any."""
        module = self._made("model", lambda: self.module({}))
        data = self._made("data", lambda: self._instance(L.LightningDataModule, "data", self.config.data))
        trainer = self._made("trainer", self._trainer)
        run = None if trainer is None else run_of(trainer, self.config.trainer)
        if module is not None and run is not None:
            self._made("trainer.strategy", lambda: module.check_sharded(run.shards > 1))
        if module is None or data is None or run is None or self.conflicts:
            return Plan(self.conflicts)
        if not isinstance(data, ConversationDataModule):
            raise UserError(f"data: of {type(data).__name__} nothing is known. Plan with a ConversationDataModule.")
        source = source_with_config(
            module.model_spec, revision=module.revision, trust_remote_code=module.trust_remote_code
        )
        self._give_tokenizer(data, module, source)
        rows = self._made(
            "data", lambda: planned_rows(data, module, tokenizes=not isinstance(data.tokenizer_source, NoTokenizer))
        )
        if rows is None:
            return Plan(self.conflicts)
        device = self._device(hardware, source)
        found = self._made(
            "model", lambda: make_plan(self.module, source, data, rows, run, device, alternatives=alternatives)
        )
        return Plan(self.conflicts) if found is None else found

    def module(self, changes: Mapping[str, Any]) -> CausalLMModule:
        """The module of the configuration, with some of its options changed."""
        config = self.config.model.clone() if isinstance(self.config.model, Namespace) else self.config.model
        for name, value in changes.items():
            config[f"init_args.{name}"] = value
        module: CausalLMModule = self._instance(CausalLMModule, "model", config)
        return module

    def _made(self, option: str, make: Any) -> Any:
        """What a function makes; None where it refuses, which is kept."""
        try:
            return make()
        except (UserError, ValueError, MisconfigurationException) as error:
            self.conflicts.append(f"{option}: {essence(str(error))}")
            return None

    @staticmethod
    def _instance(kind: type, key: str, config: Any) -> Any:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(kind, key)
        take_paths_as_they_are(parser)
        return parser.instantiate_classes(parser.parse_object({key: config}))[key]

    def _trainer(self) -> L.Trainer:
        """The Trainer of the configuration, moved to this machine's CPU, for the planned GPUs may be elsewhere."""
        config = self.config.trainer.clone()
        ranks = _devices(config.devices)
        changes = {"accelerator": "cpu", "devices": ranks, "logger": False, "callbacks": None, "plugins": None}
        changes |= dict.fromkeys(("enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
        for name, value in changes.items():
            config[name] = value
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(L.Trainer, "trainer")
        trainer: L.Trainer = parser.instantiate_classes(parser.parse_object({"trainer": config})).trainer
        check_strategy(trainer)
        return trainer

    def _give_tokenizer(self, data: ConversationDataModule, module: CausalLMModule, source: ModelSource) -> None:
        given = data.tokenizer_source
        if given is not None and not isinstance(given, str):
            return
        spec = given or module.tokenizer_spec or module.model_spec
        own = source if spec == module.model_spec else None
        tokenizer = tokenizer_or_stand_in(spec, own, trust_remote_code=module.trust_remote_code)
        if isinstance(tokenizer, NoTokenizer):
            data._tokenizer = tokenizer
        else:
            add_tokens(tokenizer, module.added_tokens)
        data.tokenizer_source = tokenizer

    @staticmethod
    def _device(hardware: str, source: ModelSource) -> Device:
        return this_machine(source.config.get_text_config().hidden_size) if hardware == "here" else DEVICES[hardware]


def run_of(trainer: L.Trainer, config: Namespace) -> Run:
    """What a Trainer says that matters for a plan."""
    strategy, ranks = trainer.strategy, trainer.num_devices * trainer.num_nodes
    shards = ranks // strategy.replicas if isinstance(strategy, FSDP2Strategy) else 1
    return Run(
        precision=precision_name(config.precision),
        ranks=ranks,
        shards=shards,
        gathers_once=isinstance(strategy, FSDP2Strategy) and not strategy.reshard_after_forward,
        offloads=isinstance(strategy, FSDP2Strategy) and strategy.offload,
        accumulate=trainer.accumulate_grad_batches,
        epochs=None if trainer.max_epochs in (None, -1) else trainer.max_epochs,
        steps=None if trainer.max_steps == -1 else trainer.max_steps,
        batches=trainer.limit_train_batches,
    )


def _devices(devices: Any) -> int:
    """Processes of a node."""
    if isinstance(devices, int):
        return max(1, devices)
    if isinstance(devices, str) and devices.isdecimal():
        return int(devices)
    if isinstance(devices, list | tuple):
        return len(devices)
    return len(str(devices).split(",")) if "," in str(devices) else 1
