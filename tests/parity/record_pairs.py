"""Record what TRL's DPO trainer and the code of WPO and DiscoPOP give, into ``data/pairs.npz``.

Usage: python tests/parity/record_pairs.py FOLDER

FOLDER holds clones of the repositories in `WPO` and `DISCOPOP`. TRL's method is that of the installed TRL. It runs on
an object that has what the method asks for, and on a model that is a table of logits. It gives the mean of a batch
alone, so that the loss of each pair is that of a batch of this pair.
"""

import contextlib
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from record import DATA, Recorded, Source
from torch import Tensor

WPO: Final = Source("WPO", "a1044581c5477328e9e0ceb71c536b5e663747ba", "scripts/run_wpo.py")
DISCOPOP: Final = Source("DiscoPOP", "3307865a49c474c76c401f4e1f4b4cf515115e5f", "src/alignment/gpo.py")
PAIRS: Final = 4
ENDS: Final = [(2, 8), (1, 4), (3, 6), (1, 8), (2, 5), (1, 6), (3, 8), (1, 3)]
"""First trained token, and end, of the chosen answers, then of the rejected ones."""

CASES: Final[dict[str, dict[str, Any]]] = {
    "sigmoid": {},
    "bco_pair": {"loss_types": ["bco_pair"]},
    "sigmoid_norm": {"loss_types": ["sigmoid_norm"], "beta": 2.0},
    "discopop": {"loss_types": ["discopop"], "beta": 0.05},
    "discopop/tau": {"loss_types": ["discopop"], "beta": 0.5, "tau": 1.0},
    "sft": {"loss_types": ["sft"]},
    "ld_dpo": {"ld_alpha": 0.5},
    "ld_dpo/0": {"ld_alpha": 0.0},
    "ld_dpo/ipo": {"ld_alpha": 0.3, "loss_types": ["ipo"]},
    "wpo": {"use_weighting": True},
    "wpo/bco_pair": {"use_weighting": True, "loss_types": ["bco_pair"]},
    "irpo": {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]},
    "mpo": {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "smoothed": {
        "loss_types": ["robust", "aot", "aot_unpaired"],
        "loss_weights": [1.0] * 3,
        "label_smoothing": 0.1,
    },
}
"""What TRL's trainer is set to."""


def inputs() -> Recorded:
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return (2 * torch.randn(2 * PAIRS, 8, 11, generator=generator, dtype=torch.float64)).float().double()

    ids = torch.randint(11, (2 * PAIRS, 8), generator=generator)
    mask = torch.zeros(2 * PAIRS, 8, dtype=torch.long)
    for row, (start, end) in enumerate(ENDS):
        mask[row, start:end] = 1
    logits = draw()
    likely = torch.tensor([1, PAIRS + 1])  # A pair that the policy would give itself: WPO's weight is above 1.
    logits[likely[:, None], torch.arange(7), ids[likely, 1:]] += 6
    return {"logits": logits, "reference_logits": draw(), "input_ids": ids, "completion_mask": mask}


class Table:
    """A model whose logits are given."""

    training = True

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __call__(self, *, input_ids: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        logps = self.logits[:, :-1].log_softmax(-1)
        own = logps.gather(-1, input_ids[:, 1:, None])[..., 0]
        plain = torch.zeros_like(own)
        return SimpleNamespace(
            log_probs=own.where(labels[:, 1:] != -100, 0.0),
            log_sum_sq_probs=logps.exp().square().sum(-1).log(),
            entropy=plain,
            mean_logits=plain,
            is_top1=plain.bool(),
        )


def of_trl(given: Recorded, rows: list[int], logits: Tensor, case: dict[str, Any]) -> Tensor:
    """The loss of a batch of some rows."""
    from trl.trainer import dpo_trainer

    def unchanged(values: Tensor) -> Tensor:
        return values

    trainer = SimpleNamespace(
        **{
            "beta": 0.1,
            "label_smoothing": 0.0,
            "ld_alpha": None,
            "loss_types": ["sigmoid"],
            "loss_weights": [1.0],
            "use_weighting": False,
            **{name: value for name, value in case.items() if name != "tau"},
        },
        model=Table(logits[rows]),
        ref_model=Table(given["reference_logits"][rows]),
        accelerator=SimpleNamespace(device="cpu", gather=unchanged, gather_for_metrics=unchanged),
        args=SimpleNamespace(
            discopop_tau=case.get("tau", 0.05), gradient_checkpointing=False, gradient_checkpointing_kwargs=None
        ),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {name: given[name][rows] for name in ("input_ids", "completion_mask")}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    dpo_trainer.is_peft_model = lambda _: False
    dpo_trainer.disable_gradient_checkpointing = lambda *_: contextlib.nullcontext()
    loss: Tensor = dpo_trainer.DPOTrainer._compute_loss(trainer, trainer.model, batch, False)
    return loss


def trl(given: Recorded) -> Recorded:
    found: Recorded = {}
    for key, case in CASES.items():
        logits = given["logits"].clone().requires_grad_()
        alone = [of_trl(given, [pair, PAIRS + pair], logits, case) for pair in range(PAIRS)]
        mean = of_trl(given, list(range(2 * PAIRS)), logits, case)
        found[f"trl/{key}/alone"] = torch.stack(alone).detach()
        found[f"trl/{key}/mean"] = mean.detach()
        (found[f"trl/{key}/grad"],) = torch.autograd.grad(mean, logits)
    return found


def wpo(given: Recorded, folder: Path) -> Recorded:
    found: Recorded = {}
    sums = WPO.function(folder, "WPOTrainer", "get_batch_logps").__func__  # type: ignore[attr-defined]
    loss = WPO.function(folder, "WPOTrainer", "dpo_loss")
    labels = given["input_ids"].where(given["completion_mask"] == 1, -100)
    for smoothing in (0.0, 0.1):
        logits = given["logits"].clone().requires_grad_()
        trainer = SimpleNamespace(
            reference_free=False, beta=0.1, label_smoothing=smoothing, accelerator=SimpleNamespace(device="cpu")
        )
        logps, weights = sums(logits, labels)
        reference, _ = sums(given["reference_logits"], labels)
        losses, _, _ = loss(trainer, *logps.chunk(2), *reference.chunk(2), weights)
        found[f"wpo/{smoothing}/losses"], found[f"wpo/{smoothing}/weights"] = losses.detach(), weights
        (found[f"wpo/{smoothing}/grad"],) = torch.autograd.grad(losses.mean(), logits)
    return found


def discopop(given: Recorded, folder: Path) -> Recorded:
    logits = given["logits"].clone().requires_grad_()
    loss = DISCOPOP.function(folder, "GPOTrainer", "log_ratio_modulated_loss")
    labels = given["input_ids"].where(given["completion_mask"] == 1, -100)
    tables = (Table(values) for values in (logits, given["reference_logits"]))
    sums = [table(input_ids=given["input_ids"], labels=labels).log_probs.sum(-1) for table in tables]
    losses = loss(SimpleNamespace(beta=0.05), *sums[0].chunk(2), *sums[1].chunk(2))
    (gradient,) = torch.autograd.grad(losses.mean(), logits)
    return {"discopop/losses": losses.detach(), "discopop/grad": gradient}


def main(folder: Path) -> None:
    given = inputs()
    found = {**trl(given), **wpo(given, folder), **discopop(given, folder)}
    stored = {**{f"inputs/{name}": values for name, values in given.items()}, **found}
    np.savez_compressed(DATA / "pairs.npz", **{name: values.numpy() for name, values in stored.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
