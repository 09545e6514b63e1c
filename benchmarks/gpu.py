"""Tokens a second, MFU and peak memory on one GPU: SFT, IFT and DPO, side by side with TRL's fused head.

Usage: python benchmarks/gpu.py [--minutes 8] [--seconds 20] [--peak 989] [--parts "7B" ...] [--tiny] [--again]

Never run on a GPU so far; --tiny runs it all on any machine with models of some thousand weights.

At most 12 cells in four parts, in this order, so that a run that is cut is of use: no part begins after --minutes.

1. 7B, bf16-true, 4,096 tokens: SFT, IFT, TRL's SFT
2. 1B, bf16-mixed (weights in float32), 4,096 tokens: SFT, IFT, TRL's SFT
3. 1B, bf16-mixed, pairs of 2 x 2,048 tokens, reference precomputed: DPO, TRL's DPO
4. 135M, bf16-mixed, 1,024 tokens: SFT, IFT, IFT with prompts shared, TRL's SFT

Weights are random, rows are full, half of each is trained on, and a step is forward, backward and fused AdamW. The
contestants of a part share one model and take turns, some --seconds each. TRL's part is its fused head
(``trl.trainer.utils.add_fused_lm_head``) with what its trainers compute of it: loss, entropy and accuracy.

MFU = tokens a second x FLOPs a token / peak. A forward pass takes 2 FLOPs a weight of the layers and token, and
2 L D T for attention (causal: half of 4 L D T); the head takes 2 D V at trained tokens only. A step of SFT or DPO is 3
forward passes, of IFT 4 (8 instead of 6 FLOPs a weight and token), or 3.5 with prompts shared, which are half of each
row. Recomputed activations and logits do not count. --peak is that of the device [TFLOP/s], of H100 and H200 SXM by
default.

Needs torch 2.11, transformers, lightning, lazy-loader and pyarrow, and for TRL trl, accelerate, datasets, dill,
multiprocess, xxhash and pandas. What a machine with torch and transformers alone lacks of these fits into 64 MiB of
wheels (pyarrow is the only large one): ``pip download --no-deps trl datasets dill multiprocess xxhash accelerate
lightning lightning-utilities torchmetrics lazy-loader pyarrow``. Without trl its cells are left out.
"""

import argparse
import gc
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

import torch
from memory_step import make_batch, pair_batch
from peers import HAS_TRL, Batch, Loss, adamw, own_loss
from side_by_side import options_of, quiet, save, synchronize, take_turns, wanted
from torch import Tensor
from torch.nn.functional import logsigmoid

SCRIPT: Final = "gpu"


class Shape(NamedTuple):
    """Sizes of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int


class Part(NamedTuple):
    """Contestants that share a model."""

    shape: Shape
    precision: str
    rows: int
    tokens: int
    contestants: tuple[str, ...]


SHAPES: Final = {
    "7B": Shape(4096, 14_336, 32, 32, 8, 32_000),
    "1B": Shape(2048, 8192, 16, 32, 8, 128_256),
    "135M": Shape(576, 1536, 30, 9, 3, 49_152),
}
"""Mistral-7B, Llama-3.2-1B, SmolLM2-135M."""
TINY: Final = Shape(32, 64, 2, 2, 1, 256)

PARTS: Final = {
    "7B": Part(SHAPES["7B"], "bf16-true", 2, 4096, ("SFT", "IFT", "TRL SFT")),
    "1B": Part(SHAPES["1B"], "bf16-mixed", 4, 4096, ("SFT", "IFT", "TRL SFT")),
    "1B, pairs": Part(SHAPES["1B"], "bf16-mixed", 4, 2048, ("DPO", "TRL DPO")),
    "135M": Part(SHAPES["135M"], "bf16-mixed", 32, 1024, ("SFT", "IFT", "IFT, prompts shared", "TRL SFT")),
}
PASSES: Final = {"IFT": 4, "IFT, prompts shared": 3.5}
"""Forward passes that a step counts as; 3 for all others."""


def make_model(shape: Shape, precision: str, tokens: int, device: str) -> Any:
    """A random Llama."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=tokens,
        tie_word_embeddings=shape.hidden < 4096,
    )
    with torch.device(device):
        dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def flops_a_token(shape: Shape, tokens: int, trained_share: float, passes: float) -> float:
    """FLOPs of a step a token, as the docstring of this file counts them."""
    per_head = shape.hidden // shape.heads
    attention = shape.hidden * per_head * (2 * shape.heads + 2 * shape.key_value_heads)
    layer = attention + 3 * shape.hidden * shape.intermediate
    forward = (
        shape.layers * (2 * layer + 2 * shape.hidden * tokens) + 2 * shape.hidden * shape.vocabulary * trained_share
    )
    return passes * forward


