"""Any number of processes share the runs of a command, and any of them may be killed: each run counts once."""

from __future__ import annotations

import collections
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import pytest
from support import ROOT, alive, children, left_running, wait_for_trials

from momo_cli.runs import Run
from momo_cli.store import holder, study_key
from momo_cli.store.claims import Claims
from momo_cli.store.storage import Storage

KEY = study_key("task", "digest", {}, {"maximize": False})
NAME = "task-1"
SHORT = """
import os, time, torch
def build(seed, pause=0.1):
    time.sleep(pause)
    with open("trained", "a") as file:
        file.write("run\\n")
    model, x = torch.nn.Linear(2, 1), torch.ones(4, 2)
    return model, lambda model, batch: (model(batch) - 1).square().mean(), [x] * 3
"""
SWEEP = ("sweep", "short.py", "-o", "momo,adam", "--lrs", "1e-3:1:12", "--together", "off", "--jobs", "1", "-q")


@pytest.fixture
def short(folder):
    (folder / "short.py").write_text(SHORT)
    return folder


@pytest.fixture(params=["sqlite", "postgresql"])
def any_storage(request, folder):
    """A database's URL, and a function that restarts its server where there is one."""
    if request.param == "sqlite":
        yield "sqlite:///momo.db", lambda: None
        return
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL's server is not installed (Debian's package postgresql)")
    with tempfile.TemporaryDirectory() as place:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        user = "nobody" if os.getuid() == 0 else None  # the server refuses root
        if user is not None:
            shutil.chown(place, user)

        def server(program, *arguments):
            done = subprocess.run(
                [programs[-1] / program, "-D", f"{place}/data", *arguments],
                user=user, cwd=place, env={}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr

        def start():
            server("pg_ctl", "start", "-w", "-l", f"{place}/log", "-o", f"-p {port} -k {place} -h localhost -F")

        def restart():
            server("pg_ctl", "stop", "-m", "immediate")
            time.sleep(1.5)
            start()

        server("initdb", "-U", "momo", "-A", "trust")
        start()
        try:
            yield f"postgresql+psycopg2://momo:geheim@localhost:{port}/postgres", restart
        finally:
            server("pg_ctl", "stop", "-m", "immediate")


def asked(count):
    return [Run("momo", 0.1 * (i + 1), 0) for i in range(count)]


def ended(run):
    return Run(run.optimizer, run.lr, run.seed, objective=1 / run.lr, initial=20.0, steps=4, curve=[[4, 1.0]])


def claims_of(url, grace=60):
    claims = Claims(Storage(url, grace), NAME, KEY)
    claims.start(["momo"], "train_loss", False, frozenset())
    return claims


def trials(url="sqlite:///momo.db"):
    storage = Storage(url).opened()
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    return [trial for study in studies for trial in study.trials]


def runs_in(document):
    """The runs without the time that they took."""
    return [{name: value for name, value in run.items() if name != "seconds"} for run in document["runs"]]


def each_run_once(count, url="sqlite:///momo.db"):
    found = collections.Counter(tuple(trial.params.values()) for trial in trials(url) if "status" in trial.user_attrs)
    assert len(found) == count and set(found.values()) == {1}


@pytest.mark.parametrize("url", ["sqlite:///shared.db", "shared.log"])
def test_a_run_is_one_process_s(folder, url):
    first, second = claims_of(url), claims_of(url)
    runs = asked(6)
    first.open(runs)
    mine, theirs = first.take(runs, 4), second.take(runs, 4)
    assert len(mine) == 4 and len(theirs) == 2 and not set(mine) & set(theirs)
    assert second.take(runs, 4) == []
    for run in runs[:4]:
        first.end(ended(run))
    done, free, who = second.look(runs)
    assert len(done) == 4 and free == [] and who == ""
    second.give_back()
    assert set(first.take(runs, 9)) == set(theirs)
    assert len(trials(url)) == 6


@pytest.mark.parametrize("url", ["sqlite:///shared.db", "shared.log"])
def test_a_process_of_this_machine_that_died_is_seen_at_once(folder, url):
    script = (
        "from store.test_sharing import *\n"
        f"claims = claims_of({url!r}); print(len(claims.take(asked(3), 2)), flush=True); time.sleep(60)"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env, text=True)
    assert process.stdout.readline() == "2\n"
    claims = claims_of(url)
    done, free, who = claims.look(asked(3))
    assert (done, len(free)) == ([], 1) and who == f"process {process.pid} on {os.uname().nodename}"
    process.kill()
    process.wait()
    assert claims.look(asked(3))[1:] and len(claims.take(asked(3), 9)) == 3


def test_a_process_without_a_heartbeat_loses_its_runs_and_its_late_result_does_not_count_twice(folder, monkeypatch):
    monkeypatch.setattr(holder, "this_process", lambda: "elsewhere/1:1:1")
    first, second = claims_of("sqlite:///momo.db", grace=1), claims_of("sqlite:///momo.db", grace=1)
    runs = asked(2)
    assert len(first.take(runs, 2)) == 2
    assert second.look(runs)[1] == []
    deadline = time.time() + 30
    while not second.look(runs)[1] and time.time() < deadline:
        time.sleep(0.3)
    assert len(second.take(runs, 1)) == 1
    first.end(ended(runs[0]))
    second.end(ended(runs[0]))
    first.end(ended(runs[1]))
    assert len(second.look(runs)[0]) == 2
    each_run_once(2)


def test_heartbeats_keep_runs(folder, monkeypatch):
    monkeypatch.setattr(holder, "this_process", lambda: "elsewhere/1:1:1")
    first, second = claims_of("sqlite:///momo.db", grace=2), claims_of("sqlite:///momo.db", grace=2)
    first.take(asked(2), 2)
    for _ in range(12):
        time.sleep(0.3)
        first.beat()
        assert second.look(asked(2))[1] == []


def test_thirty_kills_lose_nothing_and_double_nothing(short, momo):
    code, _, err = momo(*SWEEP, "--json", "whole.json", "--storage", "whole.db")
    assert code == 0, err
    whole = json.loads((short / "whole.json").read_text())
    (short / "trained").unlink()
    # Forked from a process that has loaded everything: what is killed is the command at work, not its imports.
    script = f"""
import os, random, signal, sys, time
import optuna, sqlalchemy, torch
from momo_cli.__main__ import run
import momo_cli.experiment, momo_cli.training.dispatch.executor, momo_cli.store.claims, momo_cli.store.tables
random.seed(1)
command = {[*SWEEP, "--json", "killed.json"]!r}
for kill in range(31):
    child = os.fork()
    if child == 0:
        os._exit(run(command))
    if kill < 30:
        time.sleep(random.uniform(0.1, 0.9))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    killed = json.loads((short / "killed.json").read_text())
    assert runs_in(killed) == runs_in(whole) and killed["optimizers"] == whole["optimizers"]
    each_run_once(24)


def test_four_processes_of_which_one_is_killed_end_with_the_same_table(short, momo_process, any_storage):
    url, restart = any_storage
    each = [
        momo_process(*SWEEP, "--set", "pause=0.4", "--json", f"{i}.json", "--storage", url, "--grace", "3")
        for i in range(4)
    ]
    wait_for_trials(4, url=url)
    others = children(each[0].pid)
    each[0].kill()
    restart()
    for i, process in enumerate(each):
        _, err = process.communicate(timeout=120)
        assert i == 0 or process.returncode == 0, err
    documents = [json.loads((short / f"{i}.json").read_text()) for i in (1, 2, 3)]
    assert documents[0] == documents[1] == documents[2] and len(documents[0]["runs"]) == 24
    each_run_once(24, url)
    # A run that the killed process was at was begun twice. The task that a process builds to check it is its first run.
    assert 24 <= len((short / "trained").read_text().splitlines()) <= 24 + 4 + 2
    time.sleep(1)
    assert not any(map(alive, others))


def test_work_takes_part_in_what_is_open(short, momo_process, momo):
    command = momo_process(*SWEEP, "--set", "pause=1.0")
    wait_for_trials(2)
    worker = momo_process("work")
    for process in (command, worker):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    each_run_once(24)
    held = collections.Counter(trial.user_attrs["momo:holder"] for trial in trials())
    assert len(held) == 2
    assert "Nothing is open" in momo("work")[2]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_as_ctrl_c_does(short, momo_process, sign):
    process = momo_process(*SWEEP)
    wait_for_trials(3)
    others = children(process.pid)
    process.send_signal(sign)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Interrupted" in err and "Traceback" not in err
    assert not left_running(others)
    states = collections.Counter(trial.state.name for trial in trials())
    assert states["RUNNING"] == 0 and states["WAITING"] + states["COMPLETE"] == 24


def test_workers_end_with_a_command_that_is_killed(short, momo_process):
    (short / "short.py").write_text(SHORT.replace("(model(batch) - 1)", "(time.sleep(0.2) or model(batch) - 1)"))
    process = momo_process(*SWEEP[:-3], "--jobs", "2", "-q")
    wait_for_trials(2)
    others = children(process.pid)
    process.kill()
    process.communicate(timeout=10)
    assert len(others) >= 3 and not left_running(others, seconds=10)
