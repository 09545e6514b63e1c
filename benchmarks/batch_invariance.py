"""How far the steps of one global batch are apart when it is split in other ways, for every objective.

Usage: python benchmarks/batch_invariance.py [--dtype float32] [--epochs 4] [--only dpo ift] [--out FILE.csv]

Tiny models and rows, steps of 8 rows, on a CPU: see tests/distributed/invariance.py, whose rows and splits these are. A
split is rows of a micro-batch x micro-batches x ranks. The table tells the relative deviations of each split from the
one that it is compared with: the largest of all steps, and the mean, which is signed. The file has every step.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "distributed"))

from invariance import OBJECTIVES, Deviation, collect, deviations, drift, run


def by_split(found: Sequence[Deviation]) -> str:
    """A line for each objective and split, in Markdown."""
    table: dict[tuple[str, str, str], dict[str, Deviation]] = {}
    for deviation in found:
        key = deviation.objective, deviation.split, deviation.reference
        table.setdefault(key, {})[deviation.quantity] = deviation
    lines = [
        "| objective | split | compared with | loss: worst | mean | gradient norm: worst | mean |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, quantities in table.items():
        numbers = [
            number
            for name in ("loss", "grad_norm")
            for number in (f"{quantities[name].worst:.1e}", f"{quantities[name].mean:+.1e}")
        ]
        lines.append(f"| {' | '.join([*key, *numbers])} |")
    return "\n".join(lines)


def by_objective(found: Sequence[Deviation]) -> str:
    """A line for each objective and quantity, over all splits, in Markdown."""
    table: dict[tuple[str, str], list[Deviation]] = {}
    for deviation in found:
        table.setdefault((deviation.objective, deviation.quantity), []).append(deviation)
    lines = ["| objective | of | splits | worst | mean | its standard error |", "| --- | --- | --- | --- | --- | --- |"]
    for (objective, quantity), of_one in table.items():
        mean, error = drift(of_one)
        worst = max(deviation.worst for deviation in of_one)
        lines.append(f"| {objective} | {quantity} | {len(of_one)} | {worst:.1e} | {mean:+.1e} | {error:.1e} |")
    return "\n".join(lines)


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--dtype", choices=("float32", "float64"), help="instead of that of each objective")
    parser.add_argument("--epochs", type=int, default=4, help="of 3 optimizer steps each")
    parser.add_argument("--only", nargs="*", choices=OBJECTIVES, help="objectives; all by default")
    parser.add_argument("--out", type=Path, default=Path("batch_invariance.csv"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options.only or [*OBJECTIVES], dtype=options.dtype, epochs=options.epochs)
        found = [*deviations(collect(Path(folder)))]
    with options.out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("objective", "split", "compared_with", "quantity", "step", "relative_deviation"))
        for each in found:
            for step, value in enumerate(each.steps):
                table.writerow((each.objective, each.split, each.reference, each.quantity, step, value))
    print(f"{by_split(found)}\n\n{by_objective(found)}")


if __name__ == "__main__":
    main()
