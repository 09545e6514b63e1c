"""What an option may be, said by its annotation, and the one check of given values against it.

A signature is a schema: ``beta: Positive = 0.1``, ``norm: Literal["l1", "l2"] = "l1"``, ``top_k: PositiveInt | None``.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from numbers import Integral, Real
from os import PathLike
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Final, Literal, ParamSpec, Self, TypeVar, Union, get_args, get_origin

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Range:
    """Numbers between two bounds, for ``Annotated[float, Range(...)]`` or ``Annotated[int, Range(...)]``.

    Args:
        gt: they are above it.
        ge: they are at least it.
        lt: they are below it.
        le: they are at most it.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __repr__(self) -> str:  # Help shows it: Annotated[float, at least 0 and below 1].
        bounds = {"above": self.gt, "at least": self.ge, "below": self.lt, "at most": self.le}
        return " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)


Positive = Annotated[float, Range(gt=0)]
NonNegative = Annotated[float, Range(ge=0)]
UnitInterval = Annotated[float, Range(ge=0, le=1)]
Share = Annotated[float, Range(gt=0, le=1)]
PositiveInt = Annotated[int, Range(ge=1)]
NonNegativeInt = Annotated[int, Range(ge=0)]


def check_options(target: Callable[..., Any], values: Mapping[str, Any], *, prefix: str = "") -> None:
    """Check values against the annotations of what they are given to, before it is called.

    Checked are bool, int, float, str, ``Literal``, ``Range``, lists of these, and unions of these with each other and
    None. Numbers must be finite; a bool is none, nor is text such as "1e-2". Other annotations allow anything, and so
    does the lack of one; names that ``target`` does not know are left to its call.

    Args:
        target: a function; or a class, whose ``__init__`` counts, and those of its bases that get its ``**kwargs``.
        values: by the names of parameters. Those left out are not checked.
        prefix: what stands before a name in the message, such as ``model.``.

    Raises:
        ValueError: ``beta=-1 must be above 0``.
    """
    kinds = _kinds(target)
    for name, value in values.items():
        wanted = None if name not in kinds else _wanted(kinds[name], value)
        if wanted is not None:
            raise ValueError(f"{prefix}{name}={value!r} must be {wanted}")


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function whose arguments are checked by `check_options` at each call."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        check_options(function, {**_by_name(function, args), **kwargs})
        return function(*args, **kwargs)

    return wrapper


class CheckedOptions:
    """A base of classes whose arguments are checked by `check_options` before ``__init__`` runs."""

    option_prefix: ClassVar[str] = ""
    """What stands before the name of an option in a message."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        check_options(cls, {**_by_name(cls, (None, *args)), **kwargs}, prefix=cls.option_prefix)
        return super().__new__(cls)


def _by_name(target: Callable[..., Any], args: Sequence[Any]) -> dict[str, Any]:
    """Positional arguments by the names of their parameters."""
    return dict(zip(_kinds(target), args, strict=False))


@functools.cache
def _kinds(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each parameter, in their order."""
    functions = [target]
    if isinstance(target, type):
        functions = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
    kinds: dict[str, Any] = {}
    for function in functions:
        parameters = signature(function).parameters.values()
        for parameter in parameters:
            kinds.setdefault(parameter.name, _evaluated(parameter.annotation, function))
        if all(parameter.kind is not Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return kinds


def _evaluated(annotation: Any, function: Callable[..., Any]) -> Any:
    """An annotation; `Any` for text that names what only type checkers know."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, getattr(function, "__globals__", {}))
    except (NameError, AttributeError, SyntaxError, TypeError):
        return Any


_PLAIN: Final[dict[Any, tuple[Any, str]]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a finite number"),
    str: ((str, PathLike), "text"),
    NoneType: (NoneType, "null"),
}
"""Kinds of values: the classes that have them, and how a message calls them."""


def _wanted(kind: Any, value: Any) -> str | None:
    """What a value of a kind must be; None if it is that, or if nothing is known of the kind."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        wanted = {option: _wanted(option, value) for option in args}
        fits = None in wanted.values()
        return None if fits else " or ".join(str(words) for option, words in wanted.items() if option is not NoneType)
    if origin is Literal:
        return None if value in args else f"one of {', '.join(map(repr, args))}"
    if origin in (list, Sequence) and args:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return "a list"
        wrong = next(filter(None, (_wanted(args[0], item) for item in value)), None)
        return None if wrong is None else f"a list whose items are each {wrong}"
    limits = [limit for limit in getattr(kind, "__metadata__", ()) if isinstance(limit, Range)]
    plain = kind.__origin__ if limits else kind
    if not isinstance(plain, type) or plain not in _PLAIN:
        return None
    classes, words = _PLAIN[plain]
    is_a_bool = isinstance(value, bool) and plain is not bool  # For Python, it is a number.
    if not isinstance(value, classes) or is_a_bool or (plain is float and not math.isfinite(value)):
        return words
    return next((repr(limit) for limit in limits if value not in limit), None)
