"""A short run of every objective on real rows: does it train, and do held-out pairs come out better?

Usage: python benchmarks/objectives.py --pairs TRAIN VAL --instructions TRAIN VAL --scored TRAIN VAL
       [--scored-pairs TRAIN VAL] [--only dpo simpo] [--model ID] [--steps 24] [--batch 4] [--max-length 192]
       [--lr 1e-5] [--layers 6] [--out FILE.csv]

Every objective begins with the same weights and has the same budget; with --layers the last layers alone are trained,
which takes half the time. Rows longer than --max-length are left out. The
table tells the validation loss before and after, and for pairs the share of held-out pairs whose chosen answer has
the higher reward, as the objective defines it (for TIS-DPO, without the weights of its tokens), and the nll
where an objective logs it beside its loss. One line of CSV is written as each run ends; objectives that --out has
already are left out, so that a run which was stopped goes on where it was.

GDPO and GIPO learn from pairs with soft labels: --scored-pairs has rows with score_chosen and score_rejected, and the
label is σ(score_chosen - score_rejected).

KTO learns from the pairs taken apart, as in its paper, because thumbs are few and long. TPO's third answer is the
chosen one once more. The two models that weight TIS-DPO's tokens are trained first, on the chosen and on the rejected
answers, with the same budget.
"""

import argparse
import csv
import json
import math
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import lightning as L
import torch
import yaml

from lit_ift import CausalLMModule, FeedbackDataModule
from lit_ift.data import Source
from lit_ift.data.read.readers import read_records
from lit_ift.losses import PAIR_LOSSES, TOKEN_LOSSES, PairLoss, TokenLoss
from lit_ift.losses.pair.changes import CHANGES
from lit_ift.modules import (
    ContrastiveWeights,
    IFTModule,
    KTOModule,
    MixedModule,
    ObjectivePart,
    PreferenceModule,
    SFTMixModule,
    SFTModule,
    UFTModule,
)
from lit_ift.modules.inputs import INPUT_KINDS
from lit_ift.modules.optim import ConstantSchedule
from lit_ift.modules.part_schedule import PartSchedule

MEASURES = {"loss": "val/loss", "accuracy": "rewards/accuracies", "nll": "nll_loss"}
"""Columns, before and after training, and how the names of their metrics end."""

COLUMNS = (
    "objective",
    "rows",
    "steps",
    *(f"{name}_{when}" for name in MEASURES for when in ("before", "after")),
    "seconds",
)

NEEDED_OPTIONS = {"deformed_log": {"alpha": 0.5}}
"""Options that a token loss has no default for."""

CHANGE_OPTIONS = {"ld_dpo": {"alpha": 0.5}, "wpo": {}}
"""Options of the changes of a pair loss."""

SUMS = Path(__file__).parents[1] / "configs" / "loss"
"""Where the sums of pair losses of papers are."""


@dataclass
class Run:
    """One objective.

    Args:
        module: its class.
        options: its arguments.
        rows: which of the files it learns from, by the names of the options, joined by ``+``.
        max_rows: first rows of each training file that are used, where it must be few.
    """

    module: type[CausalLMModule]
    options: dict[str, Any] = field(default_factory=dict)
    rows: str = "pairs"
    max_rows: int | None = None


PARTS = {"instruction": ObjectivePart("IFTModule"), "preference": ObjectivePart("PreferenceModule")}


def runs() -> dict[str, Run]:
    """All objectives by name."""
    found = {
        # The loss nll on the input true_tokens.
        "sft": Run(SFTModule, rows="instructions"),
        "ift": Run(IFTModule, {"lam": 0.2, "gamma": 0.95}, "instructions"),
        "ift, predictions of the initial policy": Run(IFTModule, {"reuse_predictions": "initial"}, "instructions"),
        # Two epochs at least.
        "ift, predictions of the epoch before": Run(IFTModule, {"reuse_predictions": "epoch"}, "instructions", 20),
        "sftmix": Run(SFTMixModule, rows="instructions"),
        "kto": Run(KTOModule, rows="answers"),
        "bco of thumbs": Run(KTOModule, {"variant": "bco"}, "answers"),
        "uft": Run(UFTModule, {"beta": 0.05}, "instructions+pairs+answers+scored"),
        "ift+dpo": Run(MixedModule, {"parts": PARTS}, "instructions+pairs"),
    }
    for kind in get_args(get_type_hints(PartSchedule)["kind"]):
        schedule = PartSchedule(kind)
        found[f"ift+dpo, {kind}"] = Run(MixedModule, {"parts": PARTS, "schedule": schedule}, "instructions+pairs")
    for name in PAIR_LOSSES:
        loss = PairLoss(name)
        # The name "sft" is that of the module; on pairs it is the likelihood of the chosen answer.
        rows = "gold" if loss.needs_gold else "scored_pairs" if "preference" in loss.inputs else "pairs"
        found["sft on pairs" if name == "sft" else name] = Run(
            PreferenceModule, {"loss": name, **({"reference": "model"} if loss.needs_reference_tokens else {})}, rows
        )
    return found | token_runs() | changed_pair_runs()


