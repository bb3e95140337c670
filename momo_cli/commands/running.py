"""From the options of a command to the report of its runs: what ``sweep``, ``compare`` and ``recommend`` share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from momo_cli.asked import Options, collect
from momo_cli.commands import outputs as out
from momo_cli.commands.options import OutputOptions, SearchOptions, TrainingOptions
from momo_cli.errors import UserError
from momo_cli.experiment import Collected, Experiment
from momo_cli.plan import RunSpec
from momo_cli.reporting import check_failures, report_of
from momo_cli.runs import Run

if TYPE_CHECKING:
    from momo_cli.report import Report
    from momo_cli.report.progress import LiveDisplay
    from momo_cli.report.varied import VariedReport


def collect_report(
    task: str,
    training: TrainingOptions,
    outputs: OutputOptions,
    default_optimizers: str,
    default_seeds: int,
    search: SearchOptions | None = None,
) -> tuple[Report, Experiment]:
    """Train what the command line asks for and isn't stored, and analyze the runs.

    Returns:
        The report, and the experiment that more runs may be asked of.

    Raises:
        UserError: Something is wrong, or every run failed (exit code 1).
    """
    out.check(outputs)
    asked = training.asked(search)
    with out.stdout_kept(outputs):
        experiment = asked.experiment(training.source(task), training.store())
        collected = _collect(experiment, asked, outputs, default_optimizers, default_seeds)
    _say_failures(collected.runs)
    return report_of(collected, experiment), experiment


def _collect(
    experiment: Experiment, asked: Options, outputs: OutputOptions, optimizers: str, seeds: int, what: str = ""
) -> Collected:
    return collect(experiment, asked, optimizers, seeds, lambda runs: _display(experiment, outputs, runs, what))


def collect_varied(
    task: str,
    training: TrainingOptions,
    outputs: OutputOptions,
    default_optimizers: str,
    default_seeds: int,
    search: SearchOptions | None = None,
) -> VariedReport:
    """As :func:`collect_report`, for each value of what ``--vary`` names.

    Raises:
        UserError: Something is wrong, or every run of every value failed (exit code 1).
    """
    from momo_cli.report.varied import VariedReport

    out.check(outputs)
    name, requests = training.asked(search).varied()
    reports = []
    with out.stdout_kept(outputs):
        made = [(v, asked, asked.experiment(training.source(task, asked), training.store())) for v, asked in requests]
        for i, (value, asked, experiment) in enumerate(made):
            what = f" {name} {value} ({i + 1} of {len(made)})"
            collected = _collect(experiment, asked, outputs, default_optimizers, default_seeds, what)
            _say_failures(collected.runs, refuse=False)
            reports.append(report_of(collected, experiment))
    check_failures([run for report in reports for run in report.runs])
    return VariedReport(name, [value for value, _, _ in made], reports)


def run(experiment: Experiment, specs: list[RunSpec], outputs: OutputOptions) -> Collected:
    """Collect ``specs`` under a live display.

    Raises:
        UserError: As :meth:`Experiment.collect`, or every run failed.
    """
    with out.stdout_kept(outputs), _display(experiment, outputs, len(specs)) as display:
        collected = experiment.collect(specs, display)
    _say_failures(collected.runs)
    return collected


@contextlib.contextmanager
def _display(experiment: Experiment, outputs: OutputOptions, runs: int, what: str = "") -> Iterator[LiveDisplay]:
    """The live display; an interruption is answered with how many of the ``runs`` are stored."""
    from momo_cli.report.progress import LiveDisplay

    _, notes = out.consoles(outputs)
    with LiveDisplay(notes, experiment.source.name + what) as display:
        try:
            yield display
        except KeyboardInterrupt:
            done = display.done + display.reused
            stored = f"{done} of {runs} runs{what and ' of' + what} are stored"
            print(f"Interrupted. {stored}; the same command goes on from there.", file=sys.stderr)
            raise


def _say_failures(runs: list[Run], refuse: bool = True) -> None:
    failed = [run for run in runs if run.status == "failed"]
    for failure in _distinct(failed):
        which = f"{failure.optimizer} at lr {failure.lr:g}, seed {failure.seed}"
        more = sum(f.error == failure.error for f in failed) - 1
        print(
            f"Failed: {which}" + (f", and {more} more the same way" if more else "") + f"\n{failure.error}",
            file=sys.stderr,
        )
    if refuse and runs and len(failed) == len(runs):
        raise UserError(f"Every run failed ({len(failed)}); the error of the user's code stands above.", code=1)


def _distinct(failed: list[Run]) -> list[Run]:
    return list({run.error: run for run in reversed(failed)}.values())[::-1]
