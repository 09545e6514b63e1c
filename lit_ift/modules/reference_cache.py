"""Log-probabilities of all answers under the initial policy, computed once and kept on disk.

An entry is two files, ``<digest>.npy`` with a number for each answer in the order of the rows, and ``<digest>.json``
with what the digest was made of.
"""

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from tqdm import tqdm

from lit_ift.chat.example import Example
from lit_ift.data.batch.collate import collate
from lit_ift.data.cache import RowCache, default_cache_dir, tokenizer_digest
from lit_ift.data.modules.conversation import ConversationDataModule
from lit_ift.data.modules.feedback import FeedbackDataModule
from lit_ift.distributed.shard import is_sharded, whole
from lit_ift.errors import UserError
from lit_ift.losses import logprobs, packing
from lit_ift.models import head, quantized
from lit_ift.models import lora as adapter
from lit_ift.models.eval_mode import evaluating
from lit_ift.modules import base
from lit_ift.modules.base import CausalLMModule
from lit_ift.modules.precision import float32_by_default
from lit_ift.staging import replaced_file

Logps = npt.NDArray[np.floating[Any]]

SPLITS_OF: Final = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""Splits that are scored for what a Trainer does; a prediction compares with nothing."""

BATCH_TOKENS: Final = 8192
"""Tokens of a batch, padding included, unless one answer has more."""

PACKAGES: Final = ("torch", "transformers", "peft", "bitsandbytes")


class _Entry(NamedTuple):
    """Where a split's numbers are kept.

    Args:
        numbers: file of the numbers.
        record: file that says what they depend on.
        key: what they depend on.
    """

    numbers: Path
    record: Path
    key: dict[str, Any]


class CachedReference:
    """Scores the answers of a data module's splits with the policy as it is, or finds the scores on disk.

    Args:
        folder: of the files; ``reference`` in the data module's folder of tokenized data by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self._initial_weights: str | None = None
        self._given: dict[str, Any] = {}

    def prepare(self, module: CausalLMModule) -> None:
        """Give every data set of this run its ``reference_logps``.

        The first call remembers the weights. A later one, after training, takes what the first policy said from
        disk, and refuses to let the trained one speak for it.

        Raises:
            UserError: there is no data module with data sets, or a split would have to be scored with a policy that has
                been trained meanwhile.
        """
        trainer = module.trainer
        splits = SPLITS_OF.get(str(trainer.state.fn.value) if trainer.state.fn else "", ())
        missing = {
            split: dataset
            for split, dataset in _datasets(module, splits).items()
            if dataset.reference_logps is None or dataset.reference_logps is not self._given.get(split)
        }
        if not missing:
            return
        now = trainer.strategy.broadcast(weights_digest(module.model))
        if self._initial_weights is None:
            self._initial_weights = now
        shared = {"weights": self._initial_weights, **_surroundings(module)}
        for split, dataset in missing.items():
            entry = self._entry(module, {"rows": dataset.content_digest, **shared})
            logps = _found(module, entry, dataset.num_answers)
            if logps is None:
                if now != self._initial_weights:
                    raise UserError(
                        f"The {split} answers were not scored before training, and the policy is another one by now. "
                        "Evaluate in a run of its own that starts from the initial model and restores the checkpoint "
                        "(ckpt_path), or set reference=adapter (with LoRA) or reference=model."
                    )
                logps = _score(module, dataset, split)
                if trainer.is_global_zero:
                    _write(entry, logps)
            dataset.reference_logps = logps
            self._given[split] = dataset.reference_logps  # As it keeps them, perhaps in another dtype.

    def _entry(self, module: CausalLMModule, key: dict[str, Any]) -> _Entry:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.folder
        if folder is None:
            rows = getattr(_data_module(module), "cache", None)  # One of the user's own may have none.
            folder = (rows.folder if isinstance(rows, RowCache) else default_cache_dir()) / "reference"
        return _Entry(folder / f"{name}.npy", folder / f"{name}.json", key)


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


