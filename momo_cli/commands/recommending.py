"""``momo recommend``: the optimizer and learning rate to use, and why."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer

from momo_cli.asked import one_of
from momo_cli.commands import outputs as out
from momo_cli.commands.options import OutputOptions, TaskCommand, TrainingOptions, task_argument, with_options
from momo_cli.commands.running import collect_report, collect_varied, run
from momo_cli.errors import UserError
from momo_cli.plan import COMPARED, SEEDS
from momo_cli.reporting import EXTENSIONS, extension_of, report_of, stored_report, usable

if TYPE_CHECKING:
    from momo_cli.experiment import Experiment
    from momo_cli.figures import Prefer
    from momo_cli.report import Report

_PREFER = ("robust", "best")


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
    if training_options.vary:
        if task is None or extend or preferred == "best":
            raise UserError("--vary needs the task, and goes with neither --extend nor --prefer best.")
        varied = collect_varied(task, training_options, output_options, COMPARED, SEEDS)
        out.show(dataclasses.replace(varied, view="recommend"), output_options, terminal.print_varied)
        return
    if task is None:
        if extend:
            raise UserError("--extend trains further runs, so it needs the task: momo recommend TASK --extend.")
        report = stored_report(training_options.store(), training_options.study, training_options.asked().settings())
    else:
        report, experiment = _report(task, training_options, output_options)
        for _ in range(EXTENSIONS if extend else 0):
            if further := extension_of(report):
                experiment = dataclasses.replace(experiment, fresh=False)
                report = report_of(run(experiment, further, output_options), experiment)
    report.advice, report.view = advise(report, preferred), "recommend"
    out.show(report, output_options, terminal.print_recommendation)


def _report(task: str, training: TrainingOptions, outputs: OutputOptions) -> tuple[Report, Experiment]:
    """What is stored for the task, unless nothing is or the options ask for runs of their own."""
    if not (training.optimizer or training.lrs or training.seeds or training.fresh):
        experiment = training.experiment(task)
        if report := usable(experiment):
            return report, experiment
        others = [info for info in experiment.store.studies() if info.task == experiment.source.name]
        if others and not outputs.quiet:
            known = f"{others[-1].runs} stored runs of {others[-1].name}"
            print(
                f"Not used: {known}, which have other settings; momo recommend without TASK takes them.",
                file=sys.stderr,
            )
    return collect_report(task, training, outputs, COMPARED, SEEDS)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(cls=TaskCommand)(recommend)
