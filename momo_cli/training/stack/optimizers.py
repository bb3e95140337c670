"""Optimizers that update many runs at once: one row a run, one learning rate a row.

Each class here takes rows of the stack that share an optimizer and its arguments. ``x`` and ``g`` are the rows'
parameters and gradients, ``[runs, parameters]``, in storage that may move between steps; the optimizer owns its state.
Anything that has no class of its own is stepped row by row by the real optimizer (:class:`RowByRow`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch

from momo.directions import Adam as AdamDirection
from momo.directions import Momentum as MomentumDirection
from momo.method import Memory, Scalar, Sums, average, terms_of, truncated_step, weight_of_new
from momo.options import momentum_of
from momo.passes.members import has_double
from momo_cli.plan.grid import RunSpec
from momo_cli.training.run.stepper import Stepper


class Rows(Protocol):
    """An optimizer over the rows of some runs."""

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: torch.Tensor, factor: Scalar) -> dict[str, Any] | None:
        """Update ``x`` in place; ``factor`` multiplies every LR. Momo's methods return their diagnostics by row."""

    def keep(self, rows: torch.Tensor, x: torch.Tensor) -> None:
        """Go on with these rows alone; ``x`` is where their parameters lie now."""

    def checkpoint(self) -> Any:
        """Everything that changes, in plain values and tensors."""

    def load_checkpoint(self, kept: Any, rows: Sequence[int]) -> None:
        """Go on from these rows of what :meth:`checkpoint` returned."""


class _Vectorized:
    """State in tensors with a row for each run, changed in place, so that a step can be captured (``graph.py``)."""

    takes: ClassVar[dict[str, Any]]  # the optimizer's arguments that the rows understand, with their defaults

    def __init__(self, specs: Sequence[RunSpec], x: torch.Tensor, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.steps: Scalar = 0
        self.lr = x.new_tensor([[spec.lr] for spec in specs])
        decays = [dict(spec.params).get("weight_decay", arguments["weight_decay"]) for spec in specs]
        self.decays = any(decays)
        self.decay = x.new_tensor([[decay] for decay in decays])
        self.buffers: list[torch.Tensor] = []

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: torch.Tensor, factor: Scalar) -> dict[str, Any] | None:
        raise NotImplementedError

    def keep(self, rows: torch.Tensor, x: torch.Tensor) -> None:
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor) and value.dim():
                setattr(self, name, value[rows])
        self.buffers = [buffer[rows] for buffer in self.buffers]

    def state(self) -> list[torch.Tensor]:
        """Every tensor that a step may change."""
        return [value for value in vars(self).values() if isinstance(value, torch.Tensor)] + self.buffers

    def checkpoint(self) -> dict[str, Any]:
        """Everything that changes, in plain values and tensors."""
        return {name: value for name, value in vars(self).items() if name != "arguments"}

    def load_checkpoint(self, kept: dict[str, Any], rows: Sequence[int]) -> None:
        """Go on from these rows of what :meth:`checkpoint` returned."""
        device = self.lr.device
        vars(self).update(
            {name: value.to(device) if torch.is_tensor(value) else value for name, value in kept.items()},
            buffers=[buffer.to(device) for buffer in kept["buffers"]],
        )
        self.keep(torch.tensor(rows, device=device), self.lr)

    def count_on_device(self) -> None:
        """Keep the number of steps in a tensor from now on."""
        self.steps = torch.as_tensor(self.steps, dtype=torch.float64, device=self.lr.device)


class SGDRows(_Vectorized):
    """``torch.optim.SGD``: momentum, dampening, Nesterov, weight decay."""

    takes: ClassVar[dict[str, Any]] = {"momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False}

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: torch.Tensor, factor: Scalar) -> None:
        momentum = self.arguments["momentum"]
        if self.decays:
            g = g + self.decay * x
        u = g
        if momentum:
            if not self.buffers:
                self.buffers = [g.clone()]
            else:
                self.buffers[0].mul_(momentum).add_(g, alpha=1 - self.arguments["dampening"])
            u = g + momentum * self.buffers[0] if self.arguments["nesterov"] else self.buffers[0]
        x.sub_(factor * self.lr * u)


