"""Another objective costs nothing: what is stored serves every one, and equals a sweep of its own."""

from __future__ import annotations

import json
import math
import sys

import optuna
import pytest

TASK = """
import torch

def build(seed):
    data = torch.Generator().manual_seed(1)
    x = torch.randn(96, 4, generator=data)
    y = (x.sum(1) > 0).long()
    model = torch.nn.Linear(4, 2)
    train = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:64], y[:64]), batch_size=16, shuffle=True)
    loss = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    accuracy = lambda model, batch: {"accuracy": (model(batch[0]).argmax(1) == batch[1]).float().mean()}
    return {"model": model, "loss": loss, "train": train, "val": [(x[64:], y[64:])], "metrics": accuracy}
"""
SCRIPT = """
import json, sys
lr, x = float(sys.argv[1]), 1.0
open("started.txt", "a").write("x")
for step in range(20):
    print(json.dumps({"step": step, "loss": x * x}))
    x -= lr * 2 * x
print(json.dumps({"val_loss": x * x + 0.01, "accuracy": 1 / (1 + abs(x))}))
"""
ASKED = {
    "val_loss": ["--objective", "val_loss"],
    "train_loss": ["--objective", "train_loss"],
    "accuracy": ["--objective", "accuracy", "--maximize"],
    "": [],
}


@pytest.fixture(params=["function", "script"])
def sweep(momo, folder, request):
    (folder / "mine.py").write_text(TASK if request.param == "function" else SCRIPT)

    def run(command, objective, database, *more):
        words = ["mine"] if request.param == "function" else ["--", sys.executable, "mine.py", "{lr}"]
        lrs = ["--lrs", "0.01,0.1,1"] if command == "sweep" else []
        options = [*lrs, *ASKED[objective], "--storage", f"{database}.db", "--json", "-", *more]
        code, out, err = momo(command, *options, *words)
        assert code == 0, err
        return json.loads(out), err

    return run


def trials(database: str) -> int:
    return sum(s.n_trials for s in optuna.get_all_study_summaries(f"sqlite:///{database}.db"))


@pytest.mark.parametrize("order", [["val_loss", "train_loss", "accuracy", ""], ["accuracy", "train_loss", "val_loss"],
                                   ["train_loss", "accuracy", ""]])  # fmt: skip
def test_stored_runs_serve_every_objective(momo, sweep, order):
    first = None
    for objective in order:
        again, _ = sweep("sweep", objective, "shared")
        alone, _ = sweep("sweep", objective, f"alone-{objective}")
        first = first or again
        assert again["objective"] == alone["objective"]
        assert again["objective"]["name"] == (objective or "val_loss")
        for run, other in zip(again["runs"], alone["runs"], strict=True):
            assert {**run, "seconds": 0} == {**other, "seconds": 0}  # ℓ0 too
            assert run["objective"] == {**run, **run["metrics"]}[objective or "val_loss"]
        assert {o["optimizer"]: o for o in again["optimizers"]} == {o["optimizer"]: o for o in alone["optimizers"]}
        assert [r["seconds"] for r in again["runs"]] == [r["seconds"] for r in first["runs"]]  # trained once
        # Without a task, views take what was asked last.
        code, out, err = momo("compare", "--storage", "shared.db", "--json", "-")
        assert code == 0 and json.loads(out)["objective"] == again["objective"], err
        assert json.loads(out)["initial"] == again["initial"]
    assert trials("shared") == len(first["runs"])
    values = [t.value for s in optuna.get_all_study_names("sqlite:///shared.db")
              for t in optuna.load_study(study_name=s, storage="sqlite:///shared.db").trials]  # fmt: skip
    assert sorted(values) == sorted(run["val_loss"] for run in first["runs"])
    assert all(math.isfinite(v) for v in values)


def test_an_objective_that_stored_runs_do_not_have_trains_nothing(momo, sweep):
    sweep("sweep", "", "shared")
    with pytest.raises(AssertionError, match=r"no such (value|metric)"):
        sweep("sweep", "", "shared", "--objective", "acuracy")
    code, _, err = momo("compare", "--storage", "shared.db", "--objective", "acuracy")
    assert code == 2 and "no such value. Did you mean 'accuracy'?" in " ".join(err.split())
    assert trials("shared") in (3, 6)


def test_a_study_by_trials_has_its_objective_in_its_key(momo, folder):
    (folder / "mine.py").write_text(TASK)
    ask = ["sweep", "mine", "-o", "adam", "--trials", "3", "--sampler", "random", "--steps", "5"]
    names = []
    for objective in ([], ["--objective", "accuracy", "--maximize"], []):
        code, out, err = momo(*ask, *objective, "--json", "-")
        assert code == 0, err
        names.append(json.loads(out)["study"])
    assert names[0] == names[2] != names[1]
