"""A run that goes on from its checkpoint is the run that was never interrupted, to the last bit; runs that hang end."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

from momo_cli.plan import OptimizerSpec, RunSpec, Settings
from momo_cli.task import find_task
from momo_cli.training.checkpoints import Checkpoints, Keeper
from momo_cli.training.dispatch.trainer import Trainer

CPU = torch.device("cpu")
# Everything that draws: shuffling, the data themselves by each library, dropout; BatchNorm, and a count in Python.
MODULE = """
import random, numpy, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Noisy(Dataset):
    def __init__(self, seed):
        self.x, self.own = torch.randn(40, 5), numpy.random.default_rng(seed)
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        noise = 0.1 * random.random() + 0.1 * numpy.random.rand() + 0.1 * self.own.random()
        return self.x[i] + noise, self.x[i].sum(0, keepdim=True) + 0.1 * torch.randn(1)

class Counts(nn.Module):
    calls = 0
    def forward(self, x):
        if self.training:
            self.calls = self.calls + 1
        return x * (1 + 0.01 * self.calls)

class Changing:
    passes = 0
    def __init__(self, data):
        self.data = data
    def __iter__(self):
        self.passes += 1
        return iter([tuple(t * self.passes for t in batch) for batch in self.data])

def build(seed, data="loader", counts=True, dropout=0.2):
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    if counts:
        model.append(Counts())
    loss = lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1])
    noisy = Noisy(seed)
    val = [(noisy.x, noisy.x.sum(1, keepdim=True))]
    train = DataLoader(noisy, 8, shuffle=True, num_workers=2 * (data == "workers"))
    if data == "own":
        train = DataLoader(noisy, 8, shuffle=True, generator=torch.Generator().manual_seed(seed))
    if data == "changing":
        train = Changing(list(train))
    return model, loss, train, val
