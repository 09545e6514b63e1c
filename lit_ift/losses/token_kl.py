"""How far the policy's next-token distributions are from the reference's, without the (B, T, V) tensors.

Shapes: B sequences, T tokens, D hidden size, V vocabulary size.
"""

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.utils.checkpoint import checkpoint

from lit_ift.losses.checks import check_shapes
from lit_ift.losses.logprobs import CHUNK_SIZE, Head, target_mask
from lit_ift.losses.masking import at_least_float32
from lit_ift.options import PositiveInt, checked


@checked
def token_kl(
    hidden: Tensor,
    reference_hidden: Tensor,
    labels: Tensor,
    head: Head,
    reference_head: Head,
    *,
    reverse: bool = False,
    chunk_size: PositiveInt | None = None,
) -> Tensor:
    """KL(reference || policy) of the next token at each trained position, a chunk of positions at a time.

    ``KL_t = Σ_v π_ref(v|t) (log π_ref(v|t) - log π(v|t))``; with ``reverse`` KL(policy || reference),
    ``Σ_v π(v|t) (log π(v|t) - log π_ref(v|t))``. Where one chunk does not hold all positions, the logits of
    both models are recomputed in the backward pass, so that at most ``chunk_size`` rows of each exist at any time.
    Both heads are then called again outside the caller's context: they must not depend on one, such as a
    ``with model.disable_adapter()`` around this call.

    Args:
        hidden: final hidden states of the policy, (B, T, D).
        reference_hidden: those of the reference, (B, T, D') with any D'.
        labels: token ids aligned with the inputs (unshifted), ``IGNORE_INDEX`` where not trained on, (B, T).
        head: maps hidden states of the policy to finite logits.
        reference_head: the same of the reference, over the same vocabulary.
        reverse: take the divergence of the policy from the reference.
        chunk_size: positions per chunk, such as ``chunk_size_for(V)``; 512 by default.

    Returns:
        Divergences [nats], 0 where the token that follows is not trained on, (B, T-1), float32 or better. Gradient
        flows to ``hidden`` and to the parameters of ``head``, not to the reference.

    Raises:
        ValueError: the shapes do not fit, or ``chunk_size`` is not positive.
    """
    check_shapes("B T D, B T D', B T", hidden=hidden, reference_hidden=reference_hidden, labels=labels)
    chunk_size = CHUNK_SIZE if chunk_size is None else chunk_size

    def divergence(hidden_nD: Tensor, reference_nD: Tensor) -> Tensor:
        with torch.no_grad():
            reference_nV = at_least_float32(reference_head(reference_nD)).log_softmax(-1)
        policy_nV = at_least_float32(head(hidden_nD)).log_softmax(-1)
        pair = (reference_nV, policy_nV) if reverse else (policy_nV, reference_nV)
        return kl_div(*pair, reduction="none", log_target=True).sum(-1)

    mask = target_mask(labels)
    selected, reference = hidden[:, :-1][mask], reference_hidden[:, :-1][mask]
    if len(selected) <= chunk_size:
        values = divergence(selected, reference)
    else:
        parts = [
            checkpoint(divergence, h, r, use_reentrant=False, preserve_rng_state=False)
            if torch.is_grad_enabled()
            else divergence(h, r)
            for h, r in zip(torch.split(selected, chunk_size), torch.split(reference, chunk_size), strict=True)
        ]
        values = torch.cat(parts)
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
