"""Every example of the README runs as it is printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, wait_for_trials

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
FILES = {b.split("\n")[0][2:]: b for language, b in BLOCKS if language == "python" and re.match(r"# \w+\.py\n", b)}
FRAMEWORKS = ("accelerate", "lightning", "transformers")  # tests/integrations/test_recipes.py runs their examples
RECIPES = [b for _, b in BLOCKS if re.search(rf"^import ({'|'.join(FRAMEWORKS)})$", b, re.MULTILINE)]


def test_python_examples(folder):
    ran = 0
    for language, block in BLOCKS:
        if language == "python" and block not in FILES.values() and block not in RECIPES:
            done = subprocess.run(
                [sys.executable, "-c", block], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
            )
            assert done.returncode == 0, block + done.stderr
            ran += 1
    assert ran


def test_commands_in_their_order(momo, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # of python and torchrun
    assert {"train.py", "ddp.py", "mymodule.py"} == set(FILES)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    commands = [
        line
        for language, block in BLOCKS
        if language == "sh"
        for line in block.splitlines()
        if line.startswith("momo ")
    ]
    assert len(commands) >= 10
    for command in commands:
        for _ in range(5):
            code, out, err = momo(*shlex.split(command)[1:])
            # Gloo's threads may abort a process of torch's that is ending (pytorch/pytorch pull request 179291). As for
            # whoever meets that, the same command trains again what failed.
            if not ("torchrun" in command and "SIGABRT" in err):
                break
        assert code == 0, (command, err)
        assert "Failed" not in err and (out or "export" in command or "work" in command)
    for file in ("result.json", "table.md", "stability.png", "report.html", "runs.csv"):
        assert (folder / file).stat().st_size > 100


@pytest.mark.parametrize("command", re.findall(r"pip install .*", README))
def test_set_up_commands_name_extras_that_exist(command):
    text = (ROOT / "pyproject.toml").read_text()
    for extra in ",".join(re.findall(r"\[([\w,]+)\]", command)).split(","):
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE)


def test_every_option_named_exists(momo):
    helps = "".join(momo(command, "--help")[1] for command in ("sweep", "compare", "recommend", "import"))
    ours = re.sub(r" -- (?:[^\\\n]|\\\n)*|pytest .*", "", README)  # behind these stand the options of others
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)):
        assert option in helps, option


def test_two_processes_share_the_runs_as_printed(momo_process, folder):
    (block,) = [block for language, block in BLOCKS if language == "sh" and "momo work" in block]
    sweep, work = (shlex.split(line)[1:] for line in block.splitlines())
    first = momo_process(*sweep)
    wait_for_trials(1, url="sqlite:///shared.db")
    for process in (first, momo_process(*work)):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
