"""Schedules: how the learning rate of a run goes over its steps."""

from __future__ import annotations

import dataclasses
import math

from momo_cli.errors import UserError, did_you_mean

SCHEDULES = ("constant", "cosine", "linear", "wsd")
DECAY = 0.2  # the share of a wsd schedule that is its decay


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A factor of the learning rate for each step.

    Attributes:
        kind: ``constant``, ``cosine``, ``linear`` or ``wsd`` (warm-up, stable, decay over the last fifth).
        warmup: Share of the steps over which the factor rises linearly to 1.

    Raises:
        UserError: There is no such kind, or the share is none.
    """

    kind: str = "constant"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise UserError(
                f"--schedule {self.kind}: there is no such value.{did_you_mean(self.kind, list(SCHEDULES))}\n"
                f"Write {', '.join(SCHEDULES)}."
            )
        if not 0 <= self.warmup <= 1:
            raise UserError(f"--warmup {self.warmup}: it is a share of the steps, from 0 to 1, for instance 0.05.")

    def warm(self, steps: int) -> int:
        """Steps of the warm-up."""
        return round(self.warmup * steps)

    def factor(self, step: int, steps: int) -> float:
        """What the LR is multiplied by at ``step`` (from 0) of ``steps``.

        >>> [Schedule("linear", warmup=0.5).factor(step, 4) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
        """
        warm = self.warm(steps)
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, steps - warm)
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.kind == "linear":
            return 1 - progress
        if self.kind == "wsd":
            return min(1.0, (1 - progress) / DECAY)
        return 1.0
