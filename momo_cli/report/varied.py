"""Reports that differ in one value, a width say, and what they say together: does one learning rate serve all?"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Literal

from momo_cli.figures.results import Interval, Shared, Transfer, Transfers
from momo_cli.figures.transfer import transfers
from momo_cli.report import Report, numbers, tables
from momo_cli.report.advice import lines_to_paste
from momo_cli.report.conclusions import of_direction
from momo_cli.runs import Run

if TYPE_CHECKING:
    import matplotlib.figure

#: A drift whose interval holds 0 and lies within this, in decades a decade, is said to be none: less than a factor of
#: 1.8 in the learning rate for ten times the value.
STAYS = 0.25
_FEW = 3  # learning rates shared by all values, below which an optimum is hardly more than one of them


@dataclasses.dataclass(frozen=True)
class SharedAdvice:
    """The optimizer and the one learning rate to use for every value.

    Attributes:
        optimizer: The optimizer to use.
        lr: Its learning rate.
        worst: The worst excess of it over the values.
        at: The value at which that occurs.
        because: The reasons, in full sentences.
        warnings: Where the evidence is thin, in full sentences.
        code: The lines to paste.
    """

    optimizer: str
    lr: float
    worst: Interval
    at: object
    because: list[str]
    warnings: list[str]
    code: str


@dataclasses.dataclass
class VariedReport:
    """The reports of every value of what is varied, and all that is said of them together.

    Attributes:
        name: What is varied.
        values: Its values.
        reports: The report of each value.
        view: The command whose view is shown.
    """

    name: str
    values: list[Any]
    reports: list[Report]
    view: Literal["sweep", "compare", "recommend"] = "sweep"

    @functools.cached_property
    def figures(self) -> Transfers:
        """The figures over all values."""
        return transfers(self.values, [report.runs for report in self.reports], maximize=self.maximize)

    @property
    def task(self) -> str:
        """The task as typed."""
        return self.reports[0].task

    @property
    def maximize(self) -> bool:
        """Whether larger values of the objective are better."""
        return self.reports[0].maximize

    @property
    def optimizers(self) -> tuple[Transfer, ...]:
        """The figures of each optimizer."""
        return self.figures.optimizers

    @property
    def runs(self) -> list[Run]:
        """The runs of all values."""
        return [run for report in self.reports for run in report.runs]

    @property
    def recommendation(self) -> SharedAdvice | None:
        """The optimizer and the learning rate to use for every value; None where none can be named."""
        found = next((each for each in self.optimizers if each.optimizer == self.figures.recommended), None)
        if found is None or found.shared is None or not any(report.figures.learned for report in self.reports):
            return None
        return SharedAdvice(
            found.optimizer,
            found.shared.lr,
            found.shared.worst,
            found.shared.at,
            [reason(self, found), *sentences(self)],
            self.warnings,
            lines_to_paste(self.reports[-1], found.optimizer, found.shared.lr),
        )

    @property
    def warnings(self) -> list[str]:
        """What is doubtful, in full sentences."""
        return warnings(self)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document, schema ``momo/1``."""
        from momo_cli.report.document import varied_to_json

        return varied_to_json(self)

    def plot(self, kind: str = "transfer") -> matplotlib.figure.Figure:
        """A figure of matplotlib: final value against learning rate, a curve for each value.

        Raises:
            UserError: matplotlib isn't installed, or there is no such kind.
        """
        from momo_cli.report import plot

        return plot.figure(self, kind)

    def __str__(self) -> str:
        """The terminal's view, without colour."""
        from momo_cli.report import terminal

        return terminal.text(self)

    def _repr_html_(self) -> str:
        from momo_cli.report import html

        return html.varied_fragment(self)

    def place(self, value: object) -> str:
        """``width 64``."""
        return f"{self.name} {value}"

    def lr(self, value: float | None, optimizer: str) -> str:
        """A learning rate as it is shown and pasted."""
        grid = [lr for report in self.reports for entry in report.optimizers for lr in entry.lrs
                if entry.optimizer == optimizer]  # fmt: skip
        return numbers.lr(value, grid)


def heading(report: VariedReport) -> str:
    """What the values are."""
    first = report.reports[0]
    values = numbers.names([str(value) for value in report.values])
    return f"{report.task}: final {first.objective} ({of_direction(first)}) at {report.name} {values}"


def answer(report: VariedReport) -> tuple[str, str]:
    """What to use for every value, and the reason; else what is missing."""
    advice = report.recommendation
    if advice is not None:
        use = f"Use {advice.optimizer} at {report.lr(advice.lr, advice.optimizer)}"
        return f"{use} for every value of {report.name}.", advice.because[0]
    if not any(each.lrs for each in report.optimizers):
        return "No recommendation: no learning rate was tried at every value.", ""
    if not any(entry.figures.learned for entry in report.reports):
        return "No recommendation: nothing was learned.", ""
    return f"No recommendation: no optimizer comes near the best at every value of {report.name}.", ""


def reason(report: VariedReport, found: Transfer) -> str:
    """What the shared learning rate costs at worst."""
    assert found.shared is not None
    worst = found.shared.worst
    cost = f"At worst, at {report.place(found.shared.at)}, it stays {percent(worst.value)}{_spread(worst)} of the way"
    return f"{cost} from {found.optimizer}'s best value there to the value before training."


