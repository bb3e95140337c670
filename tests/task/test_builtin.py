"""The built-in tasks reach a sensible result."""

from __future__ import annotations

import torch

from momo_cli.plan import OptimizerSpec, RunSpec, Settings
from momo_cli.task import find_task
from momo_cli.training.single import train_run


def trained(task, optimizer, lr, **settings):
    return train_run(find_task(task), RunSpec(OptimizerSpec.parse(optimizer), lr, 0), Settings(**settings), torch.device("cpu"))


def test_digits():
    for task in ("digits-mlp", "digits-cnn"):
        run = trained(task, "momo-adam", 1e-2)
        assert run.status == "ok" and run.metrics["accuracy"] >= 0.95


def test_charlm_learns_more_than_the_characters_frequencies():
    from momo_cli.task.builtin.charlm import unigram_entropy

    run = trained("charlm", "momo-adam", 1e-2)
    assert run.status == "ok" and run.val_loss < unigram_entropy() - 0.3
