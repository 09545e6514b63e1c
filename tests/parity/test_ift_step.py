"""A whole IFT step on a tiny model against one call of the authors' own code: loss and every gradient."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deviations import IFT_AUTHORS, assert_same
from transformers import LlamaConfig, LlamaForCausalLM

from lit_ift.modules import IFTModule

DATA = Path(__file__).parent / "data"


def llama(config: dict[str, Any], weights: dict[str, np.ndarray]) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**config)).double()
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def ift_gradients(
    model: LlamaForCausalLM, batch: dict[str, torch.Tensor], lam: float, gamma: float
) -> tuple[float, dict[str, float], dict[str, torch.Tensor | None]]:
    module = IFTModule(model, lam=lam, gamma=gamma)
    losses, metrics = module.example_losses(batch)
    losses.mean().backward()
    means = {name: value.mean().item() for name, value in metrics.items()}
    return losses.mean().item(), means, {name: p.grad for name, p in module.model.named_parameters()}


@pytest.mark.parametrize("key", ["untied", "tied"])
def test_step_equals_the_authors(key: str) -> None:
    arrays = np.load(DATA / "ift_step.npz")
    case = next(c for c in json.loads((DATA / "ift_step.json").read_text())["cases"] if c["key"] == key)
    prefix = f"{key}/weight/"
    model = llama(case["config"], {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)})
    batch = {k: torch.from_numpy(arrays[k]) for k in ("input_ids", "labels", "attention_mask")}
    loss, metrics, gradients = ift_gradients(model, batch, case["lam"], case["gamma"])
    assert_same("ift", IFT_AUTHORS, "value", loss, case["loss"], atol=1e-10)
    assert metrics["sft_loss"] == pytest.approx(case["sft_loss"], abs=1e-10)
    assert metrics["fused_loss"] == pytest.approx(case["fused_loss"], abs=1e-10)
    assert len(gradients) >= 20
    for name, gradient in gradients.items():
        recorded = f"{key}/grad/{name}"
        assert (gradient is None) == (recorded not in arrays), name
        if gradient is not None:
            assert_same("ift", IFT_AUTHORS, "gradient", gradient, torch.from_numpy(arrays[recorded]), atol=1e-10)


def test_cases_of_lambda_and_gamma_equal_the_authors() -> None:
    index, arrays = json.loads((DATA / "ift_cases.json").read_text()), np.load(DATA / "ift_cases.npz")
    prefix = "weight/"
    weights = {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}
    batch = {k: torch.from_numpy(arrays[k]) for k in ("input_ids", "labels", "attention_mask")}
    assert len({(case["lam"], case["gamma"]) for case in index["cases"]}) == 4
    for case in index["cases"]:
        loss, metrics, gradients = ift_gradients(llama(index["config"], weights), batch, case["lam"], case["gamma"])
        assert_same("ift", IFT_AUTHORS, "value", loss, case["loss"], atol=1e-10)
        assert metrics["sft_loss"] == pytest.approx(case["sft_loss"], abs=1e-10)
        assert gradients.keys() == case["grad_norms"].keys()
        for name, norm in case["grad_norms"].items():
            ours = gradients[name]
            assert (ours is None) == (norm is None), name
            if ours is not None:
                assert ours.norm().item() == pytest.approx(norm, abs=1e-10), name
