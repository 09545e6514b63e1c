"""Old names of moved modules keep working for one release, with a warning that gives the new name."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

MODULES: Final = {
    "lit_ift.generate": "lit_ift.modules.generate",
    "lit_ift.lake": "lit_ift.frozen_lake",
    "lit_ift.loggers": "lit_ift.callbacks.loggers",
    "lit_ift.optim": "lit_ift.modules.optim",
    "lit_ift.resume": "lit_ift.checkpoints.resume",
    "lit_ift.strategies": "lit_ift.distributed",
    "lit_ift.strategies.fsdp": "lit_ift.distributed.strategy",
    "lit_ift.callbacks.answers": "lit_ift.callbacks.samples",
    "lit_ift.callbacks.half": "lit_ift.callbacks.half_fine_tuning",
    "lit_ift.callbacks.random_state": "lit_ift.checkpoints.random_state",
    "lit_ift.data.chat": "lit_ift.chat.encoder",
    "lit_ift.data.datamodule": "lit_ift.data.modules.conversation",
    "lit_ift.data.feedback": "lit_ift.data.modules.feedback",
    "lit_ift.data.instruction": "lit_ift.data.modules.instruction",
    "lit_ift.data.layouts": "lit_ift.data.parse.row_parser",
    "lit_ift.data.messages": "lit_ift.data.parse.messages",
    "lit_ift.data.records": "lit_ift.data.read.readers",
    "lit_ift.data.read.records": "lit_ift.data.read.readers",
    "lit_ift.data.sources": "lit_ift.data.read.sources",
    "lit_ift.data.tasks": "lit_ift.data.modules.tasks",
    "lit_ift.data.verifiable": "lit_ift.data.modules.verifiable",
    "lit_ift.losses.ada_dpo": "lit_ift.losses.pair.reference",
    "lit_ift.losses.aot": "lit_ift.losses.pair.in_batch",
    "lit_ift.losses.apo": "lit_ift.losses.pair.absolute",
    "lit_ift.losses.asft": "lit_ift.losses.pair.reference_free",
    "lit_ift.losses.cpo": "lit_ift.losses.pair.reference_free",
    "lit_ift.losses.dpo": "lit_ift.losses.pair.reference",
    "lit_ift.losses.exo": "lit_ift.losses.pair.reference",
    "lit_ift.losses.f_divergence": "lit_ift.losses.pair.reference",
    "lit_ift.losses.hinge": "lit_ift.losses.pair.reference",
    "lit_ift.losses.ipo": "lit_ift.losses.pair.reference",
    "lit_ift.losses.margins": "lit_ift.losses.pair.arithmetic",
    "lit_ift.losses.nca": "lit_ift.losses.pair.absolute",
    "lit_ift.losses.orpo": "lit_ift.losses.pair.reference_free",
    "lit_ift.losses.robust_dpo": "lit_ift.losses.pair.reference",
    "lit_ift.losses.rpo": "lit_ift.losses.pair.in_batch",
    "lit_ift.losses.simpo": "lit_ift.losses.pair.reference_free",
    "lit_ift.losses.soft_labels": "lit_ift.losses.pair.soft_labels",
    "lit_ift.losses.sppo": "lit_ift.losses.pair.absolute",
    "lit_ift.losses.tdpo": "lit_ift.losses.pair.by_token",
    "lit_ift.losses.tis_dpo": "lit_ift.losses.pair.by_token",
    "lit_ift.losses.tpo": "lit_ift.losses.pair.reference_free",
    "lit_ift.models.adapter": "lit_ift.models.lora",
    "lit_ift.models.export": "lit_ift.export.write",
    "lit_ift.models.merge": "lit_ift.export.merge",
    "lit_ift.models.verify": "lit_ift.export.verify",
}

NAMES: Final = {
    "lit_ift.data.Conversation": "lit_ift.chat",
    "lit_ift.data.ConversationEncoder": "lit_ift.chat",
    "lit_ift.data.Example": "lit_ift.chat",
    "lit_ift.data.Message": "lit_ift.chat",
    "lit_ift.data.resolve_chat_template": "lit_ift.chat",
    "lit_ift.models.ExportMetadata": "lit_ift.export",
    "lit_ift.models.export_model": "lit_ift.export",
    "lit_ift.models.verify_export": "lit_ift.export",
}


class MovedModules(MetaPathFinder, Loader):
    """Imports the module of the new name where an old one is asked for."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the new module under the old name; the import system then returns that one."""
        _warn(module.__name__, MODULES[module.__name__])
        sys.modules[module.__name__] = importlib.import_module(MODULES[module.__name__])


def moved_name(package: str, name: str) -> Any:
    """What `package` offered as `name` in the last release.

    Raises:
        AttributeError: it offered no such name.
    """
    old = f"{package}.{name}"
    if old not in NAMES:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    _warn(old, f"{NAMES[old]}.{name}")
    return getattr(importlib.import_module(NAMES[old]), name)


def _warn(old: str, new: str) -> None:
    # FutureWarning, because Python hides DeprecationWarning from users of the command line.
    warnings.warn(f"{old} is now {new}; the old name goes in the next release.", FutureWarning, stacklevel=3)


sys.meta_path.insert(0, MovedModules())
