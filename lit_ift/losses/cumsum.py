"""Discounted cumulative sum in plain torch."""

from torch import Tensor
from torch.nn.functional import pad

from lit_ift.losses.masking import at_least_float32
from lit_ift.options import UnitInterval, checked


@checked
def discounted_cumsum(values: Tensor, gamma: UnitInterval, *, reverse: bool = False) -> Tensor:
    """Sum what came before (or comes after) each position, discounted by distance.

    ``c[t] = sum_{i <= t} gamma^(t-i) * values[i]``, or with ``reverse``
    ``c[t] = sum_{i >= t} gamma^(i-t) * values[i]``.

    Computed by recursive doubling: after round k every position holds the sum over a window of 2^k, and adding
    the neighbour's window times ``gamma^(2^k)`` doubles it. That is log2(T) elementwise rounds, never a (T, T)
    matrix and never ``gamma^-t`` (which overflows); being linear with constant factors, autograd keeps no
    intermediate values. The slow twin in the tests is a Python loop over positions.

    Args:
        values: any float dtype, (..., T). float16 and bfloat16 are summed in float32.
        gamma: decay per position, in [0, 1].
        reverse: sum over what follows instead of what came before.

    Returns:
        (..., T), float32 or more precise. Gradient flows to ``values``.

    Raises:
        ValueError: ``gamma`` lies outside [0, 1].
    """
    total = at_least_float32(values)
    length, window, decay = total.shape[-1], 1, float(gamma)
    while window < length and decay > 0.0:
        # Shift by `window`, with zeros where the sequence has ended.
        shift = (-window, window) if reverse else (window, -window)
        total = total + decay * pad(total, shift)
        window, decay = 2 * window, decay * decay
    return total
