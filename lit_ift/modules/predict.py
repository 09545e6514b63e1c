"""How IFT turns the first pass's logits into the tokens that it mixes in."""

from typing import Literal

import torch
from torch import Tensor

from lit_ift.losses.logprobs import Select, greedy
from lit_ift.options import Positive, PositiveInt, Share, checked

Prediction = Literal["greedy", "top-k", "sampled"]


@checked
def prediction_rule(
    prediction: Prediction, *, top_k: PositiveInt | None, temperature: Positive | None, top_p: Share | None
) -> Select:
    """Build the rule that maps float32 logits (n, V) to token ids (n,).

    Args:
        prediction: ``greedy`` takes the best token, ``top-k`` the k-th best (as the authors' code does; it is no
            draw), ``sampled`` draws from the softmax.
        top_k: which one ``top-k`` takes, 1 being the best; 2 by default.
        temperature: of ``sampled``, above 0, which is near to ``greedy``; 0.7 by default.
        top_p: ``sampled`` draws from the smallest set of tokens that holds this probability, in (0, 1]; 1 by default.

    Raises:
        ValueError: an option is out of range, or set although the prediction does not use it.
    """
    options = {"top_k": top_k, "temperature": temperature, "top_p": top_p}
    used = {"greedy": (), "top-k": ("top_k",), "sampled": ("temperature", "top_p")}
    for name, value in options.items():
        if value is not None and name not in used[prediction]:
            raise ValueError(f"{name}={value} has no effect with prediction={prediction!r}: leave it out")
    if prediction == "greedy":
        return greedy
    if prediction == "top-k":
        k = 2 if top_k is None else top_k
        return lambda logits: logits.topk(k, dim=-1).indices[:, -1]
    heat = 0.7 if temperature is None else temperature
    nucleus = 1.0 if top_p is None else top_p
    return lambda logits: _sample(logits / heat, nucleus)


def _sample(logits: Tensor, top_p: float) -> Tensor:
    probabilities = logits.softmax(-1)
    if top_p < 1.0:
        ordered, tokens = probabilities.sort(-1, descending=True)
        # Keep a token while what stands before it has not reached top_p: the best one always stays.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, tokens, ordered)
    return torch.multinomial(probabilities, 1).squeeze(-1)
