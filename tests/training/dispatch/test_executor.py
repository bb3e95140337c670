"""Units are cut when a trainer is free, from the runs that a claim returns."""

from __future__ import annotations

import os

import pytest
import torch

from momo_cli.plan import Settings, grid, parse_lrs, parse_optimizers
from momo_cli.task import find_task
from momo_cli.training.dispatch.candidates import Resources
from momo_cli.training.dispatch.executor import Executor


@pytest.mark.parametrize("together, jobs", [(1, 1), (3, 1), (1, 2), (2, 2)])
def test_runs_are_claimed_unit_by_unit_and_just_before_they_begin(folder, together, jobs):
    optimizers = parse_optimizers(["momo"])
    specs = grid(optimizers, parse_lrs(["1e-3:1:9"], optimizers), 1)
    others, claimed, finished, began = set(specs[1:8:3]), [], [], []

    def claim(candidates, most):
        assert os.getpid() == parent and 0 < most <= together
        began.append(len(finished))
        held = [spec for spec in candidates if spec not in others][:most]
        assert not set(held) & set(claimed)
        claimed.extend(held)
        return held

    parent = os.getpid()
    with Executor(
        find_task("mymodule"),
        Settings(steps=5),
        Resources([torch.device("cpu")], together, jobs),
        lambda *a: False,
        print,
    ) as executor:
        for spec, run in executor.train(specs, claim):
            assert run.status == "ok"
            finished.append(spec)
    assert set(finished) == set(claimed) == set(specs) - others and len(finished) == 6
    # A unit is claimed when a trainer is free for it, not at the start.
    assert began.count(0) == jobs
