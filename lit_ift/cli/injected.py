"""What a configuration hands to a run, in a form that can be copied and sent to other processes."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback, _InstantiatorFn
from lightning_utilities.core.enums import StrEnum

# Some of Lightning's arguments have such a default, as `Timer` does, and a configuration is saved with all defaults.
yaml.SafeDumper.add_multi_representer(StrEnum, lambda dumper, value: dumper.represent_str(value.value))


def copyable(value: Any) -> Any:
    """A ``partial`` of a class in place of jsonargparse's, which calls the class by way of a parser that has locks.

    Callbacks copy a module (weight averaging), and strategies send it to processes that they spawn: both copy its
    optimizer's and scheduler's callables too. Other values stay as they are.
    """
    if isinstance(value, partial) and len(value.args) == 2 and isinstance(value.args[1], type):
        return partial(value.args[1], **value.keywords)
    return value


class CopyableArguments(_InstantiatorFn):
    """Makes the model or the data module of a configuration from `copyable` arguments."""

    def __call__(self, class_type: Any, *args: Any, applied_instantiation_links: dict[str, Any], **kwargs: Any) -> Any:
        arguments = {name: copyable(value) for name, value in kwargs.items()}
        return super().__call__(class_type, *args, applied_instantiation_links=applied_instantiation_links, **arguments)


class NumberedSaveConfig(SaveConfigCallback):
    """Saves the composed configuration to the run's folder; a second one there becomes ``config.1.yaml``.

    It holds text alone: the parser cannot be sent to other processes.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        super().__init__(parser, config, **kwargs)
        self.text = parser.dump(config, skip_none=False)
        del self.parser, self.config

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # A broadcast: all ranks must ask.
        if self.already_saved or folder is None or not trainer.is_global_zero:
            return
        path, number = Path(folder) / self.config_filename, 0
        name = path
        path.parent.mkdir(parents=True, exist_ok=True)
        while path.exists():
            number += 1
            path = name.with_name(f"{name.stem}.{number}{name.suffix}")
        path.write_text(self.text, encoding="utf-8")
        self.config_filename = path.name
        self.already_saved = True
