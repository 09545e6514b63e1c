"""Kill a training run with SIGKILL at random points, start the same command again, and compare to the last bit.

Usage: python benchmarks/kill_and_resume.py [--points 40] [--seed 0] [--output FILE.csv]

Each run trains a tiny random Llama with IFT, dropout and a noisy λ, 2 epochs of 7 batches, 3 batches an optimizer
step, validations inside a step and between epochs, a checkpoint every second step. A point is an event of the run
(batch, backward pass, optimizer step, validation, checkpoint or shard half written, renamed, ...), drawn at random.
Settings: 0 or 2 loader workers, 1 or 2 gloo processes (of which one is killed), packed or not; two processes with DDP,
or with FSDP2 that writes shards, shards in the background, or one file. A row says "yes" if every line of
every attempt's trace (row ids, losses of all examples, loss, gradient norm, λ, learning rate, validation loss, hash of
the last weights) and metrics.csv are those of the run that was never killed, and no row of data came twice or was
skipped in the run that remains. Runs on a CPU in some minutes. Exit code 1 if any point differs.
"""

import argparse
import csv
import itertools
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import killing

import lit_ift.cli.training  # noqa: F401  # Imported once, before the processes are forked.

COLUMNS = (
    "strategy",
    "workers",
    "ranks",
    "packed",
    "point",
    "of",
    "killed at",
    "killed rank",
    "resumed after batch",
    "identical",
)

SHARDED = (
    ("fsdp2", 0, False, "fsdp2", {}),
    ("fsdp2", 2, True, "fsdp2", {"checkpoint.keep_last": 2}),
    ("fsdp2, async", 0, True, "fsdp2", {"checkpoint.async_save": True}),
    (
        *("fsdp2, one file", 2, False, "lit_ift.distributed.FSDP2Strategy"),
        {"trainer.strategy.init_args.save_distributed_checkpoint": False},
    ),
)
"""How they are called, loader workers, whether packed, strategy, other options."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    settings = [
        ("ddp" if ranks == 2 else "auto", {"workers": workers, "ranks": ranks, "packing": packing})
        for workers, ranks, packing in itertools.product((0, 2), (1, 2), (False, True))
    ]
    settings += [
        (name, {"workers": workers, "ranks": 2, "packing": packing, "strategy": strategy, **more})
        for name, workers, packing, strategy, more in SHARDED
    ]
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        killing.write_inputs(root / "inputs")
        for number, (name, setting) in enumerate(settings):
            whole = killing.make_job(root / "inputs", root / f"whole-{number}", **setting)
            if any(whole.run()):
                print(whole.log(), file=sys.stderr)
                return 1
            count = len(range(number, options.points, len(settings)))
            for point in range(count):
                job = killing.make_job(root / "inputs", root / f"{number}-{point}", **setting)
                rank = draw.randrange(setting["ranks"])
                events = whole.events(rank)
                at = draw.randint(1, len(events))
                job.run(at, rank)
                job.run()
                found = killing.problems(job, whole)
                begun = killing.attempts_of(job.traces()[0])[-1][0][1]
                shown = (name, setting["workers"], setting["ranks"], setting["packing"])
                values = (*shown, at, len(events), events[at - 1], rank, begun, "no" if found else "yes")
                rows.append(values)
                print("| " + " | ".join(str(value) for value in values) + " |", flush=True)
                for line in found:
                    print(line, file=sys.stderr)
    if options.output is not None:
        with options.output.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    identical = sum(row[-1] == "yes" for row in rows)
    print(f"\n{identical} of {len(rows)} identical")
    return 0 if identical == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
