"""Optimizers that update many runs at once: one row a run, one learning rate a row.

Each class here takes rows of the stack that share an optimizer and its arguments. ``x`` and ``g`` are the rows'
parameters and gradients, ``[runs, parameters]``, in storage that may move between steps; the optimizer owns its state.
Anything that has no class of its own is stepped row by row by the real optimizer (:class:`RowByRow`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from momo.directions import Adam as AdamDirection
from momo.directions import AdamFromFirst
from momo.directions import Momentum as MomentumDirection
from momo.directions import Muon as MuonDirection
from momo.method import Memory, Scalar, Sums, average, terms_of, truncated_step, weight_of_new
from momo.options import momentum_of
from momo.passes.members import has_double
from momo_cli.plan.grid import RunSpec
from momo_cli.training.evaluation import Losses
from momo_cli.training.run.stepper import Stepper


class Layout(NamedTuple):
    """What lies in a row: the shapes of the parameters, and whether each is a matrix to Muon."""

    shapes: Sequence[torch.Size]
    matrices: Sequence[bool]


class Rows(Protocol):
    """An optimizer over the rows of some runs."""

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: Losses, factor: Scalar) -> dict[str, Any] | None:
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

    def __init__(self, specs: Sequence[RunSpec], x: torch.Tensor, arguments: dict[str, Any], layout: Layout) -> None:
        self.arguments, self.layout = arguments, layout
        self.steps: Scalar = 0
        self.lr = x.new_tensor([[spec.lr] for spec in specs])
        decays = [dict(spec.params).get("weight_decay", arguments["weight_decay"]) for spec in specs]
        self.decays = any(decays)
        self.decay = x.new_tensor([[decay] for decay in decays])
        self.buffers: list[torch.Tensor] = []

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: Losses, factor: Scalar) -> dict[str, Any] | None:
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
        kept = {name: value for name, value in vars(self).items() if isinstance(value, (torch.Tensor, int, float))}
        return kept | {"buffers": self.buffers}

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

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: Losses, factor: Scalar) -> None:
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

    def __init__(self, specs: Sequence[RunSpec], x: torch.Tensor, arguments: dict[str, Any], layout: Layout) -> None:
        super().__init__(specs, x, arguments, layout)
        self.buffers = [torch.zeros_like(x), torch.zeros_like(x)]

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: Losses, factor: Scalar) -> None:
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
    from_zero = True
    decoupled = False

    def __init__(self, specs: Sequence[RunSpec], x: torch.Tensor, arguments: dict[str, Any], layout: Layout) -> None:
        others = {"bias_correction": self.from_zero, "divide": not self.decoupled, "use_fstar": False}
        super().__init__(specs, x, others | arguments, layout)
        self.buffers = [torch.zeros_like(x) for _ in self.direction.buffers]
        # As in momo: what nearly cancels in the step size is summed and kept in double precision.
        self._dtype = torch.float64 if has_double(x.device) else torch.float32
        self.loss_average, self.rho, self.gamma, self.lower_bound = (
            x.new_full((len(x),), value, dtype=self._dtype) for value in (0.0, 0.0, 0.0, float(arguments["lb"]))
        )
        self.first = not self.arguments["bias_correction"]  # the averages start at their first values
        self.bounded: bool | None = None  # whether each step had a lower bound of its own

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: Losses, factor: Scalar) -> dict[str, Any]:
        self.steps += 1
        arguments, from_zero = self.arguments, self.arguments["bias_correction"]
        beta = momentum_of(arguments)
        weight = weight_of_new(beta, 0.0 if self.first else 1.0, from_zero)
        lr = factor * self.lr
        decay = 1 + lr * self._decays(x)
        gx = (g * x).sum(1, dtype=self._dtype)
        rho = average(self.rho, 1.0, weight)
        u, cap = self._direction(g, weight, lr[:, 0].to(self._dtype), rho)
        self.first = False
        dx, du = ((self.buffers[0] * other).sum(1, dtype=self._dtype) for other in (x, u))
        self.gamma.copy_(torch.as_tensor(average(self.gamma, gx, weight)))
        bounds = losses.lower_bound
        if self.bounded not in (None, bounds is not None):
            raise ValueError("the task's loss brought a lower bound in some steps and none in others.")
        self.bounded = bounds is not None
        answer = truncated_step(
            Memory(self.loss_average, self.rho, self.lower_bound),
            Sums(
                losses.loss.to(self._dtype), self.gamma, *terms_of(dx, cap * du, 1.0 if self.decoupled else decay[:, 0])
            ),
            beta=beta,
            from_zero=from_zero,
            lb=float(arguments["lb"]),
            use_fstar=arguments["use_fstar"],
            lower_bound=None if bounds is None else bounds.to(self._dtype),
        )
        for kept, new in zip((self.loss_average, self.rho), answer.memory):
            kept.copy_(torch.as_tensor(new))
        if arguments["use_fstar"] or bounds is not None:
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

    def _direction(
        self, g: torch.Tensor, weight: Scalar, lr: torch.Tensor, rho: Scalar
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in the gradients; returns the direction, and the cap of each row."""
        made = self.direction.of(self.arguments, weight, self.steps)
        return made.accumulate(g, self.buffers, torch.empty_like(g)), lr / rho

    def _decays(self, x: torch.Tensor) -> torch.Tensor:
        """The weight decay of each row, or of each element."""
        return self.decay


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


