"""What is known of the run that wrote a checkpoint."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_ift.chat.templates import is_built_in_template, resolve_chat_template, with_bos
from lit_ift.checkpoints.weights import CheckpointWeights
from lit_ift.errors import UserError
from lit_ift.models.added_tokens import add_tokens
from lit_ift.models.load import load_tokenizer
from lit_ift.models.source import ModelSource


@dataclass(frozen=True)
class RunFacts:
    """What a checkpoint, and the configuration of its run, say of model and data.

    Attributes:
        module: options of the module.
        data: options of the data module.
        module_class: name of the module's class; None if nobody knows.
        config: the whole configuration.
        folder: of the run's logs.
        header: of the checkpoint.
    """

    module: Mapping[str, Any]
    data: Mapping[str, Any]
    module_class: str | None
    config: Mapping[str, Any] = field(repr=False)
    folder: Path | None
    header: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, checkpoint: CheckpointWeights, config: Path | None = None) -> "RunFacts":
        """Those of a checkpoint.

        Args:
            checkpoint: it names the options of module and data, if they are plain values.
            config: of the run; what it says wins. By default the ``config.yaml`` beside the checkpoint's folder, or
                else in the folder of its logs, which only says what the checkpoint does not.

        Raises:
            UserError: ``config`` cannot be read.
        """
        header = checkpoint.header
        logged = (header.get("logged") or {}).get("folder")
        folders = [checkpoint.path.resolve().parent.parent, *([Path(logged)] if logged else [])]
        found = next((file for folder in folders if (file := config_in(folder)) is not None), None)
        file = config or found
        values = {} if file is None else read_config(file)
        of_module, of_data = (options_of(values.get(name)) for name in ("model", "data"))
        saved = dict(header.get("hyper_parameters") or {}), dict(header.get("datamodule_hyper_parameters") or {})
        class_path = (values.get("model") or {}).get("class_path") or saved[0].get("_class_path")
        return cls(
            module={**saved[0], **of_module} if config else {**of_module, **saved[0]},
            data={**saved[1], **of_data} if config else {**of_data, **saved[1]},
            module_class=None if class_path is None else str(class_path).rpartition(".")[2],
            config=values or {"model": _named(saved[0]), "data": _named(saved[1])},
            folder=next((folder for folder in folders if (folder / "metrics.csv").is_file()), None),
            header=header,
        )

    def metrics(self) -> dict[str, float]:
        """The last value of each metric that had been logged when the checkpoint was written."""
        logged = self.header.get("logged") or {}
        found: dict[str, str | float] = {}
        rows = sum(logged.get("rows", {}).values())
        if self.folder is not None and rows:
            with (self.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
                for _, row in zip(range(rows), csv.DictReader(file), strict=False):
                    found |= {name: value for name, value in row.items() if value}
        found |= logged.get("pending", {})
        return {name: float(found[name]) for name in sorted(found) if name not in ("epoch", "step")}


def tokenizer_of(facts: RunFacts, source: ModelSource, *, trust_remote_code: bool) -> Any:
    """The tokenizer as it was trained with, its chat template included; see ``BaseDataModule`` for the latter."""
    tokenizer: Any = load_tokenizer(source, trust_remote_code=trust_remote_code)
    add_tokens(tokenizer, facts.module.get("added_tokens") or ())
    name = facts.data.get("chat_template")
    if name is not None:
        tokenizer.chat_template = template_for(name, tokenizer)
    return tokenizer


def template_for(name: str, tokenizer: Any) -> str:
    """The chat template of a name, a file or a text, as a tokenizer is given it.

    Raises:
        UserError: it is none of these.
    """
    template = resolve_chat_template(name)
    return with_bos(template, tokenizer) if is_built_in_template(name) else template


def config_in(folder: Path) -> Path | None:
    """The configuration that was saved last in a run's folder."""

    def number(file: Path) -> int:
        found = re.fullmatch(r"config(?:\.(\d+))?\.yaml", file.name)
        return -1 if found is None else int(found[1] or 0)

    newest = max(folder.glob("config*.yaml"), key=number, default=None)
    return newest if newest is not None and number(newest) >= 0 else None


def read_config(file: Path) -> dict[str, Any]:
    """The configuration of a run.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: the configuration cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: it is no configuration of a run, which has model and data. Name its config.yaml.")
    return values


def options_of(part: Any) -> dict[str, Any]:
    """The options of a class in a configuration; none if the configuration names no class there."""
    options = part.get("init_args", {}) if isinstance(part, Mapping) else {}
    return dict(options) if isinstance(options, Mapping) else {}


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without what Lightning adds."""
    return {name: value for name, value in options.items() if not name.startswith("_")}
