"""Record what others' own token losses give, into ``data/token.npz``.

Usage: python tests/parity/record_token.py FOLDER

As `record.py`. Code that casts logits to float32 is compiled with ``.double()`` in the place of ``.float()``.
"""

import __future__

import ast
import subprocess
import sys
import typing
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from record import DATA, Source
from torch import Tensor, nn

ASFT: Final = Source("ASFT", "6ec682fc9f1a36ef9f79e6cc3569855298723161", "train.py")
BEYOND: Final = Source(
    "Beyond-Log-Likelihood", "220589d003d2a5e0c61f8a4128db3ad6dcceaa06", "main_verl/trainer/fsdp_sft_trainer.py"
)
DEFT: Final = Source("DEFT", "bbe7896e1f39df62063341df7a188eb72f9c22c0", "main_verl/trainer/fsdp_sft_trainer.py")
IW_SFT: Final = Source("iw_sft", "9a3e4e4cf1ebf29b2f350120d2f51089190277fa", "bounding_trainers.py")
LLAMA_FACTORY: Final = Source(
    "LLaMA-Factory", "ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30", "src/llamafactory/train/trainer_utils.py"
)
PSFT: Final = Source("PSFT", "569b1ba114b9262a8a5cec84ca1a008e97effd0c", "verl/verl/trainer/ppo/core_algos.py")
DOUBLE: Final = (".float()", ".double()")

OBJECTIVES: Final = (
    "GeneralFamily-0.5",
    "OnlyTopP-0.03",
    "OnlyTopLogP-0.03",
    "OnlyBottomP-0.03",
    "OnlyBottomLogP-0.03",
)
"""Of the code of arXiv:2510.00526. There is a mean over the tokens that a threshold keeps."""

ROWS, LENGTH, VOCABULARY = 3, 8, 30


def function(source: Source, folder: Path, *names: str, **given: Any) -> Any:
    """As `Source.function`, in float64 and without decorators."""
    command = ["git", "-C", str(folder / source.name), "show", f"{source.commit}:{source.path}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout.replace(*DOUBLE)
    node: Any = ast.parse(text)
    for name in names:
        node = next(n for n in node.body if getattr(n, "name", None) == name)
    node.decorator_list = []
    flags = __future__.annotations.compiler_flag
    code = compile(ast.Module([node], []), source.path, "exec", flags=flags)
    scope: dict[str, Any] = {**vars(typing), "torch": torch, "nn": nn, "F": nn.functional, **given}
    exec(code, scope)
    return scope[names[-1]]


def inputs() -> dict[str, Tensor]:
    """Logits of the policy, the reference and the old policy, and labels, aligned with the inputs."""
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float) -> Tensor:
        values = scale * torch.randn(ROWS, LENGTH, VOCABULARY, generator=generator, dtype=torch.float64)
        return values.float().double()

    logits = draw(1.5)
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    for row, (start, end) in enumerate([(1, 8), (3, 7), (2, 4)]):
        labels[row, :start] = labels[row, end:] = -100
    return {"logits": logits, "reference": logits + draw(0.5), "old": logits + draw(0.3), "labels": labels}


