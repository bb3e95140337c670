"""``momo check``: is the task what it is meant to be?"""

from __future__ import annotations

import typer

from momo_cli.commands.options import TaskArgument, TaskOptions, with_options
from momo_cli.user_code import OURS, UserCodeError


@with_options(TaskOptions)
def check(task: TaskArgument, task_options: TaskOptions) -> None:
    """Run a few steps of TASK and report what was seen: sizes, losses, time, memory.

    [bold]Example[/bold]

      momo check mymodule:build
    """
    from rich.console import Console

    from momo_cli.report import inspected
    from momo_cli.training import cpu
    from momo_cli.training.devices import parse_devices
    from momo_cli.training.inspection import inspect_task

    source = task_options.source(task)
    device = parse_devices(task_options.device)[0]
    cpu.prepare(device)  # as in training
    try:
        seen = inspect_task(source, task_options.settings(), device)
    except (UserCodeError, *OURS):
        raise
    except BaseException as error:
        raise UserCodeError(source.name, error) from error
    inspected.print_inspection(source.name, seen, Console(highlight=False))


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(check)
