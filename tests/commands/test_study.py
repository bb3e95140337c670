"""``momo sweep --trials``: Optuna samples and prunes, the store keeps, the report says what mattered."""

from __future__ import annotations

import json

import optuna
import pytest

STUDY = ("sweep", "mymodule", "--trials", "8", "-o", "adam", "--epochs", "5")


def result(momo, *arguments):
    code, out, err = momo(*arguments, "--json", "-")
    assert code == 0, err
    return json.loads(out), err


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "grid"])
def test_samplers_stay_in_the_range(momo, sampler):
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    found, err = result(momo, *STUDY, "--sampler", sampler, "--lr-range", "1e-3:1e-2")
    lrs = {run["lr"] for run in found["runs"]}
    assert len(lrs) == 8 and all(1e-3 <= lr <= 1e-2 for lr in lrs)
    assert "the best of 8 trials" in err


def test_a_study_goes_on_where_it_was(momo):
    first, _ = result(momo, *STUDY)
    more, err = result(momo, *STUDY[:2], "--trials", "12", *STUDY[4:])
    assert "8 of 12 runs were stored" in err
    assert {r["lr"] for r in first["runs"]} < {r["lr"] for r in more["runs"]} and len(more["runs"]) == 12


def test_further_arguments_are_tuned_and_weighed(momo):
    found, err = result(momo, *STUDY[:2], "--trials", "12", *STUDY[4:], "--tune", "weight_decay=1e-6:1")
    study = optuna.load_study(study_name=found["study"], storage="sqlite:///momo.db")
    decays = [t.params["weight_decay"] for t in study.trials if "weight_decay" in t.params]
    assert len(decays) == 9 and all(1e-6 <= d <= 1 for d in decays)  # a quarter of the trials varies the LR alone
    assert "importance of each argument" in err and "the learning rate alone" in err


def test_pruned_runs_stop_early_and_do_not_count(momo):
    found, _ = result(
        momo,
        "sweep",
        "mymodule",
        "-o",
        "sgd",
        "--trials",
        "24",
        "--epochs",
        "10",
        "--pruner",
        "median",
        "--lr-range",
        "1e-5:0.3",
    )
    pruned = [r for r in found["runs"] if r["status"] == "pruned"]
    whole = [r for r in found["runs"] if r["status"] == "ok"]
    assert pruned and whole and max(r["steps"] for r in pruned) < whole[0]["steps"] == 60
    assert found["optimizers"][0]["pruned"] == len(pruned)
    study = optuna.load_study(study_name=found["study"], storage="sqlite:///momo.db")
    assert sum(t.state.name == "PRUNED" for t in study.trials) == len(pruned)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--trials", "0"), "--trials"),
        (("--trials", "3", "--lrs", "1"), "--lr-range"),
        (("--tune", "eps=1:2"), "--trials N"),
        (("--trials", "3", "--tune", "eps"), "ARGUMENT=LOW:HIGH"),
        (("--trials", "3", "--tune", "eps=2:1"), "LOW must lie below HIGH"),
        (("--trials", "3", "--lr-range", "1"), "LOW:HIGH"),
        (("--trials", "3", "--sampler", "tpee"), "Did you mean 'tpe'"),
        (("--trials", "3", "--pruner", "medium"), "Did you mean 'median'"),
        (("--trials", "3", "--tune", "epsilon=1e-9:1e-3"), "epsilon"),
    ],
)
def test_what_is_wrong_is_said(momo, arguments, says):
    code, _, err = momo("sweep", "mymodule", "-o", "adam", *arguments)
    assert code == 2 and says in err and len(err.strip().splitlines()) <= 3
