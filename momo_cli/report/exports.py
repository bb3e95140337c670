"""The formats in which a report is written to a file: one entry each, which options, checks and writing go through."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from momo_cli.errors import UserError

if TYPE_CHECKING:
    from momo_cli.report import Report
    from momo_cli.report.varied import VariedReport


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a report is to be written, and how.

    Attributes:
        file: The file as typed; ``-`` for stdout.
        plot_kind: ``--plot-kind``, or None for the report's own.
        path: The file in full: a task's own code may change the folder before it is written.
    """

    file: str
    plot_kind: str | None = None
    path: Path = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.file).absolute())

    @property
    def is_stdout(self) -> bool:
        """Whether it is stdout and no file."""
        return self.file == "-"


class Renderer(Protocol):
    """The module of a format. It may also have ``check(target)``, which raises UserError before anything is trained."""

    def render(self, report: Report | VariedReport, target: Target) -> str | bytes:
        """The file's content.

        Raises:
            UserError: The report can't be written so.
        """


@dataclasses.dataclass(frozen=True)
class Format:
    """A format: the option ``--name`` takes a file, and ``module`` writes it.

    Attributes:
        name: The option's name, without dashes.
        metavar: What stands for its value in the help; with ``-`` in it, the format can go to stdout.
        help: The option's help.
        module: A :class:`Renderer`, imported when the format is asked for.
        announced: Whether a line on stderr says that the file was written.
    """

    name: str
    metavar: str
    help: str
    module: str
    announced: bool = False

    @property
    def to_stdout(self) -> bool:
        """Whether it can go to stdout."""
        return self.metavar.endswith("-")

    def check(self, target: Target) -> None:
        """Find out before any training whether the file can be written.

        Raises:
            UserError: It can't.
        """
        if target.is_stdout and not self.to_stdout:
            raise UserError(f"--{self.name} -: this format can't go to stdout. Give it a file.")
        if not target.is_stdout and not target.path.parent.is_dir():
            raise UserError(f"--{self.name} {target.file}: there is no folder {str(Path(target.file).parent)!r}.")
        try:
            if not target.is_stdout:
                target.path.lstat()
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"--{self.name} {target.file[:100]}: no file can be written there: {why}.") from None
        if not target.is_stdout and target.path.is_dir():
            raise UserError(f"--{self.name} {target.file} is a folder. Name a file in it.")
        check = getattr(self._renderer(), "check", None)
        if check is not None:
            check(target)

    def write(self, report: Report | VariedReport, target: Target) -> None:
        """Write ``report``.

        Raises:
            UserError: The report holds nothing to show so, or the file can't be written (exit code 1).
        """
        content = self._renderer().render(report, target)
        if target.is_stdout:
            try:
                sys.stdout.write(content if isinstance(content, str) else content.decode())
                sys.stdout.flush()
            except BrokenPipeError:
                raise
            except (OSError, ValueError, AttributeError) as error:  # the disk behind it is full, or it is closed
                raise UserError(f"stdout can't be written: {getattr(error, 'strerror', None) or error}.", 1) from None
            return
        path = target.path.resolve()  # what a link names, not the link
        beside = path.with_name(f".{path.name[:200]}.part") if path.is_file() or not path.exists() else path
        try:
            # Not as text: a table's line ends are its own.
            beside.write_bytes(content if isinstance(content, bytes) else content.encode())
            if beside != path:
                beside.replace(path)
        except OSError as error:
            if beside != path:
                beside.unlink(missing_ok=True)
            raise UserError(f"{target.file} can't be written: {error.strerror}.", code=1) from None

    def _renderer(self) -> Renderer:
        return cast(Renderer, importlib.import_module(self.module))


FORMATS = (
    Format("json", "FILE|-", "Everything as JSON; - writes JSON alone to stdout.", "momo_cli.report.document"),
    Format("csv", "FILE|-", "The runs as CSV.", "momo_cli.interchange.writing"),
    Format("markdown", "FILE|-", "The tables as Markdown.", "momo_cli.report.markdown"),
    Format("plot", "FILE", "The plot as .png, .svg or .pdf (extra 'plot').", "momo_cli.report.plot", announced=True),
    Format("report", "FILE.html", "All of it in one HTML file (extra 'plot').", "momo_cli.report.html", announced=True),
)
