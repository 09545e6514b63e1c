"""What all comparisons share: contestants take turns in one run, and ratios come from pairs of the same turn.

A result is a JSON file in ``benchmarks/results``, one for each part of a script: the seconds (or bytes) of every
contestant in every round, and what is told of them. ``write_tables.py`` makes tables of these files.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = Path(__file__).with_name("results")
ROWS: Final = Path(__file__).with_name("rows")
MODEL: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGES: Final = ("torch", "transformers", "lightning", "trl", "accelerate", "datasets")

Round = dict[str, float]
"""What was measured of each contestant in a round; those that did not take part in it are missing."""


class Interval(tuple[float, float, float]):
    """A median with the 95 % interval of a bootstrap: (median, low, high)."""


def options_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every script has."""
    lines = (doc or "").splitlines()
    parser = argparse.ArgumentParser(description=lines[0] if lines else None, allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--parts", nargs="*", help="parts to measure; all by default")
    parser.add_argument("--again", action="store_true", help="measure parts anew whose results are there")
    parser.add_argument("--rounds", type=int, help="rounds of each part")
    parser.add_argument("--minutes", type=float, help="begin no round of a part after so long")
    return parser


def wanted(options: argparse.Namespace, script: str, part: str) -> bool:
    """Whether a part is to be measured: it is asked for, and has no result yet."""
    if options.parts and part not in options.parts:
        return False
    if result_file(options.results, script, part).exists() and not options.again:
        print(f"{script}, {part}: there is a result already (--again measures anew)", flush=True)
        return False
    return True


def result_file(folder: Path, script: str, part: str) -> Path:
    """Where the result of a part is."""
    return folder / f"{script}.{re.sub(r'[^a-z0-9]+', '-', part.lower()).strip('-')}.json"


def synchronize() -> None:
    """Wait until the device has done what it was given."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that a piece of work takes."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def take_turns(
    contestants: Mapping[str, Callable[[int], float]],
    rounds: int,
    *,
    minutes: float | None = None,
    every: Mapping[str, int] | None = None,
    warm_up: int = 1,
    cold: Collection[str] = (),
) -> list[Round]:
    """Measure all contestants in every round, one after the other, each round beginning with the next one.

    Args:
        contestants: by name, what gives the measure of a round, which is numbered from 0 on.
        rounds: how many.
        minutes: no further round begins after so long.
        every: contestants that take part in every n-th round only, because they take long.
        warm_up: rounds before, which are not counted.
        cold: contestants that do without them.
    """
    every, names, found = every or {}, list(contestants), []
    began = time.monotonic()
    for number in range(-warm_up, rounds):
        if number > 0 and minutes is not None and time.monotonic() - began > 60 * minutes:
            break
        first = number % len(names)
        in_turn = (*names[first:], *names[:first])
        taking_part = [n for n in in_turn if (n not in cold if number < 0 else number % every.get(n, 1) == 0)]
        measured = {name: contestants[name](max(number, 0)) for name in taking_part}
        if number >= 0:
            found.append({name: measured[name] for name in names if name in measured})
            print(f"  {number + 1}: {', '.join(f'{n} {v:.3g}' for n, v in found[-1].items())}", flush=True)
    return found


def median_interval(values: Sequence[float], *, draws: int = 10_000) -> Interval:
    """The median, and the 2.5 % and 97.5 % quantiles of the medians of samples drawn with replacement."""
    given = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).integers(len(given), size=(draws, len(given)))
    low, high = np.quantile(np.median(given[drawn], axis=1), (0.025, 0.975))
    return Interval((float(np.median(given)), float(low), float(high)))


def paired_ratio(rounds: Sequence[Round], name: str, reference: str) -> Interval:
    """The median of a contestant's measure over the reference's, in the rounds that had both."""
    return median_interval([one[name] / one[reference] for one in rounds if name in one and reference in one])


def summary(rounds: Sequence[Round], references: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Median and quartiles of every contestant, and its paired ratio to each reference with a 95 % interval."""
    told: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for one in rounds for name in one):
        values = [one[name] for one in rounds if name in one]
        quartiles = np.quantile(values, (0.25, 0.75)).tolist()
        told[name] = {"rounds": len(values), "median": statistics.median(values), "quartiles": quartiles}
        told[name]["ratio_to"] = {r: [*paired_ratio(rounds, name, r)] for r in references if r in rounds[0]}
    return told


