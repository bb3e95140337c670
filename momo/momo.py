"""`Momo`: SGD with momentum and the adaptive step size of the truncated model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from momo.directions import Momentum
from momo.optimizer import TruncatedModelOptimizer, _check_number


class Momo(TruncatedModelOptimizer):
    direction = Momentum

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1.0,
        weight_decay: float = 0.0,
        beta: float = 0.9,
        lb: float = 0.0,
        bias_correction: bool = False,
        use_fstar: bool = False,
    ) -> None:
        super().__init__(
            params,
            dict(lr=lr, weight_decay=weight_decay, beta=beta, lb=lb, bias_correction=bias_correction, use_fstar=use_fstar),
        )

    @staticmethod
    def _momentum(group: dict[str, Any]) -> float:
        return group["beta"]

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        _check_number("beta", group["beta"], 0, 1)
