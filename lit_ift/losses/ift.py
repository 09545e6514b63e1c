"""Intuitive Fine-Tuning (Hua et al. 2024, arXiv:2405.11870; ACL 2025).

Two functions of tensors make the method: ``temporal_residual`` mixes what the model predicted into its inputs
(eq. 17), ``ift_loss`` weights token losses so that early tokens hear about later ones (eq. 21, Algorithm 1).
The two forward passes between them are ``lit_ift.modules.IFTModule``'s.

Shapes: B sequences, T positions, D hidden size. Position t scores token t+1, so T is the sequence length less one.
"""

from typing import Literal

import torch
from torch import Tensor

from lit_ift.losses.checks import check_shapes
from lit_ift.losses.cumsum import discounted_cumsum
from lit_ift.losses.masking import masked, per_sequence_mean, target_counts
from lit_ift.options import UnitInterval, checked

Source = Literal["loss", "logps", "mask"]
PropagationSide = Literal["left", "right"]
Norm = Literal["l1", "l2", "softmax", "log"]


def temporal_residual(embeddings: Tensor, predicted_embeddings: Tensor, mask: Tensor, lam: float | Tensor) -> Tensor:
    """Temporal residual connection (arXiv:2405.11870, eq. 17).

    Where ``mask[b,t]`` is true, position t+1 becomes ``(1-lam) * E(true token) + lam * E(predicted token)``;
    every other position keeps its true embedding.

    Args:
        embeddings: E of the true tokens, (B, T+1, D).
        predicted_embeddings: E of the tokens predicted at the masked positions in row-major order, (N, D) with
            N = mask.sum().
        mask: true where the prediction made at position t stands for token t+1, (B, T).
        lam: share of the prediction, in [0, 1].

    Returns:
        (B, T+1, D), dtype of ``embeddings``. Gradient flows to both embeddings as far as they carry any.

    """
    fused_here = torch.nn.functional.pad(mask.bool(), (1, 0))
    fused = (1 - lam) * embeddings[fused_here] + lam * predicted_embeddings
    return embeddings.index_put(fused_here.nonzero(as_tuple=True), fused.to(embeddings.dtype))


@checked
def propagation_weights(
    nll: Tensor,
    mask: Tensor,
    *,
    gamma: UnitInterval = 0.95,
    source: Source = "loss",
    side: PropagationSide = "left",
    norm: Norm = "l1",
) -> Tensor:
    """Weights of dynamic relation propagation (arXiv:2405.11870, eq. 21 and Algorithm 1, step 3).

    With item = nll/n_b (``loss``), nll (``logps``) or 1 (``mask``) on the mask and 0 off it:

    - side ``left``: ``c[t] = sum_{i>=t} gamma^(i-t) item[i]``, then ``c`` (``l1``), ``c^2`` (``l2``), softmax over
      the row (``softmax``) or ``log(1+c)`` (``log``): early tokens are credited with what follows.
    - side ``right``: ``c[t] = sum_{i<=t} gamma^(t-i) item[i]``, plus the row's smallest non-zero c, then ``1/c``,
      ``1/c^2``, softmax of ``1/c`` or ``1/log(1+c)``.

    Off the mask the weight is 0; each row is rescaled to sum to n_b. Positions between two trained turns count in
    the discount, and later turns feed earlier ones. ``gamma=0`` means weight 1 on the mask, whatever the source.
    A row whose c is zero everywhere (no token has any loss) gets weight 1 on the mask as well.

    Departures:
        With ``side`` right, the smallest c is that of the row. The authors' code takes that of the whole micro-batch,
        which couples a row's loss to its neighbours'.

    Args:
        nll: negative log-likelihoods [nats], (B, T). What stands off the mask is ignored.
        mask: true where a token is trained on, (B, T); bool, integer or float.
        gamma: decay per position, in [0, 1].
        source: what is propagated.
        side: from where.
        norm: how strongly c counts.

    Returns:
        (B, T), float32 or more precise. Gradient flows to ``nll``, as in the authors' code, unless the source is
        ``mask`` or gamma is 0.

    Raises:
        ValueError: an option is unknown, gamma lies outside [0, 1], or the shapes do not fit.
    """
    check_shapes("B T, B T", nll=nll, mask=mask)
    on = mask.bool()
    values = masked(nll, on)
    ones = on.to(values.dtype)
    if gamma == 0:
        return ones
    counts = target_counts(on).clamp(min=1).unsqueeze(-1)
    item = {"loss": values / counts, "logps": values, "mask": ones}[source]
    c = discounted_cumsum(item, gamma, reverse=side == "left")
    c = c.masked_fill(~on, 0.0)

    # A row without any c to share out is given c = 1 on the mask, hence weight 1, before anything divides by it.
    flat = (c <= 0).all(-1, keepdim=True)
    c = torch.where(flat, ones, c)
    if side == "right":
        c = c + c.masked_fill(c <= 0, torch.inf).amin(-1, keepdim=True)
        # Below the square root of the smallest number the gradient of 1/c is infinite.
        c = c.masked_fill(~on, 1.0).clamp(min=torch.finfo(c.dtype).tiny ** 0.5)
    if norm == "log":
        c = torch.log1p(c)
    if side == "right":
        # Scaling a row's c changes no weight but softmax's; it keeps 1/c and its square from overflowing.
        scale = 1.0 if norm == "softmax" else c.detach().masked_fill(~on, torch.inf).amin(-1, keepdim=True)
        c = (scale / c).masked_fill(~on, 0.0)
    if norm == "l2":
        c = c.square()
    elif norm == "softmax":
        # Off-mask terms would cancel in the rescaling; leaving them out keeps the sum well scaled. A finite filler
        # leaves rows without any target free of NaN.
        c = torch.softmax(c.masked_fill(~on, torch.finfo(c.dtype).min), dim=-1)
        c = c * ones
    return c * counts / c.sum(-1, keepdim=True).clamp(min=torch.finfo(c.dtype).tiny)


@checked
def ift_loss(
    nll: Tensor,
    mask: Tensor,
    *,
    gamma: UnitInterval = 0.95,
    source: Source = "loss",
    side: PropagationSide = "left",
    norm: Norm = "l1",
    detach_weights: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Intuitive Fine-Tuning loss of each example, given the token losses of the fused inputs.

    ``loss = mean over tokens of w nll`` with w from ``propagation_weights`` (arXiv:2405.11870, eq. 21).
    The weights carry gradient by default, as in the authors' code; so a few tokens may get a gradient that lowers
    their probability. ``detach_weights`` treats them as constants.

    Use:
        On the input ``temporal_residual`` it is IFT. On others it is SFT whose tokens count more where much loss
        follows.

    Args:
        nll: negative log-likelihoods of the true tokens from the fused inputs [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        gamma: see ``propagation_weights``.
        source: see ``propagation_weights``.
        side: see ``propagation_weights``.
        norm: see ``propagation_weights``.
        detach_weights: keep the gradient out of the weights.

    Returns:
        Losses of shape (B,), and detached metrics of shape (B,): ``fused_loss``, the unweighted mean.

    Raises:
        ValueError: an option is unknown, gamma lies outside [0, 1], or the shapes do not fit.
    """
    weights = propagation_weights(nll, mask, gamma=gamma, source=source, side=side, norm=norm)
    if detach_weights:
        weights = weights.detach()
    losses = per_sequence_mean(masked(nll, mask) * weights, mask)
    return losses, {"fused_loss": per_sequence_mean(nll, mask).detach()}
