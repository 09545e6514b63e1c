"""One global batch, many splits: every objective must take the same steps from each of them.

Usage: invariance.py FOLDER [--dtype float32] [--epochs 2] [--only NAME ...]

A split says how the rows of an optimizer step are shared out: rows of a micro-batch x micro-batches x ranks, padded or
packed, under a strategy. One process forks the ranks of all launches, because importing the libraries takes longer than
most of what is measured. Each rank writes what it saw into FOLDER; `collect` puts that together, `deviations` compares.
"""

import argparse
import json
import logging
import math
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from itertools import product
from multiprocessing.connection import wait
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

# This file is run alone, too, and its losses are found by their import path.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from rowfiles import jsonl
from tiny import tiny_model, tiny_tokenizer
from transformers.utils.logging import disable_progress_bar

from lit_ift import (
    CausalLMModule,
    FeedbackDataModule,
    IFTModule,
    InstructionDataModule,
    KTOModule,
    MixedModule,
    PreferenceModule,
    SFTMixModule,
    SFTModule,
    UFTModule,
)
from lit_ift.distributed import FSDP2Strategy
from lit_ift.modules import ContrastiveWeights, ObjectivePart
from lit_ift.modules.optim import ConstantSchedule

GLOBAL_BATCH: Final = 8
ROWS: Final = 19
"""Two whole steps an epoch and one of 3 rows, which 4 ranks cannot share without an idle one."""

CLIP: Final = 0.2
"""Most steps have a larger norm."""

Step = dict[str, float]
Compares = Literal["nothing", "ranks", "rank"]


@dataclass(frozen=True)
class Split:
    """How a global batch is shared out.

    Args:
        rows: of a micro-batch on a rank.
        accumulate: micro-batches of a rank.
        ranks: that share it.
        strategy: ``single``, ``ddp`` or ``fsdp2``.
        packed: whether micro-batches are packed; else they are padded.
    """

    rows: int
    accumulate: int
    ranks: int
    strategy: str
    packed: bool

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.accumulate}x{self.ranks} {self.strategy} {'packed' if self.packed else 'padded'}"


SPLITS: Final = [
    Split(8, 1, 1, "single", False),
    Split(8, 1, 1, "single", True),
    Split(4, 2, 1, "single", False),
    Split(1, 8, 1, "single", True),
    Split(4, 1, 2, "ddp", False),
    Split(2, 2, 2, "ddp", True),
    Split(4, 1, 2, "fsdp2", True),
    Split(2, 2, 2, "fsdp2", False),
    Split(2, 1, 4, "ddp", True),
    Split(1, 2, 4, "fsdp2", False),
]
"""The first is what the others are compared with."""

ALIKE: Final = [
    Split(rows, accumulate, ranks, strategy, packed)
    for rows, accumulate, ranks, strategies in (
        (8, 1, 1, ("single",)),
        (4, 2, 1, ("single",)),
        (4, 1, 2, ("ddp", "fsdp2")),
        (2, 1, 4, ("ddp", "fsdp2")),
    )
    for strategy, packed in product(strategies, (False, True))
]
"""Splits several of which have the same micro-batches, for what compares the rows of one."""


@dataclass(frozen=True)
class Objective:
    """What is trained, and on which rows.

    Args:
        module: its class.
        options: its arguments.
        rows: the files it learns from.
        compares: which rows have a say in each other's loss, beyond the weight of the step: those of the micro-batches
            of all ``ranks`` together, or of one ``rank``. Such splits alone are compared that leave these alike.
        lr: learning rate.
        dtype: of the model. In float64 a sum in another order is all but the same, whatever processor adds it up.
        precision: of the Trainer, where it is not that of the model.
        options_of_data: of the data module.
        steps: rows of each optimizer step of an epoch.
        strategies: that it can be trained under.
    """

    module: type[CausalLMModule]
    options: dict[str, Any] = field(default_factory=dict)
    rows: tuple[str, ...] = ("instruction",)
    compares: Compares = "nothing"
    lr: float = 0.1
    dtype: str = "float64"
    precision: str | None = None
    options_of_data: dict[str, Any] = field(default_factory=dict)
    steps: tuple[int, ...] = (GLOBAL_BATCH, GLOBAL_BATCH, ROWS % GLOBAL_BATCH)
    strategies: tuple[str, ...] = ("single", "ddp", "fsdp2")

    @property
    def splits(self) -> list[Split]:
        return [split for split in (ALIKE if self.compares == "rank" else SPLITS) if split.strategy in self.strategies]

    def reference(self, split: Split) -> Split:
        """The first split that must give the same as this one; may be this one."""

        def key(split: Split) -> tuple[int, ...]:
            shared = (split.rows * split.ranks, split.accumulate)
            return {"nothing": (), "ranks": shared, "rank": (*shared, split.ranks)}[self.compares]

        return next(other for other in self.splits if key(other) == key(split))


