"""How long an optimizer step of IFT takes, measured against SFT on the same batches in the same run.

Usage: python benchmarks/step_time.py [--model ID] [--rows 16] [--prompt 40] [--response 10] [--repeats 7]

The objectives take turns, so that a machine whose speed drifts does not favour one of them. Quote the ratio of the
medians; seconds depend on the machine. Padding is left out: every row has the same length.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from lit_ift import CausalLMModule, IFTModule, SFTModule


def one_step(module: CausalLMModule, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> float:
    """Seconds of forward, backward and update."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    start = time.perf_counter()
    losses, _ = module.example_losses(batch)
    losses.mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=16, help="examples a step")
    parser.add_argument("--prompt", type=int, default=40, help="untrained tokens of each row")
    parser.add_argument("--response", type=int, default=10, help="trained tokens of each row")
    parser.add_argument("--repeats", type=int, default=7, help="measured steps of each objective")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = SFTModule(options.model)
    module.configure_model()
    model = module.model.to(device)
    variants: dict[str, CausalLMModule] = {
        "SFT": SFTModule(model, detach_input_embeddings=True),
        "IFT lam=0.2": IFTModule(model, lam=0.2),
        "IFT lam=0": IFTModule(model, lam=0.0),
    }
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    generator = torch.Generator().manual_seed(0)
    length = options.prompt + options.response
    ids = torch.randint(model.config.vocab_size, (options.rows, length), generator=generator)
    labels = ids.clone()
    labels[:, : options.prompt] = -100
    batch = {
        "input_ids": ids.to(device),
        "labels": labels.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(options.repeats + 1):
        for name, variant in variants.items():
            taken = one_step(variant, optimizer, batch)
            if repeat:  # The first round warms up.
                seconds[name].append(taken)
    reference = statistics.median(seconds["SFT"])
    size = f"{options.rows} rows of {options.prompt}+{options.response} tokens"
    print(f"{size}, {device}, {torch.get_num_threads()} threads")
    print(f"{'objective':<12} {'median s':>9} {'min s':>7} {'max s':>7} {'to SFT':>7}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:<12} {median:>9.3f} {min(values):>7.3f} {max(values):>7.3f} {median / reference:>7.2f}")


if __name__ == "__main__":
    main()
