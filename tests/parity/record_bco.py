"""Record what the code of BCO and of MPO gives over three steps, into ``data/bco.npz``.

Usage: python tests/parity/record_bco.py FOLDER

FOLDER holds clones of TRL and InternVL. BCO's trainer is TRL's, where an author of the paper put it (pull requests 1524
and 1599). MPO's trainer is InternVL's, on the DPO trainer of TRL 0.10.1, which it asks for. Methods run on objects that
have what they ask for, and on a model that is a table of logits. As in `record_token.py`, ``.float()`` is compiled as
``.double()``: the running moments would be float32.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from record import DATA, Recorded, Source
from record_pairs import PAIRS, inputs
from record_token import function
from torch import Tensor

BCO: Final = Source("trl", "f2cd57710ae345ea6428ae95363267fcf38a3dc8", "trl/experimental/bco/bco_trainer.py")
TRL_0_10: Final = "7594fd29dee8af3067f6a1aaa686b808f6b870e2"
DPO: Final = Source("trl", TRL_0_10, "trl/trainer/dpo_trainer.py")
MOMENTS: Final = Source("trl", TRL_0_10, "trl/trainer/utils.py")
MPO: Final = Source(
    "InternVL", "2410d1dbf208f0e799459aff9376e5747dbf41a2", "internvl_chat/internvl/train/trainer_dpo.py"
)
STEPS: Final = (1.0, 0.5, 0.8)
"""Factors of the policy's logits in each step."""
BETA: Final = 0.3


def moments(source: Source, folder: Path) -> Any:
    made = dataclass(function(source, folder, "RunningMoments"))
    return made(accelerator=SimpleNamespace(use_distributed=False))


def sums(logits: Tensor, given: Recorded) -> Tensor:
    """Log-probability of the trained tokens of each answer."""
    own = logits[:, :-1].log_softmax(-1).gather(-1, given["input_ids"][:, 1:, None])[..., 0]
    return (own * given["completion_mask"][:, 1:]).sum(-1)


def unpaired(given: Recorded, folder: Path) -> Recorded:
    """Thumbs: the chosen answers are good, and two of the rejected ones bad; the others are left out."""
    loss = function(BCO, folder, "BCOTrainer", "bco_loss")
    running = moments(BCO, folder)
    trainer = SimpleNamespace(beta=BETA, running=running, match_underlying_distribution=False)
    found: Recorded = {}
    for step, factor in enumerate(STEPS):
        logits = (factor * given["logits"]).requires_grad_()
        policy, reference = sums(logits, given), sums(given["reference_logits"], given)
        good, bad = slice(0, PAIRS), slice(PAIRS, PAIRS + 2)
        losses, *_, delta = loss(trainer, policy[good], policy[bad], reference[good], reference[bad], None, None)
        (gradient,) = torch.autograd.grad(losses.mean(), logits)
        found |= {f"bco/{step}/losses": losses.detach(), f"bco/{step}/grad": gradient, f"bco/{step}/delta": delta}
    return found


def mpo(given: Recorded, folder: Path) -> Recorded:
    scope = {
        "FDivergenceType": SimpleNamespace(**{f"{k}_DIVERGENCE": SimpleNamespace(value=k) for k in ("ALPHA", "JS")})
    }
    of_pairs = function(DPO, folder, "DPOTrainer", "dpo_loss", **scope)
    logps = function(DPO, folder, "DPOTrainer", "get_batch_logps")
    forward = function(MPO, folder, "MultimodalDPOTrainer", "concatenated_forward")
    step_of = function(MPO, folder, "MultimodalDPOTrainer", "get_batch_loss_metrics")
    labels = given["input_ids"].where(given["completion_mask"] == 1, -100)
    trainer = SimpleNamespace(
        beta=BETA,
        loss_type="sigmoid,bco_pair",
        label_smoothing=0.0,
        reference_free=False,
        f_divergence_type="reverse_kl",
        running=moments(MOMENTS, folder),
        accelerator=SimpleNamespace(device="cpu"),
        args=SimpleNamespace(sigmoid_loss_weight=0.8, bco_pair_loss_weight=0.2, rpo_alpha=1.0),
        aux_loss_enabled=False,
        is_encoder_decoder=False,
        is_vision_model=False,
        label_pad_token_id=-100,
        padding_value=0,
        get_batch_logps=logps,
        concatenated_inputs=lambda *_, **__: (
            {f"concatenated_{name}": labels for name in ("input_ids", "attention_mask", "labels")}
            | {"pixel_values": None, "image_flags": None}
        ),
    )
    trainer.dpo_loss = lambda *given_sums: of_pairs(trainer, *given_sums)
    trainer.concatenated_forward = lambda model, batch: forward(trainer, model, batch)
    trainer.ref_model = lambda **_: SimpleNamespace(logits=given["reference_logits"])
    found: Recorded = {}
    for step, factor in enumerate(STEPS):
        logits = (factor * given["logits"]).requires_grad_()
        loss, _ = step_of(
            trainer, lambda logits=logits, **_: SimpleNamespace(logits=logits), {"chosen_labels": labels[:PAIRS]}
        )
        (gradient,) = torch.autograd.grad(loss, logits)
        delta = torch.tensor(trainer.running.mean, dtype=torch.float64)
        found |= {f"mpo/{step}/loss": loss.detach(), f"mpo/{step}/grad": gradient, f"mpo/{step}/delta": delta}
    return found


def main(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)  # A tensor is made of the shift without saying its type.
    given = inputs()
    found = {**unpaired(given, folder), **mpo(given, folder)}
    for name, values in found.items():
        if not name.endswith("grad"):
            print(name, values.tolist())
    stored = {**{f"inputs/{name}": values for name, values in given.items()}, **found}
    np.savez_compressed(DATA / "bco.npz", **{name: values.numpy() for name, values in stored.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
