"""A run: one optimizer, one learning rate, one seed — what training hands to the store, the figures and the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Literal

from momo_cli.errors import UserError, did_you_mean

Status = Literal["ok", "diverged", "failed", "pruned"]

#: What a run shows of itself in the JSON document and in a CSV table, in this order.
FIELDS = (
    "optimizer", "lr", "seed", "status", "objective", "initial", "train_loss", "val_loss",
    "metrics", "steps", "seconds", "capped", "error",
)  # fmt: skip


@dataclasses.dataclass
class Run:
    """The result of one run, in plain Python values.

    Attributes:
        optimizer: The optimizer's spec as typed, its label everywhere.
        lr: Learning rate.
        seed: Seed of every random number generator.
        status: ``ok``, ``diverged``, ``failed`` or ``pruned``.
        objective: Final value of the objective, in the metric's own sign; None where there is none.
        initial: The objective before the first step (ℓ0); None where it isn't known.
        initials: ℓ0 of everything that was measured before the first step, by name.
        train_loss: Mean loss of the last tenth of the steps.
        val_loss: Mean loss over ``val``; None without ``val``.
        metrics: The user's own figures over ``val``.
        steps: Steps taken.
        seconds: Training time.
        capped: Share of steps (0 to 1) that took the cap; None for optimizers that have none.
        error: Traceback of a failed run, the user's frames only.
        curve: ``[step, training loss]`` pairs, about 20 over the run (mean loss since the pair before).
        step_sizes: For Momo's methods ``[step, step size taken, cap, adaptive term]``, about 100 over the run.
        params: Values of further tuned arguments (``--tune``), by name.
    """

    optimizer: str
    lr: float
    seed: int = 0
    status: Status = "ok"
    objective: float | None = None
    initial: float | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    capped: float | None = None
    error: str | None = None
    curve: list[list[float]] = dataclasses.field(default_factory=list)
    step_sizes: list[list[float]] | None = None
    params: dict[str, float] = dataclasses.field(default_factory=dict)
    initials: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def values(self) -> Mapping[str, float | None]:
        """The final values by name; None for one that isn't finite."""
        losses = {"train_loss": self.train_loss, "val_loss": self.val_loss}
        return {name: value for name, value in losses.items() if value is not None} | self.metrics

    @property
    def own_objective(self) -> str:
        """The objective where none is asked for: ``val_loss`` if there is one, else ``train_loss``."""
        return "val_loss" if "val_loss" in {*self.values, *self.initials} else "train_loss"

    def under(self, objective: str) -> Run:
        """The run with another objective; as it is, if nothing but its objective's value is known.

        >>> run = Run("adam", 0.1, objective=0.5, val_loss=0.5, metrics={"accuracy": 0.9}, initials={"accuracy": 0.1})
        >>> run.under("accuracy").objective, run.under("accuracy").initial, run.under("train_loss").status
        (0.9, 0.1, 'diverged')
        """
        if not self.values and not self.initials:
            return self
        value = self.values.get(objective) if self.status == "ok" else None
        known = value if value is not None and math.isfinite(value) else None
        ended: Status = "diverged" if self.status == "ok" and known is None else self.status
        return dataclasses.replace(self, status=ended, objective=known, initial=self.initials.get(objective))

    def for_any_objective(self) -> Run:
        """The run as it is stored: under its own objective, if it has a value of that."""
        return self.under(self.own_objective) if self.values.get(self.own_objective) is not None else self


def check_objective(objective: str, stored: Iterable[Run]) -> None:
    """Find an objective that stored runs don't have.

    Raises:
        UserError: None of them has it.
    """
    ended = [run for run in stored if run.status == "ok" and run.values]
    if ended and not any(objective in run.values for run in ended):
        known = list(dict.fromkeys(name for run in ended for name in run.values))
        raise UserError(
            f"--objective {objective}: the stored runs have no such value.{did_you_mean(objective, known)}\n"
            f"They have {', '.join(known)}. (--fresh trains them again.)"
        )
