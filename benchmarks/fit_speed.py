"""Trained tokens a second of a whole fit: SFT and IFT of this package, TRL's SFT, the authors' IFT.

Usage: python benchmarks/fit_speed.py [--rows FILE ...] [--authors FOLDER] [--model ID] [--batch 8] [--fit-rows 48]
       [--max-length 512] [--rounds 3] [--minutes 5] [--parts NAME ...] [--again]

A round is a fit of one epoch on the same --fit-rows rows for each contestant, as its Trainer does it: loader, batches,
clipping, optimizer, schedule and what is computed to be logged. Loading, checkpoints and loggers are off, and the clock
runs from the first batch to the last update. Both trainers group rows by length, and have their own default optimizer
(fused AdamW at 2e-5). TRL gets the same token ids and labels. More is better, so a ratio above 1 is a win.

With --authors, a clone of https://github.com/TsinghuaC3I/Intuitive-Fine-Tuning, their loss is trained with clipping and
AdamW on one batch a round, padded to 512 and to 1024 as their loader does it; it takes equally long for any rows.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from batches import Batch, Rows, facts_of, instruction_rows, padded_to, trained_tokens
from peers import HAS_TRL, AuthorsIFT, adamw, loaded, trl_sft
from side_by_side import MODEL, ROWS, numbered, options_of, quiet, save, seconds_of, short, take_turns, wanted
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from lit_ift import CausalLMModule, IFTModule, InstructionDataModule, SFTModule
from lit_ift.chat.example import Example

SCRIPT = "fit_speed"

Fit = Callable[[int], float]
"""Seconds of the fit of a round."""


class Clock(L.Callback):
    """Seconds from the first batch of a fit to its last update."""

    def on_train_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.start


def own_fit(kind: type[CausalLMModule], options: dict[str, Any], model: Any, data: Callable[[int], Any]) -> Fit:
    """A fit of a module of this package."""

    def run(number: int) -> float:
        clock = Clock()
        trainer = L.Trainer(
            max_epochs=1,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=[clock],
        )
        trainer.fit(kind(model, **options), datamodule=data(number))
        return clock.seconds

    return run


def trl_fit(model: Any, tokenizer: Any, folder: Path, examples: list[Example], options: argparse.Namespace) -> Fit:
    """A fit of TRL's SFTTrainer, on a copy of the model."""
    from transformers import PrinterCallback, TrainerCallback

    class TheirClock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.start

    clock = TheirClock()
    rows = [{"input_ids": example.input_ids, "labels": example.labels} for example in examples]
    fields = {"max_length": options.max_length, "train_sampling_strategy": "group_by_length"}
    trainer = trl_sft(
        copy.deepcopy(model), tokenizer, folder, rows, per_device_train_batch_size=options.batch, **fields
    )
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)

    def run(number: int) -> float:
        trainer.args.seed = trainer.args.data_seed = number
        trainer.train()
        return clock.seconds

    return run


def authors_step(authors: AuthorsIFT, optimizer: Optimizer, batches: list[Batch]) -> Fit:
    """A step of the authors' loss on the batch of a round."""

    def step(batch: Batch) -> None:
        authors(batch).backward()
        clip_grad_norm_(authors.trainer.policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return lambda number: seconds_of(lambda: step(batches[number % len(batches)]))


def own_modules() -> dict[str, tuple[type[CausalLMModule], dict[str, Any]]]:
    """What this package trains."""
    shared = IFTModule, {"share_prompts": True}
    return {"SFT": (SFTModule, {}), "IFT": (IFTModule, {}), "IFT, prompts shared": shared}


def contestants(
    options: argparse.Namespace, folder: Path, module: CausalLMModule, rows: Rows, file: str
) -> tuple[dict[str, Callable[[int], float]], list[str]]:
    """By name, the trained tokens a second of a round; and which of them are of the authors' code."""
    model, examples = module.model, rows.examples

    def data(number: int) -> InstructionDataModule:
        return InstructionDataModule(
            file,
            tokenizer=module.tokenizer,
            max_length=options.max_length,
            truncation="drop",
            on_bad_row="skip",
            max_rows=options.fit_rows,
            batch_size=options.batch,
            cache_dir=str(folder / "rows"),
            seed=number,
        )

    fits = {name: own_fit(kind, given, model, data) for name, (kind, given) in own_modules().items()}
    tokens: dict[str, Callable[[int], int]] = {}
    if HAS_TRL:
        fits["TRL SFT"] = trl_fit(model, module.tokenizer, folder, examples, options)
    if options.authors is not None:
        authors, optimizer = AuthorsIFT(options.authors, model), adamw(model, lr=2e-5)
        batches = rows.batches(options.batch, options.rounds)
        for length in options.authors_lengths:
            padded = [padded_to(batch, length, rows.pad_token_id) for batch in batches]
            name = f"authors' IFT, padded to {length}"
            fits[name] = authors_step(authors, optimizer, padded)
            tokens[name] = lambda number: trained_tokens(batches[number % len(batches)]["labels"])
    whole = sum(example.num_targets for example in examples)

    def rate(name: str) -> Callable[[int], float]:
        return lambda number: tokens.get(name, lambda _: whole)(number) / fits[name](number)

    return {name: rate(name) for name in fits}, [*tokens]


def measure(options: argparse.Namespace, module: CausalLMModule, part: str, file: str) -> None:
    """Measure one file of rows."""
    rows = instruction_rows(file, module.tokenizer, max_length=options.max_length, max_rows=options.fit_rows)
    facts = facts_of(rows.batches(options.batch, max(1, len(rows.encoded) // options.batch)))
    facts |= {"rows_a_fit": len(rows.encoded), "model": short(options.model)}
    print(f"{SCRIPT}, {part}: {facts}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runners, authors = contestants(options, Path(folder), module, rows, file)
        found = take_turns(runners, options.rounds, minutes=options.minutes, warm_up=options.warm_up)
    references = ("TRL SFT", "SFT", *authors)
    save(options, SCRIPT, part, found, references=references, unit="trained tokens/s", facts=facts)


def main() -> None:
    """Measure each part and write its result."""
    parser = options_of(__doc__)
    parser.add_argument("--rows", nargs="*", default=[str(ROWS / "instruct.jsonl")], help="files of instruction rows")
    parser.add_argument("--authors", type=Path, help="folder of a clone of the authors' code")
    parser.add_argument("--authors-lengths", type=int, nargs="*", default=[512, 1024], help="what they pad rows to")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--fit-rows", type=int, default=48, help="first rows of each file, which a fit trains on")
    parser.add_argument("--max-length", type=int, default=512, help="longest row [tokens]; longer ones are left out")
    parser.add_argument("--warm-up", type=int, default=0, help="rounds before, which are not counted")
    parser.set_defaults(rounds=3)
    options = parser.parse_args()
    todo = {part: file for part, file in numbered(options.rows).items() if wanted(options, SCRIPT, part)}
    if not todo:
        return
    with quiet():
        module = loaded(options.model)
        for part, file in todo.items():
            measure(options, module, part, file)


if __name__ == "__main__":
    main()
