"""Accelerate's loop takes the steps of a plain one."""

from __future__ import annotations

import pytest
import torch
from integrations.loops import Run, each, make_loader, make_model, mse, needs, spoil, watch, windows

import momo

needs("accelerate")

from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402


@pytest.fixture(autouse=True)
def fresh():
    """Accelerate keeps what its first accelerator was told."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Loop:
    """The recipe of the README, with a gradient made infinite in the step ``spoilt``."""

    def __init__(self, method, *, scale=None, **options):
        self.accelerator = Accelerator(cpu=True, **options)
        if scale is not None:
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = method[0]((model := make_model()).parameters(), **method[1])
        self.seen = watch(optimizer)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, make_loader())
        if scale is not None:  # Accelerate has float16 on a GPU only; from here on it takes this for one
            self.accelerator.native_amp, self.accelerator.state._mixed_precision = True, "fp16"

    def train(self, clip=None, spoilt=None):
        for i, batch in enumerate(self.loader):
            with self.accelerator.accumulate(self.model):
                loss = mse(self.model, batch)
                self.accelerator.backward(loss)
                momo.record_loss(self.optimizer, loss / self.accelerator.gradient_accumulation_steps, reduction="sum")
                if i == spoilt:
                    spoil(self.model)
                if clip is not None and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self


@each
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize(
    "options, clip, plain",
    [({}, None, {}), ({}, 0.1, {"clip": 0.1}), ({"mixed_precision": "bf16"}, None, {"autocast": torch.bfloat16})],
    ids=["plain", "clipped", "bf16"],
)
def test_loop(method, length, options, clip, plain):
    loop = Loop(method, gradient_accumulation_steps=length, **options).train(clip=clip)
    Run(method, windows(length), divisor=length, **plain).check(loop.seen, loop.model)


@each
@pytest.mark.parametrize("length", [1, 2])
def test_scaled_gradients_with_a_skipped_step(method, length):
    loop = Loop(method, gradient_accumulation_steps=length, scale=256.0).train(spoilt=2 * length - 1, clip=0.1)
    Run(method, windows(length), divisor=length, scale=256.0, spoilt=1, clip=0.1).check(loop.seen, loop.model)


@each
def test_resumed(method, tmp_path):
    whole = Loop(method, gradient_accumulation_steps=4).train()
    whole.accelerator.save_state(tmp_path)
    whole.train()
    resumed = Loop(method, gradient_accumulation_steps=4)
    resumed.accelerator.load_state(tmp_path)
    resumed.train()
    assert len(resumed.seen) == 3
    for got, expected in zip(resumed.seen, whole.seen[3:]):
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert all(torch.equal(p, q) for p, q in zip(resumed.model.parameters(), whole.model.parameters()))


def test_a_step_without_the_loss_is_refused():
    loop = Loop((momo.Momo, {}))
    loop.accelerator.backward(mse(loop.model, next(iter(loop.loader))))
    with pytest.raises(RuntimeError, match="record_loss"):
        loop.optimizer.step()


def test_another_optimizer_is_refused():
    loop = Loop((momo.Momo, {}))
    sgd = loop.accelerator.prepare(torch.optim.SGD(loop.model.parameters()))
    with pytest.raises(TypeError, match="needs an optimizer of momo"):
        momo.record_loss(sgd, 1.0)
