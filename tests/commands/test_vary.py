"""``--vary``, by real commands: what is stored is shared with ``--set``, and every output has every value."""

from __future__ import annotations

import csv
import json

import pytest

import momo_cli
from momo_cli.errors import UserError

GRID = ("-o", "adam,momo", "--lrs", "1e-3:1:4", "--seeds", "2", "--steps", "8")


def test_runs_are_shared_with_plain_sweeps_and_every_output_holds_all_values(momo, folder):
    assert momo("sweep", "mymodule", *GRID, "--set", "width=8")[0] == 0
    outputs = ("--csv", "v.csv", "--markdown", "v.md", "--plot", "v.png", "--report", "v.html")
    code, out, err = momo("sweep", "mymodule", *GRID, "--vary", "width=8,16", *outputs, "--json", "-")
    assert code == 0, err
    assert "16 of 16 runs were stored already" in err
    document = json.loads(out)
    vary = document["vary"]
    assert (vary["name"], vary["values"], document["task"]) == ("width", [8, 16], "mymodule:build")
    _, plain, err = momo("sweep", "mymodule", *GRID, "--set", "width=16", "--json", "-")
    assert "16 of 16 runs were stored already" in err
    assert json.loads(plain)["runs"] == vary["reports"][1]["runs"]
    for each in vary["optimizers"]:
        assert set(each) == {"optimizer", "best_lrs", "optima", "shared", "drift"}
        assert set(each["shared"]) == {"lr", "worst", "at"} and set(each["drift"]) == {"value", "low", "high"}
    rows = list(csv.DictReader((folder / "v.csv").open()))
    assert [row["width"] for row in rows] == ["8"] * 16 + ["16"] * 16
    page, text = (folder / "v.html").read_text(), (folder / "v.md").read_text()
    assert (
        "for every value of width" in page and "width 16" in page and "| worst excess |" in text and "width 8" in text
    )
    assert (folder / "v.png").read_bytes()[:4] == b"\x89PNG"


def test_json_alone_is_on_stdout_whatever_the_task_prints(momo_process, folder):
    with (folder / "mymodule.py").open("a") as file:
        file.write("\n_build = build\ndef build(seed, width=8):\n    print('a word')\n    return _build(seed, width)\n")
    process = momo_process("sweep", "mymodule", *GRID, "--vary", "width=8,16", "--json", "-")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "a word" in err, err
    assert json.loads(out)["vary"]["values"] == [8, 16]


def test_the_answer_comes_first_and_fits_80_columns(momo, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = momo(
        "recommend", "mymodule", "-o", "adam", "--lrs", "1e-3:1:5", "--seeds", "2", "--vary", "steps=8,32"
    )
    assert code == 0, err
    assert out.startswith(("Use adam at", "No recommendation")) and "steps 32" in out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("    "))
    if out.startswith("Use"):
        assert "import torch" in out


def test_a_script(momo, folder):
    (folder / "train.py").write_text(
        "import sys, json\nlr, width = map(float, sys.argv[1:])\n"
        "for step in range(11):\n    print(json.dumps({'step': step, 'loss': 9 - step + (lr * width - 1) ** 2}))\n"
    )
    words = ("--vary", "width=1,10", "--json", "-", "--", "python", "train.py", "{lr}", "{width}")
    code, out, err = momo("sweep", "--lrs", "0.01,0.1,1", *words)
    assert code == 0, err
    (found,) = json.loads(out)["vary"]["optimizers"]
    assert found["best_lrs"] == [1.0, 0.1] and -1.5 < found["drift"]["value"] < -0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--vary", "width"), "write NAME=V1,V2"),
        (("--vary", "width="), "write NAME=V1,V2"),
        (("--vary", "width=8,8"), "stands there twice"),
        (("--vary", "depth=1,2"), "depth"),
        (("--vary", "width=8,16", "--set", "width=4"), "were both given"),
        (("--vary", "steps=8,16", "--steps", "4"), "were both given"),
        (("--vary", "steps=8,x"), "positive numbers"),
        (("--vary", "steps=0,8"), "positive number"),
        (("--vary", "seed=0,1"), "write NAME=V1,V2"),
        (("--vary", "width=8", "--vary", "samples=9"), "one axis at a time"),
        (("--vary", "width=8,16", "--trials", "3"), "instead of --trials"),
        (("--vary", "width=8,16", "--study", "x"), "--study"),
    ],
)
def test_bad_input(momo, words, said):
    code, out, err = momo("sweep", "mymodule", *words)
    assert code == 2 and said in err and len(err.splitlines()) <= 3 and out == "", err


def test_plots_of_one_value_and_of_all(momo):
    grid = ("-o", "adam", "--lrs", "0.1,1", "--steps", "4")
    code, _, err = momo("sweep", "mymodule", *grid, "--plot", "x.png", "--plot-kind", "transfer")
    assert code == 1 and "shows what --vary varies" in err
    code, _, err = momo("sweep", "mymodule", *grid, "--vary", "width=4,8", "--plot", "x.png", "--plot-kind", "curves")
    assert code == 1 and "of one value of width" in err


def test_in_python(folder):
    options = {"optimizers": ["adam"], "lrs": [0.01, 0.1, 1], "seeds": 2, "steps": 8}
    report = momo_cli.sweep("mymodule", vary={"width": [4, 8]}, **options)
    assert [one.settings["width"] for one in report.reports] == [4, 8] and len(report.runs) == 12
    assert report.to_dict()["vary"]["values"] == [4, 8] and str(report).startswith(("Use", "No recommendation"))
    assert report.plot().axes and "width 8" in report._repr_html_()
    again = momo_cli.recommend("mymodule", vary="width=4,8", **options)
    assert again.optimizers == report.optimizers and again.view == "recommend"
    with pytest.raises(UserError, match="one axis"):
        momo_cli.sweep("mymodule", vary={"width": [4], "samples": [8]}, **options)