def pair_loss(loss: str, **options: Any) -> Objective:
    return Objective(PreferenceModule, {"loss": loss, **options}, ("preference",), lr=0.05)


ALL_KINDS: Final = ("instruction", "preference", "unpaired", "scored")
LORA: Final = {"r": 4, "lora_alpha": 8}
PARTS: Final = {
    "instruction": ObjectivePart("IFTModule", {"lam": 0.3}),
    "preference": ObjectivePart("PreferenceModule", {"options": {"beta": 0.2}}, weight=0.5),
}
OBJECTIVES: Final[dict[str, Objective]] = {
    "sft": Objective(SFTModule, options_of_data={"group_by_length": False}),
    "sft by token": Objective(SFTModule, {"reduction": "token"}, ("weighted",)),
    "ift": Objective(IFTModule, {"lam": 0.3}),
    "ift, noisy lambda": Objective(IFTModule, {"lam": 0.3, "lam_schedule": "linear", "lam_noise": 0.3}),
    "sftmix": Objective(SFTMixModule, compares="rank"),
    "uft": Objective(UFTModule, {"beta": 0.05}, ALL_KINDS, lr=0.05),
    "kto": Objective(KTOModule, {}, ("unpaired", "preference"), "ranks", lr=0.05),
    "bco, unpaired": Objective(KTOModule, {"variant": "bco"}, ("unpaired", "preference"), lr=0.05),
    "ift + dpo": Objective(MixedModule, {"parts": PARTS}, ("instruction", "preference")),
    # 10 instructions and 9 pairs; no step has both.
    "ift, dpo, by turns": Objective(
        MixedModule,
        {"parts": {name: replace(part, weight=1.0) for name, part in PARTS.items()}},
        ("instruction", "preference"),
        options_of_data={"interleave_parts": True},
        steps=(8, 8, 2, 1),
    ),
    "dpo": pair_loss("dpo"),
    "dpo, lora": pair_loss("dpo", lora=LORA),
    "ift and simpo in one pass": Objective(
        PreferenceModule,
        {
            "loss": [{"name": "propagation"}, {"name": "simpo", "beta": 0.5}],
            "input": "temporal_residual",
            "input_options": {"lam": 0.3},
        },
        ("preference",),
        lr=0.05,
    ),
    "every pair loss": Objective(
        PreferenceModule,
        {"loss": "loss_sums.of_pairs", "reference": "model"},
        ("gold",),
        lr=0.05,
    ),
    "every loss that compares pairs": Objective(
        PreferenceModule,
        {"loss": "loss_sums.comparing_pairs"},
        ("preference",),
        compares="rank",
        lr=0.05,
    ),
    "every token loss": Objective(
        SFTModule, {"loss": "loss_sums.of_tokens", "reference": "model"}, ("weighted",), lr=0.05
    ),
    "every token loss that compares rows": Objective(
        SFTModule, {"loss": "loss_sums.comparing_tokens"}, compares="rank"
    ),
    "psft, an old policy": Objective(SFTModule, {"loss": "loss_sums.nll_and_psft"}, strategies=("single", "ddp")),
    "ift, float32": Objective(IFTModule, {"lam": 0.3}, dtype="float32"),
    "dpo, float32": replace(pair_loss("dpo"), dtype="float32"),
    # Not IFT, whose greedy tokens change where rounding makes another one the best.
    "sft, bf16-mixed": Objective(SFTModule, dtype="float32", precision="bf16-mixed"),
    "uft, bf16-mixed": Objective(
        UFTModule, {"beta": 0.05}, ALL_KINDS, lr=0.05, dtype="float32", precision="bf16-mixed"
    ),
    "dpo, bf16-mixed": replace(pair_loss("dpo"), dtype="float32", precision="bf16-mixed"),
}


# Runs -------------------------------------------------------------------------------------------------------------


