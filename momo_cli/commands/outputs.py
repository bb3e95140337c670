"""From a report to the screen and to every file that the command line names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momo_cli.commands.options import OutputOptions
from momo_cli.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from momo_cli.report import Report


def consoles(outputs: OutputOptions) -> tuple[Console, Console]:
    """Where results go and where progress and notes go."""
    from rich.console import Console

    notes = Console(stderr=True, quiet=outputs.quiet, highlight=False)
    return (Console(stderr=True, highlight=False) if outputs.to_stdout else Console(highlight=False)), notes


def check(outputs: OutputOptions) -> None:
    """Find a wrong output file before anything is trained.

    Raises:
        UserError: Two formats want stdout, a folder isn't there, or a plot can't be made.
    """
    if [outputs.json, outputs.csv, outputs.markdown].count("-") > 1:
        raise UserError("Only one of --json, --csv and --markdown can be '-'; give the others a file.")
    for flag in ("json", "csv", "markdown", "plot", "report"):
        file = getattr(outputs, flag)
        if file is not None and str(file) != "-" and not Path(file).absolute().parent.is_dir():
            raise UserError(f"--{flag} {file}: there is no folder {str(Path(file).parent)!r}.")
        if file is not None and str(file) != "-":
            setattr(outputs, flag, type(file)(Path(file).absolute()))  # a task's own code may change the folder
    if outputs.plot is not None or outputs.report is not None:
        from momo_cli.report import plot

        plot.check(outputs.plot, outputs.plot_kind)


def show(report: Report, outputs: OutputOptions, view: Callable[[Report, Any], None]) -> None:
    """Print ``report`` with ``view`` and write the files asked for; each is written, whatever becomes of the others.

    Raises:
        UserError: Some can't be written (exit code 1).
    """
    screen, notes = consoles(outputs)
    failed = []
    for make in (lambda: view(report, screen), *_files(report, outputs, notes)):
        try:
            make()
        except UserError as error:
            failed.append(str(error))
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            failed.append(f"An output can't be written: {error}.")
    if failed:
        raise UserError("\n".join(failed[:3]), code=1)


def _files(report: Report, outputs: OutputOptions, notes: Console) -> Iterator[Callable[[], None]]:
    def json_file(file: str) -> None:
        import json

        from momo_cli.report import document

        _write(file, json.dumps(document.to_json(report), indent=1) + "\n")

    def markdown_file(file: str) -> None:
        from momo_cli.report import markdown

        _write(file, markdown.render(report))

    def plot_file(file: Path) -> None:
        from momo_cli.report import plot

        beside = file.with_name(f".{file.stem}.part{file.suffix}")
        try:
            plot.save(report, beside, kind=outputs.plot_kind)
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)
        notes.print(f"Plot: {file}", markup=False)

    def html_file(file: Path) -> None:
        from momo_cli.report import html

        _write(str(file), html.render(report))
        notes.print(f"Report: {file}", markup=False)

    if outputs.json:
        yield lambda: json_file(outputs.json or "")
    if outputs.csv:
        yield lambda: write_csv(report, outputs.csv or "")
    if outputs.markdown:
        yield lambda: markdown_file(outputs.markdown or "")
    if outputs.plot:
        yield lambda: plot_file(outputs.plot or Path())
    if outputs.report:
        yield lambda: html_file(outputs.report or Path())


def one_document(outputs: OutputOptions, tasks: int) -> None:
    """Refuse to write the reports of several tasks to one file.

    Raises:
        UserError: There are several tasks and a file.
    """
    for flag in ("json", "csv", "markdown", "plot", "report"):
        if tasks > 1 and getattr(outputs, flag) is not None:
            raise UserError(
                f"--{flag} holds one task's report, and {tasks} tasks were given: compare them one at a time."
            )


def write_csv(report: Report, file: str) -> None:
    """Write the report's runs as CSV."""
    import io

    from momo_cli.report import csv

    buffer = io.StringIO()
    csv.write(report, buffer)
    _write(file, buffer.getvalue())


def _write(file: str, text: str) -> None:
    if file == "-":
        sys.stdout.write(text)
    else:
        path = Path(file)
        if path.exists() and not path.is_file():  # a device or a pipe
            beside = path
        else:
            path = path.resolve()  # what a link names, not the link
            beside = path.with_name(f".{path.name[:200]}.part")
        try:
            beside.write_text(text, encoding="utf-8")
            if beside != path:
                beside.replace(path)
        except OSError as error:
            if beside != path:
                beside.unlink(missing_ok=True)
            raise UserError(f"{file} can't be written: {error.strerror}.", code=1) from None
