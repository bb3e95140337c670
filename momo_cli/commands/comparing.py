"""``momo compare``: optimizers side by side, with every figure and its uncertainty."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from momo_cli.commands import outputs as out
from momo_cli.commands.options import OutputOptions, TaskCommand, TrainingOptions, task_argument, with_options
from momo_cli.commands.running import collect_report, collect_varied
from momo_cli.errors import UserError
from momo_cli.plan import COMPARED, SEEDS
from momo_cli.reporting import stored_report


@with_options(TrainingOptions, OutputOptions)
def compare(
    training_options: TrainingOptions,
    output_options: OutputOptions,
    task: Annotated[list[str] | None, task_argument("Without one: what is stored for the latest task.")] = None,
) -> None:
    """Compare optimizers over their learning rates: sensitivity, regret, good range, what blind guesses would give.

    Trains what is missing: momo, sgd-m, momo-adam, adam and adamw+cosine over nine learning rates and three
    seeds, unless the options say otherwise.

    [bold]Examples[/bold]

      momo compare digits-mlp

      momo compare
    """
    from momo_cli.report import terminal

    out.check(output_options, tasks=len(task or [""]))
    if training_options.vary and not task:
        raise UserError("--vary needs the task: momo compare TASK --vary NAME=V1,V2.")
    if not task:
        report = stored_report(training_options.store(), training_options.study, training_options.asked().settings())
        out.show(report, output_options, terminal.print_compare)
    for name in task or []:
        if training_options.vary:
            varied = collect_varied(name, training_options, output_options, COMPARED, SEEDS)
            out.show(dataclasses.replace(varied, view="compare"), output_options, terminal.print_varied)
            continue
        report, _ = collect_report(name, training_options, output_options, COMPARED, SEEDS)
        out.show(report, output_options, terminal.print_compare)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(cls=TaskCommand)(compare)
