"""The view of ``momo list``: the stored studies, the latest last."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from momo_cli.plan.settings import Settings
from momo_cli.store import StudyInfo


def print_studies(studies: list[StudyInfo], console: Console) -> None:
    """One row a study: task, runs, objective, settings, the study's name and when it was last used."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "runs", "objective", "settings", "study", "last used"):
        table.add_column(
            heading, justify="right" if heading == "runs" else "left", overflow="fold", no_wrap=heading == "study"
        )
    for info in studies:
        search = {name: value for name, value in (info.key.get("search") or {}).items() if value and value != "none"}
        given = {**info.key["set"], **Settings.given(info.key["settings"]), **search}
        shown = ", ".join(f"{name}={value}" for name, value in given.items() if name != "objective")
        # Text, not str: a task's name may hold what rich would read as markup.
        cells = (
            info.task,
            str(info.runs),
            info.objective,
            shown or "defaults",
            info.name,
            info.latest[:16].replace("T", " "),
        )
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
