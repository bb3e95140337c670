"""The view of ``momo list``: the stored studies, the latest last."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from momo_cli.plan.settings import Settings
from momo_cli.store import StudyInfo


def print_studies(studies: list[StudyInfo], console: Console) -> None:
    """Each study's task, runs, objective, settings, name and last use: a row each, or lines where that is too wide."""
    headings = ("task", "runs", "objective", "settings", "study", "last used")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading == "runs" else "left", no_wrap=True)
    rows = [_row(info) for info in studies]
    for row in rows:
        # Text, not str: a task's name may hold what rich would read as markup.
        table.add_row(*map(Text, row))
    if Measurement.get(console, console.options.update_width(10_000), table).maximum <= console.width:
        console.print(table)
        return
    for row in rows:
        console.print(Text(row[0], style="bold"), soft_wrap=True)
        for heading, cell in zip(headings[1:], row[1:]):
            console.print(Text(f"  {heading}: {cell}"), soft_wrap=True)


def _row(info: StudyInfo) -> tuple[str, ...]:
    search = {name: value for name, value in (info.key.get("search") or {}).items() if value and value != "none"}
    given = {**info.key["set"], **Settings.given(info.key["settings"]), **search}
    shown = ", ".join(f"{name}={value}" for name, value in given.items() if name != "objective")
    return (
        info.task,
        str(info.runs),
        info.objective,
        shown or "defaults",
        info.name,
        info.latest[:16].replace("T", " "),
    )