"""
LABELS = ["momo", "momo-muon", "muon", "momo-muonmax", "momo-adam-star", "adam", "sgd-nesterov+cosine", "rmsprop"]


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def task(folder):
    (folder / "drawing.py").write_text(MODULE)
    return lambda **arguments: find_task("drawing.py", arguments)


def specs_of(labels, seeds=1, lrs=(0.01, 0.1)):
    return [RunSpec(OptimizerSpec.parse(label), lr, seed) for label in labels for lr in lrs for seed in range(seeds)]


def train(source, specs, together=1, checkpoints=None, at=None, settings=Settings(steps=23)):
    """The runs that end, and what is said; interrupted before the step ``at``, counted over all runs."""
    taken, said = [0], []

    def step():
        taken[0] += 1
        if taken[0] == at:
            raise KeyboardInterrupt

    ended = {}
    trainer = Trainer(source, settings, CPU, say=said.append, checkpoints=checkpoints or Checkpoints(), steps=step)
    try:
        for spec, run in trainer.train(specs, together):
            ended[spec] = dataclasses.replace(run, seconds=0.0)
    except KeyboardInterrupt:
        assert at is not None
    return ended, said


@pytest.mark.parametrize("data", ["loader", "own", "workers"])
def test_every_run_goes_on_to_the_last_bit(task, folder, data):
    source, specs = task(data=data), specs_of(LABELS if data == "loader" else LABELS[:1], lrs=(0.1,))
    whole, _ = train(source, specs)
    assert all(run.status == "ok" for run in whole.values())
    kept = Checkpoints(folder / "kept", {"a": 1}, every=1e-9)
    for at in (2, 9, 23):
        for spec in specs:
            ended, _ = train(source, [spec], 1, kept, at)
            assert ended == {}
            resumed, said = train(source, [spec], 1, kept)
            assert resumed == {spec: whole[spec]}
            assert said == [f"{spec.name}: going on from a checkpoint at step {at - 1}."]
            kept.drop([spec.key])
    assert not (folder / "kept").exists()


def test_closures_and_half_precision(task, folder):
    for label, settings in (("lbfgs", Settings(steps=9)), ("adam", Settings(steps=9, amp="bf16", clip=0.5))):
        source, specs = task(), specs_of([label], lrs=(0.01,))
        whole, _ = train(source, specs, settings=settings)
        kept = Checkpoints(folder / "kept", {}, every=1e-9)
        train(source, specs, 1, kept, 6, settings)
        resumed, said = train(source, specs, 1, kept, settings=settings)
        assert resumed == whole and len(said) == 1


def test_a_stack_goes_on_with_the_rows_that_are_left(task, folder):
    """Also where some had diverged, and where other processes do some of them now. (Without dropout: it draws for the
    rows that are there.)"""
    source = task(counts=False, dropout=0.0)
    specs = specs_of(
        ["momo", "momo-muon", "momo-muonmax", "muon", "adam", "rmsprop", "sgd"], seeds=2, lrs=(0.01, 0.1)
    ) + specs_of(["sgd"], 2, (1e6,))
    whole, _ = train(source, specs, together=100)
    assert {run.status for run in whole.values()} == {"ok", "diverged"}
    kept = Checkpoints(folder / "kept", {}, every=1e-9)
    ended, _ = train(source, specs, 100, kept, at=12)
    assert 0 < len(ended) < len(specs)
    left = [spec for spec in specs if spec not in ended]
    reading = Checkpoints(folder / "kept", {})
    resumed, said = train(source, left, 100, reading)
    assert resumed == {spec: whole[spec] for spec in left}
    assert said == [f"{len(left)} runs: going on from a checkpoint at step 11."]
    few = [spec for spec in left if spec.lr == 0.01][1:6]  # rounding doesn't grow there
    resumed, said = train(source, few, 2, reading)
    assert set(resumed) == set(few) and said == ["5 runs: going on from a checkpoint at step 11."]
    for spec in few:  # in a smaller stack: to rounding
        assert resumed[spec].objective == pytest.approx(whole[spec].objective, rel=1e-4)
        assert resumed[spec].curve[:8] == whole[spec].curve[:8]


def test_a_run_that_had_stopped_and_was_not_stored_ends_again(task, folder):
    source, specs = task(counts=False), specs_of(["sgd"], lrs=(0.01, 0.1, 1e6))
    kept = Checkpoints(folder / "kept", {}, every=1e-9)
    whole, _ = train(source, specs, together=100)
    many = specs + specs_of(["adam"], lrs=[10.0**-i for i in range(2, 12)])  # so that the stack isn't compacted
    train(source, many, 100, kept, at=20)
    resumed, _ = train(source, specs, 100, kept)
    assert resumed[specs[-1]].status == "diverged" and resumed[specs[-1]].steps == whole[specs[-1]].steps


@pytest.mark.parametrize("damage", ["order", "cut", "other key", "foreign"])
def test_what_can_not_be_gone_on_from_begins_anew(task, folder, damage):
    source, specs = task(data="changing" if damage == "order" else "loader"), specs_of(["momo"], lrs=(0.1,))
    whole, _ = train(source, specs)
    kept = Checkpoints(folder / "kept", {"a": 1}, every=1e-9)
    train(source, specs, 1, kept, at=15)
    (file,) = (folder / "kept").iterdir()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "foreign":  # it would run code when it is opened by pickle
        torch.save({"schema": "momo/checkpoint/1", "runs": Path("x")}, file)
    elif damage == "other key":
        kept = Checkpoints(folder / "kept", {"a": 2}, every=1e-9)
    reported = []
    assert len(kept.find(specs, reported.append)) == (damage == "order")
    assert [line.partition(" can't be read: ")[0] for line in reported] == [file.name] * (damage in ("cut", "foreign"))
    resumed, said = train(source, specs, 1, kept)
    assert resumed == whole
    begun_anew = (
        f"{specs[0].name}: begun anew, as the checkpoint can't be gone on from: the data come in another order."
    )
    assert said == ([begun_anew] if damage == "order" else [])


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path):
    said = []
    (tmp_path / "file").write_text("")
    keeper = Keeper(tmp_path / "file" / "folder" / "x.checkpoint", 1e-9, None, said.append)
    for _ in range(3):
        assert keeper.before_step()
        keeper.save([], {})
    assert len(said) == 1 and "A checkpoint could not be kept" in said[0]


SLOW = """
import time
_build = build
def build(seed):
    model, loss, train = _build(seed)
    def slowly(model, batch):
        open("steps.txt", "a").write("s")
        time.sleep(0.02)
        return loss(model, batch)
    return model, slowly, train
