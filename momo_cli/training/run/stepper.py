"""One optimizer step of one run, whatever the optimizer asks for: the loss, a closure, modes, a gradient scaler."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from momo_cli.training.evaluation import Losses


class Stepper:
    """Drives any optimizer: forward, backward, clipping and the step.

    Args:
        optimizer: Its ``step`` is given ``loss`` and ``lower_bound`` if it takes them, a closure if it needs one.
        clip: Largest gradient norm, or None.
        scaler: Scales the loss for float16, or None.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float | None, scaler: Any = None) -> None:
        self.optimizer, self.clip, self.scaler = optimizer, clip, scaler
        parameters = inspect.signature(optimizer.step).parameters
        self.takes_loss, self.takes_bound = "loss" in parameters, "lower_bound" in parameters
        closure = parameters.get("closure")
        self.needs_closure = closure is not None and closure.default is inspect.Parameter.empty
        self._diagnostics = getattr(optimizer, "diagnostics", None)
        self._base_lrs = [group["lr"] for group in optimizer.param_groups]
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def set_mode(self, training: bool) -> None:
        """Call ``train()`` or ``eval()`` of optimizers that have them (Schedule-Free)."""
        switch = getattr(self.optimizer, "train" if training else "eval", None)
        if callable(switch):
            switch()

    def diagnostics(self) -> dict[str, Any] | None:
        """The last step's figures of Momo's methods; None for optimizers that have none."""
        return None if self._diagnostics is None else self._diagnostics()

    def set_lr(self, factor: float | torch.Tensor) -> None:
        """Set every group's LR to ``factor`` times the one it started with."""
        for group, lr in zip(self.optimizer.param_groups, self._base_lrs):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(float(lr) * factor)
            else:
                group["lr"] = lr * factor

    def step(self, compute_loss: Callable[[], Losses]) -> torch.Tensor:
        """One step; returns the loss before it, detached."""

        def gradients() -> Losses:
            self.optimizer.zero_grad()
            loss, bound = compute_loss()
            (self.scaler.scale(loss) if self.scaler else loss).backward()
            if self.clip is not None:
                if self.scaler:
                    self.scaler.unscale_(self.optimizer)
                torch.nn.utils.clip_grad_norm_(self._parameters, self.clip)
            return Losses(loss, bound)

        if self.needs_closure:
            losses: list[torch.Tensor] = []

            def closure() -> torch.Tensor:
                losses.append(gradients().loss)
                return losses[-1]

            self.optimizer.step(closure)  # type: ignore[arg-type]  # torch's stubs want a float
            return losses[0].detach()
        loss, bound = gradients()
        self.step_with(loss.detach(), bound)
        return loss.detach()

    def step_with(self, loss: torch.Tensor, lower_bound: torch.Tensor | None) -> None:
        """The step alone, after gradients that are there already."""
        keywords: dict[str, Any] = {"loss": loss} if self.takes_loss else {}
        if self.takes_bound and lower_bound is not None:
            keywords["lower_bound"] = lower_bound
        if self.scaler:
            self.scaler.step(self.optimizer, **keywords)
            self.scaler.update()
        else:
            self.optimizer.step(**keywords)
