"""``momo list``: what is stored."""

from __future__ import annotations

import typer

from momo_cli.commands.options import StorageOption
from momo_cli.store import DEFAULT_URL, Store


def list_(storage: StorageOption = DEFAULT_URL) -> None:
    """Show the stored tasks and their runs.

    [bold]Example[/bold]

      momo list
    """
    from rich.console import Console

    from momo_cli.report import stored

    studies = Store(storage).studies()
    console = Console(highlight=False)
    if not studies:
        console.print(f"No runs are stored in {storage}. Begin with: momo sweep digits-mlp", soft_wrap=True)
        return
    stored.print_studies(studies, console)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("list")(list_)
