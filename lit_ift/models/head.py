"""How a causal language model turns hidden states into logits.

Losses compute the head on chosen positions only, so they call decoder, head and this post-processing one
by one instead of the whole model. ``check_hidden_state_path`` proves for a model that this is the same.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from lit_ift.errors import UserError
from lit_ift.models.eval_mode import evaluating

_NUM_CHECK_TOKENS: Final = 8


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to the output of its head: ``softcap · tanh(scale · logits / softcap)``.

    Args:
        scale: factor on the logits.
        softcap: bound of the logits; None for no bound.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Apply it to logits of any shape; dtype and gradient are kept."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    @property
    def is_identity(self) -> bool:
        """Whether the logits are the output of the head as it is."""
        return self.scale == 1.0 and self.softcap is None


def base_model(model: Any) -> Any:
    """The Hugging Face model inside an adapter model (``get_base_model``), else the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: Any) -> nn.Module:
    """The part of a causal language model that yields hidden states.

    Raises:
        UserError: the architecture has none.
    """
    found = base_model(model).get_decoder()
    if not isinstance(found, nn.Module):
        raise UserError(f"{type(base_model(model)).__name__} has no decoder that yields hidden states.")
    return found


def is_tied(model: Any) -> bool:
    """Whether input embedding and output head share their memory."""
    inner = base_model(model)
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    if head is None:
        return False
    if embedding.weight is head.weight:
        return True
    # A tensor without storage of its own (meta, sharded) has no address to compare; tied ones are one object.
    address: int = embedding.weight.data_ptr()
    return address != 0 and address == head.weight.data_ptr()


def is_plain_linear(head: nn.Module) -> bool:
    """Whether a head's output is ``W h + b`` and nothing else, without adapter, quantization or hook."""
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return False
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    return not any(hooks) and head.weight.is_floating_point()


def logit_postprocess(model: Any) -> LogitTransform:
    """Read from the configuration what the model does to its logits.

    Gemma 2 and 3 cap them (``final_logit_softcapping``), Cohere multiplies (``logit_scale``), Granite
    divides (``logits_scaling``).
    """
    config = base_model(model).config.get_text_config()
    scale = 1.0
    multiply = getattr(config, "logit_scale", None)
    if isinstance(multiply, int | float):
        scale *= multiply
    divide = getattr(config, "logits_scaling", None)
    if isinstance(divide, int | float):
        scale /= divide
    softcap = getattr(config, "final_logit_softcapping", None)
    return LogitTransform(scale=float(scale), softcap=float(softcap) if softcap else None)


def check_hidden_state_path(model: Any) -> None:
    """Check on 8 tokens that decoder, head and ``logit_postprocess`` give the logits of the whole model.

    Also checks that the model is causal: the last token must not change the logits before it. Training mode
    of every module and all random states are as before.

    Args:
        model: with materialised weights; an adapter model is looked into.

    Raises:
        UserError: the logits differ: the architecture is not supported.
    """
    inner = base_model(model)
    with evaluating(inner), torch.no_grad():
        _compare(inner)


def _compare(inner: Any) -> None:
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    name = type(inner).__name__
    if head is None:
        raise UserError(f"{name} has no output head: it is not a causal language model.")
    # A generator of its own leaves the caller's random state alone.
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(embedding.weight.shape[0], (1, _NUM_CHECK_TOKENS), generator=generator)
    ids = ids.to(embedding.weight.device)
    whole = inner(input_ids=ids, use_cache=False).logits
    hidden = decoder(inner)(inputs_embeds=embedding(ids), use_cache=False).last_hidden_state
    gap = _relative_gap(logit_postprocess(inner)(head(hidden)), whole)
    if gap is not None:
        raise UserError(
            f"{name} is not supported: its logits are not those of its head applied to its hidden states "
            f"(they differ by {gap:.3g}). It transforms embeddings, hidden states or logits in a way that "
            "lit-ift does not know (lit_ift/models/head.py)."
        )
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % embedding.weight.shape[0]
    gap = _relative_gap(inner(input_ids=changed, use_cache=False).logits[:, :-1], whole[:, :-1])
    if gap is not None:
        raise UserError(
            f"{name} is not supported: it is not causal. Changing a token changes the logits before it (by {gap:.3g})."
        )


def _relative_gap(actual: Tensor, expected: Tensor) -> float | None:
    """Largest deviation, or None where it is within rounding. Logits that are not finite deviate by NaN."""
    if actual.shape != expected.shape:
        return float("inf")
    gap = (actual.double() - expected.double()).abs().max().item()
    tolerance = max(1e-5, 2 * torch.finfo(expected.dtype).eps) * max(1.0, expected.abs().max().item())
    return None if gap <= tolerance else gap
