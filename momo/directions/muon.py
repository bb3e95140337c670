"""The matrix sign of the averaged gradient: Muon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from momo.method import Scalar

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
_EPS = 1e-7


@dataclass(frozen=True)
class Muon:
    """``u = O(d)``, the polar factor of the averaged gradient ``d``, by the iteration of ``torch.optim.Muon``.

    Each matrix is scaled by a number that only its shape decides (:meth:`scale`); the cap carries it.
    """

    weight: Scalar  # of the new gradient in its average
    coefficients: tuple[float, float, float] = COEFFICIENTS
    steps: int = STEPS
    name: ClassVar[str] = "muon"
    buffers: ClassVar[tuple[str, ...]] = ("exp_avg",)
    scalars: ClassVar[dict[str, torch.dtype]] = {}
    scales: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False
    shares_norm: ClassVar[bool] = False

    @classmethod
    def of(cls, options: Mapping[str, Any], weight: Scalar, steps: Scalar, present: Scalar = 1.0) -> Muon:
        return cls(weight, options["ns_coefficients"], options["ns_steps"])

    @staticmethod
    def scale(options: Mapping[str, Any], shape: Sequence[int]) -> float:
        """What a matrix of this shape is scaled by, as torch does.

        >>> Muon.scale({"adjust_lr_fn": None}, (32, 2, 4)), Muon.scale({"adjust_lr_fn": "match_rms_adamw"}, (16, 4))
        (2.0, 0.8)
        """
        rows, columns = shape[0], math.prod(shape[1:])
        if options["adjust_lr_fn"] == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1, rows / columns)) if columns else 1.0

    def accumulate(self, g: Tensor, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        return self.direction([buffers[0].lerp_(g, self.weight)], work)

    def direction(self, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        """``O(d)`` of a matrix, or of each of a batch of matrices ``[n, rows, columns]``, in bfloat16 as torch does."""
        x = buffers[0].bfloat16()
        tall = x.shape[-2] > x.shape[-1]
        if tall:
            x = x.mT
        a, b, c = self.coefficients
        product = torch.addmm if x.dim() == 2 else torch.baddbmm
        x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)
        for _ in range(self.steps):
            gram = x @ x.mT
            x = product(x, product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.mT.contiguous() if tall else x


class MuonMax(Muon):
    """``u = N O(d)``, where ``N`` is the sum of ``<d, O(d)>`` over all matrices: the norm dual to their step's."""

    scalars: ClassVar[dict[str, torch.dtype]] = {"norm": torch.float64}
    scales: ClassVar[bool] = True
    shares_norm: ClassVar[bool] = True
