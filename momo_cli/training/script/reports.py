"""The numbers that a script reports, by name and step, and how its losses go on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from momo_cli.training.run.history import POINTS, History

_FEW = 10  # losses below which the running mean says nothing while the number of steps isn't known


class Series:
    """The values reported under one name, in order."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.version = 0
        """Rises when values are taken back."""
        self._reported: list[float | None] = []
        self._counted = False
        self._rank: int | None = None
        self._restarted = False

    def add(self, step: float | None, value: float, rank: int) -> None:
        """Take a report; of several ranks' the lowest one's count."""
        if self._rank is not None and rank > self._rank:
            return
        if self._rank is not None and rank < self._rank:
            self._cut(0)
        if self._restarted:
            kept = 0 if step is None or self._counted else sum(s is not None and s < step for s in self._reported)
            self._cut(kept)
        self._rank, self._restarted = rank, False
        last = self._reported[-1] if self._reported else -math.inf
        # Steps that don't ascend, as where each epoch begins anew, can't place the values: then reports are counted.
        self._counted = self._counted or step is None or last is None or step <= last
        self._reported.append(step)
        self.values.append(value)

    def restart(self) -> None:
        """From here on reports are those of the script started again: what they repeat is taken back."""
        self._restarted = True

    def _cut(self, kept: int) -> None:
        self.version += 1
        del self.values[kept:], self._reported[kept:]
        if not kept:
            self._counted = False

    def step(self, index: int) -> float:
        """The step of a value; the count of reports where steps weren't reported in ascending order."""
        step = None if self._counted else self._reported[index]
        return index % len(self.values) + 1.0 if step is None else step

    @property
    def span(self) -> float:
        """Steps from the first report to the last, both included."""
        return self.step(-1) - self.step(0) + 1 if self.values else 0

    def at_start(self) -> float | None:
        """The value reported at step 0, before training."""
        return self.values[0] if self._reported and self._reported[0] == 0 else None


class Reports:
    """Every series of one run."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self.finite = True

    def add(self, record: Mapping[str, float]) -> None:
        """Take one report: numbers by name, with ``step`` and ``rank`` among them where they are known."""
        numbers = dict(record)
        step, rank = numbers.pop("step", None), int(numbers.pop("rank", 0))
        for name, value in numbers.items():
            self.finite = self.finite and math.isfinite(value)
            self.series.setdefault(name, Series()).add(step, value, rank)

    def restart(self) -> None:
        """The script is started again where it was interrupted."""
        for series in self.series.values():
            series.restart()

    def last(self, name: str) -> float | None:
        """The last value under ``name``; of ``train_loss`` the mean of ``loss`` over the last tenth of the steps."""
        if name == "train_loss" and self.losses.values:
            return train_loss(self.losses)
        series = self.series.get(name)
        return series.values[-1] if series and series.values else None

    @property
    def losses(self) -> Series:
        """The training losses."""
        return self.series.get("loss") or Series()

    def objective(self, asked: str | None) -> str:
        """The objective asked for, else ``val_loss`` where it is reported, else ``train_loss``."""
        return asked or ("val_loss" if self.last("val_loss") is not None else "train_loss")

    def initial(self, objective: str) -> float | None:
        """ℓ0: the objective at step 0; else, for an objective that is a loss, the first training loss."""
        series = self.losses if objective == "train_loss" else self.series.get(objective)
        start = series.at_start() if series else None
        if start is None and "loss" in objective.lower() and self.losses.values:
            return self.losses.values[0]
        return start

    @property
    def names(self) -> list[str]:
        """What can be an objective."""
        return ["train_loss"] * bool(self.losses.values) + [name for name in self.series if name != "loss"]

    def loss_before(self) -> float:
        """What divergence is measured against, for any objective: ℓ0 of ``val_loss``, or the first training loss."""
        initial = self.initial(self.objective(None))
        return self.losses.values[0] if initial is None else initial


def train_loss(losses: Series) -> float | None:
    """Mean loss of the last tenth of the steps (at least one)."""
    if not losses.values:
        return None
    begin = losses.step(-1) - History(int(losses.span), 0.0).window
    last = [value for index, value in enumerate(losses.values) if losses.step(index) > begin]
    return sum(last) / len(last)


def curve(losses: Series) -> list[list[float]]:
    """About 20 ``[step, mean loss since the point before]`` over the run."""
    points: dict[int, list[tuple[float, float]]] = {}
    for index, value in enumerate(losses.values):
        step = losses.step(index)
        points.setdefault(math.ceil((step - losses.step(0) + 1) / losses.span * POINTS), []).append((step, value))
    return [[part[-1][0], sum(value for _, value in part) / len(part)] for part in points.values()]


class Divergence:
    """Whether the running mean of the losses, over a tenth of the steps, has passed 10·ℓ0.

    Args:
        losses: The losses, to which more may come.
        initial: ℓ0.
        steps: Steps of the whole run; while None, a tenth of the steps so far is taken, at least ten losses.
    """

    def __init__(self, losses: Series, initial: float, steps: float | None) -> None:
        self.losses, self.steps = losses, steps
        self.bound = History(1, initial).bound
        self.passed = False
        self._taken = self._begin = 0
        self._sum = 0.0
        self._version = losses.version

    def __call__(self) -> bool:
        """Look at the losses that came since the last call."""
        losses = self.losses
        if losses.version != self._version:
            self._taken = self._begin = 0
            self._sum, self._version = 0.0, losses.version
        for index in range(self._taken, len(losses.values)):
            step, first = losses.step(index), losses.step(0)
            self._sum += losses.values[index]
            window = History(int(self.steps or step - first + 1), 0.0).window
            few = 0 if self.steps else _FEW
            while losses.step(self._begin) <= step - window and index - self._begin >= max(1, few):
                self._sum -= losses.values[self._begin]
                self._begin += 1
            count = index + 1 - self._begin
            if step - first + 1 >= window and count >= few and self._sum / count > self.bound:
                self.passed = True
        self._taken = len(losses.values)
        return self.passed
