"""The plain loop that every framework is compared with, number by number."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import momo


class Muon(momo.MomoMuon):
    """Of a model's parameters, or of the groups that a framework makes of them: each group's matrices apart."""

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        params = list(params)
        groups = []
        for group in params if isinstance(params[0], dict) else [{"params": params}]:
            for matrices in (True, False):
                some = [p for p in group["params"] if (p.dim() > 1) is matrices]
                groups += [{**group, "params": some, "matrices": matrices}] if some else []
        super().__init__(groups, **options)


METHODS = [(momo.Momo, {"lr": 1.0}), (momo.MomoAdam, {"lr": 1e-2}), (Muon, {"lr": 0.02})]
each = pytest.mark.parametrize("method", METHODS, ids=["Momo", "MomoAdam", "MomoMuon"])
BATCHES, SIZE = 10, 4


def needs(package: str) -> None:
    """Skip a module's tests where the package is not installed, but never in continuous integration."""
    if importlib.util.find_spec(package) is None:
        reason = f"{package} is not installed: pip install '.[integrations]'"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason, allow_module_level=True)


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def make_data() -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCHES * SIZE, 3, generator=generator)
    return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True).sin() + 1)


def make_loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(make_data(), batch_size=SIZE)


def mse(model: torch.nn.Module, batch: Any) -> Tensor:
    return torch.nn.functional.mse_loss(model(batch[0]).float(), batch[1])


def windows(length: int, batches: Iterable[Any] | None = None) -> list[list[Any]]:
    """The micro-batches of each step; the last step of an epoch may have fewer."""
    batches = list(make_loader() if batches is None else batches)
    return [batches[i : i + length] for i in range(0, len(batches), length)]


def watch(optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    """A list which gets the diagnostics of each step that the optimizer takes from now on."""
    seen: list[dict[str, Tensor]] = []
    optimizer.register_step_post_hook(lambda optimizer, args, kwargs: seen.append(optimizer.diagnostics()))
    return seen


def spoil(model: torch.nn.Module) -> None:
    """Make a gradient infinite, for which a GradScaler skips the step."""
    next(model.parameters()).grad.fill_(torch.inf)


class Run:
    """A run by a plain loop: its ``model``, and in ``seen`` the diagnostics of each step."""

    def __init__(
        self,
        method: tuple[type, dict[str, Any]],
        steps: list[list[Any]],
        *,
        model: torch.nn.Module | None = None,
        loss_of: Callable[[torch.nn.Module, Any], Tensor] = mse,
        divisor: float = 1,
        clip: float | None = None,
        autocast: torch.dtype | None = None,
        scale: float | None = None,
        spoilt: int | None = None,
    ) -> None:
        self.model = make_model() if model is None else copy.deepcopy(model)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = method[0](parameters, **method[1])
        self.seen = watch(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for i, step in enumerate(steps):
            optimizer.zero_grad()
            loss = 0.0
            for batch in step:
                with torch.autocast("cpu", autocast) if autocast else nullcontext():
                    part = loss_of(self.model, batch) / divisor
                scaler.scale(part).backward()
                loss += float(part.detach())
            if i == spoilt:
                spoil(self.model)
            scaler.unscale_(optimizer)
            finite = all(p.grad.isfinite().all() for p in parameters if p.grad is not None)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            if finite:
                optimizer.step(loss=loss)
            if scale is not None:
                scaler.update()
        assert len(self.seen) == len(steps) - (spoilt is not None)

    def check(self, seen: list[dict[str, Tensor]], model: torch.nn.Module) -> None:
        """Compare with another run."""
        assert len(seen) == len(self.seen)
        for got, expected in zip(seen, self.seen):
            for name, value in expected.items():
                # A framework's parameter groups all have the same options here, so the same numbers.
                torch.testing.assert_close(got[name], value.expand_as(got[name]), rtol=1e-5, atol=1e-9, msg=name)
        for got, expected in zip(model.parameters(), self.model.parameters()):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
