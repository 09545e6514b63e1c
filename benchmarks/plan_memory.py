"""What `lit-ift plan` says of memory and time, beside torch's tracker and the process of a real run.

Usage: python benchmarks/plan_memory.py [--sizes 256x4 384x8 576x30] [--rows 2] [--length 128]

A size is a Llama's hidden size and layers, with random weights and a vocabulary of 49152. Each configuration (size, all
weights or LoRA, SFT or DPO) runs in a process of its own: first the plan, then three steps of a Trainer. The second one
is followed by torch's ``MemTracker``, the third timed. The growth is that of anonymous memory (RssAnon) from before
the model was made. The table is Markdown, in MiB and seconds. Time it on a machine that does nothing else.
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import product
from typing import Any

from meter import Meter

VOCABULARY = 49152


def measured(hidden: int, layers: int, objective: str, adapted: bool, rows: int, length: int) -> dict[str, float]:
    """Plan and measure a configuration."""
    import lightning as L
    import torch
    from memory_step import make_batch, pair_batch
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, LlamaConfig

    from lit_ift import PreferenceModule, SFTModule
    from lit_ift.models.source import ModelSource
    from lit_ift.planning.dry_step import step_cost
    from lit_ift.planning.hardware import this_machine

    class WithoutModules:
        """In the place of the tracker's account by modules, which fails at parts without gradient."""

        parents: frozenset[str] = frozenset()
        is_bw = False

        def __enter__(self) -> None: ...

        def __exit__(self, *_: Any) -> None: ...

        def register_user_hooks(self, *_: Any) -> None: ...

        def clear_user_hooks(self) -> None: ...

    class Watch(L.Callback):
        peak = 0
        seconds = 0.0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.begin = time.perf_counter()
            if batch_idx == 1:
                self.tracker = MemTracker()
                self.tracker._mod_tracker = WithoutModules()
                tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
                self.tracker.track_external(module, *trainer.optimizers, *tensors)
                self.tracker.__enter__()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                self.tracker.__exit__(None, None, None)
                self.peak = self.tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
            self.seconds = time.perf_counter() - self.begin

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        tie_word_embeddings=True,
    )
    options: dict[str, Any] = {"lora": {"r": 16}} if adapted else {}
    if objective == "DPO":
        options["reference"] = "adapter" if adapted else "model"
    sizes = argparse.Namespace(vocabulary=VOCABULARY, response=0.5)
    batch = (pair_batch if objective == "DPO" else make_batch)(sizes, rows, length, pairs=objective == "DPO")
    batch.pop("reference_logps", None)

    def make(model: Any = "planned") -> Any:
        return (PreferenceModule if objective == "DPO" else SFTModule)(model, **options)

    begin = time.perf_counter()
    source = ModelSource("planned", None, "planned", config=config)
    cost = step_cost(make, source, batch, precision="32-true", accumulates=False)
    planning = time.perf_counter() - begin
    here = this_machine(hidden)
    planned_s = (cost.work.matmul + cost.work.attention) / here.full
    planned_s += (cost.work.moved + cost.update) / here.bandwidth
    meter, watch = Meter(), Watch()
    module = make(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    trainer = L.Trainer(
        max_steps=3,
        accelerator="cpu",
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch] * 3, batch_size=None))
    grown = meter.read()["peak"]
    peak = sum(cost.peak.values()) / 2**20
    tracked = watch.peak / 2**20
    times = {"planned_s": planned_s, "step_s": watch.seconds, "planning_s": planning}
    return {"planned": peak, "tracker": tracked, "growth": grown, **times}


def main() -> None:
    """Measure and print the table."""
    if sys.argv[1:2] == ["--measure"]:
        hidden, layers, objective, adapted, rows, length = sys.argv[2:]
        found = measured(int(hidden), int(layers), objective, adapted == "LoRA", int(rows), int(length))
        print(json.dumps(found))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--sizes", nargs="+", default=["256x4", "384x8", "576x30"])
    parser.add_argument("--rows", default="2", help="rows of a batch, of DPO pairs")
    parser.add_argument("--length", default="128", help="tokens of a row")
    options = parser.parse_args()
    print("| size | weights | objective | plan | tracker | ratio | growth | planned step | step | planning |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for size, adapted, objective in product(options.sizes, ("all", "LoRA"), ("SFT", "DPO")):
        words = [*size.split("x"), objective, adapted, options.rows, options.length]
        output = subprocess.run(
            [sys.executable, __file__, "--measure", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if output.returncode:
            raise SystemExit(f"It failed; run: {sys.executable} {__file__} --measure {' '.join(words)}")
        found = json.loads(output.stdout.strip().splitlines()[-1])
        memory = f"{found['planned']:.0f} | {found['tracker']:.0f} | {found['planned'] / found['tracker']:.3f}"
        seconds = " | ".join(f"{found[name]:.1f}" for name in ("planned_s", "step_s", "planning_s"))
        print(f"| {size} | {adapted} | {objective} | {memory} | {found['growth']:.0f} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
