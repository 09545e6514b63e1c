"""How long an optimizer step of IFT takes, side by side with SFT here, in transformers and in TRL.

Usage: python benchmarks/step_time.py [--rows FILE ...] [--low FILE ...] [--authors FOLDER] [--model ID]
       [--batch 8] [--max-length 512] [--rounds 30] [--minutes 8] [--peers-every 3] [--parts NAME ...] [--again]

A step is forward, backward and AdamW (fused), in float32, on the same padded batch of real rows for all; each round has
a new batch. A part is a file of rows: --rows as they are, --low those of its rows with at most a quarter of response
tokens. What an IFT step can cost at least beside one of SFT, (3 + s)/3 with s the share of response tokens (prompts
encoded once), is told with each part, and the target, 1.03 times that.

Contestants: SFT and IFT of this package; IFT that reuses predictions (here the true tokens stand for them: time does
not depend on which ids are mixed in); IFT with shared prompts; a transformers model that gets
labels; the loss of TRL's SFTTrainer, on a model of its own; and with --authors, a clone of
https://github.com/TsinghuaC3I/Intuitive-Fine-Tuning, their loss on the batch padded to --max-length. Peers take part in
every third round, the authors' code in every tenth. Other options of IFTModule are compared with
--ift '{"name": {"option": value}}'.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from batches import Batch, facts_of, instruction_rows, padded_to
from peers import HAS_TRL, AuthorsIFT, Loss, adamw, loaded, own_loss, plain_loss, take_step, trl_sft_loss
from side_by_side import MODEL, ROWS, numbered, options_of, quiet, save, seconds_of, short, take_turns, wanted
from torch import Tensor

from lit_ift import IFTModule, SFTModule
from lit_ift.losses.logprobs import target_mask

SCRIPT = "step_time"


class TrueTokens:
    """Stands for predictions that are kept: the true tokens."""

    keeps = False

    def of(self, module: Any, batch: Batch) -> Tensor:
        return batch["labels"][:, 1:][target_mask(batch["labels"])]


def own(model: Any, more: dict[str, dict[str, Any]]) -> dict[str, Loss]:
    """The contestants of this package, which share one model."""
    reusing = IFTModule(model, reuse_predictions="initial")
    reusing.token_input.reused = TrueTokens()
    modules = {"SFT": SFTModule(model), "IFT": IFTModule(model), "IFT, predictions reused": reusing}
    modules["IFT, prompts shared"] = IFTModule(model, share_prompts=True)
    modules |= {f"IFT, {label}": IFTModule(model, **options) for label, options in more.items()}
    for module in modules.values():
        module.train()
    return {label: own_loss(module) for label, module in modules.items()}


def contestants(
    options: argparse.Namespace, folder: Path, module: SFTModule, batches: list[Batch], pad_token_id: int
) -> tuple[dict[str, Callable[[int], float]], dict[str, int]]:
    """By name, what takes a step of a round; and those that do not take part in every round."""
    model = module.model
    optimizer = adamw(model)
    losses = {name: (loss, optimizer) for name, loss in own(model, options.ift).items()}
    every = {"transformers": options.peers_every, "TRL SFT": options.peers_every}
    losses["transformers"] = plain_loss(model), optimizer
    if HAS_TRL:
        loss, its_model = trl_sft_loss(model, module.tokenizer, folder)
        losses["TRL SFT"] = loss, adamw(its_model)
    if options.authors is not None:
        name = f"authors' IFT, padded to {options.max_length}"
        authors = AuthorsIFT(options.authors, model)
        losses[name] = (lambda batch: authors(padded_to(batch, options.max_length, pad_token_id))), optimizer
        every[name] = options.authors_every

    def turn(name: str) -> Callable[[int], float]:
        loss, its_optimizer = losses[name]
        return lambda n: seconds_of(lambda: take_step(loss, its_optimizer, batches[n % len(batches)]))

    return {name: turn(name) for name in losses}, every


def measure(options: argparse.Namespace, module: SFTModule, part: str, file: str, *, low_share: bool) -> None:
    """Measure one file of rows."""
    rows = instruction_rows(
        file, module.tokenizer, max_length=options.max_length, max_rows=options.max_rows, low_share=low_share
    )
    batches = rows.batches(options.batch, options.rounds)
    device = module.model.device
    batches = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()} for batch in batches]
    facts = facts_of(batches)
    limit = (3 + facts["response_share"]) / 3
    facts |= {"limit_of_ift": round(limit, 3), "target_of_ift": round(1.03 * limit, 3), "model": short(options.model)}
    print(f"{SCRIPT}, {part}: {facts}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runners, every = contestants(options, Path(folder), module, batches, rows.pad_token_id)
        cold = [name for name, rounds in every.items() if rounds == options.authors_every]
        found = take_turns(runners, options.rounds, minutes=options.minutes, every=every, cold=cold)
    save(options, SCRIPT, part, found, references=("SFT", "IFT", "TRL SFT"), facts=facts)


def main() -> None:
    """Measure each part and write its result."""
    parser = options_of(__doc__)
    parser.add_argument("--rows", nargs="*", default=[str(ROWS / "instruct.jsonl")], help="files of instruction rows")
    parser.add_argument("--low", nargs="*", default=[str(ROWS / "low_share.jsonl")], help="files with long prompts")
    parser.add_argument("--authors", type=Path, help="folder of a clone of the authors' code")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--max-length", type=int, default=512, help="longest row [tokens]; longer ones are left out")
    parser.add_argument("--max-rows", type=int, default=2000, help="first rows of each file")
    parser.add_argument("--peers-every", type=int, default=3, help="peers take part in every n-th round")
    parser.add_argument("--authors-every", type=int, default=10)
    parser.add_argument("--ift", type=json.loads, default={}, help="more IFT modules by name, with their options")
    parser.set_defaults(rounds=30)
    options = parser.parse_args()
    parts = {name: (file, False) for name, file in numbered(options.rows).items()}
    parts |= {f"{name}, low share": (file, True) for name, file in numbered(options.low).items()}
    todo = {part: of for part, of in parts.items() if wanted(options, SCRIPT, part)}
    if not todo:
        return
    with quiet():
        module = loaded(options.model)
        module.model.to("cuda" if torch.cuda.is_available() else "cpu")
        for part, (file, low_share) in todo.items():
            measure(options, module, part, file, low_share=low_share)


if __name__ == "__main__":
    main()
