"""The live display of training, on a terminal's stderr: runs done, the current runs' loss, time left."""

from __future__ import annotations

import io
import time
from html import escape
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from momo_cli.plan.grid import RunSpec
from momo_cli.runs import Run

_REDRAWN = 0.25  # seconds between two pictures in a notebook
_SHOWN = 6  # current runs with a line of their own


class LiveDisplay:
    """Shows training as it goes on; use as a context manager around it.

    Args:
        console: Where to draw; nothing is drawn unless it is a terminal, lines said are printed all the same.
        task: The task's name.
    """

    def __init__(self, console: Console, task: str) -> None:
        self.console, self.task = console, task
        self.done = self.reused = self.total = 0
        self._current: dict[RunSpec, tuple[int, int, float]] = {}
        self._marks = {"diverged": 0, "failed": 0, "pruned": 0}
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[runs]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._doing = ""
        self._live: Live | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def started(self, specs: list[RunSpec], reused: int) -> None:
        """Begin to draw, or count further runs in."""
        self.total, self.reused = self.total + len(specs), self.reused + reused
        if self._row is None:
            self._row = self._bar.add_task(self.task, total=self.total, runs=self._counts())
        self._bar.update(self._row, total=self.total)
        self._show()

    def doing(self, what: str) -> None:
        """Show what is done while no run is trained."""
        self._doing = what
        self._show()

    def advanced(self, spec: RunSpec, step: int, steps: int, loss: float) -> None:
        """Show where a run is."""
        self._doing = ""
        self._current[spec] = (step, steps, loss)
        self._draw()

    def finished(self, spec: RunSpec, run: Run) -> None:
        """Count a run that has ended."""
        self._doing = ""
        self._current.pop(spec, None)
        self.done += 1
        if run.status in self._marks:
            self._marks[run.status] += 1
        self._draw()

    def lost(self, runs: int) -> None:
        """Count out runs that could not be stored."""
        self.done -= runs

    def said(self, line: str) -> None:
        """Print a line above the display."""
        self.console.print(Text(line), soft_wrap=True)

    def __rich__(self) -> Group:
        lines = [
            Text(
                f"  {spec.optimizer.label}  lr {spec.lr:.4g}  seed {spec.seed}  step {step}/{steps}  loss {loss:.4g}",
                style="dim",
                no_wrap=True,
                overflow="ellipsis",
            )
            for spec, (step, steps, loss) in list(self._current.items())[:_SHOWN]
        ]
        if len(self._current) > _SHOWN:
            lines.append(Text(f"  … and {len(self._current) - _SHOWN} more beside them", style="dim"))
        if self._doing:
            lines.append(Text(f"  {self._doing} …", style="dim"))
        return Group(self._bar, *lines)

    def _show(self) -> None:
        if self.console.is_terminal and not self.console.quiet and self._live is None:
            self._live = Live(self, console=self.console, refresh_per_second=8, transient=True)
            self._live.start()

    def _draw(self) -> None:
        partly = sum(step / steps for step, steps, _ in self._current.values())
        assert self._row is not None
        self._bar.update(self._row, completed=self.done + partly, runs=self._counts())

    def _counts(self) -> str:
        marks = ", ".join(f"{count} {status}" for status, count in self._marks.items() if count)
        return f"{self.done}/{self.total} runs" + (f" ({marks})" if marks else "")


class NotebookDisplay(LiveDisplay):
    """The same in the output of a notebook's cell."""

    _handle: Any = None
    _drawn = 0.0

    def __exit__(self, *exception: object) -> None:
        self._show()

    def _draw(self) -> None:
        super()._draw()
        if time.monotonic() - self._drawn > _REDRAWN:
            self._show()

    def _show(self) -> None:
        from IPython.display import HTML, display  # type: ignore[import-not-found, unused-ignore]

        self._drawn = time.monotonic()
        console = Console(file=io.StringIO(), width=100, color_system=None, force_jupyter=False)
        with console.capture() as captured:
            console.print(self)
        picture = HTML(f"<pre>{escape(captured.get().rstrip())}</pre>")
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)


def display(task: str, shown: bool) -> LiveDisplay:
    """The display for Python: in a notebook's cell, on a terminal, or, unless it is to be shown, nowhere."""
    if not shown:
        return LiveDisplay(Console(stderr=True, quiet=True), task)
    console = Console(stderr=True, highlight=False)
    return (NotebookDisplay if console.is_jupyter else LiveDisplay)(console, task)
