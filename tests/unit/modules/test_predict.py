"""From first-pass logits to the tokens that are mixed in."""

import pytest
import torch

from lit_ift.modules.predict import prediction_rule

NONE = {"top_k": None, "temperature": None, "top_p": None}


def test_greedy_and_kth_best() -> None:
    # The authors' get_sample_function on these logits: greedy [1, 2], topk with k=2 [2, 3].
    logits = torch.tensor([[0.0, 3.0, 2.9, 1.0], [2.0, 1.0, 5.0, 4.0]])
    assert prediction_rule("greedy", **NONE)(logits).tolist() == [1, 2]
    assert prediction_rule("top-k", **NONE)(logits).tolist() == [2, 3]
    assert prediction_rule("top-k", **{**NONE, "top_k": 1})(logits).tolist() == [1, 2]
    assert prediction_rule("top-k", **{**NONE, "top_k": 4})(logits).tolist() == [0, 1]


def test_sampling_follows_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.1, 0.3, 0.6]).log().expand(20_000, 3)
    draws = prediction_rule("sampled", **{**NONE, "temperature": 1.0})(logits)
    shares = torch.bincount(draws, minlength=3) / len(draws)
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.3, 0.6]), atol=0.015, rtol=0)  # 4 standard errors
    hot = prediction_rule("sampled", **{**NONE, "temperature": 0.5})(logits)  # p^2, normalised
    expected = torch.tensor([0.01, 0.09, 0.36]) / 0.46
    torch.testing.assert_close(torch.bincount(hot, minlength=3) / len(hot), expected, atol=0.015, rtol=0)


def test_nucleus_drops_the_tail() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.1, 0.3, 0.6]).log().expand(5000, 3)
    draws = prediction_rule("sampled", **{**NONE, "temperature": 1.0, "top_p": 0.7})(logits)
    assert set(draws.tolist()) == {1, 2}
    best = prediction_rule("sampled", **{**NONE, "temperature": 1.0, "top_p": 0.01})(logits)
    assert set(best.tolist()) == {2}


@pytest.mark.parametrize(
    ("prediction", "options", "message"),
    [
        ("best", {}, "prediction='best' must be one of 'greedy', 'top-k', 'sampled'"),
        ("greedy", {"top_k": 2}, "top_k=2 has no effect with prediction='greedy'"),
        ("top-k", {"temperature": 1.0}, "temperature=1.0 has no effect"),
        ("top-k", {"top_k": 0}, "top_k=0"),
        ("sampled", {"top_k": 3}, "top_k=3 has no effect"),
        ("sampled", {"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ("sampled", {"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
    ],
)
def test_wrong_options(prediction: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prediction_rule(prediction, **{**NONE, **options})
