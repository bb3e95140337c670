"""The averaged gradient over the root of the averaged square: Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from momo.method import Scalar, where


@dataclass(frozen=True)
class Adam:
    """``u = d / (sqrt(v / (1 - beta2^k)) + eps)`` with the averaged gradient ``d`` and the averaged square ``v``."""

    weight: Scalar  # of the new gradient in its average
    square_weight: Scalar  # of the new square in its average
    eps: float
    root: Scalar  # sqrt(1 - beta2^k)
    name: ClassVar[str] = "adam"
    buffers: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    scalars: ClassVar[dict[str, torch.dtype]] = {}
    scales: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    shares_norm: ClassVar[bool] = False

    @classmethod
    def of(cls, options: Mapping[str, Any], weight: Scalar, steps: Scalar, present: Scalar = 1.0) -> Adam:
        beta2 = options["betas"][1]
        return cls(weight, (1 - beta2) * present, options["eps"], (1 - beta2**steps) ** 0.5)

    @property
    def numbers(self) -> tuple[Scalar, ...]:
        return self.weight, self.square_weight, self.eps, self.root

    def accumulate(self, g: Tensor, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        d, v = buffers
        d.lerp_(g, self.weight)
        # Not by lerp_, which makes NaN of an infinite square: torch.optim.Adam keeps it, and the element at rest.
        v.mul_(1 - self.square_weight).add_(torch.mul(g, g, out=work).mul_(self.square_weight))
        return self.direction(buffers, work)

    def direction(self, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        d, v = buffers
        torch.sqrt(v, out=work).div_(self.root).add_(self.eps)
        return torch.div(d, work, out=work)


class AdamFromFirst(Adam):
    """``u = d / (sqrt(v) + eps)``, with averages that start at the first gradient and its square."""

    @classmethod
    def of(cls, options: Mapping[str, Any], weight: Scalar, steps: Scalar, present: Scalar = 1.0) -> AdamFromFirst:
        square_weight = where(steps == 1, 1.0, 1 - options["betas"][1])
        return cls(weight, square_weight * present, options["eps"], 1.0)
