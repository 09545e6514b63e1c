"""How long a step of DPO takes, with the reference's log-probabilities at hand, side by side with TRL's.

Usage: python benchmarks/pairs_speed.py [--long FILE ...] [--pairs FILE ...] [--model ID] [--batch 2]
       [--max-length 512] [--rounds 8] [--minutes 4] [--parts NAME ...] [--again]

A step is forward, backward and AdamW (fused), in float32, on the same padded batch of real pairs for both; each round
has a new batch. Neither runs a reference: ours reads its cache, TRL's DPOTrainer has precompute_ref_log_probs. The
numbers themselves make no difference to time, so they are 0 here. --long are files of which the pairs with the largest
share of prompt tokens are taken; --pairs are taken as they are.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from batches import Batch, cut_after_prompt, facts_of, pair_rows
from peers import HAS_TRL, adamw, loaded, own_loss, take_step, trl_dpo_loss
from side_by_side import MODEL, ROWS, numbered, options_of, quiet, save, seconds_of, short, take_turns, wanted

from lit_ift import CausalLMModule, PreferenceModule

SCRIPT = "pairs_speed"


def with_reference(batch: Batch) -> Batch:
    """The batch as a cached reference completes it."""
    return {**batch, "reference_logps": torch.zeros(len(batch["labels"]))}


def trl_example(row: Any) -> dict[str, Any]:
    """A pair as TRL's collator takes it, with the same ids."""
    prompt, chosen = cut_after_prompt(row.sides["chosen"])
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": row.sides["rejected"].input_ids[len(prompt) :],
        "ref_chosen_logps": 0.0,
        "ref_rejected_logps": 0.0,
    }


def contestants(
    options: argparse.Namespace, folder: Path, module: CausalLMModule, batches: list[Batch], groups: list[list[Any]]
) -> dict[str, Callable[[int], float]]:
    """By name, what takes a step of a round."""
    model = module.model
    optimizer = adamw(model)
    modules = {
        "DPO": PreferenceModule(model, reference="cached"),
        "DPO, prompts shared": PreferenceModule(model, reference="cached", share_prompts=True),
    }
    steps: dict[str, tuple[Any, Any, list[Batch]]] = {}
    for name, one in modules.items():
        one.train()
        steps[name] = own_loss(one), optimizer, [with_reference(batch) for batch in batches]
    if HAS_TRL:
        collate, loss, its_model = trl_dpo_loss(model, module.tokenizer, folder, max_length=options.max_length)
        its_batches = [collate([trl_example(row) for row in group]) for group in groups]
        steps["TRL DPO"] = loss, adamw(its_model), its_batches

    def turn(name: str) -> Callable[[int], float]:
        loss, its_optimizer, given = steps[name]
        return lambda n: seconds_of(lambda: take_step(loss, its_optimizer, given[n % len(given)]))

    return {name: turn(name) for name in steps}


def measure(options: argparse.Namespace, module: CausalLMModule, part: str, file: str, *, long: bool) -> None:
    """Measure one file of pairs."""
    rows = pair_rows(
        file,
        module.tokenizer,
        max_length=options.max_length,
        max_rows=options.max_rows,
        longest_prompts=options.batch * options.rounds if long else None,
    )
    batches, groups = rows.pairs(options.batch, options.rounds)
    facts = {**facts_of(batches), "pairs_a_batch": options.batch, "model": short(options.model)}
    print(f"{SCRIPT}, {part}: {facts}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runners = contestants(options, Path(folder), module, batches, groups)
        found = take_turns(runners, options.rounds, minutes=options.minutes)
    save(options, SCRIPT, part, found, references=("DPO", "DPO, prompts shared", "TRL DPO"), facts=facts)


def main() -> None:
    """Measure each part and write its result."""
    parser = options_of(__doc__)
    parser.add_argument("--long", nargs="*", default=[str(ROWS / "pairs_long_prompts.jsonl")])
    parser.add_argument("--pairs", nargs="*", default=[str(ROWS / "pairs.jsonl")])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--batch", type=int, default=2, help="pairs a step")
    parser.add_argument("--max-length", type=int, default=512, help="longest answer with its prompt [tokens]")
    parser.add_argument("--max-rows", type=int, default=1000, help="first rows of each file")
    parser.set_defaults(rounds=8)
    options = parser.parse_args()
    parts = {f"{name}, long prompts": (file, True) for name, file in numbered(options.long).items()}
    parts |= {name: (file, False) for name, file in numbered(options.pairs).items()}
    todo = {part: of for part, of in parts.items() if wanted(options, SCRIPT, part)}
    if not todo:
        return
    with quiet():
        module = loaded(options.model)
        for part, (file, long) in todo.items():
            measure(options, module, part, file, long=long)


if __name__ == "__main__":
    main()
