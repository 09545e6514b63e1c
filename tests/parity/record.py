"""Record what the authors' own loss functions give, into ``data/official.npz``.

Usage: python tests/parity/record.py FOLDER

FOLDER holds clones of the repositories in `SOURCES`, each as FOLDER/<name>. A function is read from its file at the
commit named here, compiled as it stands, and called in float64; nothing of it is copied into this repository.
"""

import __future__

import ast
import subprocess
import sys
import typing
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

DATA: Final = Path(__file__).parent / "data"
Recorded = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A file of a repository at a commit."""

    name: str
    commit: str
    path: str

    def function(self, folder: Path, *names: str, **given: Any) -> FunctionType:
        """A function, or a method by its class and name, that sees torch and what is ``given``."""
        command = ["git", "-C", str(folder / self.name), "show", f"{self.commit}:{self.path}"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        node: Any = ast.parse(text)
        for name in names:
            node = next(n for n in node.body if getattr(n, "name", None) == name)
        # Its annotations are of no use, and some name what is not installed.
        flags = __future__.annotations.compiler_flag
        code = compile(ast.Module([node], []), f"{self.name}/{self.path}", "exec", flags=flags)
        scope: dict[str, Any] = {**vars(typing), "torch": torch, "F": torch.nn.functional, **given}
        exec(code, scope)
        return typing.cast(FunctionType, scope[names[-1]])


TDPO: Final = Source(
    "Token-level-Direct-Preference-Optimization", "2a736ecb285394a8419b461816bce1ba3b093cc9", "trainers.py"
)
TIS_DPO: Final = Source("TIS-DPO", "cbad7c1aff91d1e35f917dc628c52820e0555f7b", "trainers.py")
TIS_WEIGHTS: Final = Source("TIS-DPO", TIS_DPO.commit, "preference_datasets.py")
RPO: Final = Source("relative-preference-optimization", "c1b51639aaf93796ecf65ca74935bc4193b56592", "trainers.py")
F_DPO: Final = Source("f-divergence-dpo", "07d9369f4dba2fe0eb50abfa3dac1abd22e9eb47", "trainers.py")
KTO: Final = Source("HALOs", "4831988636b4cbc1c30c0bce78df568cf0f8103b", "train/trainers.py")
TURBO: Final = Source("turbo-alignment", "72e737dcd3ed85986e3d80059c19208578c31395", "turbo_alignment/trainers/dpo.py")
UNA: Final = {
    f"UNA_{name}": Source(
        "UNA-UFT", "9a49524aed4636a7665adc454efdda4ebefdc635", f"Mistral-offline/UNA_trainer_{file}.py"
    )
    for name, file in (("score", "score_MSE_3e-5_0.03"), ("MSE", "binary_MSE_0.01"), ("BCE", "binary_BCE_0.01"))
}
"""By the class that is in the file: scores, and right and wrong answers in two ways."""
SUMS: Final = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")


def inputs() -> Recorded:
    """Sums of eight pairs as in ``preference.npz``; logits, weights and log-probabilities of tokens, random."""
    with np.load(DATA / "preference.npz") as stored:
        found = {name: torch.from_numpy(stored[name]) for name in (*SUMS, "chosen_lengths", "rejected_lengths")}
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.float().double()  # Short numbers, which float32 holds.

    labels = torch.randint(11, (6, 7), generator=generator)
    for row, (start, end) in enumerate([(1, 7), (3, 7), (2, 5), (1, 4), (3, 6), (2, 7)]):
        labels[row, :start] = labels[row, end:] = -100
    embeddings = draw(8, 5)
    embeddings[5] = embeddings[2]  # Two pairs of one prompt.
    ratings = draw(8, 2).sigmoid().float().double()
    ratings[3, 0] = ratings[5, 1] = -1  # These answers are left out.
    ends = torch.tensor([6, 3, 5, 1, 4, 6, 2, 5])[:, None] > torch.arange(6)
    tokens = {
        f"{who}_{of}_tokens": -draw(8, 6).abs() * ends
        for who in ("policy", "reference")
        for of in ("chosen", "rejected", "mismatched")
    }
    for who in ("policy", "reference"):
        tokens[f"{who}_mismatched_tokens"][3] = 0  # A row without any mismatched answer.
    tokens["policy_mismatched_tokens"] += 0.5 * (tokens["policy_mismatched_tokens"] != 0)  # A baseline above 0.
    return {
        **found,
        **tokens,
        "logits": draw(6, 7, 11, scale=2.0),
        "reference_logits": draw(6, 7, 11, scale=2.0),
        "labels": labels,
        "token_weights": draw(6, 7).exp().float().double(),
        "log_ratios": torch.linspace(-3, 3, 25, dtype=torch.float64),
        "prompt_embeddings": embeddings,
        "ratings": ratings,
    }


def recorded(key: str, losses: Tensor, leaves: Recorded, **more: Tensor) -> Recorded:
    """The losses, the gradient of their mean with respect to each leaf, and more results."""
    gradients = torch.autograd.grad(losses.mean(), list(leaves.values()))
    results = {"losses": losses, **more}
    return {f"{key}/{name}": value.detach() for name, value in results.items()} | {
        f"{key}/grad/{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)
    }


def by_token(folder: Path, given: Recorded) -> Recorded:
    """TDPO and TIS-DPO, from logits on; the first half of the rows are the chosen answers."""
    found: Recorded = {}
    for key, source, loss, options in (
        ("tdpo/tdpo1", TDPO, "tdpo_loss", {"if_tdpo2": False}),
        ("tdpo/tdpo2", TDPO, "tdpo_loss", {"if_tdpo2": True, "alpha": 0.5}),
        ("tis_dpo/weighted", TIS_DPO, "tisdpo_loss", {"token_level": False}),
        ("tis_dpo/weighted_kl", TIS_DPO, "tisdpo_loss", {"token_level": True, "alpha": 0.5}),
    ):
        is_weighted = source is TIS_DPO
        score = source.function(folder, "_get_batch_logps_tisdpo" if is_weighted else "_tdpo_get_batch_logps")
        logits = given["logits"].clone().requires_grad_()
        weights = [given["token_weights"]] if is_weighted else []
        margins, divergences, _ = score(logits, given["reference_logits"], given["labels"], *weights)
        losses, chosen, rejected = source.function(folder, loss)(
            margins[:3], margins[3:], divergences[:3], divergences[3:], beta=0.1, **options
        )
        found |= recorded(key, losses, {"logits": logits}, chosen_rewards=chosen, rejected_rewards=rejected)
    transform = TIS_WEIGHTS.function(folder, "threshold_and_scale_transform")
    return found | {"tis_dpo/weights": torch.tensor(transform(given["log_ratios"].tolist()))}


def of_sums(folder: Path, given: Recorded) -> Recorded:
    """RPO, f-DPO, ASFT and APO-zero, from log-probabilities of whole answers on."""
    found: Recorded = {}
    rpo = partial(
        RPO.function(folder, "RPOTrainer", "loss"),
        SimpleNamespace(config=SimpleNamespace(loss=SimpleNamespace(beta=0.1, distance_temperature=0.5))),
    )
    asft = partial(
        TURBO.function(folder, "ASFTLoss", "compute_loss"), SimpleNamespace(beta=1.0, lambda_=0.3, ce_coef=1.0)
    )
    apo_zero = partial(TURBO.function(folder, "APOZeroLoss", "compute_loss"), SimpleNamespace(beta=0.1))
    lengths = [given["chosen_lengths"], given["rejected_lengths"]] * 2
    for key, call in {
        "rpo": lambda *sums: rpo(*sums, prompts_emb=given["prompt_embeddings"].numpy()),
        "f_dpo/reverse_kl": partial(F_DPO.function(folder, "dpo_loss"), beta=0.1),
        "f_dpo/forward_kl": partial(F_DPO.function(folder, "forward_dpo_loss"), beta=0.1),
        "f_dpo/js": partial(
            F_DPO.function(folder, "js_dpo_loss", stabilized_log1pexp=F_DPO.function(folder, "stabilized_log1pexp")),
            beta=0.1,
        ),
        "f_dpo/alpha": partial(F_DPO.function(folder, "alpha_dpo_loss"), beta=0.1, alpha=0.4),
        "apo_zero": lambda *sums: apo_zero(*sums, None),
        "asft": lambda *sums: asft(*(total / length for total, length in zip(sums, lengths, strict=True)), None),
    }.items():
        leaves = {name: given[name].clone().requires_grad_() for name in SUMS[:2]}
        losses, chosen, rejected = call(*leaves.values(), *(given[name] for name in SUMS[2:]))
        found |= recorded(key, losses, leaves, chosen_rewards=chosen, rejected_rewards=rejected)
    return found


def kto(folder: Path, given: Recorded) -> Recorded:
    """KTO, from log-probabilities of tokens on; once more with policy and reference swapped in the baseline."""
    settings = SimpleNamespace(beta=0.1, desirable_weight=1.33, undesirable_weight=0.75)
    trainer = SimpleNamespace(
        config=SimpleNamespace(humanline=False, loss=settings),
        policy_dtype=torch.float64,
        accelerator=SimpleNamespace(device="cpu", reduce=lambda tensor, reduction: tensor),
    )
    trainer.get_sequence_rewards = partial(KTO.function(folder, "BasicTrainer", "get_sequence_rewards"), trainer)
    found: Recorded = {}
    for key, order in (("kto", ("policy", "reference")), ("kto_swapped", ("reference", "policy"))):
        leaves = {
            name: given[name].clone().requires_grad_() for name in ("policy_chosen_tokens", "policy_rejected_tokens")
        }
        mismatched = [given[f"{who}_mismatched_tokens"] for who in order]
        references = [given[f"reference_{side}_tokens"] for side in ("chosen", "rejected")]
        losses, chosen, rejected, baseline, *_ = KTO.function(folder, "KTOTrainer", "loss")(
            trainer, {}, *leaves.values(), mismatched[0], *references, mismatched[1]
        )
        found |= recorded(key, losses, leaves, chosen_rewards=chosen, rejected_rewards=rejected, baseline=baseline)
    return found


def una(folder: Path, given: Recorded) -> Recorded:
    """UNA, pair by pair, as their functions take them; a pair with one rating has one answer."""
    trainer = SimpleNamespace(
        beta=0.1, reference_free=False, loss_type="sigmoid", accelerator=SimpleNamespace(device="cpu")
    )
    found: Recorded = {}
    for name, source in UNA.items():
        loss = source.function(folder, name, "dpo_loss")
        leaves = {leaf: given[leaf].clone().requires_grad_() for leaf in SUMS[:2]}
        references = [given[leaf] for leaf in SUMS[2:]]
        losses = []
        for pair in range(8):
            of_pair = [values[pair : pair + 1] for values in (*leaves.values(), *references)]
            with redirect_stdout(StringIO()):  # They print.
                losses.append(
                    loss(trainer, *of_pair, given["ratings"][pair, :1], given["ratings"][pair, 1:])[0].reshape(())
                )
        found |= recorded(name, torch.stack(losses), leaves)
    return found


def main() -> None:
    """Record everything."""
    folder = Path(sys.argv[1])
    torch.set_default_dtype(torch.float64)  # Some of them make tensors of the default type.
    given = inputs()
    found = by_token(folder, given) | of_sums(folder, given) | kto(folder, given) | una(folder, given)
    arrays = {f"inputs/{name}": value for name, value in given.items()} | found
    np.savez_compressed(DATA / "official.npz", **{name: value.numpy() for name, value in arrays.items()})


if __name__ == "__main__":
    main()
