"""The settings that all runs of a command share and that change a run's result."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from momo_cli.errors import UserError, did_you_mean

SCHEDULES = ("constant", "cosine", "linear", "wsd")
AMP = ("off", "bf16", "fp16")
_DECAY = 0.2  # the share of a wsd schedule that is its decay


@dataclasses.dataclass(frozen=True)
class Settings:
    """How each run is trained.

    Attributes:
        steps: Training steps; None leaves it to ``epochs``, the task, or one epoch.
        epochs: Passes over ``train``, if ``steps`` isn't given.
        schedule: ``constant``, ``cosine``, ``linear`` or ``wsd`` (warm-up, stable, decay over the last fifth).
        warmup: Share of the steps over which the LR rises linearly to its value.
        amp: ``off``, ``bf16`` or ``fp16`` autocast.
        clip: Largest gradient norm; None for no clipping.
        objective: ``train_loss``, ``val_loss``, one of the task's metrics; None for the default.
        maximize: Whether larger values of the objective are better.
    """

    steps: int | None = None
    epochs: float | None = None
    schedule: str = "constant"
    warmup: float = 0.0
    amp: str = "off"
    clip: float | None = None
    objective: str | None = None
    maximize: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise UserError("--steps and --epochs were both given: they say the same thing. Leave one out.")
        for flag, value in (("--steps", self.steps), ("--epochs", self.epochs), ("--clip", self.clip)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{flag} {value}: it must be a positive number.")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"--warmup {self.warmup}: it is a share of the steps, from 0 to 1, for instance 0.05.")
        for flag, word, known in (("--schedule", self.schedule, SCHEDULES), ("--amp", self.amp, AMP)):
            if word not in known:
                raise UserError(
                    f"{flag} {word}: there is no such value.{did_you_mean(word, list(known))}\n"
                    f"Write {', '.join(known)}."
                )
        if self.maximize and self.objective in ("train_loss", "val_loss"):
            raise UserError(
                f"--maximize: {self.objective} is a loss, and losses are minimized. Name a metric with --objective."
            )
        if self.maximize and self.objective is None:
            raise UserError("--maximize needs the metric's name: add --objective METRIC.")

    def key(self) -> dict[str, Any]:
        """What distinguishes stored runs of these settings from others."""
        return dataclasses.asdict(self)

    @classmethod
    def given(cls, key: dict[str, Any]) -> dict[str, Any]:
        """Of a :meth:`key`, what isn't the default.

        >>> Settings.given(Settings(steps=5).key())
        {'steps': 5}
        """
        defaults = cls().key()
        return {name: value for name, value in key.items() if value != defaults[name]}

    def lr_factor(self, step: int, steps: int) -> float:
        """What the LR is multiplied by at ``step`` (from 0) of ``steps``.

        >>> [Settings(schedule="linear", warmup=0.5).lr_factor(s, 4) for s in range(4)]
        [0.5, 1.0, 1.0, 0.5]
        """
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, steps - warm)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "linear":
            return 1 - progress
        if self.schedule == "wsd":
            return min(1.0, (1 - progress) / _DECAY)
        return 1.0
