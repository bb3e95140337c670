"""The figures as values: what a table of runs says of each optimizer, and of the optimizers together.

Plain frozen objects: what makes them is in :mod:`momo_cli.figures.analysis`, the words are the report's. A figure that
can't be known is None, never 0. Values stand in the metric's own sign; sensitivity and regret are never negative.
"""

from __future__ import annotations

import dataclasses
import math

#: The share of the way from the best value to the initial one that still counts as good.
TOLERANCE = 0.05

#: The share of ℓ0 by which the best value must improve it before anything is said to have been learned.
LEARNED = 0.01

#: Numbers of blind guesses for which the expected best is given.
GUESSES = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure and the ends of its 95 % interval over seeds.

    An upper end of None beside a known lower end means: not bounded.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class GoodRange:
    """The learning rates around the best one whose value is within 5 % of the way from the best to ℓ0.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        decades: Its width; None for a grid of one, too.
        open_low: Whether it runs off the lower end of the grid.
        open_high: Whether it runs off the upper end.
    """

    low: float | None = None
    high: float | None = None
    decades: float | None = None
    open_low: bool | None = None
    open_high: bool | None = None

    @property
    def is_open(self) -> bool:
        """Whether it runs off the grid at either end."""
        return bool(self.open_low or self.open_high)


