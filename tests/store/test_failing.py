"""A store that fails: what finished is kept, stored when the store is back, or written to a file."""

from __future__ import annotations

import json
import re
import resource
import sqlite3
import time

import pytest
from store.test_sharing import KEY, SHORT, SWEEP, each_run_once, ended, runs_in
from support import wait_for_trials

from momo_cli.errors import UserError
from momo_cli.runs import Run
from momo_cli.store import Store, unstored
from momo_cli.store.storage import without_password

SLOW = (*SWEEP, "--set", "pause=0.2", "--json", "out.json")


@pytest.fixture
def sweep(folder, momo_process):
    (folder / "short.py").write_text(SHORT)
    return lambda **options: momo_process(*SLOW, "--storage", "sqlite:///momo.db?timeout=0.5", **options)


def test_a_database_locked_for_a_while_gets_everything(folder, sweep):
    process = sweep()
    wait_for_trials(2)
    with sqlite3.connect("momo.db", timeout=20) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(7)
        other.rollback()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err.count("The storage fails: database is locked") == 1, err
    assert len(json.loads((folder / "out.json").read_text())["runs"]) == 24
    each_run_once(24)


def test_a_database_that_stays_locked_leaves_the_table_and_a_file(folder, sweep, momo):
    process = sweep()
    wait_for_trials(2)
    with sqlite3.connect("momo.db", timeout=20) as other:
        other.execute("BEGIN IMMEDIATE")
        out, err = process.communicate(timeout=200)
        other.rollback()
    assert process.returncode == 1 and "momo " in out and "Traceback" not in err
    file = re.search(r"momo import (\S+) stores them", err)[1]
    assert len(json.loads((folder / "out.json").read_text())["runs"]) == 24
    code, _, err = momo("import", file)
    assert code == 0, err
    each_run_once(24)
    assert "24 of 24 runs were stored" in momo(*SLOW[:-4], "--set", "pause=0.2")[1]


def test_a_deleted_database_is_made_again_with_every_run_of_the_command(folder, sweep):
    process = sweep()
    wait_for_trials(4)
    (folder / "momo.db").unlink()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "momo.db is gone" in err, err
    each_run_once(24)


def test_a_full_disk_leaves_the_table_and_a_file(folder, sweep):
    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (133_000, 133_000))

    process = sweep(preexec_fn=little_room)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1 and "momo " in out and "Traceback" not in err, err
    kept = unstored.read(re.search(r"momo import (\S+) stores them", err)[1])
    document = json.loads((folder / "out.json").read_text())
    assert kept.runs and len(document["runs"]) == 24
    stored = Store().restore(kept).runs()
    found = sorted([run.optimizer, run.lr] for run in stored)
    assert found == sorted([run["optimizer"], run["lr"]] for run in runs_in(document))


def test_a_file_of_runs_that_were_not_stored_is_read_back_whole(folder):
    runs = [ended(Run("momo", lr)) for lr in (0.1, 1.0)] + [Run("my:Class", 1e-3, 2, "failed", error="a\nb")]
    path = unstored.Unstored("task-1", KEY, "val_loss", runs).write([folder / "no such folder", folder])
    assert path.parent == folder and unstored.read(path) == unstored.Unstored("task-1", KEY, "val_loss", runs)
    assert Store().restore(unstored.read(path)).runs() == runs
    assert len(Store().restore(unstored.read(path)).runs()) == 3
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match="damaged"):
        unstored.read(path)
    assert unstored.read(folder / "mymodule.py") is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://ann:geheim@localhost:1/db",
        "postgresql+psycopg2://ann:ge@heim@nosuchhost.invalid/db",
        "postgresql+psycopg2://localhost:1/db?password=geheim&user=ann",
        "mysql://ann:geheim@localhost:1/db",
        "nosuchthing://ann:geheim@localhost/db",
        "redis://ann:geheim@localhost:1/0",
    ],
)
def test_a_password_is_shown_nowhere(momo, url):
    for command in (("list",), ("compare",), ("sweep", "mymodule", "--lrs", "0.1"), ("work",)):
        code, out, err = momo(*command, "--storage", url)
        assert code == 2 and "heim" not in out + err and "***" in err, err
        assert len(err.strip().splitlines()) <= 3
    assert "heim" not in without_password(url)
