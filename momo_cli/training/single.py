"""Training one run: a plain loop, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from momo_cli.errors import UserError
from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.runs import Run
from momo_cli.task.definition import Task
from momo_cli.task.loading import TaskSource
from momo_cli.training.data import endless, move
from momo_cli.training.evaluation import evaluate, initial_values, objective_name, precision, scalar_loss
from momo_cli.training.history import History, reading_interval
from momo_cli.training.stepping import Stepper
from momo_cli.training.steps_taken import StepSizes
from momo_cli.user_code import UserCodeError, user_frames

Watch = Callable[[RunSpec, int, int, float], bool]
"""``watch(spec, step, steps, loss)``: told of a run's progress; True stops the run as pruned."""


def train_run(
    source: TaskSource, spec: RunSpec, settings: Settings, device: torch.device, watch: Watch | None = None
) -> Run:
    """Train one run from its seed to its end.

    Args:
        source: Builds the task; called here, once, with the run's seed.
        spec: Optimizer, learning rate and seed.
        settings: Steps, schedule, precision and objective.
        device: Where model and batches go.
        watch: Told of the progress at about every 20th of the run.

    Returns:
        The run: ``ok``, ``diverged``, ``pruned``, or ``failed`` with the user's frames where their code or the device raised.

    Raises:
        UserError: The task or the settings are wrong in a way that no run can mend.
    """
    start = time.perf_counter()
    try:
        task = source.build(spec.seed, device)
        return _train(task, spec, settings, device, watch, start)
    except UserError:
        raise
    except UserCodeError as error:
        return spec.result(status="failed", error=error.frames, seconds=time.perf_counter() - start)
    except Exception as error:
        return spec.result(status="failed", error=user_frames(error), seconds=time.perf_counter() - start)


def _train(
    task: Task, spec: RunSpec, settings: Settings, device: torch.device, watch: Watch | None, start: float
) -> Run:
    model = task.model.to(device)
    model.train()
    objective = objective_name(task, settings)
    steps = task.count_steps(settings.steps, settings.epochs)
    stepper = Stepper(
        spec.optimizer.build([p for p in model.parameters() if p.requires_grad], spec.lr, dict(spec.params)),
        settings.clip,
        torch.amp.GradScaler(device.type) if settings.amp == "fp16" else None,
    )
    initial, initial_loss = initial_values(task, model, objective, settings, device)
    history, taken = History(steps, initial_loss), StepSizes(steps)
    diagnostics = getattr(stepper.optimizer, "diagnostics", None)
    read_every = reading_interval(device)
    unread: list[torch.Tensor] = []
    pruned = False

    stepper.set_mode(training=True)
    batches = endless(task.train)
    for step in range(steps):
        batch = move(next(batches), device)

        def compute_loss() -> torch.Tensor:
            with precision(settings, device):
                return scalar_loss(task, model, batch)

        stepper.set_lr(settings.lr_factor(step, steps))
        unread.append(stepper.step(compute_loss))
        if diagnostics is not None:
            taken.add(step + 1, diagnostics())
        if len(unread) < read_every and step + 1 < steps:
            continue
        points = len(history.curve)
        losses = torch.stack(unread).tolist() if len(unread) > 1 else [unread[0].item()]
        unread.clear()
        if any(history.add(loss) for loss in losses):
            break
        if watch is not None and len(history.curve) > points and watch(spec, *_progress(history)):
            pruned = True
            break

    common = {
        "initial": initial,
        "train_loss": history.train_loss,
        "steps": len(history.losses),
        "capped": taken.capped,
        "curve": history.curve,
        "step_sizes": taken.trace,
    }
    if history.diverged or pruned:
        return spec.result(
            status="diverged" if history.diverged else "pruned", seconds=time.perf_counter() - start, **common
        )
    stepper.set_mode(training=False)
    after = evaluate(task, model, settings, device)
    return finished(
        spec,
        objective,
        after.of(objective, history.train_loss),
        seconds=time.perf_counter() - start,
        val_loss=after.val_loss,
        metrics=after.metrics,
        **common,
    )


def finished(spec: RunSpec, objective: str, value: float | None, **fields: object) -> Run:
    """A run that took all its steps: ``ok``, or ``diverged`` where its objective isn't finite."""
    finite = value is not None and abs(value) < float("inf")
    return spec.result(status="ok" if finite else "diverged", objective=value if finite else None, **fields)


def _progress(history: History) -> tuple[int, int, float]:
    step, loss = history.curve[-1]
    return int(step), history.steps, loss
