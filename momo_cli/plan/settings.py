"""The settings that all runs of a command share and that change a run's result."""

from __future__ import annotations

import dataclasses
from typing import Any

from momo_cli.errors import UserError, did_you_mean
from momo_cli.plan.optimizers import OptimizerSpec
from momo_cli.plan.schedules import Schedule

_MOST = 1e12  # more steps than a life has, and what every number format holds
AMP = ("off", "bf16", "fp16")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How each run is trained.

    Attributes:
        steps: Training steps; None leaves it to ``epochs``, the task, or one epoch.
        epochs: Passes over ``train``, if ``steps`` isn't given.
        schedule: See :class:`momo_cli.plan.schedules.Schedule`; a spec's own comes before it.
        warmup: Share of the steps over which the LR rises linearly to its value; a spec's own comes before it.
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
            if value is not None and not 0 < value <= _MOST:
                raise UserError(f"{flag} {str(value)[:30]}: it must be a positive number, at most {_MOST:g}.")
        Schedule(self.schedule, self.warmup)
        if self.amp not in AMP:
            raise UserError(
                f"--amp {self.amp}: there is no such value.{did_you_mean(self.amp, list(AMP))}\nWrite {', '.join(AMP)}."
            )
        if self.maximize and self.objective in ("train_loss", "val_loss"):
            raise UserError(
                f"--maximize: {self.objective} is a loss, and losses are minimized. Name a metric with --objective."
            )
        if self.maximize and self.objective is None:
            raise UserError("--maximize needs the metric's name: add --objective METRIC.")

    def schedule_of(self, optimizer: OptimizerSpec) -> Schedule:
        """The schedule of an optimizer's runs: its spec's own, as far as it says; these settings' else."""
        return Schedule(
            optimizer.schedule or self.schedule, self.warmup if optimizer.warmup is None else optimizer.warmup
        )

    def key(self) -> dict[str, Any]:
        """What distinguishes stored runs of these settings from others."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}

    @classmethod
    def given(cls, key: dict[str, Any]) -> dict[str, Any]:
        """Of a :meth:`key`, what isn't the default.

        >>> Settings.given(Settings(steps=5).key())
        {'steps': 5}
        """
        defaults = cls().key()
        return {name: value for name, value in key.items() if value != defaults[name]}
