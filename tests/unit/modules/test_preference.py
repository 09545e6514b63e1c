"""Pairs through one forward pass give what each answer alone gives."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from feedback import answer_logps, dummy, encoded_row, feedback_batch, pairs
from rowfiles import write_feedback
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

from lit_ift.data import FeedbackDataModule
from lit_ift.data.batch.collate import collate, collate_packed
from lit_ift.data.requirements import check_match
from lit_ift.data.rows import EncodedRow
from lit_ift.data.store import StoredRows
from lit_ift.errors import UserError
from lit_ift.losses.registry import PAIR_LOSSES, PairLoss
from lit_ift.losses.token_registry import TOKEN_LOSSES, TokenLoss
from lit_ift.modules import ContrastiveWeights, MixedModule, ObjectivePart, PreferenceModule, SFTModule
from lit_ift.modules.feedback_module import AnswerScores
from lit_ift.modules.feedback_rows import FeedbackRows
from lit_ift.modules.reference import ReferencePolicy


def gradients(module: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad()
    losses, _ = module.example_losses(batch)
    (losses * module.example_weights(batch)).sum().backward()
    return losses.detach(), {n: p.grad.clone() for n, p in module.model.named_parameters() if p.grad is not None}


def ready(model: Any, **options: Any) -> PreferenceModule:
    """A module whose batches carry the reference, so that nothing needs computing beforehand."""
    return PreferenceModule(model, reference="cached", **options)


@pytest.mark.parametrize("packed", [False, True])
def test_dpo_of_a_batch_is_the_sum_over_answers_alone(packed: bool) -> None:
    model, rows = tiny_model(), pairs(3)
    module = ready(model, loss="dpo", options={"beta": 0.3})
    batch = feedback_batch(rows, packed=packed)
    module.check_batch(batch)
    losses, found = gradients(module, batch)

    model.zero_grad()
    reference = batch["reference_logps"].view(-1, 2)
    expected = []
    for (policy_chosen, policy_rejected), (chosen, rejected) in zip(
        [(one["chosen"], one["rejected"]) for one in answer_logps(model, rows)], reference, strict=True
    ):
        h = 0.3 * ((policy_chosen - chosen) - (policy_rejected - rejected))
        expected.append(-torch.log(torch.sigmoid(h)))
    torch.stack(expected).sum().backward()
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-10, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-8, atol=1e-10)


def test_metrics_are_those_of_the_answers() -> None:
    model, rows = tiny_model(), pairs(3)
    batch = feedback_batch(rows)
    _, metrics = ready(model, options={"beta": 0.5}).example_losses(batch)
    alone = answer_logps(model, rows)
    for side, column in (("chosen", 0), ("rejected", 1)):
        logps = torch.stack([one[side] for one in alone]).detach()
        torch.testing.assert_close(metrics[f"logps/{side}"], logps)
        reference = batch["reference_logps"].view(-1, 2)[:, column]
        torch.testing.assert_close(metrics[f"rewards/{side}"], 0.5 * (logps - reference))
    total = torch.stack([one["chosen"] + one["rejected"] for one in alone]).detach()
    torch.testing.assert_close(metrics["kl"], (batch["reference_logps"].view(-1, 2).sum(1) - total) / 2)


NEEDS_MORE = {name for name in PAIR_LOSSES if PairLoss(name).needs_reference_tokens} | {"tis_dpo"}


@pytest.mark.slow
@pytest.mark.parametrize("loss", sorted(set(PAIR_LOSSES) - NEEDS_MORE))
@pytest.mark.parametrize("packed", [False, True])
def test_every_loss_runs_and_packing_changes_nothing(loss: str, packed: bool) -> None:
    needs = PairLoss(loss)
    rows = pairs(4, gold=needs.needs_gold)
    options = {"reference": "cached"} if needs.needs_reference else {}
    module = PreferenceModule(tiny_model(), loss=loss, **options)
    padded_losses, padded = gradients(module, feedback_batch(rows))
    losses, found = gradients(module, feedback_batch(rows, packed=packed))
    assert losses.shape == (4,)
    assert losses.isfinite().all()
    torch.testing.assert_close(losses, padded_losses, rtol=1e-9, atol=1e-12)
    assert any(gradient.abs().max() > 0 for gradient in found.values())
    for name, gradient in padded.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9)


MPO = [{"name": "dpo", "weight": 0.8}, {"name": "bco_pair", "weight": 0.2}, {"name": "sft"}]


@pytest.mark.parametrize("packed", [False, True])
def test_a_sum_has_the_gradient_of_its_terms_from_one_forward_pass(packed: bool) -> None:
    model, batch = tiny_model(), feedback_batch(pairs(3), packed=packed)
    module, passes = ready(model, loss=MPO), []
    handle = model.model.register_forward_hook(lambda *_: passes.append(1))
    losses, found = gradients(module, batch)
    handle.remove()
    assert len(passes) == 1
    apart = [gradients(ready(model, loss=loss), batch) for loss in ("dpo", "bco_pair")]
    apart.append(gradients(PreferenceModule(model, loss="sft"), batch))
    weights = (0.8, 0.2, 1.0)
    torch.testing.assert_close(losses, sum(w * of_one for w, (of_one, _) in zip(weights, apart, strict=True)))
    for name, gradient in found.items():
        expected = sum(w * grads[name] for w, (_, grads) in zip(weights, apart, strict=True))
        # The model's norms compute in float32, whose rounding is not that of a sum.
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


INPUTS: list[dict[str, Any]] = [
    {"input": "true_tokens"},
    {"input": "temporal_residual", "input_options": {"lam": 0.3}},
    {"input": "own_tokens", "input_options": {"lam": 1.0}},
]
CONTRAST = {"name": "simpo", "beta": 2.0, "gamma_over_beta": 0.25}
IFT_AND_CONTRAST = [{"name": "propagation", "weight": 0.7, "gamma": 0.9}, CONTRAST]


def chosen_alone(rows: list[EncodedRow], *, packed: bool) -> dict[str, Any]:
    collator: Any = collate_packed if packed else collate
    return dict(collator([row.sides["chosen"] for row in rows], pad_token_id=0))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("given", INPUTS, ids=lambda given: given["input"])
def test_ift_and_a_contrast_are_one_pass_over_pairs(given: dict[str, Any], packed: bool) -> None:
    """Chosen answers alone in a module for instruction rows, rejected ones alone as they are, and SimPO by hand."""
    model, rows = tiny_model(), pairs(3)
    ift = SFTModule(model, loss="propagation", options={"gamma": 0.9}, **given)
    batch = chosen_alone(rows, packed=packed)
    ift_losses, ift_metrics = ift.example_losses(batch)
    nll = ift.score(ift.hidden_states(ift.token_input(ift, batch).embeddings, batch), batch).nll
    rejected = torch.stack([one["rejected"] for one in answer_logps(model, rows)])
    lengths = {side: torch.tensor([len(row.sides[side].input_ids) - 4 for row in rows]) for side in rows[0].sides}
    margins = 2 * (-nll.sum(-1) / lengths["chosen"] - rejected / lengths["rejected"]) - 0.5
    expected = 0.7 * ift_losses - torch.log(torch.sigmoid(margins))
    model.zero_grad()
    expected.sum().backward()
    slopes = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    module = PreferenceModule(model, loss=IFT_AND_CONTRAST, **given)
    _, metrics = module.example_losses(feedback_batch(rows, packed=packed))
    losses, found = gradients(module, feedback_batch(rows, packed=packed))
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-10, atol=0)
    for name, slope in slopes.items():  # The model's norms compute in float32, whose rounding is not that of a sum.
        torch.testing.assert_close(found[name], slope, rtol=1e-4, atol=1e-6)
    for name in {"lam", "sft_loss"} & set(ift_metrics):
        torch.testing.assert_close(metrics[name], ift_metrics[name])
    torch.testing.assert_close(metrics["propagation/fused_loss"], ift_metrics["fused_loss"])
    assert ("sft_loss" in metrics) == (given["input"] != "true_tokens")


FIT = [name for name in TOKEN_LOSSES if name != "psft"]


@pytest.mark.parametrize("loss", FIT)
def test_a_token_loss_on_pairs_is_that_of_the_chosen_answers(loss: str) -> None:
    model, rows = tiny_model(), pairs(3)
    options = {"alpha": 0.5} if loss == "deformed_log" else {}
    token_loss = TokenLoss(loss, options)
    if token_loss.takes_data_weights:
        rows[1:] = [with_weights(row, 0.5) for row in rows[1:]]
    kind: dict[str, Any] = {"reference": "model"} if token_loss.needs_reference else {}
    alone = SFTModule(model, loss=loss, options=options, **kind)
    module = PreferenceModule(model, loss=[{"name": loss, **options}], **kind)
    if kind:
        module.reference = alone.reference = other = OtherModel()  # type: ignore[assignment]
        assert other.module.model is not model
    losses, metrics = module.example_losses(feedback_batch(rows, packed=True))
    expected, own = alone.example_losses(chosen_alone(rows, packed=False))
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    for name in set(own) - {"token_accuracy"}:
        torch.testing.assert_close(metrics[f"{loss}/{name}"], own[name], rtol=1e-9, atol=1e-12)


def with_weights(row: EncodedRow, weight: float) -> EncodedRow:
    """The same pair, whose answers have tokens that count less, and the rejected ones still less."""
    lengths = {side: len(example.input_ids) for side, example in row.sides.items()}
    factors = {"chosen": weight, "rejected": weight / 2}
    sides = {
        side: replace(example, weights=[1.0, *[factors[side]] * (lengths[side] - 1)])
        for side, example in row.sides.items()
    }
    return replace(row, sides=sides)


@pytest.mark.parametrize("packed", [False, True])
def test_weights_of_turns_are_factors_of_the_token_losses_of_chosen_answers(packed: bool) -> None:
    model, rows = tiny_model(), pairs(3)
    weighted = list(StoredRows.in_memory([rows[0], with_weights(rows[1], 0.5), with_weights(rows[2], 0.25)]))
    plain, slopes = gradients(PreferenceModule(model, loss="nll"), feedback_batch(rows, packed=packed))
    losses, found = gradients(PreferenceModule(model, loss="nll"), feedback_batch(weighted, packed=packed))
    torch.testing.assert_close(losses, plain * torch.tensor([1.0, 0.5, 0.25]))
    assert not torch.allclose(found["lm_head.weight"], slopes["lm_head.weight"])


def test_rows_with_weights_are_refused_by_the_name_of_the_loss_that_takes_none() -> None:
    rows = StoredRows.in_memory([*pairs(2), with_weights(pairs(1)[0], 0.5)])
    check_match(
        "train", rows, [], PreferenceModule(tiny_model(), loss=[{"name": "nll"}, {"name": "dft", "weight": 0.5}])
    )
    for loss, named in (
        ("orpo", "orpo"),
        (
            [{"name": "nll"}, {"name": "simpo"}, {"name": "propagation"}, {"name": "simpo", "beta": 1.0}],
            "simpo, propagation",
        ),
    ):
        with pytest.raises(UserError, match=rf"PreferenceModule \({named}\) takes no weights of turns, but 1 rows"):
            check_match("train", rows, [], PreferenceModule(tiny_model(), loss=loss))


def test_noise_is_on_chosen_answers_alone() -> None:
    module, rows = PreferenceModule(tiny_model(), loss="simpo", input="neftune"), pairs(2)
    batch = feedback_batch(rows)
    quiet = module.eval().example_losses(batch)[1]
    noisy = module.train().example_losses(batch)[1]
    assert torch.equal(noisy["logps/rejected"], quiet["logps/rejected"])
    assert not torch.isclose(noisy["logps/chosen"], quiet["logps/chosen"]).any()


def test_metrics_of_a_sum_have_the_names_of_their_losses() -> None:
    _, metrics = ready(tiny_model(), loss=MPO).example_losses(feedback_batch(pairs(2)))
    of_rewards = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
    terms = {f"{loss}/{name}" for loss in ("dpo", "bco_pair") for name in (*of_rewards, "loss")}
    assert set(metrics) == {"kl", "logps/chosen", "logps/rejected", "sft/loss", *terms}


@pytest.mark.parametrize("packed", [False, True])
def test_wpo_weighs_by_whole_distributions(packed: bool) -> None:
    model, rows = tiny_model(), pairs(3)
    module = ready(model, options={"wpo": {"clamp": False}})
    batch = feedback_batch(rows, packed=packed)
    losses, metrics = module.example_losses(batch)
    expected = []
    for row in rows:
        of_sides = []
        for side in ("chosen", "rejected"):
            ids, labels = torch.tensor([row.sides[side].input_ids]), torch.tensor(row.sides[side].labels)[1:]
            probs, on = model(input_ids=ids).logits[0, :-1].softmax(-1), labels != -100
            own = probs[on].gather(-1, labels[on, None])[:, 0]
            of_sides.append((own.log() - probs[on].square().sum(-1).log()).mean())
        expected.append(sum(of_sides).exp())
    weights = torch.stack(expected).detach()
    torch.testing.assert_close(metrics["wpo/weight"], weights, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses, weights * ready(model).example_losses(batch)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("packed", [False, True])
def test_ld_dpo_changes_policy_and_reference_alike(packed: bool) -> None:
    other: Any = OtherModel()
    module = PreferenceModule(tiny_model(), options={"beta": 0.3, "ld_dpo": {"alpha": 0.4}}, reference="model")
    module.reference = other
    rows = pairs(3)
    losses, _ = module.example_losses(feedback_batch(rows, packed=packed))
    expected = []
    for row in rows:
        lengths = {side: len(row.sides[side].input_ids) - 4 for side in ("chosen", "rejected")}
        rewards = []
        for side, length in lengths.items():
            ids = torch.tensor([row.sides[side].input_ids])
            policy, reference = (m(input_ids=ids).logits[0, 3:-1].log_softmax(-1) for m in (module, other.module))
            ratios = (policy - reference).gather(-1, ids[0, 4:, None])[:, 0]
            counts = torch.where(torch.arange(length) < min(lengths.values()), 1.0, 0.4)
            rewards.append(0.3 * (counts * ratios).sum())
        expected.append(-torch.log(torch.sigmoid(rewards[0] - rewards[1])))
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-9, atol=1e-12)


class OtherModel:
    """A reference policy that is another model in memory, and weights of 1."""

    def __init__(self) -> None:
        self.module = SFTModule(tiny_model(seed=3))

    @contextmanager
    def hidden_and_head(self, _: Any, batch: Any) -> Any:
        yield self.module.hidden_states(self.module.embed(batch["input_ids"]), batch), self.module.head

    token_kl = ReferencePolicy.token_kl

    def logps(self, _: Any, batch: Any) -> Tensor:
        return -self.scores(None, batch).nll.sum(-1)

    def scores(self, _: Any, batch: Any) -> Any:
        with self.hidden_and_head(None, batch) as (hidden, _head), torch.no_grad():
            return self.module.score(hidden, batch, select=None)

    def __call__(self, _: Any, answers: Any, __: Any) -> Tensor:
        return answers.tokens.mask.double()


@pytest.mark.parametrize("packed", [False, True])
def test_eta_is_made_of_whole_distributions(packed: bool) -> None:
    """TIS-DPO with weights 1 and e = 0.5: each reward is β (Σ log π/π_ref - 0.5 Σ_t KL(π || π_ref)_t)."""
    other: Any = OtherModel()
    module = PreferenceModule(
        tiny_model(), loss="tis_dpo", options={"beta": 0.3, "eta": 0.5}, reference="model", token_weights=other
    )
    module.reference = other
    rows = pairs(2)
    losses, _ = module.example_losses(feedback_batch(rows, packed=packed))
    expected = []
    for row in rows:
        rewards = []
        for side in ("chosen", "rejected"):
            answer = row.sides[side]
            ids, labels = torch.tensor([answer.input_ids]), torch.tensor(answer.labels)[1:]
            policy, reference = (m(input_ids=ids).logits[0, :-1].log_softmax(-1) for m in (module, other.module))
            on = labels != -100
            divergences = (policy.exp() * (policy - reference)).sum(-1)[on].sum()
            ratios = (policy - reference)[on].gather(-1, labels[on, None]).sum()
            rewards.append(0.3 * (ratios - 0.5 * divergences))
        expected.append(-torch.log(torch.sigmoid(rewards[0] - rewards[1])))
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_a_dummy_pair_counts_for_nothing() -> None:
    module = ready(tiny_model())
    rows = pairs(2)
    _, without = gradients(module, feedback_batch(rows))
    batch = feedback_batch([*rows, dummy(rows[0])])
    batch["reference_logps"][:4] = feedback_batch(rows)["reference_logps"]
    assert module.example_weights(batch).tolist() == [1, 1, 0]
    _, with_dummy = gradients(module, batch)
    for name, gradient in without.items():
        torch.testing.assert_close(with_dummy[name], gradient, rtol=1e-8, atol=1e-10)


def test_a_function_from_elsewhere() -> None:
    module = PreferenceModule(tiny_model(), loss="feedback.scaled_difference", options={"scale": 2.0})
    rows = pairs(2)
    losses, metrics = module.example_losses(feedback_batch(rows))
    expected = [2 * (one["rejected"] - one["chosen"]) for one in answer_logps(module.model, rows)]
    torch.testing.assert_close(losses, torch.stack(expected))
    assert set(metrics) == {"logps/chosen", "logps/rejected"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dppo"}, "none of"),
        ({"loss": "dpo", "options": {"gamma": 1}}, "no option 'gamma'"),
        ({"loss": "dpo", "options": {"beta": 0}}, "beta=0 must be above 0"),
        ({"loss": "simpo", "reference": "adapter"}, "no reference policy"),
        ({"loss": "dpo", "prompt_embedder": "x"}, "prompt_embedder has no effect"),
        ({"loss": "tis_dpo"}, "needs token_weights"),
        ({"loss": "dpo", "reduction": "token"}, "no meaning"),
        ({"loss": [{"name": "dpo"}, {"name": "dppo"}]}, r"loss\[1\]: loss='dppo' is none of"),
        ({"loss": [{"name": "dpo"}], "options": {"beta": 0.1}}, "no effect beside a list"),
        ({"loss": [{"name": "dpo"}, {"name": "propagation"}], "input": "temporal_residual"}, "reference, which reads"),
        ({"loss": "iw", "input": "neftune"}, "reference, which reads the true tokens"),
        ({"loss": "psft"}, "asks for old_token_logps, which chosen answers of pairs come without. Take one of nll, "),
        ({"loss": "simpo", "input_options": {"lam": 0.2}}, "no option 'lam'"),
        (
            {"loss": "simpo", "input": "own_tokens", "input_options": {"reuse_predictions": "initial"}},
            "of instruction rows, not of pairs",
        ),
        ({"loss": [{"name": "sft"}], "reference": "adapter"}, "no reference policy"),
        ({"options": {"ld_dpo": {"alpha": 0.5}}, "reference": "cached"}, "holds sums over answers"),
    ],
)
def test_unfit_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceModule("never loaded", **options)


def test_a_loss_without_reference_asks_for_none() -> None:
    module = PreferenceModule(tiny_model(), loss="dpo", options={"reference_free": True, "beta": 0.5})
    assert not module.needs_reference
    rows = pairs(2)
    losses, _ = module.example_losses({k: v for k, v in feedback_batch(rows).items() if k != "reference_logps"})
    h = torch.stack([0.5 * (one["chosen"] - one["rejected"]) for one in answer_logps(module.model, rows)])
    torch.testing.assert_close(losses, -torch.log(torch.sigmoid(h)))


def test_rows_of_another_kind_are_refused() -> None:
    module = ready(tiny_model())
    with pytest.raises(UserError, match="scored rows, but PreferenceModule learns from preference rows"):
        module.check_batch(feedback_batch([*pairs(1), encoded_row("scored", "answer", score=0.5)]))


@pytest.mark.parametrize("packed", [False, True])
def test_prompts_are_embedded_by_another_model(tmp_path: Path, packed: bool) -> None:
    encoder, tokenizer = tiny_model(dtype=torch.float32, seed=7), tiny_tokenizer()
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    module = ready(tiny_model(), loss="rpo", prompt_embedder=str(tmp_path))
    module.tokenizer = tokenizer
    module.configure_model()
    rows = pairs(3)
    batch = feedback_batch(rows, packed=packed)
    hidden = module.hidden_states(module.embed(batch["input_ids"]), batch)
    answers = AnswerScores.of(module.score(hidden, batch, select=None), FeedbackRows.of(batch))
    found = module.pair_inputs(hidden, answers, batch)["prompt_embeddings"]
    for row, embedding in zip(rows, found, strict=True):
        text = tokenizer.decode(row.sides["chosen"].input_ids[:4], skip_special_tokens=True)
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            expected = encoder.model(ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)
    assert not [name for name in module.state_dict() if not name.startswith("model.")]


def test_a_prompt_embedder_that_is_not_there_is_told_before_training(tmp_path: Path) -> None:
    module = ready(tiny_model(), loss="rpo", prompt_embedder=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"prompt_embedder='.*nowhere' cannot be loaded"):
        module.configure_model()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0.0}, "k=0.0"), ({"mu": -1.0}, "mu=-1.0"), ({"low": 2.0}, "low=2.0"), ({"high": float("nan")}, "high=nan")],
)
def test_token_weights_are_checked_before_anything_is_loaded(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastiveWeights("never loaded", "never loaded", **options)


PARTS = {"preference": ObjectivePart("PreferenceModule")}


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "options"), [(PreferenceModule, {}), (MixedModule, {"parts": PARTS})])
def test_a_module_from_a_checkpoint_warns_that_it_is_its_own_reference(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch, cls: Any, options: Any
) -> None:
    monkeypatch.setenv("LIT_IFT_DATA_CACHE", str(tmp_path / "cache"))
    path = write_feedback(tmp_path, preference=4)["preference"]

    def run(module: Any, *, ckpt_path: str | None = None) -> L.Trainer:
        module.tokenizer = tiny_tokenizer()
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1 + (ckpt_path is not None), logger=False, enable_checkpointing=False
        )
        data = FeedbackDataModule(path, batch_size=2, cache=False)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=ckpt_path is not None or None)
        return trainer

    checkpoint = str(tmp_path / "first.ckpt")
    run(cls(tiny_model(), **options)).save_checkpoint(checkpoint)
    run(cls(tiny_model(), **options), ckpt_path=checkpoint)
    assert not [warning for warning in recwarn if "loaded from a checkpoint" in str(warning.message)]
    loaded = cls.load_from_checkpoint(checkpoint, model=tiny_model(), weights_only=True)
    with pytest.warns(UserWarning, match="loaded from a checkpoint, and reference=cached compares with the policy as"):
        run(loaded)


def test_which_losses_use_soft_labels() -> None:
    using = {name for name in PAIR_LOSSES if "preference" in PairLoss(name).inputs}
    assert using == {"gdpo", "gipo"}
    for loss in ("gdpo", "dpo"):
        assert PreferenceModule("never loaded", loss=loss).uses_soft_labels == (loss in using)


def test_the_reference_is_kept_beside_the_tokenized_rows(tmp_path: Path) -> None:
    path = write_feedback(tmp_path, preference=4)["preference"]
    module = PreferenceModule(tiny_model())
    module.tokenizer = tiny_tokenizer()
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=FeedbackDataModule(path, batch_size=2, cache_dir=str(tmp_path / "cache")))
    assert [file.suffix for file in sorted((tmp_path / "cache" / "reference").iterdir())] == [".json", ".npy"]
