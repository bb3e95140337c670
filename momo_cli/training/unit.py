"""A unit of work: some runs that one process trains, together where that works, else one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.runs import Run
from momo_cli.task.loading import TaskSource
from momo_cli.training.single import Watch, train_run
from momo_cli.training.stack import CannotStack
from momo_cli.training.together import train_together


def train_unit(
    source: TaskSource,
    specs: Sequence[RunSpec],
    settings: Settings,
    device: torch.device,
    together: int,
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[RunSpec, Run]]:
    """Train ``specs`` and give each as it ends, at most ``together`` of them at once.

    Where a stack runs out of memory it is halved; where it can't be trained, its runs are trained one by one. Either is
    said in one line.

    Raises:
        UserError: The task or the settings are wrong in a way that no run can mend.
    """
    waiting = list(specs)
    while waiting:
        chunk = waiting[: max(1, together)]
        if len(chunk) == 1:
            yield chunk[0], train_run(source, chunk[0], settings, device, watch)
            del waiting[0]
            continue
        try:
            for spec, run in train_together(source, chunk, settings, device, watch):
                waiting.remove(spec)
                yield spec, run
        except CannotStack as reason:
            say(f"These runs can't be trained together: {reason}. Training them one after another.")
            together = 1
        except torch.OutOfMemoryError:
            together = max(1, len(chunk) // 2)
            torch.cuda.empty_cache()
            say(f"Out of memory with {len(chunk)} runs together: going on with {together}.")
