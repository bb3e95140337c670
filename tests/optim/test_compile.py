"""Under torch.compile a step is what it is without."""

from __future__ import annotations

import pytest
import torch
from optim.making import made

from momo import Momo, MomoAdam, MomoMuon, MomoMuonMax

each = pytest.mark.parametrize(
    "cls, options",
    [
        (Momo, {"lr": 0.05}),
        (MomoAdam, {"lr": 0.02, "weight_decay": 0.1}),
        (MomoMuon, {"lr": 0.02, "weight_decay": 0.1}),
        (MomoMuonMax, {"lr": 0.02}),
    ],
)


def losses(cls, options, compile_step, steps=50):
    """The losses of some steps; ``compile_step(train_step, optimizer)`` returns what is called instead of
    train_step."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = made(cls, net.parameters(), **options)
    x = torch.randn(steps, 12, 6)

    def train_step(batch):
        optimizer.zero_grad()
        loss = (net(batch) - batch.sum(1, keepdim=True).sin()).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        return loss.detach()

    step = compile_step(train_step, optimizer)
    return [step(batch).item() for batch in x]


@each
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_the_whole_training_step(cls, options, backend, exactly):
    def compiled(train_step, optimizer):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        return torch.compile(train_step, backend=backend)

    expected = losses(cls, options, lambda step, optimizer: step)
    assert losses(cls, options, compiled) == pytest.approx(expected, rel=1e-4)
    breaks = torch._dynamo.utils.counters["graph_break"]
    assert sum(count for reason, count in breaks.items() if f"{cls.__name__}.step`" in reason) <= 1
    # The rest is what any optimizer of torch has: backward() and zero_grad().
    assert sum(breaks.values()) <= 3, list(breaks)


@each
def test_the_step_alone(cls, options):
    def compiled(train_step, optimizer):
        optimizer.step = torch.compile(optimizer.step, backend="aot_eager")
        return train_step

    expected = losses(cls, options, lambda step, optimizer: step)
    assert losses(cls, options, compiled) == pytest.approx(expected, rel=1e-4)