def save(
    options: argparse.Namespace,
    script: str,
    part: str,
    rounds: Sequence[Round],
    *,
    references: Sequence[str],
    unit: str = "s",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write the result of a part, print it as a table, and return the file."""
    result = {
        "script": script,
        "part": part,
        "unit": unit,
        "date": datetime.now(UTC).date().isoformat(),
        "command": command_line(),
        "commit": commit(),
        "machine": machine(),
        "facts": dict(facts or {}),
        "references": [name for name in references if any(name in one for one in rounds)],
        "summary": summary(rounds, references),
        "rounds": [{name: float(f"{value:.5g}") for name, value in one.items()} for one in rounds],
    }
    path = result_file(options.results, script, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(result)}\n", flush=True)
    return path


def load(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def table(result: Mapping[str, Any]) -> str:
    """The table of a result, in Markdown: medians with quartiles, ratios with intervals."""
    references, unit = result["references"], result["unit"]
    head = ["", f"median [{unit}]", "quartiles", "rounds", *(f"to {name}" for name in references)]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' --: |' * (len(head) - 1)}"]
    for name, told in result["summary"].items():
        low, high = told["quartiles"]
        cells = [name, f"{told['median']:.3g}", f"{low:.3g} to {high:.3g}", str(told["rounds"])]
        cells += [ratio_text(told["ratio_to"].get(reference)) if name != reference else "1" for reference in references]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio_text(interval: Sequence[float] | None) -> str:
    """A ratio with its interval, as tables have it."""
    if interval is None:
        return ""
    middle, low, high = interval
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def command_line() -> str:
    """The command of this run, with the names of files instead of where they are."""
    words = [short(word) for word in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def short(name: str) -> str:
    """A hub id as it is; of a folder or file its name."""
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def commit() -> str | None:
    """The commit that was measured, with a + if files were changed since; None outside of a repository."""
    git = ("git", "-C", str(ROOT))
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "lit_ift"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.strip() + ("+" if changed else "")


def machine() -> dict[str, Any]:
    """Processor, memory, accelerator, threads and versions."""
    told: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
    }
    if (torch := sys.modules.get("torch")) is not None:
        told["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            told["accelerator"] = torch.cuda.get_device_name()
    for package in PACKAGES:
        try:
            told[package] = version(package)
        except PackageNotFoundError:
            continue
    return told


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line), "")


LIBRARIES = ("lightning.pytorch", "lightning.fabric", "lit_ift", "trl", "transformers", "datasets")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, notes or warnings of the libraries; afterwards they speak as before."""
    import logging
    import warnings

    from transformers.utils import logging as of_transformers

    loggers = [logging.getLogger(library) for library in LIBRARIES]
    levels, had_bars = [logger.level for logger in loggers], of_transformers.is_progress_bar_enabled()
    datasets = sys.modules.get("datasets")
    had_more_bars = datasets is not None and not datasets.utils.are_progress_bars_disabled()
    of_tqdm = os.environ.get("TQDM_DISABLE")
    of_transformers.disable_progress_bar()
    if had_more_bars:
        datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bars:
            of_transformers.enable_progress_bar()
        if had_more_bars:
            datasets.enable_progress_bars()
        del os.environ["TQDM_DISABLE"]
        if of_tqdm is not None:
            os.environ["TQDM_DISABLE"] = of_tqdm


def numbered(names: Sequence[str]) -> dict[str, str]:
    """Names of the parts of files: their stems, with a number where several have the same."""
    found: dict[str, str] = {}
    for name in names:
        stem = Path(name).name.partition(".")[0]
        found[next(s for n in count() if (s := stem if n == 0 else f"{stem} {n + 1}") not in found)] = name
    return found
