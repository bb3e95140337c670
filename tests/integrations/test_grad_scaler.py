"""A GradScaler in a plain loop, wherever the loss is recorded and however the gradients are reset."""

from __future__ import annotations

import pytest
import torch
from integrations.loops import METHODS, Run, each, make_model, mse, spoil, watch, windows


@each
@pytest.mark.parametrize("autocast", [None, torch.float16])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize(
    "reset",
    [
        lambda model, optimizer: model.zero_grad(),
        lambda model, optimizer: model.zero_grad(set_to_none=False),
        lambda model, optimizer: optimizer.zero_grad(),
        lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    ],
    ids=["model", "model-to-zero", "optimizer", "optimizer-to-zero"],
)
def test_a_skipped_step(method, autocast, length, reset):
    model = make_model()
    optimizer = method[0](model.parameters(), **method[1])
    seen = watch(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for i, step in enumerate(windows(length)):
        reset(model, optimizer)
        for batch in step:
            with torch.autocast("cpu", autocast or torch.float16, enabled=autocast is not None):
                loss = mse(model, batch)
            scaler.scale(loss / length).backward()
            optimizer.record_loss(loss / length, reduction="sum")
        if i == 1:
            spoil(model)
        scaler.step(optimizer)
        scaler.update()
    expected = Run(method, windows(length), divisor=length, autocast=autocast, scale=256.0, spoilt=1)
    expected.check(seen, model)


@each
@pytest.mark.parametrize("set_to_none", [True, False])
def test_recorded_before_the_gradients_are_reset(method, set_to_none):
    """The loss is kept for the backward pass that follows, and dropped if none does or if the step is left out."""
    model = make_model()
    optimizer = method[0](model.parameters(), **method[1])
    seen = watch(optimizer)
    for i, (batch,) in enumerate(windows(1)):
        loss = mse(model, batch)
        optimizer.record_loss(loss)
        optimizer.zero_grad(set_to_none=set_to_none)
        if i in (0, 3):
            continue
        loss.backward()
        if i in (1, 6):
            optimizer.zero_grad(set_to_none=set_to_none)
            continue
        optimizer.step()
    taken = [step for i, step in enumerate(windows(1)) if i not in (0, 1, 3, 6)]
    Run(method, taken).check(seen, model)


@pytest.mark.parametrize("method", METHODS[:1])
def test_a_loss_dropped_with_its_gradients(method):
    model = make_model()
    optimizer = method[0](model.parameters(), **method[1])
    loss = mse(model, windows(1)[0][0])
    loss.backward()
    optimizer.record_loss(loss)
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="record it after zero_grad"):
        optimizer.step()
