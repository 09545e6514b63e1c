"""The JSON schema of configurations, by jsonargparse's generator, as editors take it for the files of configs/.

Left alone, it describes a whole configuration with all that can be handed to any class in it: three megabytes, most of
it torch's. A file may be laid over others, so nothing is required here. A class may have its short name. Only the
families below are described. The draft is the one that all editors read.
"""

import os
from pathlib import Path
from typing import Any, Final

import lightning as L
from jsonargparse import ArgumentParser
from jsonargparse._completions_jsonschema import ParserJsonschema, anyof_schema
from jsonargparse._typehints import get_all_subclass_paths
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ift.cli.whole_tree import parser_of
from lit_ift.modules import CausalLMModule
from lit_ift.study.study_file import Study

COMMANDS: Final = ("fit", "frozen-lake", "compare")
"""Those that have configurations, one schema for each."""

FAMILIES: Final = (CausalLMModule, L.LightningDataModule, Optimizer, LRScheduler, Logger, L.Callback, Strategy)
"""Of which every class is described that comes with an installation."""

SHIPPED: Final = ("lit_ift", "lightning", "torch")

LOCAL: Final = (os.getcwd(), str(Path.home()))

DRAFT: Final = "http://json-schema.org/draft-07/schema#"


class OverlaySchema(ParserJsonschema):
    """Describes files that may say a part of what a parser takes."""

    def class_ref(self, class_type: Any, action: Any, subclass: bool) -> dict[str, Any]:
        shipped = class_type.__module__.partition(".")[0] in SHIPPED
        return dict(super().class_ref(class_type, action, subclass)) if shipped else {}

    def subclass_def(self, class_type: Any, action: Any) -> dict[str, Any]:
        other = self.unknown_class_path_schema()
        if not issubclass(class_type, FAMILIES):
            return dict(anyof_schema([{"type": "string"}, other]))
        paths = [path for path in get_all_subclass_paths(class_type) if path.split(".")[0] in SHIPPED]
        known = [self.class_path_schema(path, action) for path in paths]
        names = [name for schema in known for name in schema["properties"]["class_path"]["enum"]]
        other["properties"]["class_path"]["not"] = {"enum": names}
        other["required"] = ["class_path"]
        return dict(anyof_schema([{"type": "string"}, *known, other]))

    def class_path_schema(self, class_path: str, action: Any) -> dict[str, Any]:
        schema: dict[str, Any] = super().class_path_schema(class_path, action)
        schema["properties"]["class_path"] = {"enum": [class_path, class_path.rpartition(".")[2]]}
        schema.pop("required")
        return schema


def written(command: str) -> dict[str, Any]:
    """The schema of a command's configurations."""
    parser: ArgumentParser = _study_parser() if command == "compare" else parser_of(command)
    schema: dict[str, Any] = _in_draft_7(OverlaySchema().generate(parser))
    return {**schema, "$schema": DRAFT, "title": f"Configuration of lit-ift {command}"}


def _study_parser() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_class_arguments(Study)
    return parser


def _in_draft_7(schema: Any) -> Any:
    """The schema without what a part of a configuration need not have, and with tuples as draft 7 has them.

    Files name their schema in a comment, not in each object, and a default may be a folder of this machine.
    """
    if isinstance(schema, list):
        return [_in_draft_7(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _in_draft_7(value) for key, value in schema.items() if not _is_left_out(key, value)}
    if "prefixItems" in kept:
        kept["additionalItems"] = kept.pop("items", True)
        kept["items"] = kept.pop("prefixItems")
    return kept


def _is_left_out(key: str, value: Any) -> bool:
    if key == "required":
        return isinstance(value, list) and value != ["class_path"]
    return (key == "$schema" and isinstance(value, dict)) or (key == "default" and value in LOCAL)
