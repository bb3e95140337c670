"""Worker processes: each trains units on its own device or core, and the parent hears of every run as it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
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
from momo_cli.training.checkpoints import Checkpoints
from momo_cli.training.dispatch.candidates import Resources
from momo_cli.training.dispatch.units import Units
from momo_cli.training.evaluation import Initial
from momo_cli.training.run.record import Watch

_PATIENCE = 1.0  # seconds a worker has to end by itself
_SIGN = 0.5  # seconds between the signs that a worker takes steps


@dataclasses.dataclass
class _Worker:
    device: str
    process: Any
    connection: Connection
    unfinished: list[RunSpec] = dataclasses.field(default_factory=list)
    idle: bool = True
    together: Sequence[RunSpec] = ()  # what it trains at this time
    began: float = 0.0
    heard_of: float = 0.0
    late: str = ""  # why it is ended
    at: str = ""  # where its code was then

    def limit(self, timeout: float) -> float:
        """When it is to be ended; never where it is at nothing, or has been ended."""
        if self.late or not self.together:
            return math.inf
        return min(self.began + timeout * len(self.together), self.heard_of + timeout)


class Workers:
    """Worker processes; none outlives :meth:`close`.

    Args:
        source: The task, built in the workers.
        settings: As for a single run.
        resources: Devices, the time a run may take, checkpoints.
        processes: How many workers.
        watch: Told of each run's progress here, in the parent; what it returns goes back to the worker.
        say: Takes lines for the user.
    """

    def __init__(
        self,
        source: TaskSource,
        settings: Settings,
        resources: Resources,
        processes: int,
        watch: Watch,
        say: Callable[[str], None],
    ) -> None:
        self._source, self._settings, self._resources = source, settings, resources
        self._watch, self._say = watch, say
        self._free_devices = [str(resources.devices[i % len(resources.devices)]) for i in range(processes)]
        self._workers: list[_Worker] = []
        self._initials: dict[int, Initial] = {}

    def close(self) -> None:
        """End all processes."""
        processes.end([worker.process for worker in self._workers])

    def train(self, units: Units, together: int) -> Iterator[tuple[RunSpec, Run]]:
        """Train every unit, each in the next worker that is free; yield each run as it ends.

        A worker that dies has its runs trained once more, one by one; a run whose worker dies then is ``failed``. So is
        one that takes longer than the time it may take, of a stack's time its share. A worker that takes no step for so
        long is ended as if it had died.

        Args:
            units: Runs that one worker trains in one go.
            together: At most this many runs of a unit at once.

        Raises:
            UserError: The task or the settings are wrong in a way that no run can mend.
        """
        again: deque[RunSpec] = deque()
        suspects: set[RunSpec] = set()
        wrong: list[UserError] = []
        sound = False  # whether a run of this task has ended otherwise than by an error
        self._give(units, together, again)
        while busy := [worker for worker in self._workers if not worker.idle]:
            for connection in wait([worker.connection for worker in busy], self._end_late(busy)):
                worker = next(worker for worker in busy if worker.connection is connection)
                try:
                    kind, *content = worker.connection.recv()
                except (EOFError, OSError):
                    yield from self._bury(worker, again, suspects)
                    continue
                worker.heard_of = time.monotonic()
                if kind == "advanced":
                    with contextlib.suppress(BrokenPipeError):  # it is being ended
                        worker.connection.send(self._watch(*content))
                elif kind == "began":
                    (worker.together,) = content
                    worker.began = worker.heard_of
                elif kind == "said":
                    self._say(*content)
                elif kind == "wrong":
                    wrong.append(UserError(*content))
                    # One seed's data may be wrong alone; a task that is wrong is so in every worker.
                    if not sound and (len(busy) == 1 or len(wrong) > len(self._workers)):
                        raise wrong[0]
                    yield from self._bury(worker, again, suspects, " ".join(str(wrong[-1]).splitlines()))
                elif kind == "ended":
                    spec, run, initials = content
                    self._initials |= initials
                    worker.unfinished.remove(spec)
                    sound |= run.status != "failed"
                    yield spec, run
                elif kind == "told to end":
                    (worker.at,) = content
                elif kind == "idle":
                    worker.idle, worker.together = True, ()
            # Runs that a dead worker left behind may come when the others are idle already.
            self._give(units, together, again)

    def _end_late(self, busy: Sequence[_Worker]) -> float | None:
        """End workers that are late; returns the seconds until the next one will be."""
        timeout = self._resources.timeout
        if timeout is None:
            return None
        now = time.monotonic()
        for worker in busy:
            if worker.limit(timeout) <= now:
                own = len(worker.together) == 1 or now - worker.began > timeout * len(worker.together)
                worker.late = "run" if own else "step"
                processes.end([worker.process])
        first = min(worker.limit(timeout) for worker in busy)
        return None if math.isinf(first) else max(0.0, first - now)

    def _give(self, units: Units, together: int, again: deque[RunSpec]) -> None:
        """Give work to every worker that is idle, and to new ones while there are devices for them."""
        while True:
            idle = next((worker for worker in self._workers if worker.idle), None)
            if idle is None and not self._free_devices:
                return
            specs, most = ([again.popleft()], 1) if again else (units.next(), together)
            if not specs:
                return
            worker = idle or self._start()
            worker.idle, worker.unfinished = False, list(specs)
            worker.connection.send((specs, most, self._initials))

    def _start(self) -> _Worker:
        # Not a daemon: the user's DataLoader may have workers of its own. It ends with its parent all the same, when
        # the pipe that it listens to is closed.
        device = self._free_devices.pop(0)
        arguments = (self._source, self._settings, device, self._resources.checkpoints)
        self._workers.append(_Worker(device, *processes.start(_work, *arguments, copied=device == "cpu")))
        return self._workers[-1]

    def _bury(
        self, worker: _Worker, again: deque[RunSpec], suspects: set[RunSpec], said: str = ""
    ) -> Iterator[tuple[RunSpec, Run]]:
        """Take the runs of a worker that has died: to be trained again, alone, or failed where they were alone.

        Args:
            worker: The worker.
            again: Runs to be trained again; is added to.
            suspects: Runs that a worker died of, perhaps; is added to.
            said: What it said of its end.
        """
        worker.process.join(_PATIENCE)
        worker.connection.close()
        self._workers.remove(worker)
        self._free_devices.append(worker.device)
        if worker.late == "step":
            self._say(
                f"{len(worker.together)} runs together took no step for {self._resources.timeout:g} s: one by one."
            )
        for spec in worker.unfinished:
            if worker.late == "run" and spec in worker.together:
                seconds = (time.monotonic() - worker.began) / len(worker.together)
                error = f"{worker.at}\nEnded after --timeout {self._resources.timeout:g} s.".strip()
                yield spec, spec.result(status="failed", error=error, seconds=seconds)
            elif spec in suspects:
                code = worker.process.exitcode
                error = said or (
                    f"The worker process died while it trained this run alone "
                    f"(exit code {code}; -9 often means out of memory)."
                )
                yield spec, spec.result(status="failed", error=error)
            else:
                suspects.add(spec)
                again.append(spec)


def _work(
    connection: Connection, source: TaskSource, settings: Settings, device_name: str, checkpoints: Checkpoints
) -> None:
    import torch

    from momo_cli.training import cpu
    from momo_cli.training.dispatch.trainer import Trainer
    from momo_cli.user_code import user_frames

    device = torch.device(device_name)
    cpu.prepare(device)

    def watch(spec: RunSpec, step: int, steps: int, loss: float) -> bool:
        connection.send(("advanced", spec, step, steps, loss))
        return bool(connection.recv())

    told = 0.0

    def steps() -> None:
        nonlocal told
        if time.monotonic() - told > _SIGN:
            told = time.monotonic()
            connection.send(("stepping",))

    trainer = Trainer(
        source,
        settings,
        device,
        watch,
        say=lambda line: connection.send(("said", line)),
        checkpoints=checkpoints,
        begins=lambda specs: connection.send(("began", specs)),
        steps=steps,
    )
    try:
        while True:
            specs, together, initials = connection.recv()
            trainer.initials |= initials
            for spec, run in trainer.train(specs, together):
                connection.send(("ended", spec, run, trainer.initials))
            connection.send(("idle",))
    except UserError as error:
        connection.send(("wrong", str(error), error.code))
    except processes.Ended as error:
        connection.send(("told to end", user_frames(error).rpartition("\n")[0]))
        raise
    except (EOFError, BrokenPipeError):
        pass