def _columns(layout: Layout) -> dict[tuple[int, int], list[slice]]:
    """Where the matrices of each shape lie in a row."""
    found: dict[tuple[int, int], list[slice]] = {}
    start = 0
    for shape, matrix in zip(layout.shapes, layout.matrices):
        if matrix:
            found.setdefault((shape[0], shape[1:].numel()), []).append(slice(start, start + shape.numel()))
        start += shape.numel()
    return found


def _place(row: torch.Tensor, columns: list[slice], values: torch.Tensor) -> None:
    """Put ``[runs, number, size]`` where the matrices of one shape lie."""
    for where, own in zip(columns, values.unbind(1)):
        row[:, where] = own


def _signs(
    d: torch.Tensor, arguments: dict[str, Any], layout: Layout
) -> Iterator[tuple[list[slice], float, torch.Tensor]]:
    """``O(d)`` of the matrices in all rows: where those of one shape lie, their scale, and ``[runs, number, size]``."""
    direction = MuonDirection(0.0, *(arguments[name] for name in ("ns_coefficients", "ns_steps") if name in arguments))
    for shape, columns in _columns(layout).items():
        together = torch.stack([d[:, where] for where in columns], 1)
        u = direction.direction([together.view(-1, *shape)], together).to(d.dtype)
        yield columns, MuonDirection.scale(arguments, shape), u.reshape(together.shape)


class MomoMuonRows(_TruncatedRows):
    """``momo.MomoMuon``."""

    takes: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("weight_decay", "betas", "eps", "lb", "adam_lr", "adjust_lr_fn", "ns_coefficients", "ns_steps")
    )
    direction = AdamDirection
    decoupled = True

    def _direction(
        self, g: torch.Tensor, weight: Scalar, lr: torch.Tensor, rho: Scalar
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # The others' own learning rate is in the direction, as one cap stands for all of a row.
        u, _ = super()._direction(g, weight, lr, rho)
        u.mul_((self._adam_lr() / torch.as_tensor(rho)[:, None]).to(u.dtype))
        for columns, scale, signs in _signs(self.buffers[0], self.arguments, self.layout):
            _place(u, columns, scale * signs)
        return u, lr

    def _adam_lr(self) -> Scalar:
        """The learning rate of what is no matrix, over that of matrices."""
        given: float | None = self.arguments["adam_lr"]
        return 0.5 if given is None else given / self.lr

    def _decays(self, x: torch.Tensor) -> torch.Tensor:
        decay = self._adam_lr() * self.decay * torch.ones_like(x)
        for columns in _columns(self.layout).values():
            for where in columns:
                decay[:, where] = self.decay
        return decay


class MomoMuonMaxRows(_TruncatedRows):
    """``momo.MomoMuonMax``."""

    takes: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("weight_decay", "betas", "eps", "lb", "adjust_lr_fn", "ns_coefficients", "ns_steps")
    )
    direction = AdamFromFirst
    from_zero = False
    decoupled = True

    def _direction(
        self, g: torch.Tensor, weight: Scalar, lr: torch.Tensor, rho: Scalar
    ) -> tuple[torch.Tensor, torch.Tensor]:
        u, cap = super()._direction(g, weight, lr, rho)
        d = self.buffers[0]
        found = list(_signs(d, self.arguments, self.layout))
        norm = torch.zeros_like(lr)
        for columns, _, signs in found:
            of_shape = torch.stack([d[:, where] for where in columns], 1)
            norm += (of_shape * signs).sum((1, 2), dtype=norm.dtype)
        for columns, scale, signs in found:
            _place(u, columns, (norm * scale).to(u.dtype)[:, None, None] * signs)
        return u, cap


