"""The losses of a run while it trains: its curve, its final training loss, and whether it has diverged."""

from __future__ import annotations

import math

POINTS = 20  # of the curve: enough to draw it and to prune by
_DIVERGED = 10  # times ℓ0


class History:
    """The training losses of one run.

    Args:
        steps: Steps the run is to take.
        initial: The loss before the first step, which divergence is measured against.
    """

    def __init__(self, steps: int, initial: float) -> None:
        self.steps = steps
        self.window = max(1, steps // 10)
        # ℓ0 + 9|ℓ0| is 10·ℓ0, and still lies above ℓ0 where a loss is negative.
        self.bound = initial + (_DIVERGED - 1) * abs(initial) if initial else math.inf
        self.losses: list[float] = []
        self.curve: list[list[float]] = []
        self.diverged = False
        self._window_sum = 0.0
        self._since_point = 0

    def add(self, loss: float) -> bool:
        """Take one step's loss; True when the run is to stop here, as diverged."""
        self.losses.append(loss)
        taken = len(self.losses)
        if not math.isfinite(loss):
            self.diverged = True
            return True
        self._window_sum += loss
        if taken > self.window:
            self._window_sum -= self.losses[taken - 1 - self.window]
        if taken >= self.window and self._window_sum / self.window > self.bound:
            self.diverged = True
        if self.diverged or taken * POINTS // self.steps > (taken - 1) * POINTS // self.steps:
            since = self.losses[self._since_point :]
            self.curve.append([taken, sum(since) / len(since)])
            self._since_point = taken
        return self.diverged

    @property
    def train_loss(self) -> float | None:
        """Mean loss of the last tenth of the steps (at least one) taken so far."""
        last = self.losses[-self.window :]
        return sum(last) / len(last) if last else None
