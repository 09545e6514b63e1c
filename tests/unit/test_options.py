"""Values are checked against the annotations of what they are given to, with one message."""

import copy
import inspect
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from lit_ift.options import (
    CheckedOptions,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Range,
    UnitInterval,
    check_options,
    checked,
)

HALF_OPEN = Annotated[float, Range(ge=0, lt=0.5)]
INNER = Annotated[float, Range(gt=0, lt=1)]


@pytest.mark.parametrize(
    ("kind", "good", "bad", "wanted"),
    [
        (Positive, (1e-9, 1, np.float32(2)), (0, -1.0), "above 0"),
        (Positive, (), (math.nan, math.inf, "1e-2", True, None), "a finite number"),
        (NonNegative, (0, 3.5), (-1e-9,), "at least 0"),
        (UnitInterval, (0, 1, 0.5), (-0.1, 1.1), "at least 0 and at most 1"),
        (HALF_OPEN, (0, 0.49), (0.5, -0.1), "at least 0 and below 0.5"),
        (INNER, (0.5,), (0, 1.0), "above 0 and below 1"),
        (PositiveInt, (1, np.int64(4)), (0, -2), "at least 1"),
        (PositiveInt, (), (1.0, "2", True, None), "a whole number"),
        (NonNegativeInt, (0,), (-1,), "at least 0"),
        (float, (0, -1.5, 1e300), ("1", False, None, -math.inf, math.nan), "a finite number"),
        (int, (0, -3), (0.5, True), "a whole number"),
        (bool, (True, False), (0, 1, "no", None), "true or false"),
        (str, ("", "a", Path("a")), (1, None), "text"),
        (Literal["l1", "l2"], ("l1",), ("L1", None, 1), "one of 'l1', 'l2'"),
        (Positive | None, (None, 1), (0,), "above 0"),
        (bool | PositiveInt, (True, 2), (0,), "true or false or at least 1"),
        (Literal["all"] | PositiveInt, ("all", 2), ("some",), "one of 'all' or a whole number"),
        (list[Positive], ([], [1, 2]), ([1, -1],), "a list whose items are each above 0"),
        (list[str] | None, (None, ["a"]), ("a",), "a list"),
        (dict[str, Any], ({}, 3, None), (), ""),
        ("Unknown | int", (None, "anything"), (), ""),
    ],
)
def test_each_kind_takes_what_it_says_and_nothing_else(kind: Any, good: tuple, bad: tuple, wanted: str) -> None:
    def function(option: kind) -> None: ...

    for value in good:
        check_options(function, {"option": value})
    for value in bad:
        with pytest.raises(ValueError, match=f"^{re.escape(f'model.option={value!r} must be {wanted}')}$"):
            check_options(function, {"option": value}, prefix="model.")


def test_what_is_not_annotated_or_not_known_is_left_to_the_call() -> None:
    def function(plain, *, text: "float" = 1.0) -> None: ...

    check_options(function, {"plain": object(), "other": 1})
    with pytest.raises(ValueError, match="text='a' must be a finite number"):
        check_options(function, {"text": "a"})


@checked
def scaled(value: float, *, beta: Positive = 0.1) -> float:
    """Its doc."""
    return value * beta


def test_a_checked_function_keeps_its_signature_and_refuses_bad_values() -> None:
    assert scaled(2.0, beta=3) == 6.0
    assert scaled.__doc__ == "Its doc."
    assert list(inspect.signature(scaled).parameters) == ["value", "beta"]
    assert inspect.isfunction(scaled)
    with pytest.raises(ValueError, match="beta=-1 must be above 0"):
        scaled(2.0, beta=-1)
    with pytest.raises(ValueError, match="value='a' must be a finite number"):
        scaled("a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gamma"):
        scaled(2.0, gamma=1)  # type: ignore[call-arg]


class Base(CheckedOptions):
    option_prefix = "model."

    def __init__(self, model: "str | Missing", *, rate: Positive = 1.0) -> None:  # noqa: F821
        """A base.

        Args:
            model: anything.
            rate: how fast.
        """
        self.model, self.rate = model, rate


class Derived(Base):
    def __init__(self, model: "str | Missing", *, share: UnitInterval = 0.5, **kwargs: Any) -> None:  # noqa: F821
        """A derived one.

        Args:
            model: anything.
            share: how much.
        """
        super().__init__(model, **kwargs)
        self.share = share


@dataclass(frozen=True)
class Settings(CheckedOptions):
    games: Annotated[int, Range(ge=2)] = 2


def test_a_class_checks_its_own_options_and_those_of_its_bases_before_it_is_made() -> None:
    assert Derived(3, share=1, rate=2).rate == 2
    assert copy.deepcopy(Derived("a")).share == 0.5
    for options, message in (({"share": 2}, "model.share=2 must be"), ({"rate": 0}, "model.rate=0 must be above 0")):
        with pytest.raises(ValueError, match=message):
            Derived("a", **options)
    with pytest.raises(TypeError, match="unknown"):
        Derived("a", unknown=1)
    assert Settings(3) == Settings(games=3)
    for make in (lambda: Settings(1), lambda: Settings(games=1)):
        with pytest.raises(ValueError, match="games=1 must be at least 2"):
            make()


def test_the_command_line_shows_and_parses_ranges(capsys: pytest.CaptureFixture) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Base, "model")
    parsed = parser.parse_args([f"--model={__name__}.Derived", "--model.model=a", "--model.rate=1e-2"])
    assert parsed.model.init_args.as_dict() == {"model": "a", "share": 0.5, "rate": 0.01}
    assert "rate: 0.01" in parser.dump(parsed)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--model.help={__name__}.Derived"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "how fast. (type: Annotated[float, above 0], default: 1.0)" in shown
    assert "how much. (type: Annotated[float, at least 0 and at most 1], default: 0.5)" in shown
