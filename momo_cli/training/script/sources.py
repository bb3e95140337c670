"""Where a script's numbers are read: the log, ``--read``, ``--read-file``, JSON lines; the first one used counts."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from momo_cli.errors import UserError
from momo_cli.training.script.reports import Reports

RESTARTED = '{"momo": "restarted"}'
"""The line that is put between the output of a script that was interrupted and that of its next start."""

_CHUNK = 1 << 20
_LONGEST = 1 << 20  # bytes of a line; a longer one holds no report
_RESTING = 20  # times what reading a file took, until it is read again
_VALUE, _GROUPS = "val_loss", ("value", "step", "loss")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the command line says that numbers are read.

    Attributes:
        pattern: ``--read``: searched in each line of the output, with groups ``value`` or ``loss``, and ``step``.
        file: ``--read-file``, with placeholders.
        objective: ``--objective``: the name of the group ``value``, by default ``val_loss``.
    """

    pattern: str | None = None
    file: str | None = None
    objective: str | None = None

    def check(self) -> None:
        """Find what is wrong with the pattern.

        Raises:
            UserError: It is no regular expression, or has none of the groups.
        """
        if self.pattern is None:
            return
        help_ = r"For instance --read 'step (?P<step>\d+) val (?P<value>\S+)'"
        try:
            groups = set(re.compile(self.pattern).groupindex)
        except re.error as error:
            raise UserError(f"--read {self.pattern!r} is no regular expression: {error}.\n{help_}") from None
        if not groups & {"value", "loss"} or groups - set(_GROUPS):
            raise UserError(
                f"--read {self.pattern!r}: its named groups must be value or loss, and perhaps step.\n{help_}"
            )


class Source(Protocol):
    """One of the ways to report.

    Attributes:
        way: Its name, for the user.
        reports: What was reported so far.
    """

    way: str
    reports: Reports

    def read(self, ended: bool) -> None:
        """Take what has come since the last call; ``ended``: nothing more will come."""


def sources(reading: Reading, log: Path, output: list[Path], file: Path | None) -> list[Source]:
    """The ways to report, in the order in which they count.

    Args:
        reading: The command line's.
        log: What ``momo_cli.log`` writes.
        output: What the script prints.
        file: ``--read-file`` of this run.
    """
    found: list[Source] = [Lines("momo_cli.log", [log], from_json)]
    if reading.pattern is not None:
        found.append(Lines("--read", output, _matching(re.compile(reading.pattern), reading.objective or _VALUE)))
    if file is not None:
        found.append(Table(file))
    if len(found) == 1:
        found.append(Lines("JSON lines", output, from_json))
    return found


class Lines:
    """Files that grow by lines, each of which may hold a report.

    Args:
        way: The name of this way.
        files: The files; they need not be there yet.
        parse: A line's numbers by name, or None.
    """

    def __init__(self, way: str, files: Iterable[Path], parse: Callable[[str], dict[str, float] | None]) -> None:
        self.way, self.reports = way, Reports()
        self._parse = parse
        self._tails = [_Tail(file) for file in files]

    def read(self, ended: bool) -> None:
        """Take the lines that have come."""
        for tail in self._tails:
            for line in tail.lines(ended):
                if line == RESTARTED:
                    self.reports.restart()
                elif record := self._parse(line):
                    self.reports.add(record)


class Table:
    """A CSV or JSON file that the script writes, as it grows or anew; one left by another run doesn't count."""

    way = "--read-file"

    def __init__(self, file: Path) -> None:
        self.reports = Reports()
        self._file = file
        self._stale = self._seen = self._state()
        self._next = 0.0

    def read(self, ended: bool) -> None:
        """Read the file again where it is another one."""
        state, begin = self._state(), time.monotonic()
        if state is None or state == self._stale or (not ended and (state == self._seen or begin < self._next)):
            return
        with self._file.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            text = file.read()
        self.reports = Reports()
        for record in records(text if ended else text[: text.rfind("\n") + 1]):
            self.reports.add(record)
        self._seen = state
        self._next = time.monotonic() + _RESTING * (time.monotonic() - begin)

    def _state(self) -> tuple[int, int] | None:
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size


def records(text: str) -> Iterator[dict[str, float]]:
    """The numbers of each row of a CSV table, of each JSON line, or of one JSON document (an object or a list of them).

    >>> list(records("step,loss,note\\n1,0.5,a\\n2,,b\\n"))
    [{'step': 1.0, 'loss': 0.5}, {'step': 2.0}]
    >>> list(records('{"step": 1, "loss": 0.5}\\n{"val_loss": 2}\\n'))
    [{'step': 1.0, 'loss': 0.5}, {'val_loss': 2.0}]
    """
    if text.lstrip()[:1] in ("{", "["):
        try:
            document = json.loads(text)
        except ValueError:
            yield from filter(None, map(from_json, text.splitlines()))
        else:
            yield from (_numbers(item) for item in (document if isinstance(document, list) else [document]))
        return
    for row in csv.DictReader(io.StringIO(text, newline="")):
        numbers = {}
        for name, cell in row.items():
            if isinstance(name, str) and isinstance(cell, str):
                try:
                    numbers[name.strip()] = float(cell)
                except ValueError:
                    continue
        yield numbers


def from_json(line: str) -> dict[str, float] | None:
    """The numbers of a line that is a JSON object."""
    line = line.strip()
    if not (line.startswith("{") and line.endswith("}")):
        return None
    try:
        return _numbers(json.loads(line))
    except ValueError:
        return None


def _numbers(item: Any) -> dict[str, float]:
    if not isinstance(item, dict):
        return {}
    numbers = {n: float(v) for n, v in item.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if isinstance(item.get("rank"), str):  # momo_cli.log's own
        numbers["rank"] = float(item["rank"])
    return numbers


def _matching(pattern: re.Pattern[str], value: str) -> Callable[[str], dict[str, float] | None]:
    names = {"value": value}

    def parse(line: str) -> dict[str, float] | None:
        match = pattern.search(line)
        if match is None:
            return None
        numbers = {}
        for group, text in match.groupdict().items():
            if text is not None:
                try:
                    numbers[names.get(group, group)] = float(text)
                except ValueError:
                    continue
        return numbers

    return parse


class _Tail:
    """The lines of a file that grows; also a carriage return ends one, as in a progress bar."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._place = 0
        self._rest = b""

    def lines(self, ended: bool) -> Iterator[str]:
        """The lines completed since the last call, and where it ``ended`` what is left."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._place)
                while chunk := file.read(_CHUNK):
                    self._place += len(chunk)
                    text = (self._rest + chunk).replace(b"\r", b"\n")
                    complete, _, self._rest = text.rpartition(b"\n")
                    self._rest = self._rest[-_LONGEST:]
                    if complete:
                        yield from complete.decode("utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return
        if ended and self._rest:
            yield self._rest.decode("utf-8", errors="replace")
            self._rest = b""
