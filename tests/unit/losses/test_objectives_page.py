"""The page of objectives says what docstrings and the registry say."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_ift.losses import PAIR_LOSSES, TOKEN_LOSSES

DOCS = Path(__file__).parents[3] / "docs"
_spec = importlib.util.spec_from_file_location("write_objectives", DOCS / "write_objectives.py")
assert _spec is not None
assert _spec.loader is not None
write_objectives = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(write_objectives)


def test_the_page_is_current() -> None:
    page = (DOCS / "objectives.md").read_text(encoding="utf-8")
    assert write_objectives.written(page) == page, "run: python docs/write_objectives.py"


@pytest.mark.parametrize("losses", [TOKEN_LOSSES, PAIR_LOSSES])
def test_the_table_has_a_line_for_each_loss_with_its_formula(losses: dict[str, Callable[..., Any]]) -> None:
    lines = write_objectives.loss_table(losses).splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(losses)
    assert all("<br>`loss" in line for line in lines)
