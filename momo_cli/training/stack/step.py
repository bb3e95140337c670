"""One step of a stack: the forward and backward pass of all rows, and the optimizers of each group of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from momo_cli.plan.schedules import Schedule
from momo_cli.plan.settings import Settings
from momo_cli.training.evaluation import Losses
from momo_cli.training.run.record import ADAPTIVE_TERM, CAP, CAPPED, LOSS, STEP_SIZE
from momo_cli.training.stack.models import Stack
from momo_cli.training.stack.optimizers import Rows

_DIAGNOSTICS = {"capped": CAPPED, "step_size": STEP_SIZE, "cap": CAP, "adaptive_term": ADAPTIVE_TERM}


class Group(NamedTuple):
    """Neighbouring rows of the stack, the optimizer that updates them, and the schedule of their LRs."""

    optimizer: Rows
    start: int
    end: int
    schedule: Schedule = Schedule()


class Step:
    """Takes steps of a stack.

    Args:
        stack: The rows.
        groups: All of its rows, in order.
        settings: For clipping.
    """

    def __init__(self, stack: Stack, groups: Sequence[Group], settings: Settings) -> None:
        self.stack, self.groups, self.settings = stack, groups, settings

    def __call__(self, batches: Sequence[Any], factors: Sequence[float | torch.Tensor]) -> torch.Tensor:
        """One step.

        Args:
            batches: One for each seed, on the device.
            factors: What each group's LRs are multiplied by; on a GPU tensors, so that the step can be captured.

        Returns:
            Its report, ``[5, rows]`` in the order of the constants of ``run.record``; NaN where an optimizer has no
            such figure, and the losses alone, ``[1, rows]``, where none has.

        Raises:
            CannotStack: The batches or the gradients are of a kind that can't be stacked.
        """
        stack = self.stack
        losses, bounds = stack.gradients(batches)
        found: list[tuple[int, Group, torch.Tensor]] = []
        with torch.no_grad():
            if self.settings.clip is not None:
                # As torch.nn.utils.clip_grad_norm_, for each row.
                stack.g.mul_((self.settings.clip / (stack.g.norm(dim=1, keepdim=True) + 1e-6)).clamp_(max=1.0))
            for group, factor in zip(self.groups, factors):
                rows = slice(group.start, group.end)
                own = Losses(losses[rows], None if bounds is None else bounds[rows])
                diagnostics = group.optimizer.step(stack.x[rows], stack.g[rows], own, factor)
                if diagnostics is not None:
                    found += [(at, group, diagnostics[name]) for name, at in _DIAGNOSTICS.items()]
            if not found:
                return losses[None]
            report = losses.new_full((5, len(stack)), torch.nan, dtype=torch.promote_types(losses.dtype, stack.x.dtype))
            report[LOSS] = losses
            for at, group, values in found:
                report[at, group.start : group.end] = values
        return report

    def state(self) -> list[torch.Tensor] | None:
        """Every tensor that a step changes and the next one reads; None where an optimizer has state of its own."""
        changed = [self.stack.x, *self.stack.fixed.values()]
        for group in self.groups:
            state = getattr(group.optimizer, "state", None)
            if state is None:
                return None
            changed += state()
        return changed

    def count_on_device(self) -> None:
        """Keep the optimizers' step counts in tensors from now on: a captured step repeats what a Python number was."""
        for group in self.groups:
            group.optimizer.count_on_device()  # type: ignore[attr-defined]
