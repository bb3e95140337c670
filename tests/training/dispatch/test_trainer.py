"""A trainer loses no run when a stack doesn't work out."""

from __future__ import annotations

import torch

from momo_cli.plan import Settings, grid, parse_lrs, parse_optimizers
from momo_cli.task import find_task
from momo_cli.training.dispatch import trainer
from momo_cli.training.dispatch.trainer import Trainer

CPU = torch.device("cpu")


def specs_of(count):
    optimizers = parse_optimizers(["momo"])
    return grid(optimizers, parse_lrs([f"1e-3:1:{count}"], optimizers), 1)


def test_out_of_memory_halves_the_stack_and_loses_nothing(monkeypatch):
    real, sizes, lines = trainer.train_stack, [], []

    def small_memory(source, specs, *rest):
        sizes.append(len(specs))
        if len(specs) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from real(source, specs, *rest)

    monkeypatch.setattr(trainer, "train_stack", small_memory)
    specs = specs_of(8)
    runs = dict(Trainer(find_task("digits-mlp"), Settings(steps=3), CPU, say=lines.append).train(specs, 8))
    assert set(runs) == set(specs) and all(run.status == "ok" for run in runs.values())
    assert sizes == [8, 4, 2, 2, 2, 2] and "going on with 4" in lines[0] and "with 2" in lines[1]


def test_a_stack_that_breaks_on_the_way_is_trained_run_by_run(folder):
    (folder / "late.py").write_text(
        "import torch\n"
        "def build(seed):\n"
        "    x = torch.randn(30, 3)\n"
        "    def loss(model, batch):\n"
        "        value = model(batch).square().mean()\n"
        "        return value if len(batch) == 8 else torch.tensor(value.item()) + 0 * value\n"  # the last batch is shorter
        "    return torch.nn.Linear(3, 1), loss, list(x.split(8))\n"
    )
    lines = []
    specs = specs_of(4)
    runs = dict(Trainer(find_task("late.py"), Settings(steps=6), CPU, say=lines.append).train(specs, 4))
    assert set(runs) == set(specs) and all(run.status == "ok" and run.steps == 6 for run in runs.values())
    assert len(lines) == 1 and "can't be trained together" in lines[0]