class MuonRows(AdamRows):
    """``momo_cli.training.muon.Muon``."""

    takes: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("weight_decay", "momentum", "nesterov", "adjust_lr_fn", "betas", "eps")
    )

    def __init__(self, specs: Sequence[RunSpec], x: torch.Tensor, arguments: dict[str, Any], layout: Layout) -> None:
        super().__init__(specs, x, {**arguments, "weight_decay": arguments["weight_decay"] or 0.0}, layout)
        self.own_decay = arguments["weight_decay"] is None and "weight_decay" not in dict(specs[0].params)
        self.buffers.append(torch.zeros_like(x))

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: Losses, factor: Scalar) -> None:
        self.steps += 1
        lr, (beta, _), average_of = factor * self.lr, self.arguments["betas"], self.buffers[2]
        average_of.lerp_(g, 1 - self.arguments["momentum"])
        towards = g.lerp(average_of, self.arguments["momentum"]) if self.arguments["nesterov"] else average_of
        adam = AdamDirection.of(self.arguments, 1 - beta, self.steps)
        u = adam.accumulate(g, self.buffers[:2], torch.empty_like(x)) / (1 - beta**self.steps)
        keep = 1 - lr * (1e-2 if self.own_decay else self.decay) * torch.ones_like(x)
        for columns, scale, signs in _signs(towards, self.arguments, self.layout):
            _place(u, columns, scale * signs)
            if self.own_decay:
                _place(keep, columns, (1 - lr * 0.1)[:, :, None].expand_as(signs))
        x.mul_(keep).sub_(lr * u)


class RowByRow:
    """The real optimizer, one for each row: the runs share forward and backward passes, and step one by one."""

    def __init__(self, specs: Sequence[RunSpec], x: torch.Tensor, layout: Layout) -> None:
        self.shapes = layout.shapes
        self.rows = [[torch.nn.Parameter(view) for view in self._views(row)] for row in x]
        self.steppers = [
            Stepper(spec.optimizer.build(torch.nn.ParameterList(parameters), spec.lr, dict(spec.params)), clip=None)
            for spec, parameters in zip(specs, self.rows)
        ]
        for stepper in self.steppers:
            stepper.set_mode(training=True)

    def step(self, x: torch.Tensor, g: torch.Tensor, losses: Losses, factor: Scalar) -> dict[str, Any] | None:
        diagnostics = []
        bounds = [None] * len(g) if losses.lower_bound is None else losses.lower_bound
        for parameters, row, loss, bound, stepper in zip(self.rows, g, losses.loss, bounds, self.steppers):
            for parameter, view in zip(parameters, self._views(row)):
                parameter.grad = view
            stepper.set_lr(factor)
            stepper.step_with(loss, bound)
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
    "momo.MomoMuon": MomoMuonRows,
    "momo.MomoMuonMax": MomoMuonMaxRows,
    "momo_cli.training.Muon": MuonRows,
    "torch.optim.SGD": SGDRows,
    "torch.optim.Adam": AdamRows,
    "torch.optim.AdamW": AdamWRows,
}


def can_stack(spec: RunSpec) -> bool:
    """Whether a stack can step the optimizer: it needs no closure and, to know its matrices, no model without a class
    here."""
    loaded, _, rows = _vectorized(spec)
    if rows is None and hasattr(loaded, "for_model"):
        return False
    closure = inspect.signature(loaded.step).parameters.get("closure")
    return closure is None or closure.default is not inspect.Parameter.empty


def is_vectorized(spec: RunSpec) -> bool:
    """Whether a stack steps the optimizer without making it."""
    return _vectorized(spec)[2] is not None


def _vectorized(spec: RunSpec) -> tuple[type[torch.optim.Optimizer], dict[str, Any], type[_Vectorized] | None]:
    """The optimizer's class, its arguments, and the class here that does the same; None where there is none."""
    loaded, arguments = spec.optimizer.load()
    arguments = arguments | dict(spec.params)
    rows = _VECTORIZED.get(f"{loaded.__module__.rpartition('.')[0] or loaded.__module__}.{loaded.__name__}")
    return loaded, arguments, rows if rows is not None and set(arguments) <= set(rows.takes) else None


def group_key(spec: RunSpec) -> tuple[Any, ...]:
    """Runs of one key can share an object of this module: the same optimizer, and only LR and weight decay differ."""
    return spec.optimizer.label, tuple(item for item in spec.params if item[0] != "weight_decay")


def stacked_optimizer(specs: Sequence[RunSpec], x: torch.Tensor, layout: Layout) -> Rows:
    """The optimizer of ``specs``, which have one :func:`group_key`, over their rows ``x``."""
    loaded, arguments, rows = _vectorized(specs[0])
    if rows is None:
        return RowByRow(specs, x, layout)
    parameters = inspect.signature(loaded).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items() if key in rows.takes}
    return rows(specs, x, rows.takes | defaults | arguments, layout)
