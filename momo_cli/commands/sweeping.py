"""``momo sweep``: every optimizer at every learning rate."""

from __future__ import annotations

import typer

from momo_cli.commands import outputs as out
from momo_cli.commands.options import (
    OutputOptions,
    SearchOptions,
    TaskArgument,
    TaskCommand,
    TrainingOptions,
    with_options,
)
from momo_cli.commands.running import collect_report, collect_varied
from momo_cli.plan import SWEPT


@with_options(TrainingOptions, SearchOptions, OutputOptions)
def sweep(
    task: TaskArgument, training_options: TrainingOptions, search_options: SearchOptions, output_options: OutputOptions
) -> None:
    """Train every optimizer at every learning rate and show how much the rate matters.

    Runs that are stored already are reused; the same command goes on where it was interrupted.

    [bold]Examples[/bold]

      momo sweep digits-mlp

      momo sweep mymodule:build --lrs 0.01,0.1,1

      momo sweep train.py -o momo-adam,adamw --lrs 1e-5:1e-1:9 --seeds 3

      momo sweep charlm --vary width=32,64,128 -o adam,momo-adam --seeds 3

      momo sweep train.py -o adamw --trials 40 --tune weight_decay=1e-6:1e-1
    """
    from momo_cli.report import terminal

    if training_options.vary:
        varied = collect_varied(task, training_options, output_options, SWEPT, 1, search_options)
        out.show(varied, output_options, terminal.print_varied)
        return
    report, _ = collect_report(task, training_options, output_options, SWEPT, 1, search_options)
    out.show(report, output_options, terminal.print_sweep)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(cls=TaskCommand)(sweep)
