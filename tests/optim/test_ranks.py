"""Two ranks on this machine: data parallel, sharded, tensor parallel, checkpoints, and what is refused. See
ranks.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optim import ranks
from optim.making import MUONS
from support import ROOT
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from momo import MomoMuonMax

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
NAMES = list(ranks.OPTIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    script = Path(ranks.__file__)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder)], env=env, stderr=subprocess.PIPE, text=True
        )
        for rank in range(ranks.WORLD)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), errors
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What each rank found: ``found(case, name) -> [of rank 0, of rank 1]``."""
    every = [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(ranks.WORLD)]

    def of(case, name):
        results = [rank[case, name] for rank in every]
        for result in results:
            assert not isinstance(result, str), result
        return results

    return of


def equal(a, b):
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "case, tolerance", [("ddp", 1e-10), ("fsdp2", 1e-9), ("hsdp", 1e-9), ("tensor parallel", 1e-9), ("mixture", 1e-9)]
)
def test_ranks_are_equal_to_the_bit_and_to_one_process(found, case, tolerance, name):
    (first, steps), (second, other_steps) = found(case, name)
    assert equal(first, second) and torch.equal(steps, other_steps)
    (alone, expected), _ = found("one process", name)
    torch.testing.assert_close(steps, expected, rtol=tolerance, atol=tolerance)
    for a, b in zip(first, alone):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert (steps < steps.max()).any()  # the steps adapted


@pytest.mark.parametrize("name", [name for name in NAMES if name != "momo-star"])
def test_lower_bounds_are_averaged_as_losses_are(found, name):
    (first, alone), (second, _) = found("bounded", name)
    assert equal(first, second)
    for a, b in zip(first, alone):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_are_partial_sums(found, name):
    (expected, _), _ = found("partial gradients by hand", name)
    for values, _ in found("partial gradients", name):
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_costs_one_all_reduce_of_a_few_numbers(found, name):
    for calls in found("collectives", name):
        assert calls == ["backward", 6 if ranks.OPTIONS[name][0] is not MomoMuonMax else 8] * 5


@pytest.mark.parametrize("name", NAMES)
def test_an_infinite_loss_on_one_rank(found, name):
    (first, report), (second, _) = found("one bad loss", name)
    assert equal(first, second) and all(p.isfinite().all() for p in first) and report["loss_average"].isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_a_sharded_checkpoint_goes_on(found, name):
    for resumed, uninterrupted in found("checkpoint", name):
        assert equal(resumed, uninterrupted)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_two_ranks_is_loaded_by_one(found, folder, name, monkeypatch):
    net = ranks.model()
    optimizer = ranks.optimizer_of(name, net)
    state = {"model": get_model_state_dict(net), "optimizer": get_optimizer_state_dict(net, optimizer)}
    dcp.load(state, checkpoint_id=str(folder / f"checkpoint-{name}"), no_dist=True)
    set_model_state_dict(net, state["model"])
    set_optimizer_state_dict(net, optimizer, state["optimizer"])
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    ranks.train(net, optimizer, None, ranks.STEPS // 2)
    (_, uninterrupted), _ = found("checkpoint", name)
    for a, b in zip(ranks.whole(net), uninterrupted):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_what_gives_each_rank_other_parameters_is_refused(found, name):
    for messages in found("refused", name):
        if ranks.OPTIONS[name][0] in MUONS:
            assert "for_model" in messages["ZeroRedundancyOptimizer"]
            continue
        assert "ZeroRedundancyOptimizer" in messages["ZeroRedundancyOptimizer"]
        assert "process_group=False" in messages["models of their own"]
        assert "process group" in messages["sharded, no group"]
        assert "fully_shard" in messages["FSDP1"] and "fully_shard" in messages["FSDP1, original parameters"]
        assert not any("\n" in message for message in messages.values())
