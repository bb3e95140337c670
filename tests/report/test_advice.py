"""Which optimizer and learning rate are recommended, what is said of them, and the code to paste."""

import ast
import dataclasses

import pytest
import torch

from momo_cli import figures
from momo_cli.plan import OptimizerSpec, Settings
from momo_cli.report import Report
from momo_cli.report.advice import advise, answer
from momo_cli.report.code import code
from momo_cli.report.conclusions import conclusions
from momo_cli.report.tables import columns
from momo_cli.report.warnings import beyond, extension_command, warnings
from momo_cli.runs import Run


def grid(name, values, lrs=(0.01, 0.1, 1.0, 10.0, 100.0), seeds=2, **more):
    return [Run(name, lr, s, "ok", v, 10.0, **more) for lr, v in zip(lrs, values) for s in range(seeds)]


def advice(runs, prefer="robust", **how):
    report = Report("task.py", "", "val_loss", runs, figures.analyze(runs, **how), command="momo sweep task.py")
    return advise(report, prefer)


def test_the_least_regret_among_those_near_the_best():
    runs = grid("adam", [9, 1.0, 9, 9, 9]) + grid("momo", [2, 1.4, 1.2, 1.3, 2]) + grid("sgd", [2, 2, 2, 2, 2])
    robust, best = advice(runs), advice(runs, prefer="best")
    assert (robust.optimizer, robust.lr) == (
        "momo",
        1.0,
    )  # 1.2 is within 5 % of the way from 1 to 10, sgd's 2 isn't
    assert (best.optimizer, best.lr, best.expected) == ("adam", 0.1, 1.0)
    assert robust.expected == 1.2 and robust.code.startswith(
        "import momo\noptimizer = momo.Momo(model.parameters(), lr=1.0)"
    )
    assert not robust.warnings or "runs off" not in " ".join(robust.warnings)


def test_the_learning_rate_is_the_middle_of_the_good_range_and_of_two_the_better():
    found = advice(grid("momo", [9, 1.1, 1.0, 9, 9], lrs=(0.001, 0.1, 1.0, 100.0, 1000.0)))
    assert found.lr == found.best_lr == 1.0
    wide = advice(grid("momo", [1.2, 1.1, 1.1, 1.0, 1.1]))
    assert wide.best_lr == 10.0 and wide.lr == 1.0 and wide.expected == 1.1


def test_maximized_metrics():
    runs = grid("adam", [0.1, 0.9, 0.1, 0.1, 0.1]) + grid("momo", [0.7, 0.88, 0.89, 0.88, 0.7])
    for run in runs:
        run.initial = 0.1
    found = advice(runs, maximize=True)
    assert (found.optimizer, found.lr, found.expected) == ("momo", 1.0, pytest.approx(0.89))


def test_thin_evidence_is_told():
    runs = grid("momo", [5, 4, 3, 2, 1], seeds=1) + [Run("momo", 0.5, 1, "failed", error="ValueError: bad shape")]
    found = advice(runs)
    text = " ".join(found.warnings)
    assert "one seed" in text and "largest tried (100)" in text and "bad shape" in text
    assert "momo sweep task.py -o momo --lrs momo=0.01,0.1,1,10,100,1000" in text
    [entry] = figures.analyze(runs).optimizers
    assert beyond(entry, 2) == [1000.0, 10000.0]


def test_a_script_is_run_again_with_its_command_behind_the_options():
    figures_ = figures.analyze(grid("momo", [3, 2, 1], seeds=1))
    script = Report("train.py", "", "loss", [], figures_, command="momo sweep", script=("python", "train.py", "{lr}"))
    expected = "momo sweep -o momo --lrs momo=0.01,0.1,1,10 -- python train.py '{lr}'"
    assert extension_command(script, figures_.optimizers) == expected


def test_nothing_to_recommend():
    assert advice([]) is None
    assert advice([Run("adam", 0.1, 0, "diverged", None, 2.0)]) is None


def test_the_lower_bound():
    negative = grid("momo", [5, 4, 3, 4, 5], train_loss=-2.0)
    found = advice(negative)
    assert (
        "-2" in " ".join(found.warnings) and "lb=…" in found.code and "run adam beside it" in " ".join(found.warnings)
    )
    beside = advice(negative + grid("adam", [5, 4, 3, 4, 5], train_loss=-2.5))
    assert "-o 'momo(lb=-3)'" in " ".join(beside.warnings)
    flat = grid("momo", [5, 4, 3, 4, 5], curve=[[t, 3 + 7 * 0.5**t] for t in range(20)])
    found = advice(flat)
    assert "use_fstar=True" in " ".join(found.warnings) and "use_fstar" in found.code
    falling = grid("momo", [5, 4, 3, 4, 5], curve=[[t, 10 - 0.5 * t] for t in range(20)])
    assert "use_fstar" not in str(advice(falling))
    set_already = grid("momo(lb=-5)", [5, 4, 3, 4, 5], train_loss=-2.0)
    assert not any("lower bound" in line for line in advice(set_already).warnings)
    assert not any("lower bound" in line for line in advice(grid("adam", [5, 4, 3, 4, 5], train_loss=-2.0)).warnings)


