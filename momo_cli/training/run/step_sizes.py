"""The step sizes of Momo's methods over a run: each against its cap."""

from __future__ import annotations

from typing import Any

import torch

_POINTS = 100


class StepSizes:
    """Collects the step sizes of one run without waiting for the device.

    Args:
        steps: Steps the run is to take; about 100 of them are kept for the plot, all count for the share.
    """

    def __init__(self, steps: int) -> None:
        self._every = max(1, steps // _POINTS)
        self._capped: Any = 0
        self._count = 0
        self._kept: list[tuple[int, list[Any]]] = []

    def add(self, step: int, capped: Any, step_size: Any, cap: Any, adaptive_term: Any) -> None:
        """Take the figures of ``step`` (from 1): numbers, or tensors with one value for each parameter group."""
        self._capped = self._capped + capped
        self._count += 1
        if step % self._every == 0 or step == 1:
            # A task has one parameter group.
            kept = [
                value.reshape(-1)[0].clone() if isinstance(value, torch.Tensor) else value
                for value in (step_size, cap, adaptive_term)
            ]
            self._kept.append((step, kept))

    @property
    def capped(self) -> float | None:
        """Share of the steps that took the cap; None before the first."""
        return float(self._capped) / self._count if self._count else None

    @property
    def trace(self) -> list[list[float]] | None:
        """``[step, step size, cap, adaptive term]`` of the steps kept."""
        return [[step, *map(float, kept)] for step, kept in self._kept] or None