@dataclasses.dataclass(frozen=True)
class OptimizerFigures:
    """All figures of one optimizer.

    Attributes:
        optimizer: Its label.
        lrs: Its learning rates, ascending.
        values: ``ℓ(η)`` at each; None where no run counts.
        best_lr: The learning rate of the best value; None where every run diverged.
        best: That value, ``ℓ*``.
        best_at_edge: Whether it is at an end of the grid.
        sensitivity: The LR sensitivity (Wortsman et al., 2023).
        regret: The same, measured from the best of all optimizers.
        good_range: The learning rates nearly as good as the best.
        expected_best: By k: the expected best of k blind guesses.
        runs: How many runs there are, whatever became of them.
        diverged: How many of them diverged.
        failed: How many failed.
        pruned: How many were pruned.
        capped: Share of all steps that took the cap; None for optimizers that have none.
        params: By learning rate: the further arguments of its trial, where some were tuned.
    """

    optimizer: str
    lrs: tuple[float, ...]
    values: tuple[float | None, ...]
    best_lr: float | None
    best: float | None
    best_at_edge: bool | None
    sensitivity: Interval
    regret: Interval
    good_range: GoodRange
    expected_best: dict[int, float | None]
    runs: int
    diverged: int
    failed: int
    pruned: int
    capped: float | None
    params: dict[float, dict[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def curve(self) -> list[tuple[float, float]]:
        """``(η, ℓ(η))`` where both are known, ascending in η."""
        return [(lr, value) for lr, value in zip(self.lrs, self.values) if value is not None and lr > 0]

    @property
    def decades(self) -> float | None:
        """How many decades the learning rates with a value span; None for fewer than two."""
        known = [lr for lr, _ in self.curve]
        return math.log10(known[-1]) - math.log10(known[0]) if len(known) > 1 else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The ratio of two optimizers' sensitivities, ``a`` (one of Momo's methods) over ``b`` (another method)."""

    a: str
    b: str
    sensitivity_ratio: Interval


@dataclasses.dataclass(frozen=True)
class Figures:
    """All that the figures say of a table of runs.

    Attributes:
        initial: ``ℓ0``, the mean over seeds; None where there is no value at all.
        optimizers: In order of first appearance.
        comparisons: Every pair of a Momo method and another method.
        maximize: Whether larger values are better.
        initial_known: Whether ``initial`` was measured; else it is the worst value of any run.
        sampled: Whether the learning rates are a sample (a study's trials) and not a grid.
    """

    initial: float | None = None
    optimizers: tuple[OptimizerFigures, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    maximize: bool = False
    initial_known: bool = False
    sampled: bool = False

    def loss(self, value: float) -> float:
        """``value`` in the direction in which smaller is better."""
        return -value if self.maximize else value

    @property
    def known(self) -> list[OptimizerFigures]:
        """Optimizers that have a best value, the best one's first."""
        found = [(self.loss(entry.best), entry) for entry in self.optimizers if entry.best is not None]
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    @property
    def best(self) -> OptimizerFigures | None:
        """The optimizer of the best value of all; None where every run diverged or failed."""
        return next(iter(self.known), None)

    @property
    def near(self) -> list[OptimizerFigures]:
        """Optimizers whose ``ℓ*`` is within 5 % of the way from the best of all to ``ℓ0``, the best one's first."""
        values = [self.loss(entry.best) for entry in self.known if entry.best is not None]
        if not values or self.initial is None:
            return []
        bound = good_bound(values[0], self.loss(self.initial))
        return [entry for entry, value in zip(self.known, values) if value <= bound]

    @property
    def learned(self) -> bool:
        """Whether the best of all improves ℓ0 by 1 % of it; True where ℓ0 isn't known, so that nobody can tell."""
        best = self.best
        if best is None or best.best is None or self.initial is None or not self.initial_known:
            return best is not None
        return self.loss(self.initial) - self.loss(best.best) >= LEARNED * abs(self.initial)

    def of(self, optimizer: str) -> OptimizerFigures:
        """The figures of one optimizer.

        Raises:
            KeyError: It isn't among them.
        """
        for entry in self.optimizers:
            if entry.optimizer == optimizer:
                return entry
        raise KeyError(optimizer)


@dataclasses.dataclass(frozen=True)
class Shared:
    """The one learning rate whose worst excess over the values is least.

    Attributes:
        lr: It.
        worst: Its worst excess, ``max_v (ℓ_v(lr) - ℓ*_v) / (ℓ0_v - ℓ*_v)``.
        at: The value at which that occurs.
    """

    lr: float
    worst: Interval
    at: object


@dataclasses.dataclass(frozen=True)
class Transfer:
    """How one optimizer's learning rate moves from value to value of what is varied.

    Attributes:
        optimizer: Its label.
        lrs: The learning rates that it has at every value, over which all of this is.
        best_lrs: The best of them at each value; None where every run diverged.
        optima: The optimum at each value, between the learning rates tried.
        shared: The learning rate that serves all values best; None where no learning rate was tried at all of them.
        drift: Decades of the optimum for each decade of the value; None unless the values are two positive numbers.
    """

    optimizer: str
    lrs: tuple[float, ...]
    best_lrs: tuple[float | None, ...]
    optima: tuple[float | None, ...]
    shared: Shared | None
    drift: Interval


@dataclasses.dataclass(frozen=True)
class Transfers:
    """The figures of studies that differ in one value.

    Attributes:
        values: The values.
        optimizers: In order of first appearance.
        recommended: The optimizer of the least worst excess among those that come near the best of all; None for none.
    """

    values: tuple[object, ...]
    optimizers: tuple[Transfer, ...]
    recommended: str | None


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """An optimizer and a learning rate to use.

    Attributes:
        optimizer: Its label.
        lr: The learning rate.
        best_lr: The learning rate of the optimizer's best value.
        good_range: The optimizer's good range.
        expected: ``ℓ`` at ``lr``.
        params: The further arguments of that learning rate's trial, where some were tuned.
    """

    optimizer: str
    lr: float
    best_lr: float
    good_range: GoodRange
    expected: float
    params: dict[str, float] = dataclasses.field(default_factory=dict)


def good_bound(best: float, initial: float) -> float:
    """The worst value that still counts as good: ``ℓ* + 0.05 (ℓ0 - ℓ*)``, and never below ``ℓ*``.

    >>> good_bound(1.0, 3.0)
    1.1
    """
    return best + TOLERANCE * max(initial - best, 0.0)
