"""Worker processes: each trains units on its own device or core, and the parent hears of every run as it ends."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from momo_cli import processes
from momo_cli.errors import UserError
from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.runs import Run
from momo_cli.task.loading import TaskSource
from momo_cli.training.single import Watch

_PATIENCE = 1.0  # seconds a worker has to end by itself


@dataclasses.dataclass
class _Worker:
    process: Any
    connection: Connection
    unfinished: list[RunSpec] = dataclasses.field(default_factory=list)
    idle: bool = True


class Workers:
    """Worker processes, one for each device; use as a context manager: however it is left, no worker outlives it.

    Args:
        source: The task, built in the workers.
        settings: As for a single run.
        devices: A device for each worker.
    """

    def __init__(self, source: TaskSource, settings: Settings, devices: Sequence[str]) -> None:
        self._arguments = (source, settings)
        self._devices = devices
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        processes.end([worker.process for worker in self._workers])

    def train(
        self, units: Sequence[Sequence[RunSpec]], together: int, watch: Watch, say: Callable[[str], None]
    ) -> Iterator[tuple[RunSpec, Run]]:
        """Train every unit, each in the next worker that is free; give each run as it ends.

        A worker that dies has its runs trained once more, one by one; a run whose worker dies then is ``failed``.

        Args:
            units: Runs that one worker trains in one go.
            together: At most this many runs of a unit at once.
            watch: Called here, in the parent; its answer goes back to the worker.
            say: Takes lines for the user.

        Raises:
            UserError: The task or the settings are wrong in a way that no run can mend.
        """
        waiting = deque((list(unit), together) for unit in units)
        suspects: set[RunSpec] = set()
        while len(self._workers) < min(len(self._devices), len(waiting)):
            self._workers.append(self._start(self._devices[len(self._workers)]))
        self._give(waiting)
        while busy := [worker for worker in self._workers if not worker.idle]:
            for connection in wait([worker.connection for worker in busy]):
                index = next(i for i, worker in enumerate(self._workers) if worker.connection is connection)
                worker = self._workers[index]
                try:
                    kind, *content = worker.connection.recv()
                except (EOFError, OSError):
                    worker.process.join(_PATIENCE)
                    worker.connection.close()
                    self._workers[index] = self._start(self._devices[index])
                    yield from _after_death(worker, waiting, suspects)
                    continue
                if kind == "advanced":
                    worker.connection.send(watch(*content))
                elif kind == "said":
                    say(*content)
                elif kind == "wrong":
                    raise UserError(*content)
                elif kind == "ended":
                    spec, run = content
                    worker.unfinished.remove(spec)
                    yield spec, run
                else:
                    worker.idle = True
            # Runs that a dead worker left behind may come when the others are idle already.
            self._give(waiting)

    def _start(self, device: str) -> _Worker:
        # Not a daemon: the user's DataLoader may have workers of its own. It ends with its parent all the same, when the
        # pipe that it listens to is closed.
        return _Worker(*processes.start(_work, *self._arguments, device))

    def _give(self, waiting: deque[tuple[list[RunSpec], int]]) -> None:
        for worker in self._workers:
            if worker.idle and waiting:
                specs, together = waiting.popleft()
                worker.idle, worker.unfinished = False, list(specs)
                worker.connection.send((specs, together))


def _after_death(
    worker: _Worker, waiting: deque[tuple[list[RunSpec], int]], suspects: set[RunSpec]
) -> Iterator[tuple[RunSpec, Run]]:
    for spec in worker.unfinished:
        if spec in suspects:
            code = worker.process.exitcode
            error = f"The worker process died while it trained this run alone (exit code {code}; -9 often means out of memory)."
            yield spec, spec.result(status="failed", error=error)
        else:
            suspects.add(spec)
            waiting.append(([spec], 1))


def _work(connection: Connection, source: TaskSource, settings: Settings, device: str) -> None:
    import torch

    from momo_cli.training import cpu
    from momo_cli.training.unit import train_unit

    cpu.prepare(torch.device(device))

    def watch(spec: RunSpec, step: int, steps: int, loss: float) -> bool:
        connection.send(("advanced", spec, step, steps, loss))
        return bool(connection.recv())

    try:
        while True:
            specs, together = connection.recv()
            for spec, run in train_unit(
                source,
                specs,
                settings,
                torch.device(device),
                together,
                watch,
                lambda line: connection.send(("said", line)),
            ):
                connection.send(("ended", spec, run))
            connection.send(("idle",))
    except UserError as error:
        connection.send(("wrong", str(error), error.code))
    except (EOFError, BrokenPipeError):
        pass