@pytest.mark.parametrize(
    "optimizer",
    [
        "momo",
        "momo-adam-star",
        "sgd-m",
        "adamw(betas=(0.9, 0.95), weight_decay=0.1)",
        "rmsprop",
        "a.b:C(d='x')",
        "no such",
    ],
)
def test_the_code_is_code(optimizer):
    ast.parse(code(optimizer, "3e-5"))
    assert "3e-5" in code(optimizer, "3e-5")


@pytest.mark.parametrize("schedule", ["+cosine", "+linear+warmup=0.2", "+wsd", "+warmup=0.1", "+cosine+warmup=0.3"])
def test_the_pasted_schedule_is_the_schedule(schedule):
    spec = OptimizerSpec.parse("sgd" + schedule)
    names = {"model": torch.nn.Linear(1, 1), "steps": 40}
    exec(code(spec.label, "0.5"), names)
    for step in range(40):
        expected = 0.5 * Settings().schedule_of(spec).factor(step, 40)
        assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(expected)
        names["optimizer"].step()
        names["scheduler"].step()


def test_nothing_is_recommended_where_nothing_was_learned():
    runs = grid("momo", [9.95, 9.92, 9.95, 9.99, 10.0])
    assert advice(runs) is None
    report = Report(
        "task.py", "", "val_loss", runs, figures.analyze(runs), None, {"steps": 5}, [], "momo sweep task.py"
    )
    lead, reason = answer(report)
    assert "nothing was learned" in lead and "--steps 5" in reason and reason == warnings(report)[0]
    assert conclusions(report) == []
    assert advice(grid("momo", [9.95, 9.89, 9.95, 9.99, 10.0])) is not None
    unknown = [dataclasses.replace(run, initial=None) for run in runs]  # ℓ0 is then the worst value: nobody can tell
    assert advice(unknown) is not None


def test_flat_and_far_from_the_best_is_no_advantage():
    runs = grid("momo", [5.0, 5.1, 5.0, 5.2, 5.0], seeds=1) + grid("adam", [9, 4, 1, 4, 9], seeds=1)
    for shift in (-0.01, 0.01):
        runs += [
            dataclasses.replace(r, seed=r.seed + (1 if shift < 0 else 2), objective=r.objective + shift)
            for r in runs[:10]
        ]
    report = Report("task.py", "", "val_loss", runs, figures.analyze(runs))
    text = " ".join(conclusions(report))
    assert "less sensitive" not in text and "momo (5) stays far from the best value, adam's 1" in text
    starred = {column.title: column.best for column in columns(report)}
    assert starred["LR sensitivity"] == [False, True] and starred["good range, decades"] == [False, True]


def test_less_sensitive_needs_an_interval_without_1():
    momo, adam = [1.3, 1.1, 1.0, 1.1, 1.3], [9, 4, 1, 4, 9]
    one = grid("momo", momo, seeds=1) + grid("adam", adam, seeds=1)
    said = " ".join(conclusions(Report("", "", "loss", one, figures.analyze(one))))
    assert "less sensitive" not in said and "one seed can't tell" in said
    several = [dataclasses.replace(r, seed=s, objective=r.objective + 0.01 * s) for r in one for s in range(3)]
    said = " ".join(conclusions(Report("", "", "loss", several, figures.analyze(several))))
    assert "momo is" in said and "× less sensitive to the learning rate than adam (95 % interval" in said


def test_the_tuned_arguments_of_the_trial_are_pasted():
    tuned = [Run("adamw", 0.01, 0, "ok", 1.0, 9.0, params={"weight_decay": 0.03}), Run("adamw", 0.1, 0, "ok", 4.0, 9.0)]
    tuned += [Run("adamw", 0.01, 0, "ok", 3.0, 9.0, params={"weight_decay": 0.1})]
    found = advice(tuned, sampled=True)
    assert found.expected == 1.0 and found.params == {"weight_decay": 0.03}
    assert "torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.03)" in found.code


def test_learning_rates_are_short_where_that_names_the_same_grid_value():
    found = advice(grid("sgd", [9, 5, 1, 5, 9], lrs=[0.001, 0.00316227766017, 0.01, 0.0316227766017, 0.1]))
    assert "lr=0.01)" in found.code
    found = advice(grid("sgd", [9, 1, 5, 9, 9], lrs=[0.001, 0.0316227766017, 0.1, 1.0, 10.0]))
    assert "lr=0.0316)" in found.code and found.lr == 0.0316227766017
