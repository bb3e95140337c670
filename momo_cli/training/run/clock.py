"""The clock: how long each step takes of anything that can be driven step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch


class Steps(Protocol):
    """A run, or a stack of them."""

    @property
    def done(self) -> bool:
        """Whether there is no further step to take."""

    def step(self) -> object:
        """Take one step."""


def step_times(
    trained: Steps, device: torch.device, enough: Callable[[list[float]], bool] = lambda times: False
) -> list[float]:
    """Take steps of ``trained`` to its end; returns the seconds that each took.

    Args:
        trained: Takes the steps.
        device: Where it trains; each step is waited for.
        enough: Given the times so far, whether to take no further step.
    """
    times: list[float] = []
    last = _now(device)
    while not trained.done and not enough(times):
        trained.step()
        now = _now(device)
        times.append(now - last)
        last = now
    return times


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
