"""Bad input of every kind: a line or three that say what, where and what instead, and the right exit code."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import sys

import pytest

LONG = "x" * 300
SWEEP = ("sweep", "mymodule", "-o", "momo", "--steps", "3", "--lrs", "0.1")
STUDY = ("sweep", "mymodule", "-o", "adam", "--trials", "2")
IMPORT = ("import", "t.csv")
HEAD = b"optimizer,lr,objective\n"
OURS = b"optimizer,lr,seed,status,objective,initial\n"

# arguments, exit code, what is said
TYPED = [
    ((*SWEEP, "--lrs", "0.1:1:99999999999"), 2, "count of values"),
    ((*SWEEP, "--lrs", "0.1:1:²"), 2, "count of values"),
    ((*SWEEP, "--lrs", "0.1:1:" + "9" * 5000), 2, "count of values"),
    ((*SWEEP, "--lrs", ""), 2, "not a number"),
    ((*SWEEP, "--lrs", "\0"), 2, "not a number"),
    ((*SWEEP, "--lrs", "1e999"), 2, "not a positive number"),
    ((*SWEEP, "--lrs", "nan:1:3"), 2, "not a positive number"),
    ((*SWEEP, "--lrs", "momo="), 2, "not a number"),
    ((*SWEEP, "-o", "math:pi"), 2, "no class 'pi'"),
    ((*SWEEP, "-o", ":"), 2, "package.module:Class"),
    ((*SWEEP, "-o", ":x"), 2, "package.module:Class"),
    ((*SWEEP, "-o", "math:"), 2, "package.module:Class"),
    ((*SWEEP, "-o", "a..b:C"), 2, "package.module:Class"),
    ((*SWEEP, "-o", "a\0b:C"), 2, "package.module:Class"),
    ((*SWEEP, "-o", "mymodule:build"), 2, "can't be built"),
    ((*SWEEP, "-o", "adam("), 2, "keyword arguments"),
    ((*SWEEP, "-o", "adam(" + "(" * 5000), 2, "keyword arguments"),
    ((*SWEEP, "-o", "adam(a=" + "-" * 100_000 + "1)"), 2, "keyword arguments"),
    ((*SWEEP, "-o", "adam(a={[]: 1})"), 2, "keyword arguments"),
    ((*SWEEP, "-o", "adam(betas=1)"), 2, "can't be built"),
    ((*SWEEP, "-o", "()"), 2, "no optimizer ''"),
    ((*SWEEP, "-o", "adam+warmup=nan"), 2, "warm-up"),
    ((*SWEEP, "--steps", "-1"), 2, "positive"),
    ((*SWEEP, "--steps", "nan"), 2, "--steps"),
    ((*SWEEP, "--steps", "1e99"), 2, "--steps"),
    ((*SWEEP, "--steps", "9" * 400), 2, "at most"),
    (("sweep", "mymodule", "--epochs", "inf"), 2, "at most"),
    (("sweep", "mymodule", "--epochs", "1e300"), 2, "at most"),
    ((*SWEEP, "--seeds", "0"), 2, "--seeds"),
    ((*SWEEP, "--seeds", "1000000000"), 2, "more than"),
    ((*STUDY, "--trials", "1000000000000"), 2, "more than"),
    ((*STUDY, "--trials", "0"), 2, "--trials"),
    ((*STUDY, "--tune", "x"), 2, "ARGUMENT=LOW:HIGH"),
    ((*STUDY, "--tune", "weight_decay=2:1"), 2, "below HIGH"),
    ((*STUDY, "--lr-range", "x"), 2, "LOW:HIGH"),
    ((*STUDY, "--lrs", "1"), 2, "both given"),
    ((*STUDY, "--sampler", "x"), 2, "tpe"),
    ((*STUDY, "--sampler", "cmaes"), 2, "pip install cmaes"),
    ((*SWEEP, "--jobs", "0"), 2, "--jobs"),
    ((*SWEEP, "--together", "²"), 2, "auto, off"),
    ((*SWEEP, "--together", "9" * 5000), 2, "auto, off"),
    ((*SWEEP, "--device", ""), 2, "not a device"),
    ((*SWEEP, "--device", "cuda:-1"), 2, "device"),
    ((*SWEEP, "--device", "meta"), 2, "aren't supported"),
    ((*SWEEP, "--set", "width"), 2, "key=value"),
    ((*SWEEP, "--set", "=3"), 2, "key=value"),
    ((*SWEEP, "--clip", "nan"), 2, "positive"),
    ((*SWEEP, "--warmup", "nan"), 2, "share"),
    ((*SWEEP, "--amp", "fp8"), 2, "bf16"),
    (("sweep", LONG + ".py"), 2, "no file"),
    (("sweep", LONG), 2, "no module"),
    (("sweep", "a\0b"), 2, "no module"),
    (("sweep", "./a\0b.py:build"), 2, "no file"),
    (("sweep", ""), 2, "not a task"),
    (("sweep", ":"), 2, "not a task"),
    (("sweep", "."), 2, "."),
    (("sweep", "d.py"), 2, "no file"),
    ((*SWEEP, "--storage", ""), 2, "storage URL"),
    ((*SWEEP, "--storage", "http://x/y"), 2, "storage URL"),
    ((*SWEEP, "--storage", "mysql://x/y"), 2, "can't be used"),
    ((*SWEEP, "--storage", "d.py"), 2, "storage URL"),
    ((*SWEEP, "--storage", "folder.db"), 2, "can't be used"),
    ((*SWEEP, "--storage", "text.db"), 2, "can't be used"),
    ((*SWEEP, "--storage", "text.log"), 2, "can't be used"),
    ((*SWEEP, "--storage", LONG + ".db"), 2, "too long"),
    ((*SWEEP, "--storage", "a\0b.db"), 2, "can't be used"),
    ((*SWEEP, "--storage", "grpc://localhost:x"), 2, "grpc://host:port"),
    (("compare", "--study", "nothere"), 2, "No runs are stored"),
    (("recommend",), 2, "Name a task"),
    ((*SWEEP, "--json", LONG), 2, "too long"),
    ((*SWEEP, "--json", "a\0b"), 2, "null"),
    ((*SWEEP, "--json", "mymodule.py/x"), 2, "no folder"),
    ((*SWEEP, "--csv", "d.py"), 2, "is a folder"),
    ((*SWEEP, "--json", "-", "--csv", "-"), 2, "Only one"),
    ((*SWEEP, "--plot", "x.xyz"), 2, ".png"),
    ((*SWEEP, "--plot", "-"), 2, "stdout"),
    (("import", "nothere.csv"), 1, "can't be read"),
    (("import", "."), 1, "can't be read"),
    (("import", "a\0b"), 1, "can't be read"),
    (("import", LONG), 1, "can't be read"),
]

FILES = [
    (b"", (), 1, "no rows"),
    (b"\x00\x01\xff" * 100, (), 1, "UTF-8"),
    ("optimizer,lr,objective\nadam,1,1\n".encode("utf-16"), (), 1, "UTF-8"),
    (gzip.compress(HEAD + b"adam,1,1\n", mtime=0), (), 1, "UTF-8"),
    (b"one\n1\n", (), 2, "no such column"),
    (HEAD, (), 1, "no rows"),
    (b"lr,lr,optimizer,objective\n1,1,a,1\n", (), 1, "twice"),
    (HEAD + b"adam,nan,1\n", (), 1, "above 0"),
    (HEAD + b"adam,1e999,1\n", (), 1, "above 0"),
    (HEAD + b"adam,-1,1\n", (), 1, "negative"),
    (HEAD + b"adam," + b"9" * 5000 + b",1\n", (), 1, "above 0"),
    (HEAD + b'"adam,1,1\nadam,2,2\n', (), 1, "line"),
    (HEAD + b"adam,1\n", (), 1, "2 values"),
    (HEAD + b"adam,x,1\n", (), 1, "not a number"),
    (HEAD + b"a" * 200_000 + b",1,1\n", (), 1, "field"),
    (HEAD + b"adam,1,1\n", ("--where", "x"), 2, "COLUMN=VALUE"),
    (HEAD + b"adam,1,1\n", ("--where", "lr=5"), 2, "leaves no row"),
    (HEAD + b"adam,1,1\n", ("--initial", "x"), 2, "--initial"),
    (OURS + b"adam,1,0,ok,1,x\n", (), 1, "not a number"),
    (b'{"schema": "momo/unstored/1", "name": "a"}\n{"runs":', (), 1, "damaged"),
]


@pytest.fixture
def said(folder, momo, monkeypatch):
    """What the command says of bad input, after a look at how it says it."""
    (folder / "d.py").mkdir()
    (folder / "folder.db").mkdir()
    (folder / "text.db").write_text("no database " * 500)
    (folder / "text.log").write_bytes(b"\xff\xfeno journal\n")
    monkeypatch.setitem(sys.modules, "cmaes", None)  # as where it is not installed

    def command(arguments, code, says):
        got, out, err = momo(*arguments)
        shown = err.strip().splitlines()
        assert got == code and says in err, err[-500:]
        assert 1 <= len(shown) <= 3 and out == "", err[-500:]
        assert "Traceback" not in err and "fault of momo" not in err and "\0" not in err

    return command


def test_what_is_typed_wrongly_is_said_in_three_lines(said, folder):
    wrong = []
    for arguments, code, says in TYPED:
        try:
            said(arguments, code, says)
        except AssertionError as error:
            wrong.append(f"{[a[:40] for a in arguments]}: {str(error)[:600]}")
    assert not wrong, "\n".join(wrong)
    assert not (folder / "momo.db").exists()


def test_tables_that_hold_no_runs_are_refused(said, folder):
    wrong = []
    for content, more, code, says in FILES:
        (folder / "t.csv").write_bytes(content)
        try:
            said((*IMPORT, *more), code, says)
        except AssertionError as error:
            wrong.append(f"{content[:60]!r}: {str(error)[:600]}")
    assert not wrong, "\n".join(wrong)
    assert not (folder / "momo.db").exists()


@pytest.mark.parametrize(
    "value", ["{(1, 2): 3}", "'\\ud800'", "b'x'", "{1, 2}", "1e999", "-" * 100_000 + "1", "9" * 5000, "{[]: 1}", "\1"]
)
def test_any_value_of_set_reaches_the_task(momo, folder, value):
    source = (folder / "mymodule.py").read_text().replace("width=8,", "width=8, odd=None,")
    (folder / "mymodule.py").write_text(source)
    code, _, err = momo(*SWEEP, "--set", f"odd={value}")
    assert code == 0, err
    assert "1 of 1 runs were stored" in momo(*SWEEP, "--set", f"odd={value}")[1]


@pytest.mark.parametrize(
    "text, says",
    [
        ("class Own(BaseException): pass\nraise Own('mine')", "raised Own: mine"),
        ("raise RuntimeError('early')", "raised RuntimeError: early"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3"),
        ("def (", "raised SyntaxError"),
    ],
)
def test_an_optimizer_s_module_that_raises_is_the_user_s_error(momo, folder, text, says):
    (folder / "raising.py").write_text(text)
    code, out, err = momo(*SWEEP, "-o", "raising:Class")
    assert code == 2 and says in err and "momo_cli" not in err and out == "", err


@pytest.mark.parametrize(
    "build, says",
    [
        ("build = int", "which arguments it takes"),
        ("build = 3", "not a function"),
        ("def build(seed): return dict(model=M(), loss=LOSS, train=X, steps='x')", "steps='x'"),
        ("def build(seed): return dict(model=M(), loss=LOSS, train=X, epochs=float('nan'))", "epochs=nan"),
    ],
)
def test_tasks_that_are_none(momo, folder, build, says):
    (folder / "odd.py").write_text(
        "import torch\nM = lambda: torch.nn.Linear(2, 1)\nX = [torch.ones(4, 2)] * 4\n"
        f"LOSS = lambda model, batch: model(batch).square().mean()\n{build}\n"
    )
    code, out, err = momo("sweep", "odd.py", "-o", "momo", "--lrs", "0.1,1", "--together", "off", "--jobs", "1")
    assert code == 2 and says in err and len(err.strip().splitlines()) <= 3 and out == "", err


def test_a_model_that_was_trained_already_is_not_trained_again(momo, folder):
    (folder / "same.py").write_text(
        "import torch\nmodel = torch.nn.Linear(2, 1)\n"
        "def build(seed): return model, lambda m, b: m(b).square().mean(), [torch.ones(4, 2)] * 4\n"
    )
    grid = ("sweep", "same.py", "-o", "momo", "--lrs", "0.1,1", "--together", "off", "--jobs", "1")
    runs = json.loads(momo(*grid, "--json", "-")[1])["runs"]
    assert [run["status"] for run in runs] == ["ok", "failed"] and "copy.deepcopy(model)" in runs[1]["error"]


def test_a_write_that_fails_leaves_the_old_file_whole(momo, folder, monkeypatch):
    from pathlib import Path

    (folder / "old.json").write_text("old")
    write = Path.write_bytes

    def full(path, content):
        write(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = momo(*SWEEP, "--json", "old.json")
    assert code == 1 and "No space left" in err and (folder / "old.json").read_text() == "old"
    assert not list(folder.glob(".*.part"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_stdout_that_takes_nothing_is_said(momo, folder, monkeypatch):
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # its end, which flushes it, raises, too
        for stdout in (full, None):
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", stdout)
                code, _, err = momo(*SWEEP, "--json", "-")
            assert code == 1 and "stdout can't be written" in err and "fault of momo" not in err, err