def token_runs() -> dict[str, Run]:
    """Each token loss on the true tokens, and the likelihood on each other input."""
    found = {}
    for name in TOKEN_LOSSES:
        options = NEEDED_OPTIONS.get(name, {})
        held = {"reference": "model"} if TokenLoss(name, options).needs_reference else {}
        found[name] = Run(SFTModule, {"loss": name, "options": options, **held}, "instructions")
    inputs = {f"nll, {name}": Run(SFTModule, {"input": name}, "instructions") for name in INPUT_KINDS}
    # Both are sft.
    return {name: run for name, run in (found | inputs).items() if name not in ("nll", "nll, true_tokens")}


def changed_pair_runs() -> dict[str, Run]:
    """DPO with each change that any pair loss takes, and the sums of papers."""
    found = {
        f"dpo, {change}": Run(PreferenceModule, {"options": {change: CHANGE_OPTIONS[change]}, "reference": "model"})
        for change in CHANGES
    }
    for name in ("irpo", "mpo", "ift_dpo", "ift_simpo"):
        options = yaml.safe_load((SUMS / f"{name}.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
        found[name] = Run(PreferenceModule, options)
    return found


def derive(options: argparse.Namespace, folder: Path) -> dict[str, list[Path]]:
    """Training and validation files of every kind of rows, those made from the pairs included."""
    given = ("pairs", "instructions", "scored", "scored_pairs")
    files = {name: [Path(path) for path in getattr(options, name) or ()] for name in given}
    files |= {name: [] for name in ("answers", "gold")}
    for split, source in zip(("train", "val"), options.pairs, strict=True):
        pairs = [record.data for record in read_records(source)]
        rows = {
            "answers": [
                {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
                for pair in pairs
                for side in ("chosen", "rejected")
            ],
            "gold": [{**pair, "gold": pair["chosen"]} for pair in pairs],
        }
        for name, lines in rows.items():
            files[name].append(write(folder / f"{name}_{split}.jsonl", lines))
    return files


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines and return where."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def contrastive_weights(files: dict[str, list[Path]], options: argparse.Namespace, folder: Path) -> ContrastiveWeights:
    """Weights of tokens from two models, trained on the chosen and on the rejected answers."""
    folders = []
    for side in ("chosen", "rejected"):
        swapped = []
        for path in files["pairs"]:
            pairs = [record.data for record in read_records(path)]
            lines = [{"prompt": p["prompt"], "completion": p[side]} for p in pairs]
            swapped.append(write(folder / f"{side}_{path.name.split('.')[0]}.jsonl", lines))
        module = build(Run(SFTModule), options, options.model)
        trainer(options, folder).fit(module, datamodule=data_of("own", {"own": swapped}, options))
        folders.append(str(folder / f"model_{side}"))
        module.model.save_pretrained(folders[-1])
    return ContrastiveWeights(*folders)


def data_of(
    rows: str, files: dict[str, list[Path]], options: argparse.Namespace, max_rows: int | None = None
) -> FeedbackDataModule:
    """The rows that an objective learns from and is measured on; the first ``max_rows`` of each training file."""
    train, val = (
        [
            Source(
                str(files[name][i]),
                preference_scale=1.0 if name == "scored_pairs" else None,
                score_range=(1, 10) if name == "scored" else None,
                max_rows=most,
            )
            for name in rows.split("+")
        ]
        for i, most in enumerate((max_rows, None))
    )
    return FeedbackDataModule(
        train=train,
        val=val,
        max_length=options.max_length,
        truncation="drop",
        on_bad_row="skip",
        max_rows=options.max_rows,
        batch_size=options.batch,
        eval_batch_size=8,
    )


def build(run: Run, options: argparse.Namespace, model: Any) -> CausalLMModule:
    """The module of a run, all with one optimizer."""
    return run.module(
        model,
        tokenizer=options.model,
        optimizer=partial(torch.optim.AdamW, lr=options.lr, weight_decay=0.0),
        lr_scheduler=ConstantSchedule,
        **run.options,
    )


def trainer(options: argparse.Namespace, folder: Path) -> L.Trainer:
    """A trainer that trains and does nothing else."""
    return L.Trainer(
        max_steps=options.steps,
        max_epochs=-1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


def train(run: Run, files: dict[str, list[Path]], options: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Measure, train, measure: the numbers of one line of the table."""
    data = data_of(run.rows, files, options, run.max_rows)
    module = build(run, options, model)
    judge = partial(L.Trainer, logger=False, enable_checkpointing=False, limit_val_batches=options.val_batches)
    before = judge().validate(module, datamodule=data, verbose=False)[0]
    start = time.perf_counter()
    trainer(options, files["gold"][0].parent).fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    after = judge().validate(module, datamodule=data, verbose=False)[0]
    measured: dict[str, float] = {}
    for column, ending in MEASURES.items():
        metric = next((name for name in before if name.endswith(ending)), None)
        for when, values in (("before", before), ("after", after)):
            measured[f"{column}_{when}"] = values[metric] if metric else math.nan
    return {"rows": run.rows, "steps": options.steps, **measured, "seconds": seconds}


def main() -> None:
    """Run the objectives one after the other and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    for name in ("pairs", "instructions", "scored"):
        parser.add_argument(f"--{name}", nargs=2, metavar=("TRAIN", "VAL"), required=True)
    parser.add_argument("--scored-pairs", nargs=2, metavar=("TRAIN", "VAL"), help="needed by GDPO and GIPO")
    parser.add_argument("--only", nargs="*", help="objectives to run; all by default")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps of each objective")
    parser.add_argument("--batch", type=int, default=4, help="rows a step")
    parser.add_argument("--max-rows", type=int, default=None, help="first rows of each file that are used")
    parser.add_argument("--max-length", type=int, default=192, help="longest row that is used [tokens]")
    parser.add_argument("--val-batches", type=int, default=8, help="batches of 8 held-out rows")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--layers", type=int, help="last layers that are trained; all, and the embeddings, by default")
    parser.add_argument("--out", type=Path, default=Path("objectives.csv"))
    options = parser.parse_args()
    offered = runs()
    unknown = set(options.only or ()) - set(offered)
    if unknown:
        parser.error(f"unknown objectives {', '.join(sorted(unknown))}; there are {', '.join(offered)}")
    soft = [name for name in options.only or offered if offered[name].rows == "scored_pairs"]
    if soft and options.scored_pairs is None:
        parser.error(f"{' and '.join(soft)} learn from --scored-pairs")

    loader = SFTModule(options.model)
    loader.configure_model()
    weights = {name: value.clone() for name, value in loader.model.state_dict().items()}
    done = set()
    if options.out.exists():
        with options.out.open(newline="") as file:
            done = {line["objective"] for line in csv.DictReader(file)}
    with options.out.open("a", newline="") as file, tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        files = derive(options, folder)
        table = csv.DictWriter(file, COLUMNS)
        if not done:
            table.writeheader()
        for name in [name for name in options.only or offered if name not in done]:
            L.seed_everything(0, verbose=False)
            loader.model.load_state_dict(weights)
            loader.model.requires_grad_(options.layers is None)
            if options.layers:
                loader.model.model.layers[-options.layers :].requires_grad_(True)
            run = offered[name]
            if run.options.get("loss") == "tis_dpo":
                run.options["token_weights"] = contrastive_weights(files, options, folder)
            line = {"objective": name, **train(run, files, options, loader.model)}
            table.writerow(line)
            file.flush()
            print(" | ".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in line.values()))


if __name__ == "__main__":
    main()
