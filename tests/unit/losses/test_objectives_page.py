"""The page of objectives says what docstrings and the registry say."""

import csv
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lit_ift.losses
from lit_ift.losses import PAIR_LOSSES, TOKEN_LOSSES
from lit_ift.losses.pair.changes import CHANGES

DOCS = Path(__file__).parents[3] / "docs"
sys.path.append(str(DOCS))  # Its scripts import each other.
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


def test_the_page_of_each_objective_is_current() -> None:
    overview = (DOCS / "objectives.md").read_text(encoding="utf-8")
    current = write_objectives.files(overview)
    written = {path: path.read_text(encoding="utf-8") for path in (DOCS / "objectives").glob("*.md")}
    assert written == current, "run: python docs/write_objectives.py"


@pytest.mark.parametrize(
    "part",
    [
        *("\nPaper", "\n## When to use it\n", "\n## What it computes\n", "\n## Losses and metrics\n"),
        *(
            "\n## Checked against\n\n|",
            "\n## Run it\n\n```bash\nlit-ift fit ",
            "\n## Short run\n\n|",
            "\n<details>\n<summary><code>",
        ),
    ],
)
def test_every_page_has_every_part(part: str) -> None:
    pages = write_objectives.files((DOCS / "objectives.md").read_text(encoding="utf-8"))
    assert [path.name for path, text in pages.items() if part not in text] == []


def test_every_objective_has_a_line_of_parity_or_says_why_not() -> None:
    with write_objectives.PARITY.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    recorded = {name for line in lines for name in line["objective"].split(" + ")}
    others = set(write_objectives.CHECKED_OTHERWISE)
    assert recorded | others == set(write_objectives.objectives()) | {*CHANGES, "irpo", "mpo"}
    assert not recorded & others
    assert set(write_objectives.REMARKS) <= {(line["objective"], line["source"]) for line in lines}
    largest = {
        (line["objective"], line["source"]): max(float(line["value"]), float(line["gradient"])) for line in lines
    }
    assert largest.pop(("kto", "TRL 1.16.0")) < 1e-9
    assert max(largest.values()) < 1e-14


def test_every_objective_says_when_to_use_it_and_every_departure_is_on_a_page() -> None:
    pages = write_objectives.files((DOCS / "objectives.md").read_text(encoding="utf-8")).values()
    assert len(pages) == len(TOKEN_LOSSES) + len(PAIR_LOSSES) + 5
    assert all("## When to use it" in page for page in pages)
    functions = {
        function
        for info in pkgutil.walk_packages(lit_ift.losses.__path__, "lit_ift.losses.")
        for function in vars(importlib.import_module(info.name)).values()
        if inspect.isfunction(function) and "\nDepartures:\n" in (inspect.getdoc(function) or "")
    }
    for function in functions:
        own = [page for page in pages if f"<code>{function.__name__}</code>" in page]
        assert own
        assert all("## Departures" in page for page in own)
