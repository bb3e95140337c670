"""``momo check``: is the task what it is meant to be?"""

from __future__ import annotations

from typing import Annotated

import typer

from momo_cli.commands.options import TaskArgument, TaskCommand, TaskOptions, with_options
from momo_cli.errors import UserError
from momo_cli.plan import RunSpec
from momo_cli.script_experiment import ScriptExperiment
from momo_cli.store import Store
from momo_cli.training.script import Command
from momo_cli.user_code import OURS, UserCodeError

_OF_SCRIPT = "Of a training script's one run."


@with_options(TaskOptions)
def check(
    task: TaskArgument,
    task_options: TaskOptions,
    optimizer: Annotated[str | None, typer.Option("-o", "--optimizer", metavar="NAME", help=_OF_SCRIPT)] = None,
    lrs: Annotated[float | None, typer.Option(metavar="LR", help=_OF_SCRIPT)] = None,
) -> None:
    """Run a few steps of TASK, or a training script once, and report what was seen: sizes, losses, time, memory.

    [bold]Examples[/bold]

      momo check mymodule:build

      momo check --lrs 0.01 -- python train.py --lr {lr}
    """
    from rich.console import Console

    from momo_cli.report import inspected
    from momo_cli.training import cpu
    from momo_cli.training.devices import parse_devices
    from momo_cli.training.inspection import inspect_task

    source = task_options.source(task)
    if isinstance(source, Command):
        _check_script(source, task_options, optimizer, lrs)
        return
    if optimizer is not None or lrs is not None or task_options.timeout is not None:
        raise UserError("momo check takes --optimizer, --lrs and --timeout for a training script alone.")
    device = parse_devices(task_options.device)[0]
    cpu.prepare(device)  # as in training
    try:
        seen = inspect_task(source, task_options.asked().settings(), device)
    except (UserCodeError, *OURS):
        raise
    except BaseException as error:
        raise UserCodeError(source.name, error) from error
    inspected.print_inspection(source.name, seen, Console(highlight=False))


def _check_script(command: Command, options: TaskOptions, optimizer: str | None, lr: float | None) -> None:
    """Run the script once, store nothing, and show what it reported."""
    from rich.console import Console

    from momo_cli.report import inspected
    from momo_cli.training.script.inspection import inspect_script

    experiment = options.asked().experiment(command, Store())
    assert isinstance(experiment, ScriptExperiment)
    chosen = experiment.optimizers([optimizer] if optimizer else [])[0]
    spec = RunSpec(chosen, chosen.default_lr if lr is None else lr, 0)
    experiment.check_optimizers([spec])
    console = Console(highlight=False)
    console.print(f"Running {command.name} once, {chosen.label} at a learning rate of {spec.lr:g} …")
    seen = inspect_script(command, experiment.reading, experiment.limits(), spec)
    inspected.print_script(command.name, seen, console)
    if seen.run.status == "failed":
        raise UserError("The script failed; its error stands above.", code=1)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(cls=TaskCommand)(check)