@cache
def _code_version() -> str:
    """A hash of the code that scores answers, and of the packages that it calls."""
    digest = hashlib.sha256()
    for module in (logprobs, packing, head, adapter, quantized, base):
        digest.update(inspect.getsource(module).encode())
    digest.update(Path(__file__).read_bytes())
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # peft and bitsandbytes are extras.
            digest.update(f"{package}={importlib.metadata.version(package)}".encode())
    return digest.hexdigest()


def _surroundings(module: CausalLMModule) -> dict[str, Any]:
    """What the numbers depend on besides rows and weights."""
    config = {
        name: value
        for name, value in module.model.config.to_dict().items()
        if name not in ("_name_or_path", "transformers_version", "use_cache")
    }
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
    text = json.dumps(config, sort_keys=True, default=str)
    return {
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "precision": str(module.trainer.precision),
        "attention": str(getattr(module.model.config, "_attn_implementation", None)),
        "tokenizer": tokenizer_digest(data.tokenizer),
        "code": _code_version(),
    }


def _data_module(module: CausalLMModule) -> Any:
    return getattr(module.trainer, "datamodule", None)


def _datasets(module: CausalLMModule, splits: Sequence[str]) -> dict[str, Any]:
    data = _data_module(module)
    remedy = "Use a FeedbackDataModule, or set reference=adapter (with LoRA) or reference=model."
    if data is None:
        raise UserError(
            f"reference=cached scores all answers before training, but the Trainer was given loaders only. {remedy}"
        )
    found = getattr(data, "datasets", None)
    has_no_place = isinstance(data, ConversationDataModule) and not isinstance(data, FeedbackDataModule)
    if (
        has_no_place
        or not isinstance(found, Mapping)
        or not all(hasattr(dataset, "content_digest") for dataset in found.values())
    ):
        raise UserError(f"reference=cached cannot score the answers of {type(data).__name__}. {remedy}")
    return {split: found[split] for split in splits if split in found}


# Scoring -------------------------------------------------------------------------------------------------------------


