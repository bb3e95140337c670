"""The words and the pictures for the figures: on a terminal, and one file for each format of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from momo_cli.report import numbers
from momo_cli.runs import Run

if TYPE_CHECKING:
    import matplotlib.figure

    from momo_cli.figures import Comparison, Figures, GoodRange, OptimizerFigures


@dataclasses.dataclass(frozen=True)
class Advice:
    """A recommendation in words.

    Attributes:
        optimizer: The optimizer to use.
        lr: Its learning rate.
        best_lr: The learning rate of the optimizer's best value.
        good_range: The optimizer's good range.
        expected: The value to expect at ``lr``.
        because: The reasons, in full sentences.
        warnings: Where the evidence is thin, in full sentences.
        code: The lines to paste.
        params: Values of further arguments that were tuned, by name; they stand in ``code``.
    """

    optimizer: str
    lr: float
    best_lr: float
    good_range: GoodRange
    expected: float
    because: list[str]
    warnings: list[str]
    code: str
    params: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Report:
    """A table of runs and all that is said of it.

    Attributes:
        task: The task as typed.
        study: Name of the study that stores the runs.
        objective: Name of the value that is compared.
        runs: The runs.
        figures: From :func:`momo_cli.figures.analyze`.
        advice: From :func:`momo_cli.report.advice.advise`, where a recommendation was asked for and there is one.
        settings: How the runs were trained, name to value.
        lines: Notes to show with it (what was reused, what an import did).
        command: The command line that adds runs to this study, without ``-o`` and ``--lrs`` (as
            ``momo sweep task.py --epochs 5``); None where it can't be run again, as for an imported table.
        default_lrs: Each optimizer's own default learning rate, by label.
        view: The command whose view of the report is shown.
        script: The words of a command that is the task, with its placeholders; behind ``--`` they follow ``command``.
    """

    task: str
    study: str
    objective: str
    runs: list[Run]
    figures: Figures
    advice: Advice | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    lines: list[str] = dataclasses.field(default_factory=list)
    command: str | None = None
    default_lrs: dict[str, float] = dataclasses.field(default_factory=dict)
    script: tuple[str, ...] = ()
    view: Literal["sweep", "compare", "recommend"] = "sweep"

    @property
    def optimizers(self) -> tuple[OptimizerFigures, ...]:
        """The figures of each optimizer."""
        return self.figures.optimizers

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The ratio of sensitivities of every pair of a Momo method and another method."""
        return self.figures.comparisons

    @property
    def recommendation(self) -> Advice | None:
        """The optimizer and the learning rate to use, where they were asked for and can be named."""
        return self.advice

    @property
    def warnings(self) -> list[str]:
        """What is doubtful, in full sentences."""
        from momo_cli.report.warnings import warnings

        return warnings(self)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document, schema ``momo/1``."""
        from momo_cli.report.document import to_json

        return to_json(self)

    def plot(self, kind: str = "stability") -> matplotlib.figure.Figure:
        """A figure of matplotlib.

        Args:
            kind: ``stability`` (final value against learning rate), ``curves`` (losses) or ``steps`` (step sizes).

        Raises:
            UserError: matplotlib isn't installed, there is no such kind, or these runs don't hold what it shows.
        """
        from momo_cli.report import plot

        return plot.figure(self, kind)

    def __str__(self) -> str:
        """The terminal's view, without colour."""
        from momo_cli.report import terminal

        return terminal.text(self)

    def _repr_html_(self) -> str:
        from momo_cli.report import html

        return html.fragment(self)

    @property
    def maximize(self) -> bool:
        """Whether larger values are better."""
        return self.figures.maximize

    def lr(self, value: float | None, optimizer: str) -> str:
        """A learning rate of an optimizer's as it is shown and pasted: short, where that names the same grid value."""
        return numbers.lr(value, self.figures.of(optimizer).lrs)

    def seeds(self, optimizer: str | None = None) -> int:
        """The smallest number of seeds that any learning rate has (of one optimizer, or of all); 0 without runs."""
        from momo_cli.figures import counts

        seeds: dict[tuple[str, float], set[int]] = {}
        for run in self.runs:
            if counts(run) and optimizer in (None, run.optimizer):
                seeds.setdefault((run.optimizer, run.lr), set()).add(run.seed)
        return min(map(len, seeds.values()), default=0)
