"""``compare``, ``recommend``, ``import`` and ``export`` as users type them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest

BASE = ("mymodule", "--lrs", "0.01,0.1,1", "--epochs", "5", "--seeds", "2")


def same(a, b):
    """Equal documents, apart from what a CSV doesn't carry."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_compare_trains_once_and_then_reports(momo):
    code, out, _ = momo("compare", *BASE)
    assert code == 0 and all(name in out for name in ("momo-adam", "regret", "best of 4", "sensitiv"))
    code, again, _ = momo("compare")
    assert code == 0 and out.split("were stored")[0].split("\n\n")[1] == again.split("\n\n")[1]
    code, out, _ = momo("compare", *BASE)
    assert "30 of 30 runs were stored" in out


def test_recommend_uses_what_is_stored(momo):
    momo("sweep", *BASE, "-o", "momo-adam,adam")
    code, out, _ = momo("recommend")
    assert code == 0 and "model.parameters()" in out
    document = json.loads(momo("recommend", "mymodule", "--epochs", "5", "--json", "-")[1])
    assert {r["optimizer"] for r in document["runs"]} == {"momo-adam", "adam"}
    advice = document["recommendation"]
    assert advice["lr"] in (0.01, 0.1, 1.0) and advice["because"] and advice["code"]
    best = json.loads(momo("recommend", "--prefer", "best", "--json", "-")[1])["recommendation"]
    values = {(o["optimizer"], lr): v for o in document["optimizers"] for lr, v in zip(o["lrs"], o["values"])}
    assert values[best["optimizer"], best["lr"]] == min(values.values())


def test_extend_brackets_the_best(momo):
    momo("sweep", "mymodule", "-o", "sgd", "--lrs", "1e-4,1e-3", "--epochs", "5")
    assert json.loads(momo("recommend", "--json", "-")[1])["optimizers"][0]["best_at_edge"]
    code, out, _ = momo("recommend", "mymodule", "--epochs", "5", "--extend", "--json", "-")
    lrs = json.loads(out)["optimizers"][0]["lrs"]
    assert code == 0 and max(lrs) == pytest.approx(0.1) and len(lrs) == 4


def test_export_and_import_give_the_same_figures(momo):
    momo("sweep", *BASE)
    before = json.loads(momo("compare", "--json", "-")[1])
    assert momo("export", "runs.csv")[0] == 0
    after = json.loads(momo("import", "runs.csv", "--json", "-")[1])
    assert same(before["optimizers"], after["optimizers"]) and same(before["comparisons"], after["comparisons"])
    assert json.loads(momo("compare", "--json", "-")[1])["task"] == "runs.csv"
    code, out, _ = momo("export")
    assert code == 0 and len(out.splitlines()) == 13
    reader, writer = os.pipe()
    os.close(reader)  # as of a pipe to head that has seen enough
    done = subprocess.run(
        [sys.executable, "-m", "momo_cli", "export"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_imported_table_never_imports_a_module(momo, folder):
    (folder / "trap.py").write_text("raise SystemExit('imported')")
    (folder / "t.csv").write_text("optimizer,lr,objective\ntrap:Class,0.1,1\ntrap:Class,1,2\nmomo,0.1,1\nmomo,1,1.5\n")
    for arguments in (("import", "t.csv"), ("compare",), ("recommend",), ("list",)):
        code, out, err = momo(*arguments)
        assert code == 0 and "imported" not in out + err.replace("t.csv", "")


@pytest.mark.parametrize(
    "arguments, code, says",
    [
        (("compare",), 2, "No runs are stored"),
        (("recommend",), 2, "No runs are stored"),
        (("export",), 2, "No runs are stored"),
        (("recommend", "--extend"), 2, "needs the task"),
        (("recommend", "mymodule", "--prefer", "bst"), 2, "Did you mean 'best'"),
        (("compare", "mymodule", "nomodule", "--json", "x"), 2, "one at a time"),
        (("compare", "mymodule", "--plot", "x.bmp"), 2, ".png"),
        (("compare", "mymodule", "--json", "-", "--csv", "-"), 2, "Only one"),
        (("import", "no.csv"), 1, "no.csv"),
        (("import", "mymodule.py"), 1, "mymodule.py"),
    ],
)
def test_what_is_wrong_is_said(momo, arguments, code, says):
    found, out, err = momo(*arguments)
    assert found == code and says in err and out == "" and len(err.strip().splitlines()) <= 3
