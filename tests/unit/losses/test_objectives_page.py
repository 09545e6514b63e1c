"""The page of objectives says what docstrings and the registry say."""

import importlib.util
from pathlib import Path

from lit_ift.losses import PAIR_LOSSES

DOCS = Path(__file__).parents[3] / "docs"
_spec = importlib.util.spec_from_file_location("write_objectives", DOCS / "write_objectives.py")
assert _spec is not None
assert _spec.loader is not None
write_objectives = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(write_objectives)


def test_the_page_is_current() -> None:
    page = (DOCS / "objectives.md").read_text(encoding="utf-8")
    assert write_objectives.written(page) == page, "run: python docs/write_objectives.py"


def test_the_table_has_a_line_for_each_loss_with_its_formula() -> None:
    lines = write_objectives.pair_loss_table().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(PAIR_LOSSES)
    assert all("<br>`loss" in line for line in lines)
