"""Arrays that the initial policy's forward passes give, kept on disk under a key of all that they depend on.

An entry is two files, ``<digest>.npy`` with the array, and ``<digest>.json`` with what the digest was made of.
"""

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_ift.data.cache import RowCache, default_cache_dir, tokenizer_digest
from lit_ift.distributed.shard import is_sharded, whole
from lit_ift.errors import UserError
from lit_ift.losses import logprobs, packing
from lit_ift.models import head, lora, quantized
from lit_ift.modules import base, row_passes
from lit_ift.modules.base import CausalLMModule
from lit_ift.staging import replaced_file

Array = npt.NDArray[Any]

PACKAGES: Final = ("torch", "transformers", "peft", "bitsandbytes")


class KeptArray:
    """One array on disk.

    Args:
        folder: of the files.
        what: what the array is, for messages.
        key: what it depends on, as JSON.
    """

    def __init__(self, folder: Path, what: str, key: dict[str, Any]) -> None:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"{name}.npy"
        self.record = folder / f"{name}.json"
        self._key = key
        self._what = what

    def on_all_ranks(self, module: CausalLMModule, shape: tuple[int, ...]) -> Array | None:
        """What rank 0 finds on disk, on all ranks, which need not share a file system; None as from `load`."""
        values: Array | None = self.load(shape) if module.trainer.is_global_zero else None
        values = module.trainer.strategy.broadcast(values)
        if values is not None:
            rank_zero_info(f"{self._what[0].upper()}{self._what[1:]}: {self.path}")
        return values

    def write(self, values: Array) -> None:
        """Keep the array; warn if it cannot be kept, for this run has it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The numbers come first, so that an entry with a record is whole.
            self.record.unlink(missing_ok=True)
            with replaced_file(self.path) as file:
                np.save(file, values)
            with replaced_file(self.record) as file:
                file.write(json.dumps(self._description(values), indent=2, sort_keys=True).encode())
        except OSError as error:
            rank_zero_warn(f"{self.path}: {self._what} cannot be kept: {error}")

    def load(self, shape: tuple[int, ...]) -> Array | None:
        """The array; None if it is not there, or not what was written, so that it is to be computed again."""
        if not (self.path.exists() and self.record.exists()):
            return None
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            with self.path.open("rb") as file:  # Not by `load`, which takes other formats too.
                values: Array = np.lib.format.read_array(file, allow_pickle=False)
                is_whole = not file.read(1)
            if is_whole and record == self._description(values) and values.shape == shape:
                return values
            problem = "it is not what was written"
        except Exception as error:  # A damaged file can make a reader stumble over anything.
            problem = f"it cannot be read ({type(error).__name__}: {error})"
        rank_zero_warn(f"{self.path}: {self._what} are damaged, so they are computed again: {problem}.")
        return None

    def _description(self, values: Array) -> dict[str, Any]:
        digest = hashlib.sha256(str(values.dtype).encode() + values.tobytes()).hexdigest()
        return {"key": self._key, "num_answers": len(values), "numbers": digest}


def weights_digest(model: torch.nn.Module) -> str:
    """A hash of names, shapes, dtypes and bytes of all parameters and buffers, however they are sharded.

    Of quantized weights, their scales too.
    """
    named = [*model.named_parameters(), *model.named_buffers(), *quantized.scales(model)]

    def of(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        values = whole(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode() + values.data).digest()

    if is_sharded(model):  # All ranks gather the same tensor at the same time.
        return hashlib.sha256(b"".join(map(of, named))).hexdigest()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Hashing lets other threads run.
        return hashlib.sha256(b"".join(pool.map(of, named))).hexdigest()


def policy_key(module: CausalLMModule, *code: Any) -> dict[str, Any]:
    """What the passes of a policy depend on besides rows and weights.

    Args:
        module: prepared for a run.
        code: modules of code that make the array of what the passes give.
    """
    config = {
        name: value
        for name, value in module.model.config.to_dict().items()
        if name not in ("_name_or_path", "transformers_version", "use_cache")
    }
    text = json.dumps(config, sort_keys=True, default=str)
    return {
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "precision": str(module.trainer.precision),
        "attention": str(getattr(module.model.config, "_attn_implementation", None)),
        "tokenizer": tokenizer_digest(data_module(module).tokenizer),
        "code": _code_version(code),
    }


@cache
def _code_version(code: tuple[Any, ...]) -> str:
    """A hash of the code that scores answers, and of the packages that it calls."""
    digest = hashlib.sha256()
    for module in (logprobs, packing, head, lora, quantized, base, row_passes, *code):
        digest.update(inspect.getsource(module).encode())
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # peft and bitsandbytes are extras.
            digest.update(f"{package}={importlib.metadata.version(package)}".encode())
    return digest.hexdigest()


def default_folder(module: CausalLMModule, subfolder: str) -> Path:
    """A folder beside the tokenized rows of the module's run."""
    rows = getattr(data_module(module), "cache", None)  # One of the user's own may have none.
    return (rows.folder if isinstance(rows, RowCache) else default_cache_dir()) / subfolder


def data_module(module: CausalLMModule) -> Any:
    """The Trainer's; None where it was given loaders."""
    return getattr(module.trainer, "datamodule", None)


def datasets_of(module: CausalLMModule, splits: Sequence[str], option: str, remedy: str) -> dict[str, Any]:
    """The data sets of splits, whose rows can be scored before training.

    Raises:
        UserError: there are loaders only, or a data module without such data sets.
    """
    data = data_module(module)
    if data is None:
        raise UserError(f"{option} scores rows before training, but the Trainer was given loaders only. {remedy}")
    found = getattr(data, "datasets", None)
    if not isinstance(found, Mapping) or not all(hasattr(dataset, "content_digest") for dataset in found.values()):
        raise UserError(f"{option} cannot score the rows of {type(data).__name__}. {remedy}")
    return {split: found[split] for split in splits if split in found}
