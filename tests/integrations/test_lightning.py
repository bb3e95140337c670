"""Lightning's trainer takes the steps of a plain loop."""

from __future__ import annotations

import warnings

import pytest
import torch
from integrations.loops import Run, each, make_loader, make_model, mse, needs, spoil, watch, windows

import momo

needs("lightning")

import lightning  # noqa: E402
import pytorch_lightning  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from momo.integrations.lightning import RecordLoss  # noqa: E402

MOMO = (momo.Momo, {"lr": 1.0})


class Automatic(lightning.LightningModule):
    """Trains the small model; ``spoilt`` is the micro-batch after which a gradient is infinite."""

    def __init__(self, method, *, spoilt=None, left_out=(), record=False):
        super().__init__()
        self.model, self.method = make_model(), method
        self.spoilt, self.left_out, self.record = spoilt, left_out, record

    def training_step(self, batch, batch_idx):
        if batch_idx in self.left_out:
            return None
        loss = mse(self.model, batch)
        if self.record:
            momo.record_loss(self.optimizers(), loss)
        return loss

    def on_after_backward(self):
        if self.trainer.fit_loop.batch_idx == self.spoilt:
            spoil(self.model)

    def configure_optimizers(self):
        optimizer = self.method[0](self.model.parameters(), **self.method[1])
        self.seen = watch(optimizer)
        return optimizer


def fit(module, package=lightning, ckpt_path=None, max_epochs=1, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers and the length of the run
        trainer = package.Trainer(
            max_epochs=max_epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(module, make_loader(), ckpt_path=ckpt_path)
    return trainer


def half(scale):
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


@each
@pytest.mark.parametrize("callback", [False, True])
@pytest.mark.parametrize(
    "options, plain",
    [
        ({}, {}),
        ({"gradient_clip_val": 0.1}, {"clip": 0.1}),
        ({"precision": "bf16-mixed"}, {"autocast": torch.bfloat16}),
    ],
    ids=["plain", "clipped", "bf16"],
)
def test_automatic(method, callback, options, plain):
    module = Automatic(method)
    fit(module, callbacks=[RecordLoss()] if callback else [], **options)
    Run(method, windows(1), **plain).check(module.seen, module.model)


@each
@pytest.mark.parametrize("clip", [None, 0.1])
def test_accumulation(method, clip):
    module = Automatic(method)
    fit(module, accumulate_grad_batches=4, gradient_clip_val=clip, callbacks=[RecordLoss()])
    Run(method, windows(4), divisor=4, clip=clip).check(module.seen, module.model)


@each
def test_float16_with_a_skipped_step(method):
    module = Automatic(method, spoilt=5)
    fit(module, plugins=[half(256.0)], callbacks=[RecordLoss()], gradient_clip_val=0.1)
    Run(method, windows(1), autocast=torch.float16, scale=256.0, spoilt=5, clip=0.1).check(module.seen, module.model)


@each
def test_float16_with_accumulation_and_a_skipped_step(method):
    module = Automatic(method, spoilt=3)
    fit(module, plugins=[half(256.0)], callbacks=[RecordLoss()], accumulate_grad_batches=2)
    Run(method, windows(2), divisor=2, autocast=torch.float16, scale=256.0, spoilt=1).check(module.seen, module.model)


@each
@pytest.mark.parametrize("length", [1, 5])
def test_recorded_in_training_step(method, length):
    module = Automatic(method, record=True)
    fit(module, accumulate_grad_batches=length)
    Run(method, windows(length), divisor=length).check(module.seen, module.model)


@each
def test_recorded_in_training_step_with_a_skipped_step(method):
    module = Automatic(method, record=True, spoilt=5)
    fit(module, plugins=[half(256.0)])
    Run(method, windows(1), autocast=torch.float16, scale=256.0, spoilt=5).check(module.seen, module.model)


@pytest.mark.parametrize("callback", [False, True])
def test_batches_that_training_step_leaves_out(callback):
    left_out = (2, 5)
    module = Automatic(MOMO, left_out=left_out)
    fit(module, callbacks=[RecordLoss()] if callback else [])
    taken = [step for i, step in enumerate(windows(1)) if i not in left_out]
    Run(MOMO, taken).check([seen for i, seen in enumerate(module.seen) if i not in left_out], module.model)


def test_what_would_be_another_loss_is_refused():
    for options in ({"accumulate_grad_batches": 4}, {"plugins": [half(1.0)]}):
        with pytest.raises(RuntimeError, match=r"integrations\.lightning\.RecordLoss") as error:
            fit(Automatic(MOMO), **options)
        assert "\n" not in str(error.value)


@each
def test_resumed(method, tmp_path):
    def options():
        return {"accumulate_grad_batches": 4, "callbacks": [RecordLoss()]}

    whole = Automatic(method)
    fit(whole, max_epochs=2, **options())
    fit(Automatic(method), **options()).save_checkpoint(tmp_path / "last.ckpt")
    resumed = Automatic(method)
    fit(resumed, max_epochs=2, ckpt_path=tmp_path / "last.ckpt", **options())
    assert len(resumed.seen) == 3
    for got, expected in zip(resumed.seen, whole.seen[3:]):
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), whole.parameters()))