def _score(module: CausalLMModule, dataset: Any, split: str) -> Logps:
    """Log-probability of every answer, each rank computing its share, (A,) on all ranks."""
    trainer = module.trainer
    strategy = trainer.strategy
    rank_zero_info(f"Scoring {dataset.num_answers} {split} answers with the initial policy.")
    lengths = _answer_lengths(dataset)
    everything = _batches(lengths)
    batches = everything[trainer.global_rank :: trainer.world_size]
    # Ranks that share a sharded model compute together: one with a batch less goes through another's once more.
    idle = -(-len(everything) // trainer.world_size) - len(batches) if is_sharded(module.model) else 0
    rows = np.searchsorted(dataset.answer_offsets, np.arange(dataset.num_answers), side="right") - 1
    sums = torch.zeros(dataset.num_answers, dtype=torch.float64)
    dtype: type[np.floating[Any]] = np.float32
    with _ready(module), torch.no_grad(), trainer.precision_plugin.forward_context(), float32_by_default():
        with tqdm(
            total=sum(map(len, batches)),
            desc=f"reference {split}",
            unit=" answers",
            disable=not trainer.is_global_zero or trainer.progress_bar_callback is None,
        ) as bar:
            for step, indices in enumerate(batches + everything[-1:] * idle):
                examples = [_answer(dataset, int(rows[i]), i) for i in indices]
                batch: dict[str, Any] = dict(collate(examples, pad_token_id=0))
                batch = strategy.batch_to_device(batch, strategy.root_device)
                nll = module.in_forward(partial(_nll, module, batch))
                dtype = np.float64 if nll.dtype == torch.float64 else np.float32
                if step >= len(batches):
                    continue
                sums[indices] = -nll.double().sum(-1).cpu()
                bar.update(len(indices))
        torch.clear_autocast_cache()
    if trainer.world_size > 1:
        sums = strategy.reduce(sums.to(strategy.root_device), reduce_op="sum").cpu()
    logps: Logps = sums.numpy().astype(dtype)
    bad = np.flatnonzero(~np.isfinite(logps))
    if len(bad):
        names = sorted({dataset[[int(rows[i])]][0].row_id for i in bad[:8]})
        raise UserError(
            f"The initial policy gives {len(bad)} {split} answers a log-probability that is not finite, in the rows "
            f"{', '.join(names)}. Look at them, or compute in another precision (trainer.precision)."
        )
    return logps


@contextlib.contextmanager
def _ready(module: CausalLMModule) -> Iterator[None]:
    """The module in eval mode, on the device that it will train on."""
    if not is_sharded(module.model):
        module.to(module.trainer.strategy.root_device)
    with evaluating(module):
        yield


def _nll(module: CausalLMModule, batch: dict[str, Any]) -> torch.Tensor:
    """Negative log-likelihoods of the trained tokens, one row an answer, (A, T-1)."""
    hidden = module.hidden_states(module.embed(batch["input_ids"]), batch)
    return module.score(hidden, batch, select=None).nll


def _answer_lengths(dataset: Any) -> list[int]:
    """Tokens of every answer, in the order of the rows."""
    step = 1024
    return [
        len(example.input_ids)
        for start in range(0, len(dataset), step)
        for row in dataset[list(range(start, min(start + step, len(dataset))))]
        for example in row.sides.values()
    ]


def _answer(dataset: Any, row: int, index: int) -> Example:
    sides = list(dataset[[row]][0].sides.values())
    example: Example = sides[index - int(dataset.answer_offsets[row])]
    return example


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Answers of like length together, the longest first, so that too little memory shows at once."""
    batches: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * longest > BATCH_TOKENS:
            batches.append([])
            longest = max(1, lengths[i])
        batches[-1].append(i)
    return batches


# On disk -------------------------------------------------------------------------------------------------------------


def _found(module: CausalLMModule, entry: _Entry, num_answers: int) -> Logps | None:
    """What rank 0 finds on disk, on all ranks, which need not share a file system."""
    logps = _load(entry, num_answers) if module.trainer.is_global_zero else None
    logps = module.trainer.strategy.broadcast(logps)
    if logps is not None:
        rank_zero_info(f"Log-probabilities under the reference policy: {entry.numbers}")
    return logps


def _load(entry: _Entry, num_answers: int) -> Logps | None:
    """What an entry holds; None if it is not there, or not what was written, so that it has to be computed again."""
    if not (entry.numbers.exists() and entry.record.exists()):
        return None
    try:
        record = json.loads(entry.record.read_text(encoding="utf-8"))
        with entry.numbers.open("rb") as file:  # Not by `load`, which takes other formats too.
            logps: Logps = np.lib.format.read_array(file, allow_pickle=False)
            is_whole = not file.read(1)
        if is_whole and record == _record(entry, logps) and logps.shape == (num_answers,):
            return logps
        problem = "it is not what was written"
    except Exception as error:  # A damaged file can make a reader stumble over anything.
        problem = f"it cannot be read ({type(error).__name__}: {error})"
    rank_zero_warn(
        f"{entry.numbers}: the reference policy's log-probabilities are damaged, so they are computed again: {problem}."
    )
    return None


def _record(entry: _Entry, logps: Logps) -> dict[str, Any]:
    return {"key": entry.key, "num_answers": len(logps), "numbers": _digest(logps)}


def _digest(logps: Logps) -> str:
    return hashlib.sha256(str(logps.dtype).encode() + logps.tobytes()).hexdigest()


def _write(entry: _Entry, logps: Logps) -> None:
    """Write an entry; the numbers come first, so that one with a record is whole."""
    record = _record(entry, logps)
    try:
        entry.numbers.parent.mkdir(parents=True, exist_ok=True)
        entry.record.unlink(missing_ok=True)
        with replaced_file(entry.numbers) as file:
            np.save(file, logps)
        with replaced_file(entry.record) as file:
            file.write(json.dumps(record, indent=2, sort_keys=True).encode())
    except OSError as error:
        # This run has its numbers; the next one has to compute them again.
        rank_zero_warn(f"{entry.numbers}: the reference policy's log-probabilities cannot be kept: {error}")