def trl_loss(model: Any, outputs: tuple[str, ...], finish: Callable[[Any, Batch], Tensor]) -> Loss:
    """A loss of TRL's fused head."""
    from trl.trainer.utils import add_fused_lm_head

    forward = model.forward
    add_fused_lm_head(model, outputs=outputs)
    fused, model.forward = model.forward, forward
    names = ("input_ids", "attention_mask", "labels")
    return lambda batch: finish(fused(**{n: batch[n] for n in names}, fused_lm_head=True, use_cache=False), batch)


def sft_loss(outputs: Any, batch: Batch) -> Tensor:
    """As SFTTrainer's compute_loss, its metrics included."""
    count = outputs.label_mask.sum()
    (outputs.entropy.detach().sum() / count).item(), (outputs.is_top1.sum() / count).item()
    return -outputs.log_probs.sum() / count


def dpo_loss(outputs: Any, batch: Batch) -> Tensor:
    """As DPOTrainer's, with reference log-probabilities of 0; answers of a pair stand side by side."""
    logps = outputs.log_probs.sum(1)
    return -logsigmoid(0.1 * (logps[0::2] - logps[1::2])).mean()


def loss_of(name: str, model: Any) -> Loss:
    """The loss of a contestant."""
    if name == "TRL SFT":
        return trl_loss(model, ("log_probs", "entropy", "is_top1"), sft_loss)
    if name == "TRL DPO":
        return trl_loss(model, ("log_probs", "entropy", "is_top1"), dpo_loss)
    # It imports Lightning, which a run of TRL's cells alone need not have.
    from lit_ift import IFTModule, PreferenceModule, SFTModule

    if name == "DPO":
        return own_loss(PreferenceModule(model, reference="cached"))
    if name == "SFT":
        return own_loss(SFTModule(model))
    return own_loss(IFTModule(model, share_prompts="shared" in name))


def context(precision: str, device: str) -> AbstractContextManager[Any]:
    """What a forward pass runs in."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()


def turns(
    options: argparse.Namespace, part: Part, device: str, memory: dict[str, float]
) -> dict[str, Callable[[int], float]]:
    """By name, tokens a second over some seconds of steps; the peak memory is put down beside [GiB]."""
    model = make_model(part.shape, part.precision, part.tokens, device)
    model.train()
    optimizer = adamw(model)
    sizes = argparse.Namespace(vocabulary=part.shape.vocabulary, response=0.5)
    make = pair_batch if "DPO" in part.contestants else make_batch
    batch = make(sizes, part.rows, part.tokens, pairs="DPO" in part.contestants)
    batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    count = batch["input_ids"].numel()

    def runner(name: str) -> Callable[[int], float]:
        loss = loss_of(name, model)

        def run(_: int) -> float:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            synchronize()
            steps, start = 0, time.perf_counter()
            while steps < 2 or time.perf_counter() - start < options.seconds / options.rounds:
                with context(part.precision, device):
                    value = loss(batch)
                value.backward()
                optimizer.step()
                optimizer.zero_grad()
                synchronize()
                steps += 1
            taken = time.perf_counter() - start
            if device == "cuda":
                memory[name] = max(memory.get(name, 0.0), torch.cuda.max_memory_allocated() / 2**30)
            return steps * count / taken

        return run

    return {n: runner(n) for n in part.contestants if HAS_TRL or not n.startswith("TRL")}


def facts_of(part: Part, found: list[dict[str, float]], memory: Mapping[str, float], peak: float) -> dict[str, Any]:
    """Sizes, MFU and peak memory."""
    facts: dict[str, Any] = {"shape": part.shape._asdict(), "precision": part.precision}
    facts |= {"rows": part.rows, "tokens_a_row": part.tokens}
    for name in found[0]:
        rate = sorted(one[name] for one in found)[len(found) // 2]
        flops = flops_a_token(part.shape, part.tokens, 0.5, PASSES.get(name, 3))
        facts[f"mfu of {name}"] = float(f"{rate * flops / (peak * 1e12):.3g}")
        if name in memory:
            facts[f"peak memory of {name} [GiB]"] = round(memory[name], 1)
    return facts


def main() -> None:
    """Measure each part and write its result."""
    parser = options_of(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each cell")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of the device in bfloat16")
    parser.add_argument("--tiny", action="store_true", help="models and rows of a few bytes")
    parser.set_defaults(rounds=4, minutes=8.0)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("there is no GPU here; --tiny tries the script out without one")
    torch.set_float32_matmul_precision("high")
    began = time.monotonic()
    for name, part in PARTS.items():
        if not wanted(options, SCRIPT, name) or time.monotonic() - began > 60 * options.minutes:
            continue
        if options.tiny:
            part = part._replace(shape=TINY, rows=2, tokens=64)
        memory: dict[str, float] = {}
        with quiet():
            runners = turns(options, part, device, memory)
            found = take_turns(runners, options.rounds)
        facts = facts_of(part, found, memory, options.peak)
        save(options, SCRIPT, name, found, references=("TRL SFT", "TRL DPO"), unit="tokens/s", facts=facts)
        del runners
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
