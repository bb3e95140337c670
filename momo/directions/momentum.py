"""The averaged gradient: SGD with momentum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from momo.method import Scalar


@dataclass(frozen=True)
class Momentum:
    """The averaged gradient itself, ``u = d``."""

    weight: Scalar  # of the new gradient in the average
    name: ClassVar[str] = "momentum"
    buffers: ClassVar[tuple[str, ...]] = ("exp_avg",)
    scalars: ClassVar[dict[str, torch.dtype]] = {}
    scales: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    shares_norm: ClassVar[bool] = False

    @classmethod
    def of(cls, options: Mapping[str, Any], weight: Scalar, steps: Scalar, present: Scalar = 1.0) -> Momentum:
        return cls(weight)

    @property
    def numbers(self) -> tuple[Scalar, ...]:
        return (self.weight,)

    def accumulate(self, g: Tensor, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        (d,) = buffers
        return d.lerp_(g, self.weight)

    def direction(self, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        return buffers[0]
