r"""The directions: what an optimizer averages, and against what it moves.

A method is a direction :math:`u` made from the averaged gradient :math:`d`, and a step size. The step size is the same
for all (:mod:`momo.step_size`), so here each method is only a few lines on flat slices of tensors: ``update`` takes the
new gradient in and answers the sums that the step size needs, ``move`` takes the step. How a model's many tensors
become such slices is the business of :mod:`momo.passes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from momo.step_size import Scalar, weight_sum


@dataclass(frozen=True)
class Momentum:
    """The averaged gradient itself: ``u = d``, as in SGD with momentum."""

    average_weight: Scalar  # of the new gradient in d; one at the first step of an average that starts there
    buffers: ClassVar[tuple[str, ...]] = ("exp_avg",)

    @classmethod
    def of(cls, group: dict[str, Any], steps: Scalar) -> Momentum:
        first = steps == 1
        if group["bias_correction"]:
            weight = 1 - group["beta"]
        elif isinstance(first, Tensor):
            weight = torch.where(first, 1.0, 1 - group["beta"])
        else:
            weight = 1.0 if first else 1 - group["beta"]
        return cls(weight)

    def update(self, x: Tensor, g: Tensor, d: Tensor, work: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gx = torch.dot(g, x)
        d.lerp_(g, self.average_weight)
        return gx, torch.dot(d, x), torch.dot(d, d)

    def move(self, step: Scalar, decay: Scalar, x: Tensor, d: Tensor, work: Tensor) -> None:
        _shrink_and_subtract(x, d, step, decay)


@dataclass(frozen=True)
class Adam:
    """The averaged gradient over the root of the averaged square: ``u = d / (sqrt(v / (1 - beta2^k)) + eps)``."""

    average_weight: Scalar
    beta2: float
    root: Scalar  # sqrt(1 - beta2^k)
    eps: float
    buffers: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    @classmethod
    def of(cls, group: dict[str, Any], steps: Scalar) -> Adam:
        beta1, beta2 = group["betas"]
        return cls(1 - beta1, beta2, weight_sum(steps, beta2) ** 0.5, group["eps"])

    def _scaled_direction(self, d: Tensor, v: Tensor, work: Tensor) -> Tensor:
        torch.sqrt(v, out=work)
        work.div_(self.root).add_(self.eps)
        return torch.div(d, work, out=work)

    def update(self, x: Tensor, g: Tensor, d: Tensor, v: Tensor, work: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gx = torch.dot(g, x)
        d.lerp_(g, self.average_weight)
        v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        return gx, torch.dot(d, x), torch.dot(d, self._scaled_direction(d, v, work))

    def move(self, step: Scalar, decay: Scalar, x: Tensor, d: Tensor, v: Tensor, work: Tensor) -> None:
        _shrink_and_subtract(x, self._scaled_direction(d, v, work), step, decay)


def _shrink_and_subtract(x: Tensor, u: Tensor, step: Scalar, decay: Scalar) -> None:
    x.sub_(u * step).div_(decay)
