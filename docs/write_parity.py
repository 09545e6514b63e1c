"""Run the tests that compare losses with others' recorded numbers, and write how far ours were from each source.

Run: python docs/write_parity.py && python docs/write_objectives.py
"""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).with_name("parity.csv")
COLUMNS = ("objective", "source", "value", "gradient")


def write(measured: Mapping[tuple[str, str], Mapping[str, float]]) -> None:
    """A line for each objective and source: the largest absolute difference of a loss, and of a gradient."""
    with FILE.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for (objective, source), largest in sorted(measured.items()):
            table.writerow([objective, source, *(f"{largest[kind]:.0e}" for kind in ("value", "gradient"))])


if __name__ == "__main__":
    failed = pytest.main(["-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "parity")])
    if failed:
        sys.exit(int(failed))
    from deviations import MEASURED  # Found once pytest has put tests/ on the path.

    write(MEASURED)
