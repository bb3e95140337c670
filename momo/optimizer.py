"""What the optimizers share: how the loss comes in, the state, and the order of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo import passes
from momo.passes import Block, Scratch, scalar_dtype
from momo.step_size import Scalar, Step, Term, average, truncated_step, weight_sum

_NOT_GIVEN: Any = object()
_SCALARS = ("step", "loss_average", "lower_bound")
_HOW = (
    "Pass the loss whose gradient is in .grad: optimizer.step(loss=loss), or optimizer.step(closure) with a closure "
    "that returns the loss, or optimizer.record_loss(loss) before a bare optimizer.step()."
)


class TruncatedModelOptimizer(Optimizer):
    """An optimizer whose step size comes from a truncated model of the loss.

    A subclass names its ``direction`` (see :mod:`momo.directions`) and how it finds the momentum among the options. What
    belongs to the loss rather than to a parameter (the number of steps, the average of the losses, the lower bound) is
    kept in the parameter groups, the same tensors in each of them, so that everything that determines the next step is
    in ``state_dict()``, also for tools that save a part of it for each parameter.
    """

    direction: Any
    _shared_options: tuple[str, ...] = ("lb", "use_fstar", "bias_correction")  # those that there are

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._reset()
        self._started: bool | None = (
            False  # whether any step has been taken; None if that has to be read from the state
        )
        super().__init__(params, defaults)

    def _reset(self) -> None:
        """What is not part of the state, and is made anew after copying or loading."""
        self._recorded: list[Scalar] = []
        self._dropped = False
        self._plan: _Plan | None = None
        self._last: tuple[Step, list[Scalar], Scalar] | None = None

    # ---- the loss, however it comes ----

    def record_loss(self, loss: Tensor | float) -> None:
        """Keep the loss for the next bare ``step()``.

        For training loops that call ``step()`` themselves: Hugging Face's ``Trainer``, Lightning, Accelerate,
        ``GradScaler``. The loss must be the one whose gradient is in ``.grad``. With gradient accumulation, record each
        micro-batch's loss, not divided by their number: the step takes their mean. With a loss scaler, record the
        unscaled loss.

        ``step()`` uses the recorded losses up, and ``zero_grad()`` drops them with the gradients that they belong to.
        So a step that a ``GradScaler`` skips leaves nothing behind; call ``record_loss`` after ``zero_grad``.

        Raises:
            ValueError: if the loss isn't one real number.
            TypeError: if it is neither a tensor nor a number.
        """
        self._recorded.append(self._loss_value(loss))
        self._dropped = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients as in torch, and drop the recorded losses that belong to them."""
        self._dropped = self._dropped or bool(self._recorded)
        self._recorded.clear()
        super().zero_grad(set_to_none=set_to_none)

    def _loss_value(self, loss: Any) -> Scalar:
        name = type(self).__name__
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise ValueError(
                    f"{name} needs one number as the loss, and got a tensor of shape {tuple(loss.shape)}. "
                    "Pass what backward() was called on, for example loss.mean()."
                )
            if loss.is_complex():
                raise ValueError(f"{name} needs a real loss, and got a tensor of dtype {loss.dtype}.")
            if loss.device.type == "cpu":
                return float(loss.detach())
            return loss.detach().reshape(()).to(scalar_dtype(loss.device), copy=True)
        try:
            if isinstance(loss, (bool, str, bytes)):
                raise TypeError
            return float(loss)
        except TypeError:
            kind = type(loss).__name__
            raise TypeError(f"{name} needs the loss as a tensor or a number, and got {kind}. {_HOW}") from None

    def _take_loss(self, closure: Any, loss: Any) -> tuple[Any, Scalar]:
        """The loss as it was given, which ``step`` returns, and as a number."""
        name = type(self).__name__
        if closure is not None:
            if loss is not None:
                raise ValueError(f"{name}.step() got both a closure and a loss. Pass one of them.")
            if not callable(closure):
                raise TypeError(
                    f"{name}.step() takes a closure first, and got {type(closure).__name__}. "
                    "Pass a loss by name: optimizer.step(loss=loss)."
                )
            with torch.enable_grad():
                loss = closure()
            if loss is None:
                raise ValueError(f"the closure given to {name}.step() returned None. It has to return the loss.")
        if loss is not None:
            if self._recorded:
                self._recorded.clear()
                raise ValueError(
                    f"{name}.step() got a loss, and record_loss() had recorded one for this step already. "
                    "Use one of the two. (What was recorded is dropped now.)"
                )
            return loss, self._loss_value(loss)
        if not self._recorded:
            why = ""
            if self._dropped:
                why = (
                    " A loss was recorded, but zero_grad() dropped it with the gradients: record it after zero_grad()."
                )
            raise RuntimeError(f"{name}.step() needs the loss, and none was given. {_HOW}{why}")
        value = self._recorded[0]
        for other in self._recorded[1:]:
            value = value + other
        value = value / len(self._recorded)
        self._recorded.clear()
        return None, value

    # ---- the step ----

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = _NOT_GIVEN, loss: Tensor | float | None = None) -> Any:
        """Take one step.

        Args:
            closure: computes the loss and its gradients anew, and returns the loss.
            loss: the loss whose gradient is in ``.grad``, a tensor with one element or a number.

        With neither, the losses given to :meth:`record_loss` are used.

        Returns:
            The loss as it was given, or None if it was recorded.

        Raises:
            RuntimeError: if there is no loss, or a gradient is sparse.
            ValueError: if there are two, or the loss isn't one real number, or options that belong to the
                loss rather than to the parameters (the momentum, ``lb``, ``use_fstar``) differ between groups.
        """
        if closure is None and loss is None and not self._recorded and self._asked_to_initialise():
            return None
        returned, value = self._take_loss(None if closure is _NOT_GIVEN else closure, loss)
        self._advance(value)
        return returned

    def _advance(self, loss: Scalar) -> None:
        self._check_shared_options()
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        plan = self._planned(grads)
        options = self.param_groups[0]
        beta = self._momentum(options)
        bias_correction = options.get("bias_correction", True)

        # The averages take in this step.
        options["step"] += 1
        steps = plan.read(options["step"])
        loss_average = average(plan.read(options["loss_average"]), plan.bring(loss), beta)
        if plan.first and not bias_correction:
            loss_average = plan.bring(loss)
        rho = weight_sum(steps, beta, bias_correction)
        gamma: Scalar = 0.0
        terms: list[Term] = []
        directions = []
        for block in plan.blocks:
            group = block.group
            block.steps += 1
            own_steps = block.own_steps()
            direction = self.direction.of(group, own_steps, block.first)
            directions.append(direction)
            block_gamma, dx, du = block.update(direction, [grads[i] for i in block.positions])
            block.first = False
            gamma = gamma + plan.bring(block_gamma)
            lr = plan.number(group["lr"])
            cap = lr / plan.bring(weight_sum(own_steps, beta, bias_correction))
            terms.append(Term(cap, 1 + lr * group["weight_decay"], plan.bring(dx), plan.bring(du)))

        # How far the model allows to go.
        floor = options["lb"]
        answer = truncated_step(
            loss_average=loss_average,
            gamma=gamma,
            rho=rho,
            lower_bound=plan.read(options["lower_bound"]) if options["use_fstar"] else floor,
            terms=terms,
            use_fstar=options["use_fstar"],
            floor=floor,
        )

        # The parameters move.
        for block, direction, term in zip(plan.blocks, directions, terms):
            step = answer.multiplier * term.cap
            if block.group.get("divide", True):
                step, keep = step / term.decay, 1 / term.decay
            else:
                keep = 2 - term.decay
            block.move(direction, block.bring(step), block.bring(keep))

        plan.first = False
        self._started = True
        _write(options["loss_average"], loss_average)
        _write(options["lower_bound"], answer.lower_bound)
        self._last = answer, [plan.number(group["lr"]) / rho for group in self.param_groups], loss_average

    def diagnostics(self) -> dict[str, Tensor]:
        r"""What the last step did, as tensors on the parameters' device (nothing is copied to the host).

        Returns:
            ``step_size``, ``adaptive_term`` and ``cap``, with an element for each parameter group: the step size
            :math:`\tau` that was taken, the one that the model asked for (:math:`\zeta`), and the largest one that the
            learning rate allows (:math:`\alpha/\rho`); the step size is the smaller one of the two. ``capped``, whether
            that was the learning rate's; ``loss_average``; ``lower_bound``, which changes with ``use_fstar``.

        The share of capped steps tells most about a run. Near one, the method is SGD with momentum (or Adam) and a larger
        learning rate may help; near zero, the learning rate no longer matters.

        Raises:
            RuntimeError: before the first step.
        """
        if self._last is None or self._plan is None:
            raise RuntimeError("diagnostics() tells about the last step, and none has been taken yet.")
        answer, caps, loss_average = self._last
        cap = torch.stack([self._plan.tensor(c).to(scalar_dtype(self._plan.home)) for c in caps])
        return {
            "step_size": self._plan.tensor(answer.multiplier) * cap,
            "adaptive_term": self._plan.tensor(answer.adaptive) * cap,
            "cap": cap,
            "capped": self._plan.tensor(answer.capped, torch.bool),
            "loss_average": self._plan.tensor(loss_average),
            "lower_bound": self._plan.tensor(answer.lower_bound),
        }

    # ---- groups and options ----

    @staticmethod
    def _momentum(group: dict[str, Any]) -> float:
        raise NotImplementedError

    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise ValueError for options out of range."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"lr as a tensor must have one element, and has the shape {tuple(lr.shape)}.")
        check_number("lr", float(lr), 0)
        check_number("weight_decay", group["weight_decay"], 0)
        lb = group["lb"]
        if not isinstance(lb, (int, float)) or math.isnan(lb) or lb == math.inf:
            raise ValueError(f"lb must be a number below the loss, and is {lb!r}.")
        if group.get("maximize"):
            raise ValueError(
                "maximize isn't supported: the step size needs a lower bound of the loss. Negate the loss."
            )

    def _check_shared_options(self) -> None:
        first = self.param_groups[0]
        for group in self.param_groups[1:]:
            if self._momentum(group) != self._momentum(first):
                raise ValueError(
                    "all parameter groups must have the same momentum, because there is one average of the loss: "
                    f"got {self._momentum(first)} and {self._momentum(group)}."
                )
            for name in self._shared_options:
                if group.get(name) != first.get(name):
                    raise ValueError(
                        f"all parameter groups must have the same {name}, because it belongs to the loss: "
                        f"got {first[name]} and {group[name]}."
                    )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in torch, at any time.

        It may have its own ``lr``, ``weight_decay`` (and ``eps``, second beta and ``divide`` in ``MomoAdam``).
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_options(group)
            self._check_shared_options()
            for p in group["params"]:
                if not p.is_floating_point():
                    raise ValueError(f"{type(self).__name__} needs real floating-point parameters, and got {p.dtype}.")
        except ValueError:
            self.param_groups.pop()
            raise
        self._plan = None
        self._share_scalars()

    def _share_scalars(self) -> None:
        """Let all groups hold the same tensors for what belongs to the loss."""
        first = self.param_groups[0]
        if "step" not in first:
            home = self._home()
            dtype = scalar_dtype(home)
            first["step"] = torch.zeros((), dtype=dtype, device=home)
            first["loss_average"] = torch.zeros((), dtype=dtype, device=home)
            first["lower_bound"] = torch.full((), first["lb"], dtype=dtype, device=home)
        for group in self.param_groups[1:]:
            for name in _SCALARS:
                group[name] = first[name]

    def _home(self) -> torch.device:
        """Where the scalars are: on the CPU only if all parameters are."""
        devices = [p.device for group in self.param_groups for p in group["params"]]
        return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))

    # ---- the state ----

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["gamma"] = torch.zeros((), dtype=scalar_dtype(p.device), device=p.device)
            for name in self.direction.buffers:
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state

    def _planned(self, grads: list[Tensor | None]) -> _Plan:
        """How the passes go over the parameters that have a gradient now."""
        active = [g is not None for g in grads]
        plan = self._plan
        if plan is None or plan.active != active or plan.state is not self.state or plan.count != len(self.state):
            plan = self._plan = self._make_plan(active)
        for g in grads:
            if g is not None and g.layout is not torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} doesn't support sparse gradients: use dense ones (sparse=False), "
                    "or torch.optim.SparseAdam for these parameters."
                )
        return plan

    def _make_plan(self, active: list[bool]) -> _Plan:
        home = self._home()
        options = self.param_groups[0]
        for name in _SCALARS:
            options[name] = options[name].to(home)
        self._share_scalars()
        scratch = Scratch() if self._plan is None else self._plan.scratch
        members: dict[Any, list[tuple[int, Tensor, dict[str, Any]]]] = {}
        position = 0
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                if active[position]:
                    # The number of steps is read from the device only if there may have been any.
                    known = p in self.state and bool(self.state[p])
                    state = self._state_of(p)
                    key = index, p.device, p.dtype, state["step"].item() if known else 0.0
                    members.setdefault(key, []).append((position, p, state))
                position += 1
        blocks = []
        for (index, _, _, steps), found in members.items():
            positions, params, states = map(list, zip(*found))
            block = Block(self.param_groups[index], positions, params, states, self.direction.buffers, scratch)
            block.first = steps == 0
            blocks.append(block)
        if self._started is None:
            self._started = options["step"].item() > 0
        return _Plan(active, blocks, home, scratch, self.state, len(self.state), not self._started)

    def _asked_to_initialise(self) -> bool:
        """Whether this is ``torch.distributed.checkpoint`` making the state, with a step that is none.

        It calls ``step(closure=None)`` on a fresh optimizer, with learning rates and gradients of zero. The state is
        made then, and the step isn't counted.
        """
        if self.state or any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not params or any(p.grad.any() for p in params):
            return False
        for p in params:
            self._state_of(p)
        return True

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` gave, and go on as if training had never stopped.

        Devices and dtypes are adapted to the parameters as in torch. Call it after making LR schedulers.

        Raises:
            ValueError: if it isn't the state of this kind of optimizer, or its groups don't fit.
        """
        loaded: dict[str, Any] = {}

        def keep(_: Optimizer, given: dict[str, Any]) -> None:
            loaded.update(given)
            if "betas" not in self.defaults and any("betas" in group for group in given["param_groups"]):
                raise ValueError(
                    f"this isn't the state of a {type(self).__name__}: it has betas, as Adam's methods do."
                )
            for state in given["state"].values():
                missing = [n for n in ("step", "gamma", *self.direction.buffers) if n not in state]
                if missing:
                    raise ValueError(
                        f"this isn't the state of a {type(self).__name__}: it has no {', '.join(missing)}. (The state of "
                        "momo-opt 0.1.0 can't be continued: it lacks the average of the losses and the lower bound.)"
                    )
            for group in given["param_groups"]:
                missing = [n for n in _SCALARS if n not in group]
                if missing:
                    raise ValueError(
                        f"this isn't the state of a {type(self).__name__}: its groups have no {', '.join(missing)}."
                    )

        def restore(_: Optimizer) -> None:
            # torch gives all of a parameter's state the parameter's dtype. These stay as they were saved.
            ids = [i for group in loaded["param_groups"] for i in group["params"]]
            params = [p for group in self.param_groups for p in group["params"]]
            for i, p in zip(ids, params):
                if i in loaded["state"]:
                    saved = loaded["state"][i]
                    self.state[p]["step"] = saved["step"].to(p.device, torch.float32, copy=True)
                    self.state[p]["gamma"] = saved["gamma"].to(p.device, scalar_dtype(p.device), copy=True)

        handles = [
            self.register_load_state_dict_pre_hook(keep),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset()
        self._started = None
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        self._share_scalars()


class _Plan:
    """The blocks of parameters that take part in a step, and where the scalars are."""

    def __init__(
        self,
        active: list[bool],
        blocks: list[Block],
        home: torch.device,
        scratch: Scratch,
        state: Any,
        count: int,
        first: bool,
    ) -> None:
        self.active = active
        self.blocks = blocks
        self.home = home
        self.scratch = scratch
        self.state = state
        self.count = count
        self.first = first
        self.host = passes.on_host(home)

    def read(self, scalar: Tensor) -> Scalar:
        """A scalar of the state, to compute with: a number if all parameters are on the CPU."""
        return scalar.item() if self.host else scalar

    def bring(self, scalar: Scalar) -> Scalar:
        """A scalar from any device."""
        if not isinstance(scalar, Tensor):
            return scalar
        return scalar.item() if self.host else scalar.to(self.home, non_blocking=True)

    def number(self, lr: Scalar) -> Scalar:
        """A learning rate: a number, unless it is on a device."""
        if not isinstance(lr, Tensor):
            return lr
        lr = lr.detach().reshape(())
        return lr.item() if lr.device.type == "cpu" else self.bring(lr)

    def tensor(self, value: Any, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor, made on the device."""
        if isinstance(value, Tensor):
            return value
        return torch.full((), value, dtype=dtype or scalar_dtype(self.home), device=self.home)


def _write(scalar: Tensor, value: Scalar) -> None:
    scalar.copy_(value) if isinstance(value, Tensor) else scalar.fill_(value)


def check_number(name: str, value: Any, least: float, below: float = math.inf) -> None:
    if not isinstance(value, (int, float)) or not least <= value < below:
        wanted = f"at least {least} and below {below}" if below < math.inf else f"finite and at least {least}"
        raise ValueError(f"{name} must be {wanted}, and is {value!r}.")