def percent(share: float | None) -> str:
    """
    >>> percent(0.0312), percent(None)
    ('3.1 %', '–')
    """
    return numbers.NOTHING if share is None else f"{numbers.number(100 * share, 2)} %"


def _worst(shared: Shared) -> str:
    return f"{percent(shared.worst.value)}{_spread(shared.worst).replace('95 % interval ', '')}"


def _spread(worst: Interval) -> str:
    if worst.low is None or worst.high is None:
        return ""
    return f" (95 % interval {numbers.number(100 * worst.low, 2)}–{numbers.number(100 * worst.high, 2)})"


def sentences(report: VariedReport) -> list[str]:
    """How each optimizer's best learning rate moves."""
    return [line for each in report.optimizers if (line := drift(report, each))]


def drift(report: VariedReport, each: Transfer) -> str:
    """How one optimizer's best learning rate moves; empty where what is varied is no number."""
    value, low, high = each.drift.value, each.drift.low, each.drift.high
    if value is None:
        return ""
    moves = "falls" if value < 0 else "rises"
    by = f"by {numbers.number(abs(value), 2)} decades for each decade of {report.name}"
    lead = f"{each.optimizer}'s best learning rate"
    if low is None or high is None:
        return f"{lead} {moves} {by}; how sure that is, the seeds there are don't tell."
    ends = f"95 % interval {numbers.number(low, 2)} to {numbers.number(high, 2)}"
    if low > 0 or high < 0:
        return f"{lead} {moves} {by} ({ends})."
    if low >= -STAYS and high <= STAYS:
        return f"{lead} stays ({ends} decades for each decade of {report.name})."
    return f"Whether {lead} moves, {report.reports[0].seeds()} seeds can't tell: {moves} {by} ({ends})."


def warnings(report: VariedReport) -> list[str]:
    """Where the evidence is thin."""
    lines = []
    for each in report.optimizers:
        if not each.lrs:
            lines.append(f"{each.optimizer} has no learning rate that was tried at every value of {report.name}.")
            continue
        if len(each.lrs) < _FEW:
            lines.append(
                f"{each.optimizer} has {len(each.lrs)} learning rates at every value of {report.name}: too few to tell."
            )
            continue
        at_end = [v for v, lr in zip(report.values, each.best_lrs) if lr in (each.lrs[0], each.lrs[-1])]
        lost = [v for v, lr in zip(report.values, each.best_lrs) if lr is None]
        if at_end:
            lines.append(
                f"{each.optimizer}'s best learning rate is at an end of those tried at {report.name} "
                f"{numbers.names([str(value) for value in at_end])}: the true one, and so the shared one and the "
                "drift, may be others. Add learning rates with --lrs."
            )
        if lost:
            lines.append(
                f"Every run of {each.optimizer} diverged at {report.name} {numbers.names(list(map(str, lost)))}."
            )
    nothing = [value for value, one in zip(report.values, report.reports) if not one.figures.learned]
    if nothing:
        lines.append(f"Nothing was learned at {report.name} {numbers.names(list(map(str, nothing)))}: train longer.")
    if any(one.seeds() == 1 for one in report.reports):
        lines.append("One seed: how far these figures would differ with another one isn't known. Add --seeds 3.")
    failed = [
        (value, sum(run.status == "failed" for run in one.runs)) for value, one in zip(report.values, report.reports)
    ]
    lines += [
        f"{numbers.count(n, 'run')} failed at {report.place(value)}, and don't count." for value, n in failed if n
    ]
    return lines


def strips(report: VariedReport) -> list[tuple[Transfer, tables.Strip]]:
    """For each optimizer a strip with a row for each value, whose levels are from the best of all at that value."""
    own = [tables.strip(one) for one in report.reports]
    found = []
    for each in report.optimizers:
        cells = {
            (report.place(value), column): cell
            for value, strip in zip(report.values, own)
            for (name, column), cell in strip.cells.items()
            if name == each.optimizer
        }
        columns = sorted({column for _, column in cells})
        found.append((each, tables.Strip([report.place(value) for value in report.values], columns, cells)))
    return found


#: Titles of the columns that :func:`summary` fills.
COLUMNS = ("optimizer", "best learning rates", "optima", "shared", "worst excess", "drift")


def summary(report: VariedReport) -> list[tuple[str, ...]]:
    """A row for each optimizer, for :data:`COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for each in report.optimizers:
        shared, drifts = each.shared, each.drift
        ends = numbers.interval(drifts.low, drifts.high, 2).replace("–-", " to -")
        rows.append(
            (
                each.optimizer,
                ", ".join(report.lr(lr, each.optimizer) for lr in each.best_lrs),
                ", ".join(numbers.number(lr, 2) for lr in each.optima),
                numbers.NOTHING if shared is None else report.lr(shared.lr, each.optimizer),
                numbers.NOTHING if shared is None else f"{_worst(shared)} at {shared.at}",
                numbers.number(drifts.value, 2) + (f" ({ends})" if ends else ""),
            )
        )
    return rows
