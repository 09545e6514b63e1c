"""Losses whose signature is their schema: positional parameters name what they are given, others are options."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_ift.imports import check_is_function, imported
from lit_ift.losses.marks import is_in_batch
from lit_ift.options import check_options

LossFunction = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""Gives a loss for each example, and detached metrics of the same shape."""


def taken(function: LossFunction) -> dict[str, Any]:
    """The inputs that a loss names by its positional parameters, with their defaults."""
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return {name: p.default for name, p in signature(function).parameters.items() if p.kind in kinds}


class NamedLoss(ABC):
    """A loss function with its options set.

    Args:
        loss: a name in `KNOWN`, or the import path of a function (``package.module.function``).
        options: its options; the others keep their defaults.

    Attributes:
        name: as given.
        inputs: what it asks for, names in `INPUTS`. A positional parameter with a default is given if there is such.
        values: all options, with the defaults of those that were not given.
        in_batch: whether the loss of an example depends on the others of its micro-batch: as the function is marked,
            or as the losses of made-up examples show.

    Raises:
        ValueError: there is no such loss, it asks for an unknown input, an option is not one of its own, or has a
            value that it refuses.
    """

    KNOWN: ClassVar[Mapping[str, LossFunction]]
    INPUTS: ClassVar[Mapping[str, str]]
    EXAMPLES: ClassVar[str]

    def __init__(self, loss: str, options: Mapping[str, Any] | None = None) -> None:
        self.name = loss
        self.function = self.find(loss)
        self.options = dict(options or {})
        self.in_batch = is_in_batch(self.function)
        parameters = signature(self.function).parameters.values()
        self._takes = taken(self.function)
        accepted = {p.name: p for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
        self.values = {name: p.default for name, p in accepted.items()} | self.options
        self._ignored = self._switched_off()
        self.inputs = [name for name in self._takes if name not in self._ignored]
        unknown = [name for name in self.inputs if name not in self.INPUTS]
        if unknown or not self.inputs:
            raise ValueError(
                f"The loss {loss!r} asks for {', '.join(unknown) or 'nothing'}. Its positional parameters must be "
                f"among {', '.join(self.INPUTS)}; hyperparameters must be keyword-only."
            )
        strange = sorted(set(self.options) - set(accepted))
        if strange:
            offered = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
            raise ValueError(f"The loss {loss!r} has no option {', '.join(map(repr, strange))}; {offered}.")
        missing = [name for name, value in self.values.items() if value is Parameter.empty]
        if missing:
            raise ValueError(f"The loss {loss!r} needs the option {', '.join(map(repr, missing))}.")
        check_options(self.function, self.options)
        self._try_out()
        self.in_batch = self.in_batch or self._couples()

    @abstractmethod
    def _made_up(self) -> dict[str, Tensor]:
        """Inputs of two examples, to try the loss with; those with gradient require it."""

    def _switched_off(self) -> set[str]:
        """Inputs that the values of options make useless, and that are therefore not computed."""
        return set()

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses and detached metrics, one number an example each, from the inputs that it asks for."""
        some = inputs[self.inputs[0]]
        given = [
            some.new_zeros(some.shape)
            if name in self._ignored
            else inputs[name]
            if default is Parameter.empty
            else inputs.get(name, default)
            for name, default in self._takes.items()
        ]
        return self.function(*given, **self.options)

    def _try_out(self) -> None:
        """Call it once, so that what is wrong with it shows before a model is loaded."""
        given = self._made_up()
        of_policy = [name for name in self.inputs if given[name].requires_grad]
        with torch.enable_grad():
            try:
                returned = self(given)
            except ValueError:  # It says itself what is wrong, as with options that do not go together.
                raise
            except Exception as error:  # Of a user's own function.
                raise ValueError(
                    f"The loss {self.name!r} fails on two made-up {self.EXAMPLES}: {type(error).__name__}: {error}"
                ) from error
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping)):
            raise ValueError(f"The loss {self.name!r} must return losses and a mapping of metrics, not {returned!r}.")
        losses, metrics = returned
        for name, values in {"losses": losses, **metrics}.items():
            shape = tuple(values.shape) if isinstance(values, Tensor) else None
            if shape != (2,):
                seen = repr(values) if shape is None else f"shape {shape}"
                raise ValueError(
                    f"The loss {self.name!r} returned {name} of {seen} for 2 {self.EXAMPLES}, not a tensor (2,)."
                )
        if not losses.requires_grad:
            inputs = ", ".join(of_policy) or "none of which comes from the policy"
            raise ValueError(
                f"The loss {self.name!r} has no gradient in its inputs ({inputs}), so nothing would train."
            )

    def _couples(self) -> bool:
        """Whether the first of two made-up examples has another loss without the second, which is unlike it."""
        generator = torch.Generator().manual_seed(0)
        given = {
            name: value.detach() * (1 + torch.rand(value.shape, generator=generator))
            if value.is_floating_point()
            else value
            for name, value in self._made_up().items()
        }
        alone = self({name: value[:1] for name, value in given.items()})[0]
        return not torch.allclose(self(given)[0][:1], alone, rtol=1e-4, equal_nan=True)

    @classmethod
    def find(cls, loss: Any) -> LossFunction:
        """The function of a name in `KNOWN` or of an import path.

        Raises:
            ValueError: there is none.
        """
        if not isinstance(loss, str):  # Python takes the function itself, which no checkpoint could find again.
            path = f"{getattr(loss, '__module__', 'package.module')}.{getattr(loss, '__qualname__', 'name')}"
            raise ValueError(f"loss={loss!r} must be a name or the import path of a function: loss={path!r}.")
        if loss in cls.KNOWN:
            return cls.KNOWN[loss]
        if "." not in loss or loss.startswith("."):
            raise ValueError(
                f"loss={loss!r} is none of {', '.join(cls.KNOWN)}, nor the import path of a function "
                "(package.module.name)."
            )
        function: LossFunction = imported("loss", loss)
        check_is_function(f"loss={loss!r}", function)
        return function
