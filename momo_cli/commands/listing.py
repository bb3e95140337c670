"""``momo list``: what is stored."""

from __future__ import annotations

import sys

import typer

from momo_cli.commands.options import StorageOption
from momo_cli.errors import printable
from momo_cli.store import DEFAULT_URL, Store


def list_(storage: StorageOption = DEFAULT_URL) -> None:
    """Show the stored tasks and their runs.

    [bold]Example[/bold]

      momo list
    """
    from rich.console import Console

    from momo_cli.report import stored

    store = Store(storage)
    studies = store.studies()
    console = Console(highlight=False)
    for name in store.unreadable():
        print(f"Skipped: the study {printable(name)} can't be read.", file=sys.stderr)
    if not studies:
        line = f"No runs are stored in {store.url}. Begin with: momo sweep digits-mlp"
        console.print(line, soft_wrap=True, markup=False)
        return
    stored.print_studies(studies, console)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("list")(list_)