def shifted(labels: Tensor) -> Tensor:
    return labels[:, 1:].flatten()


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, T-1); whatever at positions that are not trained on."""
    return logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1)


def cases(folder: Path, given: dict[str, Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Mean loss over the trained tokens of the batch, from the policy's logits, by case."""
    labels, reference, old = given["labels"], given["reference"], given["old"]
    mask = (labels[:, 1:] != -100).double()
    dft = function(LLAMA_FACTORY, folder, "_dft_cross_entropy")
    kl = function(LLAMA_FACTORY, folder, "_kl_divergence")
    asft = function(LLAMA_FACTORY, folder, "_asft_cross_entropy", _dft_cross_entropy=dft, _kl_divergence=kl)
    eaft = function(LLAMA_FACTORY, folder, "_eaft_cross_entropy")
    anchored = function(ASFT, folder, "EnhancedTrainer", "compute_loss", IGNORE_INDEX=-100)
    iw = function(IW_SFT, folder, "IwSFTLoss", "__call__")
    masked_mean = SimpleNamespace(masked_mean=lambda values, on: (values * on).sum() / on.sum())
    aggregate = function(PSFT, folder, "agg_loss", verl_F=masked_mean)
    psft = function(PSFT, folder, "compute_policy_loss_vanilla", verl_F=masked_mean, agg_loss=aggregate, AlgoConfig=set)
    names = ("FSDPSFTTrainer", "_compute_loss_and_backward")
    deft, beyond = (function(source, folder, *names, nullcontext=nullcontext) for source in (DEFT, BEYOND))

    def flat(logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits[:, :-1].flatten(0, 1), shifted(labels)

    def official_anchored(mode: str) -> Callable[[Tensor], Tensor]:
        trainer = SimpleNamespace(mode=mode, kl_weight=0.3, original_model=lambda **_: {"logits": reference})
        return lambda logits: anchored(trainer, lambda **_: {"logits": logits}, {"labels": labels})

    def official_iw(logits: Tensor) -> Tensor:
        loss = SimpleNamespace(ignore_index=-100)
        ref = token_logps(reference, labels).unsqueeze(-1)
        # Row by row, as in their run: with more rows the weights meet the wrong dimension.
        rows = [
            iw(loss, {"logits": logits[i : i + 1]}, labels[i : i + 1], True, mask.sum(), ref[i : i + 1], temp=1.0)
            for i in range(ROWS)
        ]
        return torch.stack(rows).sum()

    def official_psft(logits: Tensor) -> Tensor:
        config = SimpleNamespace(
            clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.28, get=lambda _, default: default
        )
        policy, before = token_logps(logits, labels), token_logps(old, labels)
        return psft(before, policy, torch.ones_like(policy), mask, config=config)[0]

    def official_deft(objective: str, code: Any = deft) -> Callable[[Tensor], Tensor]:
        def loss(logits: Tensor) -> Tensor:
            trainer = SimpleNamespace(
                use_remove_padding=False,
                device_name="cpu",
                config=SimpleNamespace(
                    trainer=SimpleNamespace(objective_trans=objective), data=SimpleNamespace(balance_dp_token=False)
                ),
                fsdp_model=lambda **_: SimpleNamespace(logits=logits),
                model=SimpleNamespace(config=SimpleNamespace(vocab_size=VOCABULARY)),
            )
            ids = labels.clamp(min=0)
            whole = torch.cat([mask, torch.zeros(ROWS, 1, dtype=torch.float64)], 1)
            batch = {"input_ids": ids, "attention_mask": ids, "position_ids": ids, "loss_mask": whole}
            return code(trainer, batch, do_backward=False)

        return loss

    return {
        "llamafactory/dft": lambda logits: dft(*flat(logits)),
        "llamafactory/eaft": lambda logits: eaft(*flat(logits), alpha=1.5),
        "llamafactory/anchored": lambda logits: asft(*flat(logits), reference[:, :-1].flatten(0, 1), asft_alpha=0.3),
        "official/nll": official_anchored("sft"),
        "official/dft": official_anchored("dft"),
        "official/anchored_nll": official_anchored("sft+kl"),
        "official/anchored": official_anchored("asft"),
        "official/iw": official_iw,
        "official/psft": official_psft,
        "official/deformed_log": official_deft("GeneralFamily-0.3"),
        "official/deft": official_deft("DEFT"),
        "official/cayley_in_batch": official_deft("Cayley_Trans"),
        **{f"beyond/{name}": official_deft(name, beyond) for name in OBJECTIVES},
    }


def main(folder: Path) -> None:
    given = inputs()
    recorded = {f"inputs/{name}": values.numpy() for name, values in given.items()}
    for name, loss in cases(folder, given).items():
        logits = given["logits"].clone().requires_grad_()
        value = loss(logits)
        recorded[f"{name}/loss"] = value.detach().numpy()
        recorded[f"{name}/gradient"] = torch.autograd.grad(value, logits)[0].numpy()
        print(name, float(value))
    np.savez_compressed(DATA / "token.npz", **recorded)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
