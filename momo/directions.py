r"""The directions: what an optimizer averages, and against what it moves.

A method is a direction :math:`u` made from the averaged gradient :math:`d`, and a step size. The step size is the same
for all (:mod:`momo.step_size`), so a method is only the few lines that are here, on flat slices of tensors. How a
model's many tensors become such slices is the business of :mod:`momo.passes`.

A direction names its ``buffers`` (tensors of the size of the parameters, the averaged gradient first) and has

* ``accumulate(g, buffers, work)``: take a new gradient into the buffers, and answer :math:`u`;
* ``direction(buffers, work)``: :math:`u` again, from the buffers alone;
* ``move(params, buffers, step, decay)``: the whole ``x <- (x - step * u) * decay`` without making :math:`u`, or
  ``False`` where there is no such operation and the caller has to make :math:`u` piece by piece;
* ``numbers``: what the same functions in ``native.c`` need to know: the weight, beta2, eps and root.

``work`` is a buffer that :math:`u` may be written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from momo import kernels
from momo.step_size import Scalar, weight_sum


@dataclass(frozen=True)
class Momentum:
    """The averaged gradient itself, ``u = d``: SGD with momentum."""

    weight: float  # of the new gradient in the average
    buffers: ClassVar[tuple[str, ...]] = ("exp_avg",)

    @classmethod
    def of(cls, group: dict[str, Any], steps: Scalar, first: bool) -> Momentum:
        """For a group's options. An average without bias correction starts at its first gradient."""
        return cls(1.0 if first and not group["bias_correction"] else 1 - group["beta"])

    def accumulate(self, g: Tensor, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        (d,) = buffers
        return d.lerp_(g, self.weight)

    def direction(self, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        return buffers[0]

    def move(self, params: list[Tensor], buffers: Sequence[list[Tensor]], step: Scalar, decay: Scalar) -> bool:
        kernels.subtract_(params, buffers[0], step, decay)
        return True

    @property
    def numbers(self) -> tuple[float, ...]:
        return self.weight, 0.0, 0.0, 1.0


@dataclass(frozen=True)
class Adam:
    """The averaged gradient over the root of the averaged square, ``u = d / (sqrt(v / (1 - beta2^k)) + eps)``."""

    weight: float
    beta1: float
    beta2: float
    eps: float
    root: Scalar  # sqrt(1 - beta2^k)
    buffers: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    @classmethod
    def of(cls, group: dict[str, Any], steps: Scalar, first: bool) -> Adam:
        """For a group's options and the number of gradients its parameters have had."""
        beta1, beta2 = group["betas"]
        return cls(1 - beta1, beta1, beta2, group["eps"], weight_sum(steps, beta2) ** 0.5)

    def accumulate(self, g: Tensor, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        d, v = buffers
        if kernels.fused_adam_fits(d, self.root):
            return kernels.adam_accumulate(g, d, v, work, self.beta1, self.beta2, self.eps, self.root)
        d.lerp_(g, self.weight)
        v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        return self.direction(buffers, work)

    def direction(self, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        d, v = buffers
        torch.sqrt(v, out=work)
        work.div_(self.root).add_(self.eps)
        return torch.div(d, work, out=work)

    def move(self, params: list[Tensor], buffers: Sequence[list[Tensor]], step: Scalar, decay: Scalar) -> bool:
        ds, vs = buffers
        # Where v may fade faster than d^2, the fused operation could change v: see kernels.adam_subtract_.
        if not params or not kernels.fused_adam_fits(params[0], self.root) or self.beta1**2 >= self.beta2:
            return False
        kernels.adam_subtract_(params, ds, vs, step, decay, self.eps, self.root)
        return True

    @property
    def numbers(self) -> tuple[float, ...]:
        return self.weight, self.beta2, self.eps, float(self.root)
