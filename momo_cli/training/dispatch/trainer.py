"""The trainer: trains the runs that one process holds, together where that works, else one after another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from momo_cli.errors import UserError
from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.process_state import channels, restored
from momo_cli.runs import Run
from momo_cli.task.definition import Builds
from momo_cli.training.checkpoints import NOWHERE, Checkpoints, Keeper
from momo_cli.training.evaluation import Initial
from momo_cli.training.run.record import Watch
from momo_cli.training.run.training_run import train_run
from momo_cli.training.stack.loop import train_stack
from momo_cli.training.stack.models import CannotStack
from momo_cli.user_code import UserCodeError


class Trainer:
    """Trains runs of one task in this process.

    Args:
        source: Builds the task.
        settings: As for a single run.
        device: Where they are trained.
        watch: Told of each run's progress; True stops that run as pruned.
        say: Takes lines for the user.
        checkpoints: Of runs under way.
        begins: Told of the runs that are begun together.
        steps: Called before each step.

    Attributes:
        initials: ℓ0 of each seed, as far as it is known.
    """

    def __init__(
        self,
        source: Builds,
        settings: Settings,
        device: torch.device,
        watch: Watch | None = None,
        say: Callable[[str], None] = lambda line: None,
        checkpoints: Checkpoints = NOWHERE,
        begins: Callable[[Sequence[RunSpec]], None] = lambda specs: None,
        steps: Callable[[], None] = lambda: None,
    ) -> None:
        self.source, self.settings, self.device, self.say = source, settings, device, say
        self.watch = None if watch is None else _with_channels(watch)
        self.checkpoints, self.begins, self.steps = checkpoints, begins, steps
        self.initials: dict[int, Initial] = {}
        self._sound = False  # whether a run of this task has ended otherwise than by an error

    def train(self, specs: Sequence[RunSpec], together: int) -> Iterator[tuple[RunSpec, Run]]:
        """Train ``specs``, at most ``together`` of them at once, and yield each as it ends.

        Where a stack runs out of memory it is halved; where it can't be trained, its runs are trained one by one.
        Either is said in one line.

        Raises:
            UserError: The task or the settings are wrong in a way that no run can mend.
        """
        waiting = list(specs)
        how = (self.settings, self.device, self.watch, self.initials)
        with contextlib.suppress(UserCodeError):  # building meets it again
            self.source.load()
        begun = self.checkpoints.find(waiting)
        while waiting:
            goes_on = begun.pop() if begun else None
            chunk = waiting[:together] if goes_on is None else list(goes_on.specs)
            keeper = Keeper(self.checkpoints.path(chunk), self.checkpoints.every, goes_on, self.say, self.steps)
            self.begins(chunk)
            if not (together > 1 if goes_on is None else goes_on.stacked):
                with restored():
                    run = self._alone(chunk[0], keeper)
                yield chunk[0], run
                waiting.remove(chunk[0])
                continue
            try:
                for spec, run in train_stack(self.source, chunk, *how, keeper):
                    self._sound = True
                    waiting.remove(spec)
                    yield spec, run
            except CannotStack as reason:
                self.say(f"These runs can't be trained together: {reason}. Training them one after another.")
                together = 1
            except torch.OutOfMemoryError:
                together = max(1, len(chunk) // 2)
                torch.cuda.empty_cache()
                self.say(f"Out of memory with {len(chunk)} runs together: going on with {together}.")

    def _alone(self, spec: RunSpec, keeper: Keeper) -> Run:
        """Train one run; what is wrong with it alone, its seed's data say, is no reason to refuse the task."""
        try:
            run = train_run(self.source, spec, self.settings, self.device, self.watch, self.initials, keeper)
        except UserError as error:
            if not self._sound:
                raise
            return spec.result(status="failed", error=" ".join(str(error).splitlines()))
        self._sound |= run.status != "failed"
        return run


def _with_channels(watch: Watch) -> Watch:
    """``watch``, with the process's output and its answer to Ctrl-C as they are now, whatever a run makes of them."""
    before = channels()

    def watched(spec: RunSpec, step: int, steps: int, loss: float) -> bool:
        before.restore()
        return watch(spec, step, steps, loss)

    return watched
