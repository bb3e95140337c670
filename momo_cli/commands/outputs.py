"""From a report to the screen and to every file that the command line names."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from momo_cli.commands.options import OutputOptions
from momo_cli.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from momo_cli.report import Report
    from momo_cli.report.varied import VariedReport

R = TypeVar("R", "Report", "VariedReport")


def consoles(outputs: OutputOptions) -> tuple[Console, Console]:
    """Where results go and where progress and notes go."""
    from rich.console import Console

    notes = Console(stderr=True, quiet=outputs.quiet, highlight=False)
    return (Console(stderr=True, highlight=False) if outputs.to_stdout else Console(highlight=False)), notes


@contextlib.contextmanager
def stdout_kept(outputs: OutputOptions) -> Iterator[None]:
    """Where a format takes stdout, what the task's code writes there goes to stderr, that of its processes, too."""
    if not outputs.to_stdout:
        yield
        return
    with contextlib.ExitStack() as kept, contextlib.redirect_stdout(sys.stderr):
        with contextlib.suppress(OSError):  # one of them is closed
            stdout = os.dup(1)
            kept.callback(os.close, stdout)
            kept.callback(os.dup2, stdout, 1)
            os.dup2(2, 1)
        yield


def check(outputs: OutputOptions, tasks: int = 1) -> None:
    """Find a wrong output file before anything is trained.

    Raises:
        UserError: A file can't be written, two formats want stdout, or a file is to hold several tasks' reports.
    """
    targets = outputs.targets
    if sum(target.is_stdout for _, target in targets) > 1:
        first, second = [form.name for form, target in targets if target.is_stdout][:2]
        raise UserError(f"Only one format can go to stdout: give --{first} or --{second} a file.")
    for form, target in targets:
        if tasks > 1:
            raise UserError(
                f"--{form.name} holds one task's report, and {tasks} tasks were given: compare them one at a time."
            )
        form.check(target)


def show(report: R, outputs: OutputOptions, view: Callable[[R, Console], None]) -> None:
    """Print ``report`` with ``view`` and write the files asked for, each whatever becomes of the others.

    Raises:
        UserError: Some can't be written.
    """
    screen, notes = consoles(outputs)
    view(report, screen)
    failed = []
    for form, target in outputs.targets:
        try:
            form.write(report, target)
        except UserError as error:
            failed.append(error)
            continue
        if form.announced:
            notes.print(f"{form.name.capitalize()}: {target.file}", markup=False)
    if failed:
        raise UserError("\n".join(map(str, failed)), max(error.code for error in failed))