class AdamRows(_Vectorized):
    """``torch.optim.Adam``: the decay is part of the gradient."""

    takes: ClassVar[dict[str, Any]] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    decoupled = False

    def __init__(self, specs: Sequence[RunSpec], x: torch.Tensor, arguments: dict[str, Any]) -> None:
        super().__init__(specs, x, arguments)
        self.buffers = [torch.zeros_like(x), torch.zeros_like(x)]

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: torch.Tensor, factor: Scalar) -> None:
        self.steps += 1
        lr = factor * self.lr
        if self.decays and self.decoupled:
            x.mul_(1 - lr * self.decay)
        elif self.decays:
            g = g + self.decay * x
        beta = self.arguments["betas"][0]
        u = AdamDirection.of(self.arguments, 1 - beta, self.steps).accumulate(g, self.buffers, torch.empty_like(x))
        x.sub_(lr / (1 - beta**self.steps) * u)


class AdamWRows(AdamRows):
    """``torch.optim.AdamW``: the decay is decoupled."""

    takes: ClassVar[dict[str, Any]] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
    decoupled = True


class _TruncatedRows(_Vectorized):
    """What Momo's methods share: a direction, and the step size that the truncated model gives each row."""

    direction: Any

    def __init__(self, specs: Sequence[RunSpec], x: torch.Tensor, arguments: dict[str, Any]) -> None:
        super().__init__(specs, x, {"bias_correction": True, "divide": True} | arguments)
        self.buffers = [torch.zeros_like(x) for _ in self.direction.buffers]
        # As in momo: what nearly cancels in the step size is summed and kept in double precision.
        self._dtype = torch.float64 if has_double(x.device) else torch.float32
        self.loss_average, self.rho, self.gamma, self.lower_bound = (
            x.new_full((len(x),), value, dtype=self._dtype) for value in (0.0, 0.0, 0.0, float(arguments["lb"]))
        )
        self.first = not self.arguments["bias_correction"]  # the averages start at their first values

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: torch.Tensor, factor: Scalar) -> dict[str, Any]:
        self.steps += 1
        arguments, from_zero = self.arguments, self.arguments["bias_correction"]
        beta = momentum_of(arguments)
        weight = weight_of_new(beta, 0.0 if self.first else 1.0, from_zero)
        self.first = False
        lr = factor * self.lr
        decay = 1 + lr * self.decay
        gx = (g * x).sum(1, dtype=self._dtype)
        u = self.direction.of(arguments, weight, self.steps).accumulate(g, self.buffers, torch.empty_like(x))
        dx, du = ((self.buffers[0] * other).sum(1, dtype=self._dtype) for other in (x, u))
        self.gamma.copy_(torch.as_tensor(average(self.gamma, gx, weight)))
        cap = lr[:, 0].to(self._dtype) / average(self.rho, 1.0, weight)
        answer = truncated_step(
            Memory(self.loss_average, self.rho, self.lower_bound),
            Sums(losses.to(self._dtype), self.gamma, *terms_of(dx, cap * du, decay[:, 0])),
            beta=beta,
            from_zero=from_zero,
            lb=float(arguments["lb"]),
            use_fstar=arguments["use_fstar"],
        )
        for kept, new in zip((self.loss_average, self.rho), answer.memory):
            kept.copy_(torch.as_tensor(new))
        if arguments["use_fstar"]:
            self.lower_bound.copy_(torch.as_tensor(answer.memory.lower_bound))
        moved = (answer.multiplier * cap).to(x.dtype)[:, None] * u
        if not self.decays:
            x.sub_(moved)
        elif arguments["divide"]:
            x.sub_(moved).div_(decay)
        else:
            x.mul_(2 - decay).sub_(moved)
        return {
            "step_size": answer.multiplier * cap,
            "adaptive_term": answer.adaptive * cap,
            "cap": cap,
            "capped": answer.capped,
        }


class MomoRows(_TruncatedRows):
    """``momo.Momo``."""

    takes: ClassVar[dict[str, Any]] = {
        "weight_decay": 0.0,
        "beta": 0.9,
        "lb": 0.0,
        "bias_correction": False,
        "use_fstar": False,
    }
    direction = MomentumDirection


class MomoAdamRows(_TruncatedRows):
    """``momo.MomoAdam``."""

    takes: ClassVar[dict[str, Any]] = {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "lb": 0.0,
        "divide": True,
        "use_fstar": False,
    }
    direction = AdamDirection