class Record(Callback):
    """Loss, norm of the gradient and rows of every optimizer step, and whether examples shared a row of a batch."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.rows: list[list[str]] = []
        self.is_packed = False
        self._means: Step = {}
        self._rows: list[str] = []

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        window, close = module._window, module._window.close

        def listen(add_over_ranks: Any) -> Any:
            totals = close(add_over_ranks)
            self._means = totals.means
            return totals

        window.close = listen  # Lightning would round what is logged to float32.

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        for part in [batch] if "input_ids" in batch else batch.values():
            if "sequence_ids" in part:
                self.is_packed |= int(part["sequence_ids"].max()) + 1 > len(part["input_ids"])
        self._rows += [row for row in module.latest_losses[0] if row]
        if trainer.global_step > len(self.steps):
            losses = {name: mean for name, mean in self._means.items() if name == "loss" or name.startswith("of/")}
            self.steps.append({**losses, "grad_norm": float(trainer.callback_metrics["train/grad_norm"])})
            self.rows.append(self._rows)
            self._rows = []


def rows_of_every_kind() -> dict[str, list[dict[str, Any]]]:
    """Rows of unequal lengths, the longest of which has room for several of the shortest when it comes to packing."""
    prompts = [f"{i} " + "x" * (21 * i % 61) for i in range(ROWS)]
    answers = ["y" * (1 + 5 * i % 6) + str(i) for i in range(ROWS)]
    pairs = [
        {"prompt": prompt, "chosen": answer, "rejected": "z" * (1 + 3 * i % 7)}
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    plain = [{"prompt": prompt, "completion": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    return {
        "instruction": plain,
        "unpaired": [{**row, "label": i % 2 == 0} for i, row in enumerate(plain)],
        "scored": [{**row, "score": i / ROWS} for i, row in enumerate(plain)],
        "preference": pairs,
        "gold": [{**pair, "gold": f"{pair['chosen']}!"} for pair in pairs],
        # Some micro-batches have no row with a weight.
        "weighted": [
            {
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["completion"], **({} if i % 3 else {"weight": 0.3 + i / 10})},
                ]
            }
            for i, row in enumerate(plain)
        ],
    }


def write_inputs(folder: Path) -> None:
    """Rows, a model, and two more models for the weights of tokens."""
    for seed, name in enumerate(("model", "positive", "negative")):
        tiny_model(dtype=torch.float32, seed=seed, vocab_size=len(tiny_tokenizer())).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    for kind, rows in rows_of_every_kind().items():
        (folder / f"{kind}.jsonl").write_bytes(jsonl(rows))


def sources(folder: Path, kinds: Sequence[str]) -> list[str]:
    """`ROWS` rows of all kinds together, as even as can be."""
    paths = []
    for place, kind in enumerate(kinds):
        count = ROWS // len(kinds) + (place < ROWS % len(kinds))
        lines = (folder / f"{kind}.jsonl").read_text().splitlines(keepends=True)[:count]
        path = folder / f"{kind}.{count}.jsonl"
        if not path.exists():
            path.write_text("".join(lines))
        paths.append(str(path))
    return paths


def fit(
    folder: Path, objective: Objective, split: Split, *, dtype: str | None, epochs: int, precision: str | None = None
) -> dict[str, Any]:
    """One run, seen from this rank."""
    model = str(folder / "model")
    # A cache of its own, so that reference log-probabilities are computed under this split too.
    os.environ["LIT_IFT_DATA_CACHE"] = str(folder / "cache" / split.name)
    L.seed_everything(1, verbose=False)  # LoRA's first weights are random.
    options = dict(objective.options)
    if objective.options.get("loss") in ("tis_dpo", "loss_sums.of_pairs"):
        options["token_weights"] = ContrastiveWeights(str(folder / "positive"), str(folder / "negative"))
    module = objective.module(
        model,
        dtype=dtype or objective.dtype,
        # Without adaptive steps, so that a wrong scale of the gradient cannot hide.
        optimizer=partial(torch.optim.SGD, lr=objective.lr),
        lr_scheduler=partial(ConstantSchedule, warmup=0),
        **options,
    )
    of_instructions = objective.rows in (("instruction",), ("weighted",))
    data_class = InstructionDataModule if of_instructions else FeedbackDataModule
    data = data_class(
        sources(folder, objective.rows),
        batch_size=split.rows,
        packing=split.packed,
        **objective.options_of_data,
    )
    record = Record()
    strategies: dict[str, Any] = {"single": "auto", "ddp": DDPStrategy, "fsdp2": FSDP2Strategy}
    strategy = strategies[split.strategy]
    trainer = L.Trainer(
        accelerator="cpu",
        precision=precision or objective.precision,
        devices=split.ranks,
        strategy=strategy if split.strategy == "single" else strategy(),
        max_epochs=epochs,
        accumulate_grad_batches=split.accumulate,
        gradient_clip_val=CLIP,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record],
    )
    trainer.fit(module, datamodule=data)
    return {"steps": record.steps, "rows": record.rows, "is_packed": record.is_packed}


def run_rank(folder: Path, names: Sequence[str], rank: int, ranks: int, options: dict[str, Any]) -> None:
    """All runs of one rank of one launch."""
    warnings.filterwarnings("ignore")
    disable_progress_bar()
    for library in ("lightning.pytorch", "lit_ift"):
        logging.getLogger(library).setLevel(logging.WARNING)
    if ranks > 1:
        os.environ["LOCAL_RANK"] = str(rank)  # Tells Lightning that the processes are there.
        store = (folder / f"store.{ranks}").as_uri()
        patience = timedelta(minutes=10)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=patience)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        for split in OBJECTIVES[name].splits:
            if split.ranks == ranks:
                found.setdefault(name, {})[split.name] = fit(folder, OBJECTIVES[name], split, **options)
    (folder / f"seen.{ranks}.{rank}.json").write_text(json.dumps(found))
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def run(folder: Path, names: Sequence[str], *, dtype: str | None = None, epochs: int = 2) -> None:
    """Train under all splits, with 1, 2 and 4 ranks side by side; what they saw is left in the folder.

    Call it in a process that has run nothing yet, for it forks.

    Raises:
        RuntimeError: a rank failed, after it has said why on stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    write_inputs(folder)
    for name in names:
        sources(folder, OBJECTIVES[name].rows)
    fork = multiprocessing.get_context("fork")
    options = {"dtype": dtype, "epochs": epochs}
    processes = [
        fork.Process(target=run_rank, args=(folder, names, rank, ranks, options), name=f"rank {rank} of {ranks}")
        for ranks in sorted({split.ranks for name in names for split in OBJECTIVES[name].splits})
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        running = {process.sentinel: process for process in processes}
        while running:
            for sentinel in wait([*running]):
                process = running.pop(sentinel)  # type: ignore[index]
                process.join()
                if process.exitcode:
                    raise RuntimeError(f"{process.name} ended with exit code {process.exitcode}")
    finally:
        for process in processes:
            process.kill()  # Those that still wait for one that failed.


# What they saw ----------------------------------------------------------------------------------------------------


def collect(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """For each objective and split the steps that rank 0 saw, and the rows of each step on all ranks, sorted.

    Raises:
        ValueError: ranks of one launch logged different things.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("seen.*.json")):
        for name, splits in json.loads(path.read_text()).items():
            for split, seen in splits.items():
                known = found.setdefault(name, {}).setdefault(split, {**seen, "rows": [[] for _ in seen["rows"]]})
                if known["steps"] != seen["steps"]:
                    raise ValueError(f"{name}, {split}: ranks logged different things")
                known["is_packed"] |= seen["is_packed"]
                known["rows"] = [sorted(a + b) for a, b in zip(known["rows"], seen["rows"], strict=True)]
    return found


@dataclass(frozen=True)
class Deviation:
    """How far one split is from the one that it is compared with.

    Attributes:
        objective: its name.
        split: its name.
        reference: name of the split that it is compared with.
        quantity: ``loss``, ``grad_norm``, or ``of/<name>`` of one among several losses.
        steps: relative and signed, of each optimizer step.
    """

    objective: str
    split: str
    reference: str
    quantity: str
    steps: tuple[float, ...]

    @property
    def worst(self) -> float:
        return max(abs(step) for step in self.steps)

    @property
    def mean(self) -> float:
        return fmean(self.steps)


def deviations(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[Deviation]:
    """Every split of every objective against its reference, quantity by quantity."""
    for name, of_splits in found.items():
        for split in OBJECTIVES[name].splits:
            reference = OBJECTIVES[name].reference(split)
            if reference == split:
                continue
            ours, expected = of_splits[split.name]["steps"], of_splits[reference.name]["steps"]
            for quantity in expected[0]:
                pairs = [(a[quantity], b[quantity]) for a, b in zip(ours, expected, strict=True)]
                steps = tuple((a - b) / abs(b) for a, b in pairs)
                yield Deviation(name, split.name, reference.name, quantity, steps)


def drift(of_one_quantity: Sequence[Deviation]) -> tuple[float, float]:
    """Mean of the splits' mean deviations, and its standard error; rounding alone has no direction."""
    means = [deviation.mean for deviation in of_one_quantity]
    return fmean(means), stdev(means) / math.sqrt(len(means))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", help="instead of that of each objective")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=OBJECTIVES, default=[*OBJECTIVES])
    options = parser.parse_args(words)
    run(options.folder, options.only, dtype=options.dtype, epochs=options.epochs)


if __name__ == "__main__":
    main()
