"""``momo recommend``: the optimizer and learning rate to use, and why."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer

from momo_cli.commands import outputs as out
from momo_cli.commands.comparing import OPTIMIZERS, SEEDS
from momo_cli.commands.options import OutputOptions, TaskCommand, TrainingOptions, one_of, task_argument, with_options
from momo_cli.commands.running import collect_report, run
from momo_cli.errors import UserError
from momo_cli.plan import OptimizerSpec, RunSpec
from momo_cli.reporting import report_of, stored_report

if TYPE_CHECKING:
    from momo_cli.experiment import Experiment
    from momo_cli.figures import Prefer
    from momo_cli.report import Report

_PREFER = ("robust", "best")
_DECADES = 2  # that --extend goes beyond a grid, at most


@with_options(TrainingOptions, OutputOptions)
def recommend(
    training_options: TrainingOptions,
    output_options: OutputOptions,
    task: Annotated[str | None, task_argument("Without one: from what is stored for the latest task.")] = None,
    prefer: Annotated[
        str, typer.Option(metavar="robust|best", help="robust: the least regret; best: the smallest value of all.")
    ] = "robust",
    extend: Annotated[
        bool,
        typer.Option(
            "--extend", help="Where a best learning rate is at the end of its grid, run up to two decades further."
        ),
    ] = False,
) -> None:
    """Name the optimizer and the learning rate to use, say why, and print the line of code.

    Uses the task's stored runs; where there are none, trains what momo compare would.

    [bold]Examples[/bold]

      momo recommend digits-mlp

      momo recommend --prefer best
    """
    from momo_cli.report import terminal
    from momo_cli.report.advice import advise

    out.check(output_options)
    preferred = cast("Prefer", one_of("--prefer", prefer, _PREFER))
    if task is None:
        if extend:
            raise UserError("--extend trains further runs, so it needs the task: momo recommend TASK --extend.")
        report = stored_report(training_options.store(), training_options.study)
    else:
        report, experiment = _report(task, training_options, output_options)
        for _ in range(_DECADES if extend else 0):
            report = _extended(report, experiment, output_options)
    report.advice = advise(report, preferred)
    out.show(report, output_options, terminal.print_recommendation)


def _report(task: str, training: TrainingOptions, outputs: OutputOptions) -> tuple[Report, Experiment]:
    """What is stored for the task, unless nothing is or the options ask for runs of their own."""
    if not (training.optimizer or training.lrs or training.seeds or training.fresh):
        experiment = training.experiment(task)
        stored = experiment.stored()
        if any(r.status != "failed" for r in stored.runs()):
            return stored_report(experiment.store, stored.name), experiment
        others = [info for info in experiment.store.studies() if info.task == experiment.source.name]
        if others and not outputs.quiet:
            known = f"{others[-1].runs} stored runs of {others[-1].name}"
            print(
                f"Not used: {known}, which have other settings; momo recommend without TASK takes them.",
                file=sys.stderr,
            )
    return collect_report(task, training, outputs, OPTIMIZERS, SEEDS)


def _extended(report: Report, experiment: Experiment, outputs: OutputOptions) -> Report:
    """The report with one more decade for every optimizer whose best LR is at the end of its grid."""
    from momo_cli.report.warnings import beyond

    further = [
        RunSpec(OptimizerSpec.parse(entry.optimizer), lr, seed)
        for entry in report.figures.optimizers
        for lr in beyond(entry)
        for seed in sorted({r.seed for r in report.runs if r.optimizer == entry.optimizer})
    ]
    if not further:
        return report
    before = [
        RunSpec(OptimizerSpec.parse(r.optimizer), r.lr, r.seed, tuple(r.params.items()))
        for r in report.runs
        if r.status != "failed"
    ]
    experiment = dataclasses.replace(experiment, fresh=False)
    return report_of(run(experiment, before + further, outputs), experiment)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(cls=TaskCommand)(recommend)
