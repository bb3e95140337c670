"""Every command of momo on a training script, given after ``--``."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from support import alive

SCRIPT = """
import json, os, sys
with open("started.txt", "a") as file:
    print(os.getpid(), file=file)
lr, opt, seed = float(sys.argv[1]), sys.argv[2], int(sys.argv[3])
decay = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
x, pace = 1.0 + seed, {"sgd": 1.0, "adamw": 0.3}[opt]
for step in range(20):
    print(json.dumps({"step": step, "loss": x * x}))
    x -= pace * lr * 2 * x
print(json.dumps({"val_loss": x * x + 0.01 + decay, "accuracy": 1 / (1 + abs(x))}))
"""
WORDS = ["--", sys.executable, "train.py", "{lr}", "{optimizer}", "{seed}"]


@pytest.fixture
def script(folder):
    (folder / "train.py").write_text(SCRIPT)
    return folder


def by_hand(lr: float, optimizer: str, seed: int) -> float:
    x, pace = 1.0 + seed, {"sgd": 1.0, "adamw": 0.3}[optimizer]
    for _ in range(20):
        x -= pace * lr * 2 * x
    return x * x + 0.01


def starts() -> int:
    return len(Path("started.txt").read_text().splitlines()) if Path("started.txt").exists() else 0


def test_sweep_stores_reuses_and_exports(momo, script):
    ask = ["sweep", "-o", "sgd,adamw", "--lrs", "0.01:3:4", "--seeds", "2"]
    code, out, err = momo(*ask, "--json", "a.json", *WORDS)
    assert code == 0, err
    document = json.loads(Path("a.json").read_text())
    assert (document["task"], document["objective"]["name"], len(document["runs"])) == ("train.py", "val_loss", 16)
    for run in document["runs"]:
        expected = by_hand(run["lr"], run["optimizer"], run["seed"])
        diverged = run["status"] == "diverged"
        assert diverged == (run["lr"] > 1 and run["optimizer"] == "sgd")
        assert diverged or (run["objective"] == expected and run["initial"] == (1.0 + run["seed"]) ** 2)
    assert starts() == 16
    # The same again starts no process; one LR more, its runs alone; another command of the same words the same study.
    assert "16 of 16 runs were stored" in momo(*ask, *WORDS)[1] and starts() == 16
    code, _, err = momo("sweep", "-o", "sgd", "--lrs", "0.5", "--seeds", "2", "--", " ".join(WORDS[1:]))
    assert code == 0 and starts() == 18, err
    code, out, _ = momo("compare")
    assert code == 0 and "train.py: final val_loss" in out
    code, out, _ = momo("recommend")
    assert code == 0 and f"{sys.executable} train.py " in out and out.startswith("Use ")
    assert momo("export", "runs.csv")[0] == 0 and len(Path("runs.csv").read_text().splitlines()) == 19
    assert "train.py" in momo("list")[1]
    # Another file, another study.
    (script / "train.py").write_text(SCRIPT.replace("range(20)", "range(19)"))
    code, _, err = momo("sweep", "-o", "sgd", "--lrs", "0.5", *WORDS)
    assert code == 0 and starts() == 19 and "has changed" in err


def test_one_optimizer_another_objective_and_the_hint_to_go_on(momo, script):
    words = [*WORDS[:4], "sgd", "{seed}"]
    code, out, err = momo("sweep", "--lrs", "0.001,0.01", "--json", "a.json", *words)
    assert code == 0 and "script" in out, err
    assert f"-- {sys.executable} train.py" in " ".join(out.split())
    code, _, err = momo(
        "sweep", "--lrs", "0.01,0.1", "--objective", "accuracy", "--maximize", "--json", "b.json", *words
    )
    assert code == 0, err
    document = json.loads(Path("b.json").read_text())
    assert document["objective"] == {"name": "accuracy", "direction": "maximize"}
    assert all(run["objective"] == run["metrics"]["accuracy"] for run in document["runs"])
    assert all(run["initial"] is None for run in document["runs"])  # a loss can't stand for an accuracy


def test_study_with_a_tuned_argument(momo, script):
    ask = ["sweep", "-o", "sgd", "--trials", "5", "--tune", "decay=1e-3:1", "--sampler", "random"]
    code, _, err = momo(*ask, "--json", "a.json", *WORDS, "{decay}")
    assert code == 0, err
    runs = json.loads(Path("a.json").read_text())["runs"]
    assert len(runs) == 5 == starts() and len({run["lr"] for run in runs}) == 5
    assert momo(*ask, *WORDS, "{decay}")[0] == 0 and starts() == 5
    code, _, err = momo(*ask, *WORDS)
    assert code == 2 and "{decay}" in err


def test_set_and_jobs_and_files(momo, script):
    # The lines go to a file, of the folder's or of the run's own.
    place = "os.environ['MOMO_SET_name']"
    text = f"import os, sys\nsys.stdout = open({place}, 'a')\n{SCRIPT}"
    (script / "train.py").write_text(text)
    ask = ["sweep", "-o", "adamw", "--lrs", "0.1,0.2,0.3", "--jobs", "3"]
    code, _, err = momo(*ask, "--set", "name=x.jsonl", "--read-file", "x.jsonl", *WORDS)
    assert code == 2 and "{dir}/x.jsonl" in err and starts() == 0
    (script / "train.py").write_text(text.replace(place, "sys.argv[5] + '/log.jsonl'"))
    code, _, err = momo(*ask, "--read-file", "{dir}/log.jsonl", "--json", "a.json", *WORDS, "0", "{dir}")
    assert code == 0, err
    runs = json.loads(Path("a.json").read_text())["runs"]
    assert [run["objective"] for run in runs] == [by_hand(lr, "adamw", 0) for lr in (0.1, 0.2, 0.3)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep", *WORDS], "{optimizer} in the command has no value"),
        (["sweep", "-o", "mine", *WORDS], "--lrs"),
        (["sweep", "-o", "sgd,adamw", "--lrs", "1", *WORDS[:4]], "holds no {optimizer}"),
        (["sweep", "--lrs", "1", "--"], "no command after --"),
        (["sweep", "--lrs", "1", *WORDS[:3]], "holds no {lr}"),
        (["sweep", "--lrs", "1", "--read", "(", *WORDS[:4]], "no regular expression"),
        (["check", "--timeout", "3", "mymodule"], "for a training script alone"),
        (["check", "--lrs", "3", "mymodule"], "for a training script alone"),
        *(
            (["sweep", "--lrs", "1", *flag.split(), *WORDS[:4]], f"{flag} is for tasks that are functions")
            for flag in ("--together 2", "--schedule cosine", "--warmup 0.1", "--amp bf16", "--clip 1.0")
        ),
    ],
)  # fmt: skip
def test_refused_before_anything_is_started(momo, script, arguments, said):
    code, _, err = momo(*arguments)
    assert code == 2 and said in err and len(err.splitlines()) <= 3
    assert starts() == 0 and not Path("momo.db").exists()


def test_failures_show_the_end_of_stderr(momo, script):
    code, _, err = momo("sweep", "-o", "rmsprop", "--lrs", "1", *WORDS)
    assert code == 1 and "KeyError: 'rmsprop'" in err and "Every run failed" in err


def test_check_runs_the_script_once_and_stores_nothing(momo, script):
    code, out, err = momo("check", "--lrs", "0.1", "-o", "sgd", *WORDS)
    assert code == 0 and starts() == 1 and not Path("momo.db").exists() and not Path("momo-runs").exists(), err
    for word in ("ok", "20 of loss, 1 of val_loss, 1 of accuracy, by JSON lines", "1 before training"):
        assert word in " ".join(out.split())


def test_ctrl_c_leaves_nothing_running_and_the_same_command_goes_on(momo, momo_process, script):
    slow = SCRIPT + "\nimport time; time.sleep(100 if lr > 1 else 0)\n"
    (script / "train.py").write_text(slow.replace("if lr > 1", "if lr > 1 and not os.path.exists('go')"))
    ask = ["sweep", "-o", "adamw", "--lrs", "0.1,0.2,1.5,2", "--jobs", "2", *WORDS]
    process = momo_process(*ask)
    while starts() < 4:
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "2 of 4 runs are stored" in err, err
    assert not any(alive(int(pid)) for pid in Path("started.txt").read_text().split())
    Path("go").touch()
    assert momo(*ask)[0] == 0 and starts() == 6


def test_another_process_takes_part(momo_process, script):
    (script / "train.py").write_text(SCRIPT + "\nimport time; time.sleep(1)\n")
    first = momo_process("sweep", "-o", "adamw", "--lrs", "0.01:1:8", "--json", "a.json", *WORDS)
    while starts() < 1:
        time.sleep(0.1)
        assert first.poll() is None
    second = momo_process("work")
    _, told = second.communicate(timeout=100)
    assert first.wait(timeout=100) == 0 and second.returncode == 0, told
    runs = json.loads(Path("a.json").read_text())["runs"]
    assert [run["objective"] for run in runs] == [by_hand(run["lr"], "adamw", 0) for run in runs]
    assert starts() == 8 == len(runs) and "runs are done" in told
