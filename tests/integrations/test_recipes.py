"""Each framework's example in the README runs as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from commands.test_readme import FRAMEWORKS, RECIPES
from integrations.loops import needs
from support import ROOT


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_recipe(framework, tmp_path):
    needs(framework)
    [recipe] = [block for block in RECIPES if re.search(rf"^import {framework}$", block, re.MULTILINE)]
    done = subprocess.run(
        [sys.executable, "-c", recipe],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, recipe + done.stderr
