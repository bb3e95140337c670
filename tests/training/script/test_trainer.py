"""Real scripts, well-behaved and not: their numbers, their statuses, and that nothing of them is left running."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import ROOT, alive

from momo_cli.plan import OptimizerSpec, RunSpec
from momo_cli.training.script import Command, Reading, ScriptTrainer
from momo_cli.training.script.trainer import Limits

TRAIN = """
import math, os, sys
lr, seed, report = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
x = 1.0 + seed
for step in range(30):
    loss, x = x * x / 3, x - lr * 2 * x / 3
    if report == "log":
        import momo_cli
        momo_cli.log(step=step, loss=loss)
    elif report == "json":
        print('{"step": %d, "loss": %r}' % (step, loss))
    elif report == "text":
        print(f"step {step} loss {loss!r}", file=sys.stderr)
    elif report == "csv":
        with open(os.environ["MOMO_DIR"] + "/log.csv", "a") as file:
            file.write("step,loss,val_loss\\n" * (step == 0) + f"{step},{loss!r},\\n")
value = x * x / 3
if report == "log":
    momo_cli.log(val_loss=value)
elif report == "json":
    print('{"val_loss": %r}' % value)
elif report == "text":
    print(f"val {value!r}")
elif report == "csv":
    with open(os.environ["MOMO_DIR"] + "/log.csv", "a") as file:
        file.write(f",,{value!r}\\n")
else:
    print(value)
"""
WAYS = {
    "log": Reading(),
    "json": Reading(),
    "text": Reading(pattern=r"step (?P<step>\d+) loss (?P<loss>\S+)|val (?P<value>\S+)"),
    "csv": Reading(file="{dir}/log.csv"),
}


@pytest.fixture
def environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def spec(lr=0.1, seed=0):
    return RunSpec(OptimizerSpec.parse("script"), lr, seed)


def trained(source, specs=None, reading=Reading(), words=("{lr}",), limits=Limits(), **command):
    """The runs of a script, by spec."""
    Path("train.py").write_text(source)
    full = Command.parse([sys.executable, "train.py", *words], **command)
    with ScriptTrainer(full, reading, Path("momo-runs"), limits=limits) as trainer:
        return dict(trainer.train(specs or [spec()]))


def one(source, **options):
    (run,) = trained(source, **options).values()
    return run


def started() -> list[int]:
    """The processes that the scripts of this test have written down."""
    return [int(line) for file in Path().glob("pids*") for line in file.read_text().split()]


@pytest.mark.parametrize("way", WAYS)
def test_objectives_equal_those_of_the_script_run_by_hand(environment, way):
    specs = [spec(lr, seed) for lr in (0.1, 1 / 3) for seed in (0, 1)]
    runs = trained(TRAIN, specs, WAYS[way], ("{lr}", "{seed}", way), Limits(jobs=2))
    assert set(runs) == set(specs)
    for of, run in runs.items():
        by_hand = subprocess.run(
            [sys.executable, "train.py", repr(of.lr), str(of.seed), "-"], capture_output=True, text=True
        )
        x, losses = 1.0 + of.seed, []
        for _ in range(30):
            losses.append(x * x / 3)
            x -= of.lr * 2 * x / 3
        assert (run.status, run.objective, run.val_loss) == ("ok", float(by_hand.stdout), float(by_hand.stdout))
        assert run.train_loss == sum(losses[-3:]) / 3
        assert (run.initial, run.steps, len(run.curve)) == (losses[0], 30, 20)
        assert run.curve[-1] == [29, sum(losses[-2:]) / 2]


def test_the_first_way_that_applies(environment):
    script = "import momo_cli\nprint('v=3')\nprint('{\"val_loss\": 4}')\nmomo_cli.log(val_loss=1)"
    reading = Reading(pattern="v=(?P<value>.*)")
    assert one(script, reading=reading).objective == 1
    assert one(script.replace("momo_cli.log", "dict"), reading=reading).objective == 3
    assert one(script.replace("momo_cli.log", "dict")).objective == 4


@pytest.mark.parametrize(
    ("lines", "objective", "expected"),
    [
        ([{"step": 0, "val_loss": 9, "acc": 0.1}, {"step": 1, "loss": 5, "acc": 0.5, "val_loss": 2}], None, (9, 2)),
        ([{"step": 0, "val_loss": 9, "acc": 0.1}, {"step": 1, "loss": 5, "acc": 0.5}], "acc", (0.1, 0.5)),
        ([{"step": 0, "loss": 5}, {"step": 1, "acc": 0.25, "loss": 5}], "acc", (None, 0.25)),
        ([{"step": 5, "loss": 7}, {"step": 10, "loss": 3, "val_loss": 1}], "val_loss", (7, 1)),
        # 40 steps, of which every 5th is reported: the last tenth holds one report
        ([{"step": 5 * i, "loss": 10 - i} for i in range(1, 9)], "train_loss", (9, 2)),
        # each epoch counts its steps anew, so reports are counted: two of twenty
        ([{"step": i % 10, "loss": 20 - i} for i in range(20)], None, (20, 1.5)),
        ([{"loss": 20 - i} for i in range(20)], None, (20, 1.5)),
        ([{"val_loss": 3}, {"val_loss": 1}], None, (None, 1)),
    ],
)
def test_objective_and_initial_value(environment, lines, objective, expected):
    run = one(f"import json\nfor line in {lines!r}: print(json.dumps(line))", reading=Reading(objective=objective))
    assert (run.status, run.initial, run.objective) == ("ok", *expected)


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        (
            "import sys; print('{\"loss\": 1}'); sys.exit('\\n'.join(f'line {i}' for i in range(50)))",
            "failed",
            "line 49",
        ),
        ("import sys; print('{\"loss\": NaN}'); sys.exit(3)", "diverged", None),
        ('print(\'{"loss": 1, "acc": Infinity}\')', "diverged", None),
        ("for i in range(50): print('{\"loss\": %r}' % (11.0 ** (i / 10)))", "diverged", None),
        ("for i in range(50): print('{\"loss\": %r}' % (9 if i else 1))", "ok", None),
        ("print('{\"acc\": 1}')", "failed", "reported no train_loss, but acc"),
        ("print('hello')", "failed", "momo_cli.log"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "failed", "SIGKILL, often for want of memory"),
        ("this is no Python", "failed", "SyntaxError"),
    ],
)
def test_statuses(environment, script, status, said):
    run = one(script)
    assert run.status == status
    if said is None:
        assert run.error is None
    else:
        assert said in run.error and (run.objective is None) and len(run.error.splitlines()) <= 21


HANGS = """
import os, signal, subprocess, sys, time
child = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(100)"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
children = [subprocess.Popen([sys.executable, "-c", child], start_new_session=bool(i)) for i in range(2)]
time.sleep(0.3)
with open(f"pids{os.getpid()}", "w") as file:
    print(os.getpid(), *[child.pid for child in children], file=file)
