"""momo in Python: the same runs as the command's, as typed results, in a file, a prompt and a notebook."""

from __future__ import annotations

import html.parser
import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import matplotlib.figure
import pytest
import torch
from support import ROOT, TASK

import momo_cli

ASK = {"optimizers": ["momo", "sgd-m"], "lrs": [0.01, 0.1, 1], "seeds": 2, "steps": 30}
COMMAND = ["mymodule:build", "-o", "momo,sgd-m", "--lrs", "0.01,0.1,1", "--seeds", "2", "--steps", "30"]


@pytest.fixture
def build(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    import mymodule

    return mymodule.build


def results(report: momo_cli.Report) -> list[tuple[object, ...]]:
    return sorted((run.optimizer, run.lr, run.seed, run.status, run.objective, run.initial) for run in report.runs)


def test_the_same_runs_as_the_command(momo, build):
    code, _, err = momo("sweep", *COMMAND, "--together", "off", "--json", "a.json")
    assert code == 0, err
    document = json.loads(Path("a.json").read_text())
    build = importlib.import_module("mymodule").build  # the command's fixture has forgotten the module
    kept_apart = momo_cli.sweep(build, **ASK, together="off", storage=None)
    for report in (momo_cli.sweep(build, **ASK), momo_cli.sweep("mymodule:build", **ASK), momo_cli.load()):
        assert report.to_dict() == document  # reused: even the seconds agree
        assert results(report) == results(kept_apart)
    assert not [name for name in os.listdir() if "momo-" in name]


@pytest.mark.parametrize(
    "lrs", [["0.1", 1.0], (0.1, 1), torch.tensor([0.1, 1.0], dtype=torch.double), {"sgd": [1, "0.1"]}]
)
def test_learning_rates_of_any_kind(build, lrs):
    report = momo_cli.sweep(build, optimizers="sgd", lrs=lrs, steps=2, storage=None)
    assert [run.lr for run in report.runs] == [0.1, 1.0]
    with pytest.raises(momo_cli.UserError, match="both given"):
        momo_cli.sweep(build, optimizers="sgd", lrs=lrs, trials=2, steps=2, storage=None)


def test_results_are_typed_and_named_as_in_the_document(build):
    report = momo_cli.recommend(build, **ASK)
    document = report.to_dict()
    for figures, entry in zip(report.optimizers, document["optimizers"], strict=True):
        assert (figures.optimizer, figures.best_lr, figures.best) == (
            entry["optimizer"],
            entry["best_lr"],
            entry["best"],
        )
        assert figures.sensitivity.value == entry["sensitivity"]["value"]
        assert figures.good_range.open_low == entry["good_range"]["open_low"]
    [pair] = report.comparisons
    assert (pair.a, pair.b) == ("momo", "sgd-m") and pair.sensitivity_ratio.low is not None
    assert report.recommendation is not None and report.recommendation.lr == document["recommendation"]["lr"]
    assert all(line.endswith((".", "`")) for line in report.warnings)


def test_what_is_seen_of_a_report(momo, build):
    for call, command in ((momo_cli.sweep, "sweep"), (momo_cli.compare, "compare"), (momo_cli.recommend, "recommend")):
        report = call(importlib.import_module("mymodule").build, **ASK)
        shown = [line.rstrip() for line in momo(command, *COMMAND)[1].splitlines()]
        assert [line.rstrip() for line in str(report).splitlines()] in (shown, shown[:-1])  # "… were stored already"
        assert "\x1b" not in str(report)
    assert isinstance(report.plot(), matplotlib.figure.Figure) and report.plot("curves").axes
    with pytest.raises(momo_cli.UserError, match="Did you mean 'curves'"):
        report.plot("curve")
    tags = _Tags()
    tags.feed(report._repr_html_())
    assert report.plot()._repr_png_().startswith(b"\x89PNG")
    assert tags.open == [] and tags.seen["table"] == 2 and "html" not in tags.seen and "img" not in tags.seen
    assert "Use " in report._repr_html_() and ".momo th" in report._repr_html_()


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


PROMPT = """
import momo_cli, os, torch
WIDTH = 8
def make(width):
    return torch.nn.Linear(4, 1)
def build(seed):
    with open("built.txt", "a") as file:
        print(os.getpid(), file=file)
    x = torch.randn(64, 4)
    loss = lambda model, batch: (model(batch) - batch.sum(1, keepdim=True)).square().mean()
    return make(WIDTH), loss, list(x.split(16))
report = momo_cli.sweep(build, optimizers="momo", lrs="0.1,1", steps=20, together="off")
print(os.getpid(), report.task, *[run.status for run in report.runs])
"""


def test_a_function_without_a_file_is_trained_here_and_known_by_its_source(folder):
    def run(source):
        before = len(Path("built.txt").read_text().split()) if Path("built.txt").exists() else 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-"], input=source, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        pid, *rest = done.stdout.split()
        assert rest == ["build", "ok", "ok"]
        built = Path("built.txt").read_text().split()[before:]
        assert set(built) <= {pid}
        return len(built)

    assert run(PROMPT) > 0
    assert run(PROMPT) == 0  # stored
    assert run(PROMPT.replace("WIDTH = 8", "WIDTH = 9")) > 0
    assert run(PROMPT.replace("Linear(4, 1)", "Linear(4, 1, bias=False)")) > 0


def test_a_file_that_calls_momo_needs_no_guard(folder):
    call = "momo_cli.sweep('mymodule', optimizers='momo', lrs=[0.1, 1], steps=10, jobs=2)"
    Path("call.py").write_text(f"import momo_cli\nprint('once')\nprint(*[run.status for run in {call}.runs])")
    done = subprocess.run(
        [sys.executable, "call.py"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.stdout, done.stderr) == ("once\nok ok\n", "")


def test_a_script(folder):
    Path("train.py").write_text(
        "import sys, momo_cli\nmomo_cli.log(step=0, loss=2.0)\nmomo_cli.log(val_loss=float(sys.argv[1]))"
    )
    words = [sys.executable, "train.py", "{lr}"]
    report = momo_cli.sweep(words, lrs={"script": [0.25, 1 / 3]})
    assert [run.objective for run in report.runs] == [0.25, 0.333333333333]  # learning rates have 12 digits
    again = momo_cli.sweep(" ".join(words), lrs=[0.25], jobs=2)
    assert again.lines and results(again) == results(report)[:1]


def test_a_study(build):
    ask = {"optimizers": "momo(weight_decay=0.0)", "trials": 4, "lr_range": (0.1, 1), "sampler": "random", "steps": 10}
    report = momo_cli.sweep(build, **ask)
    assert len(report.runs) == 4 and all(0.1 <= run.lr <= 1 for run in report.runs)
    assert momo_cli.sweep(build, **{**ask, "lr_range": "0.1:1"}).to_dict() == report.to_dict()


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("nowhere:build", {}, "no module"),
        (3, {}, "a string as the command takes"),
        ("digits-mlp", {"optimizers": "adm"}, "Did you mean"),
        ("digits-mlp", {"lrs": [-1]}, "not a positive number"),
        ("digits-mlp", {"read": "(x)"}, "training script"),
        ("digits-mlp", {"lr_range": (1, 2)}, "trials"),
        (lambda seed: None, {"jobs": 2}, "process alone"),
        (lambda seed: None, {"steps": 2}, "not a task"),
        ("python train.py", {}, "holds no {lr}"),
    ],
)
def test_errors(folder, task, options, said):
    with pytest.raises(momo_cli.UserError) as error:
        momo_cli.sweep(task, **{"lrs": [1.0], **options})
    assert said in str(error.value)


def test_errors_of_what_is_not_there(folder, build):
    with pytest.raises(TypeError, match="step"):
        momo_cli.sweep(build, step=3)
    with pytest.raises(momo_cli.UserError, match="No runs are stored"):
        momo_cli.load()
    Path("bad.py").write_text(TASK.replace("return model", "raise ValueError('no data')\n    return model"))
    with pytest.raises(momo_cli.UserError, match="no data") as error:
        momo_cli.sweep("bad.py", lrs=[1.0])
    assert "bad.py" in str(error.value)


def test_progress_in_a_notebook(build, monkeypatch):
    pictures = []

    class Handle:
        def update(self, picture):
            pictures.append(picture)

    def display(picture, display_id):
        pictures.append(picture)
        return Handle()

    stand_in = types.ModuleType("IPython.display")
    stand_in.display, stand_in.HTML = display, str
    monkeypatch.setitem(sys.modules, "IPython.display", stand_in)
    monkeypatch.setattr("rich.console.Console.is_jupyter", True, raising=False)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    momo_cli.sweep(build, **ASK, together="off", progress=True)
    assert any("0/12 runs" in picture for picture in pictures[:-1]) and "12/12 runs" in pictures[-1]
