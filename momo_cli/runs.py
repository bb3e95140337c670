"""A run: one optimizer, one learning rate, one seed — what training hands to the store, the figures and the report."""

from __future__ import annotations

import dataclasses
from typing import Literal

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
