"""The other contestants: plain transformers, TRL's trainers, and the authors' loss as they released it."""

import __future__

import ast
import copy
import subprocess
import typing
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from batches import Batch, trained_tokens
from torch import Tensor
from torch.optim import AdamW, Optimizer

Loss = Callable[[Batch], Tensor]
"""What a step takes the gradient of, from a batch."""

MODEL_INPUTS: Final = ("input_ids", "attention_mask", "labels")
HAS_TRL: Final = find_spec("trl") is not None
AUTHORS: Final = "TsinghuaC3I/Intuitive-Fine-Tuning"


def adamw(model: Any, lr: float = 1e-6) -> Optimizer:
    """The optimizer that all contestants of a step have: fused where torch has it for the device."""
    return AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0, fused=True)


def take_step(loss: Loss, optimizer: Optimizer, batch: Batch) -> None:
    """Forward, backward, update."""
    loss(batch).backward()
    optimizer.step()
    optimizer.zero_grad()


def loaded(model: str) -> Any:
    """A module that holds the model which all contestants begin from."""
    from lit_ift import SFTModule  # Processes that measure memory import no more than they need.

    torch.manual_seed(0)
    module = SFTModule(model)
    module.configure_model()
    return module


def own_loss(module: Any) -> Loss:
    """The mean loss of a module of this package, made as a Trainer's steps make it."""
    module.one_sweep = True  # As where a Trainer trains: all rows have the same weight in the mean.
    return lambda batch: module.all_losses(batch)[0].mean()


def plain_loss(model: Any) -> Loss:
    """What a transformers model gives where it gets labels."""
    return lambda batch: model(**{name: batch[name] for name in MODEL_INPUTS}, use_cache=False).loss


def trl_fields(folder: Path, **changes: Any) -> dict[str, Any]:
    """Fields of TRL's configurations: nothing is written, logged or evaluated, and all is in float32."""
    here = {"output_dir": str(folder), "report_to": "none", "save_strategy": "no", "logging_strategy": "no"}
    on_cpu = {"use_cpu": True, "bf16": False} if not torch.cuda.is_available() else {}
    return {**here, **on_cpu, "disable_tqdm": True, "seed": 0, "num_train_epochs": 1, **changes}


def trl_sft(model: Any, tokenizer: Any, folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Any:
    """TRL's SFTTrainer on rows of ``input_ids`` and ``labels``."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**trl_fields(folder, **changes))
    return SFTTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def trl_sft_loss(model: Any, tokenizer: Any, folder: Path) -> tuple[Loss, Any]:
    """The loss of a step of TRL's SFTTrainer, on a copy of the model, which is returned too."""
    trainer = trl_sft(copy.deepcopy(model), tokenizer, folder, [{"input_ids": [0, 1], "labels": [0, 1]}])
    trainer.model.train()

    def loss(batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in MODEL_INPUTS}
        return trainer.compute_loss(trainer.model, inputs, num_items_in_batch=trained_tokens(batch["labels"]))

    return loss, trainer.model


def trl_dpo_loss(
    model: Any, tokenizer: Any, folder: Path, *, precomputed: bool = True, max_length: int = 1024
) -> tuple[Callable[[list[dict[str, Any]]], Batch], Loss, Any]:
    """What makes a batch of TRL's DPOTrainer, the loss of its step, and its copy of the model.

    Args:
        model: to be copied.
        tokenizer: its tokenizer.
        folder: for what TRL writes.
        precomputed: take the reference from the batch; else a second model is run.
        max_length: longest row.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    one = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    config = DPOConfig(**trl_fields(folder, precompute_ref_log_probs=precomputed, max_length=max_length))
    # For reference `None` it would load the model once more by its name.
    reference = None if precomputed else copy.deepcopy(model)
    trainer = DPOTrainer(copy.deepcopy(model), reference, config, train_dataset=one, processing_class=tokenizer)
    trainer.model.train()
    return trainer.data_collator, lambda batch: trainer.compute_loss(trainer.model, dict(batch)), trainer.model


class AuthorsIFT:
    """A step's loss as ``BasicTrainer.get_batch_metrics`` of the authors' code has it.

    Functions are read from a clone of their repository and compiled as they stand; nothing of it is kept here. Their
    ``discounted_cumsum`` is of the package ``torch_discounted_cumsum``, which needs a compiler; ours takes its place
    where it is missing.

    Args:
        clone: folder of a clone.
        model: the policy.
    """

    METHODS: Final = ("get_sample_function", "get_cumsum_weight", "update_lambda", "get_batch_metrics")
    OPTIONS: Final = {
        "name": "ift",
        "gamma": 0.95,
        "propagation_type": "loss",
        "propagation_norm": "L1",
        "propagation_side": "left",
    }
    """As in their ``config/loss/ift.yaml``."""

    def __init__(self, clone: Path, model: Any) -> None:
        trainers, utils = (_parsed(clone, name) for name in ("src/trainers.py", "src/utils.py"))
        scope: dict[str, Any] = {**vars(typing), "torch": torch, "DictConfig": dict, **_cumsums()}
        _define(scope, utils, "all_gather_if_needed")
        _define(scope, trainers, "_get_batch_logps")
        basic = next(node for node in trainers.body if getattr(node, "name", None) == "BasicTrainer")
        embedding = copy.deepcopy(model.get_input_embeddings()).requires_grad_(False)
        self.trainer: Any = SimpleNamespace(policy=model, embed_tokens=embedding, rank=0, world_size=1, batch_counter=0)
        self.trainer.lambda_schedule = self.trainer.lambda_disturb = None
        self.trainer.min_lambda = self.trainer.max_lambda = 0.2
        for name in self.METHODS:
            setattr(self.trainer, name, _define(scope, basic, name).__get__(self.trainer))

    def __call__(self, batch: Batch) -> Tensor:
        given = {f"target_{name}": batch[name] for name in MODEL_INPUTS}
        return self.trainer.get_batch_metrics(given, SimpleNamespace(**self.OPTIONS))[0]


def _parsed(clone: Path, name: str) -> ast.Module:
    """A file of the last commit of a clone."""
    command = ["git", "-C", str(clone), "show", f"HEAD:{name}"]
    return ast.parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _define(scope: dict[str, Any], where: Any, name: str) -> Any:
    node = next(node for node in where.body if getattr(node, "name", None) == name)
    # Its annotations are of no use, and some name what is not installed.
    code = compile(ast.Module([node], []), f"<{AUTHORS}>", "exec", flags=__future__.annotations.compiler_flag)
    exec(code, scope)
    return scope[name]


def _cumsums() -> dict[str, Any]:
    if find_spec("torch_discounted_cumsum") is not None:
        import torch_discounted_cumsum as theirs

        return {name: getattr(theirs, name) for name in ("discounted_cumsum_left", "discounted_cumsum_right")}
    from lit_ift.losses.cumsum import discounted_cumsum

    return {
        "discounted_cumsum_left": lambda values, gamma: discounted_cumsum(values, gamma),
        "discounted_cumsum_right": lambda values, gamma: discounted_cumsum(values, gamma, reverse=True),
    }