def test_pytorch_lightning():
    class Module(pytorch_lightning.LightningModule):
        training_step = Automatic.training_step
        configure_optimizers = Automatic.configure_optimizers

    module = Module()
    module.model, module.method, module.left_out, module.record = make_model(), MOMO, (), False
    fit(module, pytorch_lightning, accumulate_grad_batches=4, callbacks=[RecordLoss()])
    Run(MOMO, windows(4), divisor=4).check(module.seen, module.model)


# ---- manual optimization ----


class Manual(Automatic):
    """``step(module, optimizer, batch)`` is the whole training step."""

    def __init__(self, method, step, **options):
        super().__init__(method, **options)
        self.automatic_optimization = False
        self.take_step = step

    def training_step(self, batch, batch_idx):
        self.take_step(self, self.optimizers(), batch)


def backward(module, optimizer, batch):
    optimizer.zero_grad()
    loss = mse(module.model, batch)
    module.manual_backward(loss)
    return loss


def by_record_loss(module, optimizer, batch):
    momo.record_loss(optimizer, backward(module, optimizer, batch))
    optimizer.step()


def by_its_method(module, optimizer, batch):
    optimizer.record_loss(backward(module, optimizer, batch))
    optimizer.step()


def given_to_step(module, optimizer, batch):
    optimizer.step(loss=backward(module, optimizer, batch))


def by_callback(module, optimizer, batch):
    backward(module, optimizer, batch)
    optimizer.step()


def by_closure(module, optimizer, batch):
    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = mse(module.model, batch)
        module.manual_backward(loss)
        return loss

    optimizer.step(closure=closure)


@each
@pytest.mark.parametrize("step", [by_record_loss, by_its_method, given_to_step, by_callback, by_closure])
def test_manual(method, step):
    module = Manual(method, step)
    fit(module, callbacks=[RecordLoss()] if step is by_callback else [])
    Run(method, windows(1)).check(module.seen, module.model)


@each
@pytest.mark.parametrize("step", [by_record_loss, given_to_step, by_callback])
def test_manual_in_float16_with_a_skipped_step(method, step):
    module = Manual(method, step, spoilt=5)
    fit(module, plugins=[half(256.0)], callbacks=[RecordLoss()] if step is by_callback else [])
    Run(method, windows(1), autocast=torch.float16, scale=256.0, spoilt=5).check(module.seen, module.model)


def test_manual_without_the_loss_is_refused():
    with pytest.raises(ValueError, match="record_loss"):
        fit(Manual(MOMO, by_callback))


def test_a_callback_can_not_serve_several_optimizers():
    class Two(Manual):
        def configure_optimizers(self):
            return [momo.Momo([p]) for p in self.model.parameters()]

    with pytest.raises(ValueError, match="several optimizers") as error:
        fit(Two(MOMO, by_callback), callbacks=[RecordLoss()])
    assert "\n" not in str(error.value)


def test_a_callback_for_another_optimizer():
    with pytest.raises(TypeError, match="needs an optimizer of momo"):
        fit(Automatic((torch.optim.SGD, {"lr": 0.1})), callbacks=[RecordLoss()])
