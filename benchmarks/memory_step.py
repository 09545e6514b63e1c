"""Peak memory of one training step with a large vocabulary and long rows: SFT, IFT and DPO, side by side with TRL's.

Usage: python benchmarks/memory_step.py [--vocabulary 152064] [--lengths 1024 4096] [--batches 1 4] [--hidden 256]
       [--layers 2] [--response 0.5] [--rounds 1] [--parts "1 x 4096" ...] [--again]

A part is a batch: rows (of DPO pairs, which have two rows each) x tokens. Each contestant takes its step, forward,
backward and AdamW (fused), in a process of its own, with a random Llama in float32 whose layers are few and small, so
that what the head takes shows. Measured is how far the process's anonymous memory (RssAnon, sampled) grows beyond what
it was with the model loaded; on a GPU, the most that was allocated. TRL's DPO is measured with its second model, as it
does by default (counted where it is loaded before the step: the growth is that of the step alone), and with precomputed
reference. The largest step, of DPO with 4 pairs of 4096 tokens, needs some 10 GiB and a minute or two on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from meter import Meter
from side_by_side import options_of, save, take_turns, wanted

SCRIPT = "memory_step"
OWN = ("SFT", "IFT", "DPO")
SIZES = ("vocabulary", "hidden", "layers", "response")
OF_TRL = ("TRL SFT", "TRL DPO", "TRL DPO, precomputed")


def make_model(options: argparse.Namespace) -> Any:
    """A random Llama of the given sizes."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 3,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden // 64),
        num_key_value_heads=max(1, options.hidden // 64),
        max_position_embeddings=max(options.lengths),
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def make_batch(options: argparse.Namespace, rows: int, length: int, *, pairs: bool) -> dict[str, Any]:
    """Random rows, the last part of which is trained on; of pairs, which share their prompts, chosen answers first."""
    import torch

    generator = torch.Generator().manual_seed(1)
    prompt = round(length * (1 - options.response))
    ids = torch.randint(options.vocabulary, (2 * rows if pairs else rows, length), generator=generator)
    if pairs:
        ids[rows:, :prompt] = ids[:rows, :prompt]
    labels = ids.clone()
    labels[:, :prompt] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def pair_batch(options: argparse.Namespace, rows: int, length: int, *, pairs: bool = True) -> dict[str, Any]:
    """The pairs of `make_batch` as this package collates them, with reference log-probabilities of 0."""
    import torch

    from lit_ift.chat.example import Example
    from lit_ift.data.batch.collate import collate_feedback
    from lit_ift.data.rows import EncodedRow

    batch = make_batch(options, rows, length, pairs=pairs)
    both = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
    answers = [Example(ids, labels, str(number)) for number, (ids, labels) in enumerate(both)]
    made = [
        EncodedRow("preference", str(i), {"chosen": answers[i], "rejected": answers[rows + i]}) for i in range(rows)
    ]
    return {**collate_feedback(made, pad_token_id=0), "reference_logps": torch.zeros(2 * rows)}


def own_step(options: argparse.Namespace, name: str, rows: int, length: int) -> tuple[Any, Any, Any]:
    """Loss, model and batch of a contestant of this package."""
    from peers import own_loss

    from lit_ift import IFTModule, PreferenceModule, SFTModule

    model = make_model(options)
    if name == "DPO":
        return own_loss(PreferenceModule(model, reference="cached")), model, pair_batch(options, rows, length)
    module: Any = {"SFT": SFTModule, "IFT": IFTModule}[name](model)
    return own_loss(module), model, make_batch(options, rows, length, pairs=False)


def trl_step(options: argparse.Namespace, name: str, rows: int, length: int, folder: Path) -> tuple[Any, Any, Any]:
    """Loss, model and batch of a contestant of TRL."""
    import torch
    from peers import trl_dpo_loss, trl_sft_loss

    tokenizer = make_tokenizer()
    batch = make_batch(options, rows, length, pairs=name != "TRL SFT")
    if name == "TRL SFT":
        loss, model = trl_sft_loss(make_model(options), tokenizer, folder)
        return loss, model, batch
    precomputed = name.endswith("precomputed")
    _, loss, model = trl_dpo_loss(make_model(options), tokenizer, folder, precomputed=precomputed, max_length=length)
    batch["completion_mask"] = (batch.pop("labels") != -100).long()
    if precomputed:
        batch |= {f"ref_{side}_logps": torch.zeros(rows) for side in ("chosen", "rejected")}
    return loss, model, batch


def make_tokenizer() -> Any:
    """Any tokenizer will do: rows are ids already."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<unk>", pad_token="<unk>")


def growth(options: argparse.Namespace, name: str, rows: int, length: int) -> float:
    """By how much the memory of this process grows in a step [MiB]."""
    import torch
    from peers import adamw, take_step
    from side_by_side import quiet

    with tempfile.TemporaryDirectory() as folder, quiet():
        if name in OWN:
            loss, model, batch = own_step(options, name, rows, length)
        else:
            loss, model, batch = trl_step(options, name, rows, length, Path(folder))
        model.train()
        optimizer = adamw(model)
        if not torch.cuda.is_available():
            meter = Meter()
            take_step(loss, optimizer, batch)
            return meter.read()["peak"]
        model.cuda()
        batch = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        take_step(loss, optimizer, batch)
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def grown(options: argparse.Namespace, name: str, rows: int, length: int) -> float:
    """What `growth` finds in a new process."""
    sizes = [word for key in SIZES for word in (f"--{key}", str(vars(options)[key]))]
    words = [*sizes, "--lengths", *map(str, options.lengths), "--measure", name, str(rows), str(length)]
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "TQDM_DISABLE": "1"})
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """Measure each part and write its result."""
    parser = options_of(__doc__)
    parser.add_argument(
        "--vocabulary", type=int, default=152_064, help="tokens of the vocabulary; Qwen2.5's by default"
    )
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 4096])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4], help="rows of a batch, or pairs")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size, a multiple of 64")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--response", type=float, default=0.5, help="share of trained tokens of a row")
    parser.add_argument("--only", nargs="*", help="contestants; all by default")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.set_defaults(rounds=1)
    options = parser.parse_args()
    if options.measure:
        name, rows, length = options.measure
        print(json.dumps(growth(options, name, int(rows), int(length))))
        return
    from peers import HAS_TRL

    names = [name for name in (*OWN, *(OF_TRL if HAS_TRL else ())) if not options.only or name in options.only]
    for length in options.lengths:
        for rows in options.batches:
            part = f"{rows} x {length}"
            if not wanted(options, SCRIPT, part):
                continue
            runners = {n: lambda _, n=n, rows=rows, length=length: grown(options, n, rows, length) for n in names}
            found = take_turns(runners, options.rounds, minutes=options.minutes, warm_up=0)
            facts = {key: vars(options)[key] for key in SIZES}
            save(options, SCRIPT, part, found, references=("SFT", *OF_TRL), unit="MiB", facts=facts)


if __name__ == "__main__":
    main()
