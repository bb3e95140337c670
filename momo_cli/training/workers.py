"""Worker processes: each trains units on its own device or core, and the parent hears of every run as it ends."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

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


def train_in_workers(
    units: Sequence[Sequence[RunSpec]],
    source: TaskSource,
    settings: Settings,
    devices: Sequence[str],
    together: int,
    threads: int,
    watch: Watch,
    say: Callable[[str], None],
) -> Iterator[tuple[RunSpec, Run]]:
    """Train every unit, each in the next worker that is free; give each run as it ends.

    Args:
        units: Runs that one worker trains in one go.
        source: The task, built in the workers.
        settings: As for a single run.
        devices: A device for each worker.
        together: At most this many runs of a unit at once.
        threads: CPU threads of a worker.
        watch: Called here, in the parent; its answer goes back to the worker.
        say: Takes lines for the user.

    A worker that dies has its runs trained once more, one by one; a run whose worker dies then is ``failed``.
    However this generator is left, no worker outlives it.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque((list(unit), together) for unit in units)
    suspects: set[RunSpec] = set()
    workers: list[_Worker] = []

    def start(device: str) -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, source, settings, device, threads), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def give(worker: _Worker) -> None:
        if worker.idle and waiting:
            specs, at_once = waiting.popleft()
            worker.idle, worker.unfinished = False, list(specs)
            worker.connection.send((specs, at_once))

    try:
        for device in devices[: len(waiting)]:
            workers.append(start(device))
            give(workers[-1])
        while busy := [worker for worker in workers if not worker.idle]:
            for connection in wait([worker.connection for worker in busy]):
                index = next(i for i, worker in enumerate(workers) if worker.connection is connection)
                worker = workers[index]
                try:
                    kind, *content = worker.connection.recv()
                except (EOFError, OSError):
                    worker.process.join(_PATIENCE)
                    yield from _after_death(worker, waiting, suspects)
                    worker.connection.close()
                    workers[index] = start(devices[index])
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
            for worker in workers:
                give(worker)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(_PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()


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


def _work(connection: Connection, source: TaskSource, settings: Settings, device: str, threads: int) -> None:
    # Ctrl-C reaches the whole group; the parent alone decides, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from momo_cli.training.unit import train_unit

    torch.set_num_threads(threads)

    def watch(spec: RunSpec, step: int, steps: int, loss: float) -> bool:
        connection.send(("advanced", spec, step, steps, loss))
        return bool(connection.recv())

    try:
        while True:
            specs, together = connection.recv()
            for spec, run in train_unit(
                source, specs, settings, torch.device(device), together, watch, lambda line: connection.send(("said", line))
            ):
                connection.send(("ended", spec, run))
            connection.send(("idle",))
    except UserError as error:
        connection.send(("wrong", str(error), error.code))
    except (EOFError, BrokenPipeError):
        pass
