"""`MomoAdam`: Adam and the adaptive step size of the truncated model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from momo.directions import Adam
from momo.optimizer import TruncatedModelOptimizer, _check_number


class MomoAdam(TruncatedModelOptimizer):
    direction = Adam

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lb: float = 0.0,
        divide: bool = True,
        use_fstar: bool = False,
    ) -> None:
        super().__init__(
            params,
            dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, lb=lb, divide=divide, use_fstar=use_fstar,
                 bias_correction=True),
        )

    @staticmethod
    def _momentum(group: dict[str, Any]) -> float:
        return group["betas"][0]

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        betas = group["betas"]
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, and are {betas!r}.")
        for i, beta in enumerate(betas):
            _check_number(f"betas[{i}]", beta, 0, 1)
        _check_number("eps", group["eps"], 0)
