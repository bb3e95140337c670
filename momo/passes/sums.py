"""Inner products in double precision, of tensors in single or double precision.

``<g, x>``, ``<d, x>`` and the loss nearly cancel in the step size, so single precision would leave little of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from momo.passes.members import has_double

_SPLIT = 4097.0  # 2^12 + 1 cuts a single-precision number into two halves whose products are exact (Dekker, 1971)


def segment_dots(a: Tensor, b: Tensor, lengths: Tensor, product: Tensor) -> Tensor:
    """The inner product of each segment of flat tensors.

    Args:
        a: of any precision.
        b: in double precision.
        lengths: of the segments.
        product: working memory in double precision.
    """
    return torch.segment_reduce(product.copy_(a).mul_(b), "sum", lengths=lengths, unsafe=True)


def widened(t: Tensor, memory: Callable[[int], Tensor]) -> Tensor:
    """A flat tensor as :func:`dot` takes it: in double precision, if its device has that.

    Args:
        t: the tensor.
        memory: ``memory(size)`` is working memory in double precision.
    """
    return t if t.dtype is torch.float64 or not has_double(t.device) else memory(t.numel()).copy_(t)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of tensors from :func:`widened`, in double; on the CPU where their device has none."""
    return torch.dot(a, b) if a.dtype is torch.float64 else compensated_dot(a, b)


def compensated_dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of single-precision tensors in about twice their precision, brought to the CPU as a double.

    For devices without double precision. Ogita, Rump, Oishi, *Accurate sum and dot product*, 2005: products and sums
    are made with their rounding errors, which are summed, too; here by halves rather than one after another.
    """
    total = a * b
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    error = (((a1 * b1 - total) + a1 * b2) + a2 * b1) + a2 * b2
    while len(total) > 1:
        half = (len(total) + 1) // 2
        x, y = total[:half], torch.nn.functional.pad(total[half:], (0, 2 * half - len(total)))
        total = x + y
        z = total - x
        wrong = (x - (total - z)) + (y - z)
        error = error[:half] + torch.nn.functional.pad(error[half:], (0, 2 * half - len(error))) + wrong
    return torch.stack([total.sum(), error.sum()]).to("cpu").double().sum()


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    scaled = _SPLIT * a
    high = scaled - (scaled - a)
    return high, a - high
