"""What holds for every pair loss of a paper: gradients, extremes, signs, and how losses become one another."""

import itertools
import re
from typing import Any

import pytest
import torch
from pair_variants import VARIANTS, agreeing, differentiable, some_inputs
from torch import Tensor

from lit_ift.losses import PairLoss

REWARDS = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"}
EXTREMES = (0.0, -1e-9, -1e-6, -1e-3, -1.0, -100.0, -1e4)


def values(name: str, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    return PairLoss(name, options)(inputs)[0]


BY_SUMS = {name for name in VARIANTS if not any("_token_" in i for i in PairLoss(*VARIANTS[name]).inputs)}
"""Variants that know of whole answers alone."""
ONE_SIDED = {"sft", "sft_token_mean"}
"""Losses of the chosen answer alone."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_the_values(variant: str) -> None:
    loss, inputs = PairLoss(*VARIANTS[variant]), some_inputs()
    # No gradient flows through the divergence of the chosen answer in TDPO's second variant, nor into a reference.
    free = [name for name in differentiable(loss.inputs) if not name.startswith("reference_")]
    free = [name for name in free if (loss.name, name) != ("tdpo", "chosen_token_kl")]

    def function(*tensors: Tensor) -> Tensor:
        return loss(inputs | dict(zip(free, tensors, strict=True)))[0]

    assert torch.autograd.gradcheck(function, [inputs[name].requires_grad_() for name in free])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_extreme_probabilities_give_finite_values_and_gradients(variant: str, dtype: torch.dtype) -> None:
    loss = PairLoss(*VARIANTS[variant])
    grid = list(itertools.product(EXTREMES, EXTREMES, EXTREMES, (1.0, 1000.0)))
    chosen, rejected, other, lengths = torch.tensor(grid, dtype=dtype).unbind(1)
    inputs = {
        **{
            name: values.to(dtype) if values.is_floating_point() else values
            for name, values in some_inputs(len(grid)).items()
        },
        "chosen_logps": chosen.clone(),
        "rejected_logps": rejected.clone(),
        "gold_logps": other.clone(),
        "reference_chosen_logps": other,
        "reference_rejected_logps": other.flip(0),
        "chosen_lengths": lengths,
        "rejected_lengths": lengths.flip(0),
        "gold_lengths": lengths,
    }
    # One token that has all of an answer's log-probability.
    for side, values in (("chosen", chosen), ("rejected", rejected)):
        inputs[f"{side}_token_logps"] = torch.nn.functional.pad(values[:, None], (0, 5))
        inputs[f"reference_{side}_token_logps"] = torch.nn.functional.pad(other[:, None], (0, 5))
    leaves = [
        inputs[name].requires_grad_() for name in differentiable(loss.inputs) if not name.startswith("reference_")
    ]
    losses, metrics = loss(inputs)
    assert losses.dtype == dtype
    assert losses.isfinite().all()
    assert all(metric.isfinite().all() and not metric.requires_grad for metric in metrics.values())
    for gradient in torch.autograd.grad(losses.sum(), leaves, materialize_grads=True):
        assert gradient.isfinite().all()


RISING = {name for name in BY_SUMS if VARIANTS[name][0] not in {"apo_down", "discopop", "rpo", *ONE_SIDED}}


@pytest.mark.parametrize("variant", sorted(RISING))
def test_a_step_raises_the_chosen_and_lowers_the_rejected_answer(variant: str) -> None:
    """At the start of training, where policy and reference agree."""
    loss = PairLoss(*VARIANTS[variant])
    inputs = some_inputs()
    # Without a reference, equal answers; with one, no answer has moved.
    inputs["rejected_logps"], inputs["rejected_lengths"] = inputs["chosen_logps"].clone(), inputs["chosen_lengths"]
    inputs = agreeing(inputs)
    chosen, rejected = inputs["chosen_logps"].requires_grad_(), inputs["rejected_logps"].requires_grad_()
    d_chosen, d_rejected = torch.autograd.grad(loss(inputs)[0].sum(), [chosen, rejected])
    assert (d_chosen < 0).all()
    assert (d_rejected > 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_metrics_are_one_per_pair(variant: str) -> None:
    name, options = VARIANTS[variant]
    losses, metrics = PairLoss(name, options)(some_inputs(pairs=3))
    assert losses.shape == (3,)
    if name in ONE_SIDED:
        assert metrics == {}
        return
    assert set(metrics) >= REWARDS
    assert all(metric.shape == (3,) for metric in metrics.values())
    margins = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    assert torch.equal(metrics["rewards/margins"], margins)
    assert torch.equal(metrics["rewards/accuracies"], (margins > 0).double())


def in_parts(loss: PairLoss, inputs: dict[str, Tensor], size: int) -> tuple[Tensor, list[Tensor]]:
    """Losses of all pairs, given ``size`` at a time, and gradients of their sum."""
    leaves = [inputs[name] for name in differentiable(loss.inputs)]
    for leaf in leaves:
        leaf.requires_grad_()
    pairs = len(inputs["chosen_logps"])
    parts = [{name: tensor[i : i + size] for name, tensor in inputs.items()} for i in range(0, pairs, size)]
    losses = torch.cat([loss(part)[0] for part in parts])
    return losses.detach(), list(torch.autograd.grad(losses.sum(), leaves, materialize_grads=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_pairs_couple_in_losses_that_say_so_and_in_no_other(variant: str) -> None:
    """1 x 8 = 2 x 4 = 8 x 1, values and gradients."""
    loss = PairLoss(*VARIANTS[variant])
    together, gradients = in_parts(loss, some_inputs(8), 8)
    couple = False
    for size in (4, 1):
        losses, own = in_parts(loss, some_inputs(8), size)
        alike = [
            torch.allclose(a, b, rtol=1e-12, atol=1e-14)
            for a, b in zip([losses, *own], [together, *gradients], strict=True)
        ]
        couple |= not all(alike)
    assert couple == loss.in_batch


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_on_numbers_of_bfloat16_is_right(variant: str) -> None:
    """As under bf16-mixed, where a head's output of few digits is scored in float32."""
    loss = PairLoss(*VARIANTS[variant])
    rounded = {
        n: t.bfloat16() if t.is_floating_point() and not n.endswith("_lengths") else t for n, t in some_inputs().items()
    }
    as_float, as_double = (
        {n: t.to(dtype) if t.is_floating_point() else t for n, t in rounded.items()}
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(loss(as_float)[0].double(), loss(as_double)[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("variant", sorted(BY_SUMS))
def test_an_empty_answer_is_no_division_by_zero(variant: str) -> None:
    inputs = {name: torch.zeros_like(values) for name, values in some_inputs(pairs=2).items()}
    inputs["chosen_logps"].requires_grad_()
    losses, _ = PairLoss(*VARIANTS[variant])(inputs)
    assert losses.isfinite().all()
    (gradient,) = torch.autograd.grad(losses.sum(), inputs["chosen_logps"])
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("robust_dpo", {}), ("dpo", {})),
        (("f_dpo", {"divergence": "reverse_kl", "label_smoothing": 0.1}), ("dpo", {"label_smoothing": 0.1})),
        (("f_dpo", {"divergence": "alpha", "alpha": 1e-7}), ("dpo", {})),
        (("f_dpo", {"divergence": "alpha", "alpha": 1 - 1e-12}), ("f_dpo", {"divergence": "forward_kl"})),
        (("simpo", {"alpha": 1e-9}), ("simpo", {})),
        (("simpo", {"gamma_over_beta": 0.3}), ("tpo_l", {"gamma": 0.6, "alpha": 0.0})),
        (("tpo", {"beta": 0.1, "alpha": 0.0}), ("dpo", {"reference_free": True})),
        (
            ("cpo", {"sft_weight": 0.0, "label_smoothing": 0.1}),
            ("dpo", {"reference_free": True, "label_smoothing": 0.1}),
        ),
        (
            ("tpo", {"loss_type": "hinge", "alpha": 0.0, "beta": 0.1}),
            ("cpo", {"loss_type": "hinge", "sft_weight": 0.0}),
        ),
        (("hinge", {"reference_free": True}), ("cpo", {"loss_type": "hinge", "sft_weight": 0.0})),
        (("ipo", {"average": True, "reference_free": True}), ("cpo", {"loss_type": "ipo", "sft_weight": 0.0})),
    ],
)
def test_limiting_cases(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    inputs = some_inputs()
    torch.testing.assert_close(PairLoss(*one)(inputs)[0], PairLoss(*other)(inputs)[0], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_optimal_transport_of_one_pair_is_dpo(name: str) -> None:
    inputs = some_inputs(pairs=1)
    torch.testing.assert_close(values(name, inputs), values("dpo", inputs))


@pytest.mark.parametrize("variant", sorted(name for name in BY_SUMS if VARIANTS[name][0] != "rpo"))
def test_other_shapes_are_refused(variant: str) -> None:
    loss = PairLoss(*VARIANTS[variant])
    for wrong in loss.inputs:
        inputs = some_inputs(pairs=3)
        with pytest.raises(ValueError, match="must have the same shape"):
            loss(inputs | {wrong: inputs[wrong][:2]})
    with pytest.raises(ValueError, match="must have the same shape"):
        loss({name: tensor[None] for name, tensor in some_inputs().items()})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *(
            (name, {"beta": 0.0}, "beta=0.0 must be above 0")
            for name in dict(VARIANTS.values())
            if name not in ONE_SIDED
        ),
        ("dpo", {"beta": "1e-2"}, "beta='1e-2' must be a finite number"),
        ("dpo", {"beta": float("nan")}, "beta=nan must be a finite number"),
        ("dpo", {"beta": True}, "beta=True must be a finite number"),
        ("dpo", {"reference_free": "no"}, "reference_free='no' must be true or false"),
        ("ipo", {"average": 1}, "average=1 must be true or false"),
        ("ipo", {"reference_free": None}, "reference_free=None must be true or false"),
        ("hinge", {"reference_free": 0}, "reference_free=0 must be true or false"),
        *(
            (name, {"label_smoothing": 0.5}, "label_smoothing=0.5 must be at least 0 and below 0.5")
            for name in ("dpo", "robust_dpo", "aot", "aot_unpaired", "f_dpo", "simpo", "cpo")
        ),
        ("exo", {"label_smoothing": 0.0}, "label_smoothing=0.0 must be above 0"),
        ("f_dpo", {"divergence": "kl"}, "divergence='kl' must be one of 'reverse_kl', 'forward_kl', 'js', 'alpha'"),
        ("f_dpo", {"divergence": "alpha"}, "divergence='alpha' needs alpha"),
        ("f_dpo", {"divergence": "alpha", "alpha": 1.0}, "alpha=1.0 must be above 0 and below 1"),
        ("f_dpo", {"divergence": "alpha", "alpha": 0.0}, "alpha=0.0 must be above 0"),
        ("f_dpo", {"alpha": 0.5}, "alpha=0.5 has no effect with divergence='js'"),
        ("simpo", {"gamma_over_beta": -0.1}, "gamma_over_beta=-0.1 must be at least 0"),
        ("simpo", {"sft_weight": -0.1}, "sft_weight=-0.1 must be at least 0"),
        ("simpo", {"alpha": float("inf")}, "alpha=inf must be a finite number"),
        ("cpo", {"sft_weight": -1}, "sft_weight=-1 must be at least 0"),
        ("cpo", {"loss_type": "simpo"}, "loss_type='simpo' must be one of 'sigmoid', 'hinge', 'ipo'"),
        ("cpo", {"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing=0.1 has no effect"),
        ("tpo", {"alpha": -1}, "alpha=-1 must be at least 0"),
        ("tpo", {"loss_type": "ipo"}, "loss_type='ipo' must be one of 'sigmoid', 'hinge'"),
        ("tpo_l", {"alpha": -1}, "alpha=-1 must be at least 0"),
        ("tpo_l", {"gamma": -1}, "gamma=-1 must be at least 0"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PairLoss(name, options)
