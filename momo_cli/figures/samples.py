"""From runs to arrays: which runs count, as which value, in the direction in which smaller is better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from momo_cli.figures.formulas import Array
from momo_cli.runs import Run


def is_finite(number: float | None) -> bool:
    """Whether there is a number and it is finite.

    >>> is_finite(1.0), is_finite(float("nan")), is_finite(None)
    (True, False, False)
    """
    return number is not None and math.isfinite(number)


def counts(run: Run) -> bool:
    """Whether a run enters the figures: failed and pruned runs don't, nor does one without a learning rate above 0."""
    return run.status in ("ok", "diverged") and is_finite(run.lr) and run.lr > 0


def diverged(run: Run) -> bool:
    """Whether a run counts as its ℓ0: it was stopped as diverged, or ended without a finite value."""
    return run.status == "diverged" or (run.status == "ok" and not is_finite(run.objective))


@dataclasses.dataclass(frozen=True)
class Cells:
    """One optimizer's runs that count, a row for each learning rate and a column for each seed.

    Attributes:
        lrs: Learning rates, ascending, shape ``[n]``.
        final: Final values, shape ``[n, seeds]``; infinite where the run diverged, NaN where there is none.
        initial: Each run's own ℓ0; NaN where it isn't known.
    """

    lrs: Array
    final: Array
    initial: Array

    @property
    def seeds(self) -> tuple[int, ...] | None:
        """The columns that have a run, if they are the same at every learning rate; else None."""
        present = ~np.isnan(self.final)
        same = len(self.lrs) > 0 and bool((present == present[0]).all())
        return tuple(np.flatnonzero(present[0]).tolist()) if same else None

    def at(self, lrs: Sequence[float]) -> Cells:
        """The rows of these learning rates, each of which is here."""
        rows = np.searchsorted(self.lrs, lrs)
        return Cells(self.lrs[rows], self.final[rows], self.initial[rows])


@dataclasses.dataclass(frozen=True)
class Curves:
    """``ℓ(η)`` of every optimizer, from all seeds or all but one.

    Attributes:
        values: ``ℓ`` over each optimizer's learning rates.
        trained: Optimizers of which some run ended with a number of its own; every run of the others diverged.
    """

    values: dict[str, Array]
    trained: list[str]


class Samples:
    """A table of runs as arrays, from which the runs of one seed can be left out.

    ``ℓ(η)`` is the mean over seeds of ``min(objective, ℓ0)``, with the ℓ0 of the run's own seed; a diverged run counts
    as that ℓ0. Where a run doesn't know its ℓ0, it is that of its seed's other runs, else the mean over the seeds.
    Where no run knows it (imported tables), it is the worst value of any run. Of several runs with the same optimizer,
    learning rate and seed, the last counts; of several trials with the same learning rate and other arguments (a
    study's with a grid sampler), the best.

    Args:
        runs: The runs.
        maximize: Whether larger values are better; all values of this class have their sign turned then.

    >>> samples = Samples([Run("adam", 0.1, 0, objective=1.0, initial=3.0), Run("adam", 0.1, 1, "diverged")])
    >>> samples.initial(), samples.curves().values["adam"].tolist()
    (3.0, [2.0])
    >>> Samples([Run("adam", 0.1, 0, objective=1.0), Run("adam", 0.1, 1, objective=2.0)]).initial()
    2.0
    """

    def __init__(self, runs: Sequence[Run], maximize: bool = False) -> None:
        self.sign = -1.0 if maximize else 1.0
        counted = [run for run in runs if counts(run)]
        if not any(is_finite(run.initial) or not diverged(run) for run in counted):
            counted = []  # there is no value that a diverged run could count as
        self.params = self._best_trials(counted)
        counted = [run for run in counted if run.params == self.params[run.optimizer, run.lr]]
        self.seeds = sorted({run.seed for run in counted})
        self._curves: dict[int | None, Curves] = {}
        self.cells = {
            optimizer: self._cells([run for run in counted if run.optimizer == optimizer])
            for optimizer in dict.fromkeys(run.optimizer for run in runs)
        }

    def _best_trials(self, runs: list[Run]) -> dict[tuple[str, float], dict[str, float]]:
        """The further arguments of the best trial at each learning rate of each optimizer."""
        trials: dict[tuple[str, float], dict[tuple[tuple[str, float], ...], list[float]]] = {}
        for run in runs:
            value = math.inf if diverged(run) else self.sign * (run.objective or 0.0)
            trials.setdefault((run.optimizer, run.lr), {}).setdefault(tuple(run.params.items()), []).append(value)
        return {
            place: dict(min((math.fsum(values) / len(values), params) for params, values in found.items())[1])
            for place, found in trials.items()
        }

    def _cells(self, runs: list[Run]) -> Cells:
        lrs = sorted({run.lr for run in runs})
        row, column = ({value: i for i, value in enumerate(values)} for values in (lrs, self.seeds))
        final = np.full((len(lrs), len(self.seeds)), math.nan)
        initial = final.copy()
        for run in runs:
            place = row[run.lr], column[run.seed]
            final[place] = math.inf if diverged(run) else self.sign * (run.objective or 0.0)
            initial[place] = self.sign * (run.initial or 0.0) if is_finite(run.initial) else math.nan
        return Cells(np.array(lrs), final, initial)

    @property
    def knows_initial(self) -> bool:
        """Whether some run knows its ℓ0."""
        return any(not np.isnan(cells.initial).all() for cells in self.cells.values())

    def initial(self, without: int | None = None) -> float:
        """``ℓ0``, the mean over seeds, or over all but one; NaN where there is no value at all."""
        return self._initials(without)[0] if self.seeds else math.nan

    def values(self, optimizer: str, without: int | None = None) -> Array:
        """The value that each run counts as, shape ``[n, seeds]``; NaN where there is none.

        Args:
            optimizer: Its label.
            without: Index in ``seeds`` of a seed to leave out, with its ℓ0.
        """
        cells = self.cells[optimizer]
        if not self.seeds:
            return cells.final
        values = np.minimum(cells.final, np.where(np.isnan(cells.initial), self._initials(without)[1], cells.initial))
        if without is not None:
            values[:, without] = math.nan
        return values

    def curves(self, without: int | None = None) -> Curves:
        """Every optimizer's ``ℓ(η)``, from all seeds or all but one; computed once."""
        if without not in self._curves:
            left = [i for i in range(len(self.seeds)) if i != without]
            self._curves[without] = Curves(
                {optimizer: _mean(self.values(optimizer, without), axis=1) for optimizer in self.cells},
                [optimizer for optimizer, cells in self.cells.items() if np.isfinite(cells.final[:, left]).any()],
            )
        return self._curves[without]

    def _initials(self, without: int | None) -> tuple[float, Array]:
        """ℓ0, and for each seed the ℓ0 of a run that doesn't know its own."""
        known = _mean(np.concatenate([cells.initial for cells in self.cells.values()]), axis=0)
        final = np.concatenate([cells.final for cells in self.cells.values()])
        if without is not None:
            known[without] = final[:, without] = math.nan
        if not np.isnan(known).all():
            mean = float(np.nanmean(known))
        else:
            mean = float(final.max(where=np.isfinite(final), initial=-math.inf))
        return mean, np.where(np.isnan(known), mean, known)


def _mean(values: Array, axis: int) -> Array:
    """The mean of the values that are there; NaN where there is none."""
    present = ~np.isnan(values)
    sums = np.where(present, values, 0.0).sum(axis=axis)
    number = present.sum(axis=axis)
    return np.where(number > 0, sums / np.maximum(number, 1), math.nan)
