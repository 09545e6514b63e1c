"""The objective of a configuration, around a model that is loaded already, to see rows as it sees them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, Final

import lit_ift.modules
from lit_ift.errors import UserError, told_as
from lit_ift.export.run_facts import options_of
from lit_ift.imports import imported
from lit_ift.modules.base import CausalLMModule
from lit_ift.modules.token_module import TokenModule

KEPT_PREDICTIONS: Final = "reuse_predictions"
"""Option of inputs that saves time in training, and would need its files; nothing that is shown depends on it."""


@dataclass(frozen=True)
class Objective:
    """How rows are read.

    Attributes:
        kind: a `TokenModule` for its input and its weights of tokens; else the rows are read as they are.
        options: its own.
    """

    kind: type[CausalLMModule] = CausalLMModule
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Mapping[str, Any] | None) -> "Objective":
        """That of the part ``model`` of a configuration; of a mixed one, its first part on the tokens of an answer.

        Raises:
            UserError: the class cannot be imported.
        """
        options = options_of(model)
        parts = options.get("parts") or {}
        given = [((model or {}).get("class_path"), options)]
        given += [(part.get("objective"), part.get("options") or {}) for part in parts.values()]
        for path, own in given:
            kind = None if path is None else _class_of(str(path))
            if kind is not None and issubclass(kind, TokenModule):
                return cls(kind, _own_options(kind, own))
        return cls()

    def around(self, model: Any) -> CausalLMModule:
        """The module with a model, to be read and not to be trained."""
        with told_as(ValueError, lambda error: UserError(f"The configuration of the run cannot be used: {error}")):
            return self.kind(model, disable_dropout=False, **self.options).eval()


def _class_of(path: str) -> Any:
    package, _, name = path.rpartition(".")
    if package.partition(".")[0] in ("", "lit_ift") and hasattr(lit_ift.modules, name):
        return getattr(lit_ift.modules, name)
    with told_as(ValueError, lambda error: UserError(str(error))):
        return imported("model.class_path", path)


def _own_options(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """What decides how rows are read; not the model, and not how it is trained."""
    classes = kind.__mro__[: kind.__mro__.index(TokenModule)]
    parameters = [p for cls in classes for p in signature(cls).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    found = {p.name: options[p.name] for p in parameters if p.name in options and p.name != KEPT_PREDICTIONS}
    if isinstance(of_input := found.get("input_options"), Mapping):
        found["input_options"] = {name: value for name, value in of_input.items() if name != KEPT_PREDICTIONS}
    return found
