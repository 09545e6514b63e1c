"""How much memory it takes to load a model into shards, and to export one.

Usage: python benchmarks/memory.py [--hidden 1024] [--layers 14] [--vocabulary 32000] [--folder /tmp]

Each row is measured in processes of its own, which sample their anonymous memory (RssAnon): pages of files that are
mapped count towards the resident size, but the system may drop them. The table is Markdown, in MiB; what it took to
import the packages is left out. The weights are random.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from meter import Meter

RANKS = 2


def loading(folder: str, how: str) -> dict[str, Any]:
    """Load a model into the shards of two ranks: in parts, or whole and then sharded."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    from lit_ift.distributed.load import load_skeleton, materialise
    from lit_ift.distributed.shard import Sharding, in_root, shard_model
    from lit_ift.models.dropout import check_dropout_is_off
    from lit_ift.models.head import check_hidden_state_path
    from lit_ift.models.load import load_model

    sharding = Sharding(init_device_mesh("cpu", (RANKS,)), torch.device("cpu"))
    meter = Meter()
    if how == "parts":
        found = load_skeleton(folder)
        assert found is not None
        model, files = found
        shard_model(model, sharding)
        materialise(model, sharding.device)
        files.read_into(model)
    else:
        model = load_model(folder)
        shard_model(model, sharding)
    result = {"load": meter.read()}
    with torch.no_grad():
        in_root(model, lambda: check_dropout_is_off(model))
        in_root(model, lambda: check_hidden_state_path(model))
    return {**result, "check": meter.read()}


def exporting(checkpoint: str, output: str, *options: str) -> dict[str, Any]:
    """``lit-ift export``."""
    from lit_ift.export.from_checkpoint import export_checkpoint

    import_all()
    meter = Meter()
    export_checkpoint(Path(checkpoint), Path(output), dtype=options[0] if options else None)
    return {"all": meter.read()}


def gathering(folder: str, output: str) -> dict[str, Any]:
    """What ``fit`` does at its end under FSDP2, on rank 0 of two."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from lit_ift.distributed.load import load_skeleton, materialise
    from lit_ift.distributed.shard import Sharding, gathered, in_root, shard_model
    from lit_ift.export import export_model, verify_export
    from lit_ift.export.memory_mapped import mapped
    from lit_ift.export.verify import ShardedWeights, check_logits
    from lit_ift.models import load_tokenizer

    import_all()
    sharding = Sharding(init_device_mesh("cpu", (RANKS,)), torch.device("cpu"))
    found = load_skeleton(folder)
    assert found is not None
    model, files = found
    shard_model(model, sharding)
    materialise(model, sharding.device)
    files.read_into(model)
    meter = Meter()
    with torch.no_grad():
        logits = in_root(model, lambda: check_logits(model))
    result = {"logits": meter.read()}
    if dist.get_rank():
        for _ in gathered(model):
            pass
        return result
    scratch = Path(f"{output}.scratch")
    weights = mapped(gathered(model), scratch)
    result["gather"] = meter.read()
    tokenizer = load_tokenizer(folder)
    options: Any = {"tokenizer": tokenizer, "tokenizer_source": folder}
    export_model(model, Path(output), metadata={}, state_dict=weights, **options)
    verify_export(model, Path(output), **options, sharded=ShardedWeights(weights, logits, None, False))
    scratch.unlink()
    return {**result, "write": meter.read()}


def import_all() -> None:
    """What is imported while exporting is no part of its memory."""
    from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: F401

    import lit_ift.data.report.builder  # noqa: F401


def measure(words: list[str], ranks: int) -> list[dict[str, Any]]:
    """Run one measurement in `ranks` processes; what each of them found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--measure", *words],
            env={**os.environ, **common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    for process in processes:
        if process.returncode:
            raise SystemExit(f"{' '.join(words)} failed; run: {sys.executable} {__file__} --measure {' '.join(words)}")
    return [json.loads(output.strip().splitlines()[-1]) for output in outputs]


def measured(words: list[str]) -> None:
    """In a process of its own: measure and print."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    kind = {"loading": loading, "exporting": exporting, "gathering": gathering}[words[0]]
    result = kind(*words[1:])
    if dist.is_initialized():
        dist.barrier()
    print(json.dumps(result))


def make(folder: Path, hidden: int, layers: int, vocabulary: int) -> float:
    """Write the model in float32 and bfloat16, and checkpoints of it with an optimizer state; its size [MiB]."""
    import torch
    from tokenizers import Tokenizer, models
    from torch.distributed.checkpoint import save
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    heads = hidden // 64
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")), eos_token="<unk>"
    )
    model.save_pretrained(folder / "float32")
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {name: {"exp_avg": t, "exp_avg_sq": t} for name, t in weights.items()}
    rest = {"loops": {}, "global_step": 1, "hyper_parameters": {"model": str(folder / "float32")}}
    optimizer = {"state": moments, "param_groups": []}
    copies = {name: {key: t.clone() for key, t in state.items()} for name, state in moments.items()}
    torch.save(
        {**rest, "state_dict": weights, "optimizer_states": [{"state": copies, "param_groups": []}]},
        folder / "file.ckpt",
    )
    save({"state_dict": weights, "optimizer_0": optimizer}, checkpoint_id=folder / "shards.ckpt", no_dist=True)
    torch.save(rest, folder / "shards.ckpt" / "meta.pt")
    model.bfloat16().save_pretrained(folder / "bfloat16")
    for name in ("float32", "bfloat16"):
        tokenizer.save_pretrained(folder / name)
    return sum(tensor.nbytes for tensor in weights.values()) / 2**20


def main() -> None:
    """Measure and print two tables."""
    if sys.argv[1:2] == ["--measure"]:
        measured(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--hidden", type=int, default=1024, help="hidden size, a multiple of 64")
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--folder", help="where to write some ten times the model, which is deleted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        size = make(folder, options.hidden, options.layers, options.vocabulary)
        largest = options.hidden * options.vocabulary * 4 / 2**20
        print(f"Weights in float32: {size:.0f} MiB, of which input embeddings and head {largest:.0f} MiB each.\n")
        print(f"| load for {RANKS} ranks, of a file in | loaded | held | peak | peak of the self-check |")
        print("| --- | --- | --- | --- | --- |")
        for dtype in ("float32", "bfloat16"):
            for how in ("parts", "whole"):
                ranks = measure(["loading", str(folder / dtype), how], RANKS)
                cells = [max(r[part][of] for r in ranks) for part, of in (("load", "held"), ("load", "peak"))]
                cells.append(max(r["check"]["peak"] for r in ranks))
                print(f"| {dtype} | {how} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |", flush=True)
        print("\n| export | peak | share of the weights |\n| --- | --- | --- |")
        rows = {
            "single file": (["exporting", f"{folder}/file.ckpt", f"{folder}/a"], 1),
            "folder of shards": (["exporting", f"{folder}/shards.ckpt", f"{folder}/b"], 1),
            "single file, --dtype bfloat16": (["exporting", f"{folder}/file.ckpt", f"{folder}/c", "bfloat16"], 1),
            "end of fit, FSDP2, rank 0": (["gathering", f"{folder}/float32", f"{folder}/d"], RANKS),
        }
        for label, (words, count) in rows.items():
            found = measure(words, count)[0]
            parts = {f"{label}: {part}" if len(found) > 1 else label: figures for part, figures in found.items()}
            for row, figures in parts.items():
                print(f"| {row} | {figures['peak']:.0f} | {figures['peak'] / size:.2f} |", flush=True)


if __name__ == "__main__":
    main()