print('%s')
time.sleep(100)
"""


@pytest.mark.parametrize(("line", "status"), [('{"loss": NaN}', "diverged"), ("x", "failed")])
def test_a_script_that_hangs_and_ignores_sigterm_ends_with_its_children(environment, monkeypatch, line, status):
    monkeypatch.setattr("momo_cli.training.script.processes.PATIENCE", 1.0)
    run = one(HANGS % line, limits=Limits(timeout=3))
    assert run.status == status and run.seconds < 50
    assert status == "diverged" or "--timeout 3 s" in run.error
    assert len(started()) == 3 and not any(map(alive, started()))


def test_children_that_a_script_leaves_behind_are_ended(environment):
    run = one(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "open('pids', 'w').write(str(child.pid)); print('{\"loss\": 1}')"
    )
    assert run.status == "ok" and started() and not any(map(alive, started()))


def test_much_output(environment):
    run = one(
        "import sys\n"
        "for i in range(100): sys.stdout.write(('x' * 99 + '\\n') * 10_000); sys.stderr.write('y' * 1_000_000)\n"
        "print('\\n{\"val_loss\": 2}', flush=True)\n"
        "sys.stderr.write('\\nlast words')\n"
    )
    assert (run.status, run.objective) == ("ok", 2)
    (folder,) = Path("momo-runs").iterdir()
    assert (folder / "momo-stdout.txt").stat().st_size > 1e8 and (folder / "momo-stderr.txt").stat().st_size > 1e8


def test_output_is_in_the_folder_which_is_empty_at_first(environment):
    script = (
        "import os, sys; folder = os.environ['MOMO_DIR']\n"
        "print(os.listdir(folder)); open(folder + '/mine', 'w'); sys.exit(1)"
    )
    for _ in range(2):  # a run that failed is begun afresh
        assert one(script).status == "failed"
        (folder,) = Path("momo-runs").iterdir()
        assert (folder / "momo-stdout.txt").read_text() == "[]\n" and (folder / "mine").exists()


RESUMES = """
import os, signal, sys, time
import momo_cli
place = sys.argv[2] + "/step"
first = int(open(place).read()) if os.path.exists(place) else 0
for step in range(first, 100):
    momo_cli.log(step=step, loss=100.0 - step)
    if step == 50 and not first:
        open(place, "w").write("40")
        open("waiting", "w")
        time.sleep(100)
