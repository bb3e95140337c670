"""Operations on tensors that do several things in one pass over memory.

They are torch's own fused optimizers, put to other uses. These are private operations of torch (the same from 2.6 on), so each has
a plain form for where they don't exist.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from momo.step_size import Scalar

_HAS_FUSED_SGD = hasattr(torch, "_fused_sgd_")
_HAS_FUSED_ADAM = hasattr(torch, "_fused_adam_") and hasattr(torch, "_fused_adamw_")
_SGD = dict(momentum=0.0, dampening=0.0, nesterov=False, maximize=False, is_first_step=False)
_ADAM = dict(amsgrad=False, maximize=False)
_TINY = 1e-15  # below this, a step is too small to divide the weight decay by it
_ULP = 2.0**-53
_ONE = torch.ones(())


def subtract_(params: list[Tensor], directions: list[Tensor], step: Scalar, keep: Scalar) -> None:
    """``x <- keep * x - step * u`` for each parameter ``x`` and its direction ``u``."""
    if not params:
        return
    if isinstance(step, Tensor) or isinstance(keep, Tensor):
        if not (isinstance(keep, float) and keep == 1.0):
            torch._foreach_mul_(params, keep)
        if _HAS_FUSED_SGD and params[0].is_cuda:
            torch._fused_sgd_(params, directions, [], weight_decay=0.0, lr=step.to(torch.float32), **_SGD)
        else:
            for x, u in zip(params, directions):
                x.addcmul_(u, step.to(u.dtype), value=-1)
        return
    if _HAS_FUSED_SGD and (keep == 1.0 or step > _TINY):
        decay = (1 - keep) / step if keep != 1.0 else 0.0
        torch._fused_sgd_(params, directions, [], weight_decay=decay, lr=float(step), **_SGD)
        return
    if keep != 1.0:
        torch._foreach_mul_(params, keep)
    torch._foreach_add_(params, directions, alpha=-step)


def fused_adam_fits(x: Tensor, root: Scalar) -> bool:
    """Whether the two functions below can be used: single precision on the CPU."""
    return _HAS_FUSED_ADAM and x.dtype is torch.float32 and x.device.type == "cpu" and not isinstance(root, Tensor)


def adam_accumulate(
    g: Tensor, d: Tensor, v: Tensor, out: Tensor, beta1: float, beta2: float, eps: float, root: float
) -> Tensor:
    """Adam's averages ``d`` and ``v`` take in ``g``; the direction ``d / (sqrt(v) / root + eps)`` is written to ``out``.

    That is a step of Adam from zero, with a learning rate that makes its step size minus one. The operation corrects
    with its own count of steps, here one: it divides by ``sqrt(1 - beta2)`` where we want ``root``, so the fraction is
    expanded by the quotient of both.
    """
    out.zero_()
    expand = root / math.sqrt(1 - beta2)
    torch._fused_adam_(
        [out], [g], [d], [v], [], [_ONE],
        lr=-(1 - beta1) * expand, beta1=beta1, beta2=beta2, weight_decay=0.0, eps=eps * expand, **_ADAM,
    )  # fmt: skip
    return out


def adam_subtract_(
    params: list[Tensor], ds: list[Tensor], vs: list[Tensor], step: float, keep: float, eps: float, root: float
) -> None:
    """``x <- keep * x - step * d / (sqrt(v) / root + eps)``; ``d`` and ``v`` stay as they are.

    That is a step of AdamW with the averaged gradient as the gradient, ``beta1 = 0`` (the average becomes the gradient
    that it is already) and the largest ``beta2`` below one, which in single precision multiplies ``v`` by exactly one and
    adds ``d^2`` times 1e-16: nothing, as long as ``d^2`` is at most some thousand times ``v``. As above, the fraction is
    expanded to have ``root`` where the operation would correct by ``sqrt(1 - beta2)``.
    """
    if step <= _TINY and keep != 1.0:
        torch._foreach_mul_(params, keep)
        keep = 1.0
    if step == 0.0:
        return
    expand = root / math.sqrt(_ULP)
    lr = step * expand
    torch._fused_adamw_(
        params, ds, ds, vs, [], [_ONE] * len(params),
        lr=lr, beta1=0.0, beta2=1 - _ULP, weight_decay=(1 - keep) / lr, eps=eps * expand, **_ADAM,
    )  # fmt: skip
