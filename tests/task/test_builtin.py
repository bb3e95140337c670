"""The built-in tasks reach a sensible result."""

from __future__ import annotations

import pickle

import pytest
import torch

from momo_cli.errors import UserError
from momo_cli.plan import OptimizerSpec, RunSpec, Settings
from momo_cli.task import find_task
from momo_cli.training.run.training_run import train_run


def trained(task, optimizer, lr, **settings):
    return train_run(
        find_task(task), RunSpec(OptimizerSpec.parse(optimizer), lr, 0), Settings(**settings), torch.device("cpu")
    )


def test_digits():
    for task in ("digits-mlp", "digits-cnn"):
        run = trained(task, "momo-adam", 1e-2)
        assert run.status == "ok" and run.metrics["accuracy"] >= 0.95


def test_charlm_learns_more_than_the_characters_frequencies():
    from momo_cli.task.builtin.charlm import unigram_entropy

    run = trained("charlm", "momo-adam", 1e-2)
    assert run.status == "ok" and run.val_loss < unigram_entropy() - 0.3


@pytest.fixture
def cifar(tmp_path):
    """Tiny files in the format of CIFAR's Python versions."""
    numpy = pytest.importorskip("numpy")

    def write(folder, name, labels, classes):
        (tmp_path / folder).mkdir(exist_ok=True)
        batch = {
            b"data": numpy.random.default_rng(0).integers(0, 256, (20, 3072), dtype="uint8"),
            labels: [i % classes for i in range(20)],
        }
        (tmp_path / folder / name).write_bytes(pickle.dumps(batch, protocol=3))

    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        write("cifar-10-batches-py", name, b"labels", 10)
    for name in ("train", "test"):
        write("cifar-100-python", name, b"fine_labels", 100)
    return tmp_path


@pytest.mark.parametrize(
    "name, parameters", [("cifar10-resnet20", 0.27e6), ("cifar100-resnet110", 1.73e6), ("cifar10-vit", 2.7e6)]
)
def test_cifar_tasks_on_the_users_files(cifar, name, parameters):
    arguments = {"data": str(cifar), "batch_size": 8}
    task = find_task(name, arguments).build(0, "cpu")
    assert sum(p.numel() for p in task.model.parameters()) == pytest.approx(parameters, rel=0.02)
    if name != "cifar100-resnet110":  # the same code, only deeper
        run = train_run(
            find_task(name, arguments),
            RunSpec(OptimizerSpec.parse("momo"), 0.1, 0),
            Settings(steps=3),
            torch.device("cpu"),
        )
        assert run.status == "ok" and 0 <= run.metrics["accuracy"] <= 1


def test_cifar_says_what_is_missing_and_runs_nothing_from_a_file(cifar, tmp_path):
    with pytest.raises(UserError, match="--set data=FOLDER"):
        find_task("cifar10-vit").build(0, "cpu")
    with pytest.raises(UserError, match="data_batch_1"):
        find_task("cifar10-vit", {"data": str(tmp_path / "cifar-100-python")}).build(0, "cpu")
    (cifar / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(pickle.Pickler))
    with pytest.raises(UserError, match="data_batch_2 is not a file"):
        find_task("cifar10-vit", {"data": str(cifar)}).build(0, "cpu")
