"""Training one run: it can be driven step by step, and the loop drives it from its seed to its end."""

from __future__ import annotations

from typing import Any

import torch

from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.runs import Run
from momo_cli.task.definition import Builds, Task
from momo_cli.training.checkpoints import NOT_KEPT, Keeper
from momo_cli.training.data import EndlessBatches, move
from momo_cli.training.evaluation import (
    Evaluation,
    Initial,
    Losses,
    evaluate,
    measure_initial,
    objective_name,
    precision,
    training_losses,
)
from momo_cli.training.model_state import load_model_state, model_state
from momo_cli.training.run.record import Reader, RunRecord, Stopwatch, Watch
from momo_cli.training.run.stepper import Stepper
from momo_cli.user_code import OURS, UserCodeError, user_frames


class TrainingRun:
    """One run while it trains: everything that its next step depends on.

    Args:
        task: Its task, freshly built; the model is trained in place.
        spec: Optimizer, learning rate and seed.
        settings: Steps, schedule, precision and objective.
        device: Where model and batches go.
        watch: Told of the progress at about every 20th of the run; True stops it as pruned.
        initial: ℓ0 where it is known; else it is measured.
        keeps_state: Whether :meth:`state` will be asked for.

    Attributes:
        steps: Steps that it is to take.
        stepper: Its optimizer.
        record: What its steps reported.

    Raises:
        UserError: The task or the settings are wrong in a way that no run can mend.
    """

    def __init__(
        self,
        task: Task,
        spec: RunSpec,
        settings: Settings,
        device: torch.device,
        watch: Watch | None = None,
        initial: Initial | None = None,
        keeps_state: bool = False,
    ) -> None:
        self.task, self.settings, self.device = task, settings, device
        model = task.model.to(device)
        model.train()
        objective = objective_name(task, settings)
        self.steps = task.count_steps(settings.steps, settings.epochs)
        self.stepper = Stepper(
            spec.optimizer.build(model, spec.lr, dict(spec.params)),
            settings.clip,
            torch.amp.GradScaler(device.type) if settings.amp == "fp16" else None,
        )
        self._schedule = settings.schedule_of(spec.optimizer)
        self.record = RunRecord(
            spec, self.steps, objective, initial or measure_initial(task, objective, settings, device)
        )
        self._reader = Reader([self.record], device, watch)
        self._batches = EndlessBatches(task.train, keeps_state)
        self.stepper.set_mode(training=True)

    @property
    def done(self) -> bool:
        """Whether it has taken its last step, or has stopped."""
        return self.record.stopped is not None or self._reader.taken == self.steps

    def step(self, mark: bool = False) -> None:
        """Take one step; ``mark`` where :meth:`state` is asked for right after it."""
        batch = move(self._batches.next(mark), self.device)

        def compute_loss() -> Losses:
            with precision(self.settings, self.device):
                return training_losses(self.task, self.task.model, batch)

        self.stepper.set_lr(self._schedule.factor(self._reader.taken, self.steps))
        loss = self.stepper.step(compute_loss)
        diagnostics = self.stepper.diagnostics()
        if diagnostics is not None:
            sizes = (diagnostics[key] for key in ("capped", "step_size", "cap", "adaptive_term"))
            self.record.step_sizes.add(self._reader.taken + 1, *sizes)
        self._reader.add(loss.reshape(1, 1))

    def state(self) -> dict[str, Any] | None:
        """Everything that its next step depends on; None where it has stopped, or where reports of steps are unread."""
        if self.done or not self._reader.all_read:
            return None
        return {
            "taken": self._reader.taken,
            "model": model_state(self.task.model),
            "optimizer": self.stepper.optimizer.state_dict(),
            "scaler": self.stepper.scaler and self.stepper.scaler.state_dict(),
            "record": self.record.state(),
            "initial": tuple(self.record.initial),
            "batches": self._batches.place(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned of the same run.

        Raises:
            ValueError: Its data come in another order.
        """
        load_model_state(self.task.model, state["model"])
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        if self.stepper.scaler:
            self.stepper.scaler.load_state_dict(state["scaler"])
        self.record.load_state(state["record"])
        self._reader.taken = state["taken"]
        self._batches.go_to(state["batches"])

    def evaluate(self) -> Evaluation | None:
        """The model's evaluation after the last step; None for a run that has stopped."""
        if self.record.stopped is not None:
            return None
        self.stepper.set_mode(training=False)
        return evaluate(self.task, self.settings, self.device)


def train_run(
    source: Builds,
    spec: RunSpec,
    settings: Settings,
    device: torch.device,
    watch: Watch | None = None,
    initials: dict[int, Initial] | None = None,
    keeper: Keeper = NOT_KEPT,
) -> Run:
    """Train one run from its seed to its end.

    Args:
        source: Builds the task; called here, once, with the run's seed.
        spec: As for :class:`TrainingRun`, and so are ``settings``, ``device`` and ``watch``.
        initials: ℓ0 of each seed where it is known; is added to.
        keeper: Keeps its checkpoints, and knows the one that it goes on from.

    Returns:
        The run: ``ok``, ``diverged``, ``pruned``, or ``failed`` where the user's code or the device raised, with the
        user's frames.

    Raises:
        UserError: The task or the settings are wrong in a way that no run can mend.
    """
    stopwatch = Stopwatch()
    initials = {} if initials is None else initials

    def make(state: dict[str, Any] | None) -> TrainingRun:
        initial = initials.get(spec.seed) if state is None else Initial(*state["initial"])
        task = source.build(spec.seed, device)
        run = TrainingRun(task, spec, settings, device, watch, initial, keeper.keeps)
        if state is not None:
            run.load_state(state)
        return run

    try:
        run = keeper.begin(make)
        initials[spec.seed] = run.record.initial
        while not run.done:
            due = keeper.before_step()
            run.step(mark=due)
            if due and (state := run.state()) is not None:
                stopwatch.share([run.record])
                keeper.save([spec], state)
        after = run.evaluate()
        stopwatch.share([run.record])
        return run.record.result(after)
    except OURS:
        raise
    except BaseException as error:  # sys.exit, too
        frames = error.frames if isinstance(error, UserCodeError) else user_frames(error)
        return spec.result(status="failed", error=frames, seconds=stopwatch.passed)
