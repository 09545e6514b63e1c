"""Train every objective under every precision of Lightning on a CPU, and print how far losses are from float32.

Usage: python benchmarks/precisions.py

A tiny random Llama, 19 rows in steps of 8, one epoch of SGD. A cell is the largest deviation of a step's loss from that
under 32-true, as a share of it. Losses are float32 or better under every precision; what differs is the weights (true)
and the matrix products (mixed). Lightning takes 16-mixed for bf16-mixed on a CPU. Runs in about a minute.
"""

import logging
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from precisions import OBJECTIVES, PRECISIONS, first_epoch
from transformers.utils.logging import disable_progress_bar


def main() -> None:
    from invariance import write_inputs

    warnings.filterwarnings("ignore")
    disable_progress_bar()
    for library in ("lightning.pytorch", "lit_ift"):
        logging.getLogger(library).setLevel(logging.ERROR)
    first, *others = PRECISIONS
    print(f"| objective | {' | '.join(others)} |\n|---|{'---|' * len(others)}")
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        for objective in OBJECTIVES:
            expected = first_epoch(Path(folder), objective, first)
            cells = []
            for precision in others:
                steps = first_epoch(Path(folder), objective, precision)
                gaps = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(steps, expected, strict=True)]
                cells.append(f"{max(gaps):.1e}")
            print(f"| {objective} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
