"""The optimizer ``muon`` is torch's two, and Muon's names are refused where there is no matrix."""

from __future__ import annotations

import copy

import pytest
import torch

from momo.matrices import matrices_of
from momo_cli.errors import UserError
from momo_cli.plan import OptimizerSpec, RunSpec, Settings
from momo_cli.task import find_task
from momo_cli.training.run.training_run import TrainingRun, train_run
from momo_cli.training.stack.loop import train_stack
from momo_cli.training.stack.models import CannotStack

CPU = torch.device("cpu")


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize(
    "spec, of_muon, of_adamw",
    [
        ("muon", {}, {}),
        ("muon(weight_decay=0.3,nesterov=False)", {"weight_decay": 0.3, "nesterov": False}, {"weight_decay": 0.3}),
        (
            "muon(adjust_lr_fn='match_rms_adamw',betas=(0.8,0.9))",
            {"adjust_lr_fn": "match_rms_adamw"},
            {"betas": (0.8, 0.9)},
        ),
    ],
)
def test_muon_is_torchs_muon_and_adamw(spec, of_muon, of_adamw):
    torch.manual_seed(0)
    ours = torch.nn.Sequential(
        torch.nn.Embedding(9, 6),
        torch.nn.Linear(6, 12),
        torch.nn.Tanh(),
        torch.nn.Linear(12, 12),
        torch.nn.Linear(12, 2),
    )
    theirs = copy.deepcopy(ours)
    optimizer = OptimizerSpec.parse(spec).build(ours, 0.02)
    matrices = list(matrices_of(theirs).values())
    others = [p for p in theirs.parameters() if all(p is not m for m in matrices)]
    baselines = [torch.optim.Muon(matrices, lr=0.02, **of_muon), torch.optim.AdamW(others, lr=0.02, **of_adamw)]
    assert len(matrices) == 2
    for k in range(10):
        for group in [g for o in (optimizer, *baselines) for g in o.param_groups]:
            group["lr"] = 0.02 / (k + 1)
        tokens = torch.randint(9, (8, 3))
        for net, steppers in ((ours, [optimizer]), (theirs, baselines)):
            net.zero_grad()
            (net(tokens) - 1).square().mean().backward()
            for stepper in steppers:
                stepper.step()
        if k == 5:  # its state goes through state_dict
            again = OptimizerSpec.parse(spec).build(ours, 0.02)
            again.load_state_dict(optimizer.state_dict())
            optimizer = again
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


NO_MATRIX = """
import torch
def build(seed):
    x = torch.randn(32, 3)
    return torch.nn.Linear(3, 1), lambda model, x: model(x).square().mean(), list(x.split(8))
"""


@pytest.mark.parametrize("name", ["muon", "momo-muon", "momo-muonmax", "momo:MomoMuon"])
def test_a_model_without_a_hidden_matrix_is_refused(folder, name):
    (folder / "flat.py").write_text(NO_MATRIX)
    source = find_task("flat.py")
    specs = [RunSpec(OptimizerSpec.parse(name), lr, 0) for lr in (0.01, 0.1)]
    for attempt in (
        lambda: train_run(source, specs[0], Settings(steps=3), CPU),
        lambda: list(train_stack(source, specs, Settings(steps=3), CPU)),
    ):
        with pytest.raises(UserError, match="Linear has no hidden weight of two or more dimensions"):
            attempt()


BOUNDED = """
import torch
def build(seed):
    x = torch.randn(64, 6)
    teacher, model = (torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)) for _ in range(2))
    teacher.requires_grad_(False)
    noise = 0.3 * torch.randn(64, 1, generator=torch.Generator().manual_seed(5))
    batches = list(zip(x.split(16), (teacher(x) + noise).split(16), teacher(x).split(16)))
    def loss(model, batch):
        inputs, targets, taught = batch
        found = torch.nn.functional.mse_loss(model(inputs), targets)
        return RETURNED
    return model, loss, batches, batches[:2]
"""