"""


def test_an_interrupted_script_resumes_in_its_folder(environment):
    Path("train.py").write_text(RESUMES)
    command = Command.parse([sys.executable, "train.py", "{lr}", "{dir}"])
    with ScriptTrainer(command, Reading(), Path("momo-runs")) as trainer, contextlib.suppress(KeyboardInterrupt):
        threading.Thread(target=_interrupt_when, args=("waiting",)).start()
        list(trainer.train([spec()]))
    run = one(RESUMES, words=("{lr}", "{dir}"))
    assert (run.status, run.initial, run.steps) == ("ok", 100, 100)
    assert run.train_loss == sum(range(1, 11)) / 10
    assert [step for step, _ in run.curve] == list(range(4, 100, 5))  # no step twice


def _interrupt_when(file):
    while not Path(file).exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


DRIVER = """
import sys
from pathlib import Path
from momo_cli.plan import OptimizerSpec, RunSpec
from momo_cli.training.script import Command, Reading, ScriptTrainer
from momo_cli.training.script.trainer import Limits
specs = [RunSpec(OptimizerSpec.parse("a"), lr, 0) for lr in (0.1, 0.2, 0.3)]
command = Command((sys.executable, "train.py", "{lr}"))
with ScriptTrainer(command, Reading(), Path("runs"), limits=Limits(jobs=2), say=print) as trainer:
    list(trainer.train(specs))
"""


@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT], [signal.SIGKILL]]
)
def test_an_interrupt_leaves_nothing_running(environment, numbers):
    obedient = HANGS.replace("SIG_IGN", "SIG_DFL")
    Path("train.py").write_text(obedient if len(numbers) == 1 else HANGS)  # a second Ctrl-C kills at once
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while len(started()) < 6:
        time.sleep(0.1)
        assert process.poll() is None
    begin = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(1)
    out, err = process.communicate(timeout=60)
    assert ("KeyboardInterrupt" in err) == (numbers != [signal.SIGKILL])
    assert ("Ending 2 scripts" in out) == (len(numbers) > 1)
    assert time.monotonic() - begin < 9 and not any(map(alive, started()))


def test_claims_devices_and_jobs(environment):
    specs = [spec(lr) for lr in (0.1, 0.2, 0.3, 0.4, 0.5)]
    asked = []

    def claim(candidates, most):
        asked.append((list(candidates), most))
        return [s for s in candidates if s.lr != 0.3][:most]

    script = (
        "import json, os, time; began = time.time(); time.sleep(0.5)\n"
        "device = float(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "print(json.dumps({'val_loss': device, 'began': began, 'ended': time.time()}))"
    )
    Path("train.py").write_text(script)
    command = Command.parse([sys.executable, "train.py", "{lr}"])
    with ScriptTrainer(command, Reading(), Path("momo-runs"), limits=Limits(2, ("4", "7"))) as trainer:
        runs = dict(trainer.train(specs, claim))
    assert set(runs) == {s for s in specs if s.lr != 0.3}
    assert asked[0] == (specs, 2) and all(most == 1 for _, most in asked[1:])
    assert {run.objective for run in runs.values()} == {4, 7}
    for device in (4, 7):  # never two at once on one device
        spans = sorted((r.metrics["began"], r.metrics["ended"]) for r in runs.values() if r.objective == device)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


TORCHRUN = """
import os, sys
import torch, momo_cli
import torch.distributed as dist
dist.init_process_group("gloo")
rank, lr = dist.get_rank(), float(sys.argv[1])
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=lr)
x = torch.randn(64, 4)[rank::2]
for step in range(20):
    loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    momo_cli.log(step=step, loss=loss.detach(), rank_of=rank)
sys.stdout.write(f"by hand {rank} {loss.item()!r}\\n")
"""


def test_torchrun(environment, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("train.py").write_text(TORCHRUN)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py", "{lr}"]
    for _ in range(5):
        with ScriptTrainer(Command.parse(words), Reading(objective="train_loss"), Path("momo-runs")) as trainer:
            ((_, run),) = trainer.train([spec(0.05)])
        if "SIGABRT" not in (run.error or ""):  # of gloo's threads at the end: pytorch/pytorch pull request 179291
            break
    output = next(Path("momo-runs").glob("*/momo-stdout.txt")).read_text()
    by_hand = dict(re.findall(r"by hand (\d) (\S+)", output))
    assert run.status == "ok" and run.steps == 20 and run.metrics == {"rank_of": 0.0}
    assert run.curve[-1] == [19, float(by_hand["0"])] and by_hand["0"] != by_hand["1"]


def test_importing_momo_cli_imports_nothing_else():
    code = "import sys, momo_cli; momo_cli.log(step=1, loss=2); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    modules = done.stdout.split()
    assert [m for m in modules if m.startswith("momo")] == ["momo_cli", "momo_cli.script_log"], done.stderr
    assert not {"torch", "optuna", "rich", "typer", "asyncio"} & set(modules)
