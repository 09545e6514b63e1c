"""How the time of a step grows with length, batch, vocabulary and response share, for SFT and IFT.

Usage: python benchmarks/growth.py [--rounds 5] [--minutes 1.5] [--parts length batch vocabulary "response share"]
       [--hidden 256] [--layers 4] [--plot FILE] [--again]

A part is an axis along which one size changes while the others stay at 256 tokens, 8 rows, 49,152 tokens of vocabulary
and a response share of 0.5. The model is a random Llama in float32; a step is forward, backward and AdamW (fused).
Sizes and objectives take turns. --plot is where the picture of all results goes.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from side_by_side import RESULTS, load, options_of, quiet, save, seconds_of, take_turns, wanted

SCRIPT: Final = "growth"
AXES: Final[dict[str, tuple[float, ...]]] = {
    "length": (64, 128, 256, 512),
    "batch": (2, 4, 8, 16),
    "vocabulary": (8192, 32_768, 65_536, 131_072),
    "response share": (0.125, 0.25, 0.5, 1.0),
}
USUAL: Final[dict[str, float]] = {"length": 256, "batch": 8, "vocabulary": 49_152, "response share": 0.5}


def steps_of(options: argparse.Namespace, sizes: Mapping[str, float]) -> dict[str, Callable[[int], float]]:
    """By objective, what takes a step of the given sizes."""
    import torch
    from memory_step import make_batch, make_model
    from peers import adamw, take_step
    from step_time import own

    shape = argparse.Namespace(
        vocabulary=int(sizes["vocabulary"]),
        hidden=options.hidden,
        layers=options.layers,
        lengths=[int(sizes["length"])],
        response=sizes["response share"],
    )
    model = make_model(shape).to("cuda" if torch.cuda.is_available() else "cpu")
    batch = make_batch(shape, int(sizes["batch"]), shape.lengths[0], pairs=False)
    batch = {name: values.to(model.device) for name, values in batch.items()}
    optimizer = adamw(model)
    losses = {name: loss for name, loss in own(model, {}).items() if name in ("SFT", "IFT", "IFT, prompts shared")}
    return {
        name: lambda _, loss=loss: seconds_of(lambda: take_step(loss, optimizer, batch))
        for name, loss in losses.items()
    }


def measure(options: argparse.Namespace, axis: str) -> None:
    """Measure one axis."""
    print(f"{SCRIPT}, {axis}", flush=True)
    runners: dict[str, Callable[[int], float]] = {}
    for value in options.sizes or AXES[axis]:
        for name, run in steps_of(options, {**USUAL, axis: value}).items():
            runners[f"{name} @ {value:g}"] = run
    found = take_turns(runners, options.rounds, minutes=options.minutes)
    facts = {**USUAL, axis: [*(options.sizes or AXES[axis])], "hidden": options.hidden, "layers": options.layers}
    save(options, SCRIPT, axis, found, references=(), facts=facts)


def draw(folder: Path, path: Path) -> None:
    """One panel an axis: medians with quartiles over the sizes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = {result["part"]: result for result in load(folder) if result["script"] == SCRIPT}
    figure, panels = pyplot.subplots(1, len(results), figsize=(3.4 * len(results), 3.2), squeeze=False)
    for panel, (axis, result) in zip(panels[0], results.items(), strict=True):
        lines: dict[str, list[tuple[float, Any]]] = {}
        for label, told in result["summary"].items():
            name, _, value = label.rpartition(" @ ")
            lines.setdefault(name, []).append((float(value), told))
        for name, points in lines.items():
            middle = [told["median"] for _, told in points]
            spread = [[abs(told["quartiles"][i] - told["median"]) for _, told in points] for i in (0, 1)]
            panel.errorbar([value for value, _ in points], middle, yerr=spread, label=name, marker="o", capsize=2)
        panel.set(xlabel=axis, ylabel="step [s]", ylim=(0, None))
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure each axis and draw."""
    parser = options_of(__doc__)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sizes", type=float, nargs="*", help="sizes along the axes, instead of the usual ones")
    parser.add_argument("--plot", type=Path, default=RESULTS / "growth.png")
    parser.set_defaults(rounds=5)
    options = parser.parse_args()
    with quiet():
        for axis in AXES:
            if wanted(options, SCRIPT, axis):
                measure(options, axis)
    draw(options.results, options.plot)


if __name__ == "__main__":
    main()