@pytest.mark.parametrize(
    "name", ["momo", "momo-adam", "momo-muon", "momo-muonmax", "momo(lb=0.05)", "sgd-m", "rmsprop"]
)
def test_a_loss_may_bring_its_lower_bound(folder, name):
    (folder / "bounded.py").write_text(
        BOUNDED.replace("RETURNED", "(found, torch.nn.functional.mse_loss(taught, targets))")
    )
    (folder / "plain.py").write_text(BOUNDED.replace("RETURNED", "found"))
    spec = RunSpec(OptimizerSpec.parse(name), 0.5 if name.startswith("momo") else 0.01, 0)
    bounded, plain = find_task("bounded.py"), find_task("plain.py")
    alone = train_run(bounded, spec, Settings(steps=30), CPU)
    ((_, stacked),) = train_stack(bounded, [spec], Settings(steps=30), CPU)
    assert alone.status == stacked.status == "ok"
    assert stacked.objective == pytest.approx(alone.objective, rel=1e-3)
    without = train_run(plain, spec, Settings(steps=30), CPU)
    assert (without.objective == alone.objective) == (not name.startswith("momo"))

    # As a plain loop does it.
    run = TrainingRun(bounded.build(0, CPU), spec, Settings(steps=30), CPU)
    task = bounded.build(0, CPU)
    optimizer = spec.optimizer.build(task.model, spec.lr)
    for k in range(8):
        run.step()
        optimizer.zero_grad()
        loss, bound = task.loss(task.model, task.train[k % 4])
        loss.backward()
        optimizer.step(loss=loss, lower_bound=bound) if name.startswith("momo") else optimizer.step()
    assert all(map(torch.equal, task.model.parameters(), run.task.model.parameters()))


@pytest.mark.parametrize(
    "name, returned, words",
    [
        ("momo-star", "(found, found.detach() - 1)", "two sources of one bound"),
        ("momo", "(found, found.detach() - 1) if drawn() else found", "give all steps a lower_bound or none"),
    ],
)
def test_bounds_that_cannot_be_used_fail_the_run(folder, name, returned, words):
    """In a stack as alone: the stack gives up, and the run says why."""
    text = BOUNDED.replace("RETURNED", returned).replace("def build", "import itertools\ndef build")
    text = text.replace(
        "    def loss", "    count = itertools.count()\n    drawn = lambda: next(count) < 9\n    def loss"
    )
    (folder / "bounded.py").write_text(text)
    source, spec = find_task("bounded.py"), RunSpec(OptimizerSpec.parse(name), 0.5, 0)
    with pytest.raises(CannotStack, match="bound"):
        list(train_stack(source, [spec], Settings(steps=30), CPU))
    run = train_run(source, spec, Settings(steps=30), CPU)
    assert run.status == "failed" and words in run.error


def test_a_constant_bound_is_the_option(folder):
    (folder / "bounded.py").write_text(BOUNDED.replace("RETURNED", "(found, 0.05)"))
    (folder / "plain.py").write_text(BOUNDED.replace("RETURNED", "found"))
    given, option = RunSpec(OptimizerSpec.parse("momo"), 5.0, 0), RunSpec(OptimizerSpec.parse("momo(lb=0.05)"), 5.0, 0)
    expected = train_run(find_task("plain.py"), option, Settings(steps=30), CPU).objective
    # The average of a constant is the constant to rounding.
    run = train_run(find_task("bounded.py"), given, Settings(steps=30), CPU)
    assert run.objective == pytest.approx(expected, rel=1e-6)
    ((_, stacked),) = train_stack(find_task("bounded.py"), [given], Settings(steps=30), CPU)
    assert stacked.objective == pytest.approx(expected, rel=1e-4)


def test_a_bound_that_is_no_number_is_refused(folder):
    (folder / "wrong.py").write_text(BOUNDED.replace("RETURNED", "(found, '0.5')"))
    with pytest.raises(UserError, match=r"returned a bound that is a str(.|\n)*\(loss, lower_bound\)"):
        train_run(find_task("wrong.py"), RunSpec(OptimizerSpec.parse("momo"), 1.0, 0), Settings(steps=3), CPU)