class RowByRow:
    """The real optimizer, one for each row: the runs share forward and backward passes, and step one by one."""

    def __init__(self, specs: Sequence[RunSpec], x: torch.Tensor, shapes: Sequence[torch.Size]) -> None:
        self.shapes = shapes
        self.rows = [[torch.nn.Parameter(view) for view in self._views(row)] for row in x]
        self.steppers = [
            Stepper(spec.optimizer.build(parameters, spec.lr, dict(spec.params)), clip=None)
            for spec, parameters in zip(specs, self.rows)
        ]
        for stepper in self.steppers:
            stepper.set_mode(training=True)

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: torch.Tensor, factor: Scalar) -> dict[str, Any] | None:
        diagnostics = []
        for parameters, row, loss, stepper in zip(self.rows, g, losses, self.steppers):
            for parameter, view in zip(parameters, self._views(row)):
                parameter.grad = view
            stepper.set_lr(factor)
            stepper.step_with(loss)
            figures = stepper.diagnostics()
            if figures is not None:
                diagnostics.append({key: value.reshape(-1)[0] for key, value in figures.items()})
        if not diagnostics:
            return None
        return {key: torch.stack([figures[key] for figures in diagnostics]) for key in diagnostics[0]}

    def keep(self, rows: torch.Tensor, x: torch.Tensor) -> None:
        kept = rows.tolist()
        self.rows, self.steppers = [self.rows[i] for i in kept], [self.steppers[i] for i in kept]
        for parameters, row in zip(self.rows, x):
            for parameter, view in zip(parameters, self._views(row)):
                parameter.data = view

    def checkpoint(self) -> list[dict[str, Any]]:
        return [stepper.optimizer.state_dict() for stepper in self.steppers]

    def load_checkpoint(self, kept: list[dict[str, Any]], rows: Sequence[int]) -> None:
        for stepper, row in zip(self.steppers, rows, strict=True):
            stepper.optimizer.load_state_dict(kept[row])

    def finish(self) -> None:
        """Put optimizers that have modes into theirs for evaluation, which may change the parameters in place."""
        for stepper in self.steppers:
            stepper.set_mode(training=False)

    def _views(self, row: torch.Tensor) -> list[torch.Tensor]:
        sizes = [shape.numel() for shape in self.shapes]
        return [part.view(shape) for part, shape in zip(torch.split(row.detach(), sizes), self.shapes)]


_VECTORIZED: dict[str, type[_Vectorized]] = {
    "momo.Momo": MomoRows,
    "momo.MomoAdam": MomoAdamRows,
    "torch.optim.SGD": SGDRows,
    "torch.optim.Adam": AdamRows,
    "torch.optim.AdamW": AdamWRows,
}


def can_stack(spec: RunSpec) -> bool:
    """Whether the optimizer can step after a gradient that others computed: all can but those that need a closure."""
    loaded, _ = spec.optimizer.load()
    closure = inspect.signature(loaded.step).parameters.get("closure")
    return closure is None or closure.default is not inspect.Parameter.empty


def is_vectorized(spec: RunSpec) -> bool:
    """Whether a stack steps the optimizer without making it."""
    return _vectorized(spec)[2] is not None


def _vectorized(spec: RunSpec) -> tuple[type, dict[str, Any], type[_Vectorized] | None]:
    """The optimizer's class, its arguments, and the class here that does the same; None where there is none."""
    loaded, arguments = spec.optimizer.load()
    arguments = arguments | dict(spec.params)
    rows = _VECTORIZED.get(f"{loaded.__module__.rpartition('.')[0] or loaded.__module__}.{loaded.__name__}")
    return loaded, arguments, rows if rows is not None and set(arguments) <= set(rows.takes) else None


def group_key(spec: RunSpec) -> tuple[Any, ...]:
    """Runs of one key can share an object of this module: the same optimizer, and only LR and weight decay differ."""
    return spec.optimizer.label, tuple(item for item in spec.params if item[0] != "weight_decay")


def stacked_optimizer(specs: Sequence[RunSpec], x: torch.Tensor, shapes: Sequence[torch.Size]) -> Rows:
    """The optimizer of ``specs``, which have one :func:`group_key`, over their rows ``x``."""
    loaded, arguments, rows = _vectorized(specs[0])
    if rows is None:
        return RowByRow(specs, x, shapes)
    parameters = inspect.signature(loaded).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items() if key in rows.takes}
    return rows(specs, x, rows.takes | defaults | arguments)