"""


@pytest.mark.parametrize("how", [("--together", "4"), ("--together", "off", "--jobs", "2")])
def test_a_killed_command_goes_on(momo, momo_process, folder, how):
    with (folder / "mymodule.py").open("a") as file:
        file.write(SLOW)
    command = ("sweep", "mymodule", "-o", "momo,adam", "--lrs", "0.01,0.1", "--steps", "150", *how)
    clean = json.loads(momo(*command, "--storage", "sqlite:///clean.db", "--json", "-")[1])["runs"]
    in_all = len((folder / "steps.txt").read_text())
    (folder / "steps.txt").unlink()
    process = momo_process(*command, "--checkpoint", "0.2")
    deadline = time.time() + 60
    while not (found := list(folder.glob("momo-runs/*/*.checkpoint"))) and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    process.kill()
    process.communicate()
    assert found
    code, out, err = momo(*command, "--checkpoint", "0.2", "--json", "-")
    assert code == 0 and "going on from a checkpoint at step" in err, err
    for one, other in zip(clean, json.loads(out)["runs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert not (folder / "momo-runs").exists()
    assert len((folder / "steps.txt").read_text()) < in_all + 60


HANGING = """
_build = build
def build(seed, always=False):
    model, loss, train = _build(seed)
    taken = [0]
    def hangs(model, batch):
        taken[0] += 1
        if (seed == 1 or always) and taken[0] > 60:
            import time
            time.sleep(1000)
        return loss(model, batch)
    return model, hangs, train
"""


@pytest.mark.parametrize("how", [("--together", "off"), ("--together", "4", "--set", "always=True")])
def test_a_run_that_hangs_fails_and_the_others_go_on(momo, folder, how):
    with (folder / "mymodule.py").open("a") as file:
        file.write(HANGING)
    begin = time.time()
    command = ("sweep", "mymodule", "-o", "adam", "--lrs", "0.01,0.1", "--seeds", "2", "--steps", "90", *how)
    _, out, err = momo(*command, "--timeout", "3", "--json", "-")
    assert time.time() < begin + 90
    hung = "always" not in str(how)
    assert "Ended after --timeout 3 s." in err and "in hangs" in err
    if hung:
        runs = {(run["lr"], run["seed"]): run for run in json.loads(out)["runs"]}
        assert [runs[lr, 0]["status"] for lr in (0.01, 0.1)] == ["ok", "ok"]
        assert all(runs[lr, 1]["status"] == "failed" and 3 <= runs[lr, 1]["seconds"] < 8 for lr in (0.01, 0.1))
    else:
        assert "4 runs together took no step for 3 s: one by one." in err and "Every run failed (4)" in err


def test_flags_that_can_not_hold(momo):
    for words, said in (
        (("--timeout", "0"), "--timeout 0: it must be a positive number of seconds."),
        (("--checkpoint", "nan"), "--checkpoint nan: it must be a positive number of seconds."),
        (("--checkpoint", "5", "--", "python", "train.py", "{lr}"), "--checkpoint 5.0 is for tasks that are functions"),
    ):
        task = () if "--" in words else ("mymodule",)
        code, _, err = momo("sweep", *task, "--lrs", "0.1", *words)
        assert code == 2 and said in err, err
