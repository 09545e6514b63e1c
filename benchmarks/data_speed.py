"""How long rows take to be read, parsed, rendered, tokenized, masked twice and stored, against tokenizing alone.

Usage: python benchmarks/data_speed.py FILE [--tokenizer ID] [--rows 50000] [--repeats 3]

The yardstick is `datasets.map` with the bare fast tokenizer over the rendered conversations, in the same run; both take
turns, so that a machine whose speed drifts does not favour one of them. Quote the ratio of the medians; seconds depend
on the machine. FILE is any instruction data; it is repeated until there are enough rows.
"""

import argparse
import json
import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, disable_caching, disable_progress_bars

from lit_ift.data import InstructionDataModule, read_records
from lit_ift.models.load import load_tokenizer


def bare_map(texts: list[str], tokenizer: Any) -> float:
    """Seconds that `datasets.map` takes to tokenize the texts."""
    data = Dataset.from_dict({"text": texts})
    start = time.perf_counter()
    data.map(lambda batch: tokenizer(batch["text"]), batched=True)
    return time.perf_counter() - start


def whole_pipeline(path: Path, tokenizer: Any, *, cached: bool, folder: str) -> float:
    """Seconds from the file to rows that are ready for training."""
    start = time.perf_counter()
    module = InstructionDataModule(
        str(path), tokenizer=tokenizer, on_bad_row="skip", cache=cached, cache_dir=tempfile.mkdtemp(dir=folder)
    )
    module.setup("fit")
    return time.perf_counter() - start


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("file", help="instruction data")
    parser.add_argument("--tokenizer", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    tokenizer = load_tokenizer(options.tokenizer)
    rows = list(islice(cycle([record.data for record in read_records(options.file)]), options.rows))
    disable_caching()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        texts = [str(tokenizer.apply_chat_template(row["messages"], tokenize=False)) for row in rows]
        seconds: dict[str, list[float]] = {"datasets.map": [], "lit-ift": [], "lit-ift, cached on disk": []}
        for _ in range(options.repeats):
            seconds["datasets.map"].append(bare_map(texts, tokenizer))
            seconds["lit-ift"].append(whole_pipeline(path, tokenizer, cached=False, folder=folder))
            seconds["lit-ift, cached on disk"].append(whole_pipeline(path, tokenizer, cached=True, folder=folder))
    yardstick = statistics.median(seconds["datasets.map"])
    print(f"{len(rows):,} rows, datasets {datasets.__version__}, {options.repeats} repeats")
    print("| | median s | ratio |\n|---|---:|---:|")
    for name, times in seconds.items():
        print(f"| {name} | {statistics.median(times):.2f} | {statistics.median(times) / yardstick:.2f} |")


if __name__ == "__main__":
    main()
