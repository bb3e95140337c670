"""The grid: every optimizer at every learning rate with every seed."""

from __future__ import annotations

import dataclasses

from momo_cli.plan.learning_rates import rounded
from momo_cli.plan.optimizers import OptimizerSpec
from momo_cli.runs import Run


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One run to do: ``params`` are further arguments of the optimizer that an Optuna study tunes."""

    optimizer: OptimizerSpec
    lr: float
    seed: int
    params: tuple[tuple[str, float], ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """What a stored run must have in common with this one to stand for it."""
        return _key(self.optimizer.label, self.lr, self.seed, dict(self.params))

    @property
    def name(self) -> str:
        """The run in words.

        >>> RunSpec(OptimizerSpec.parse("momo"), 0.1, 2).name
        'momo at lr 0.1, seed 2'
        """
        return f"{self.optimizer.label} at lr {self.lr:g}, seed {self.seed}"

    def result(self, **fields: object) -> Run:
        """The :class:`Run` that this spec becomes."""
        return Run(self.optimizer.label, self.lr, self.seed, params=dict(self.params), **fields)  # type: ignore[arg-type]


def run_key(run: Run) -> tuple[object, ...]:
    """Identity of a run within one task and settings."""
    return _key(run.optimizer, run.lr, run.seed, run.params)


def _key(optimizer: str, lr: float, seed: int, params: dict[str, float]) -> tuple[object, ...]:
    return optimizer, rounded(lr), seed, tuple(sorted(params.items()))


def grid(optimizers: list[OptimizerSpec], lrs: dict[str, list[float]], seeds: int) -> list[RunSpec]:
    """Every optimizer × LR × seed; seeds outermost, so that whole grids finish first."""
    return [RunSpec(spec, lr, seed) for seed in range(seeds) for spec in optimizers for lr in lrs[spec.label]]
