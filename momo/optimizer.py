"""What `Momo` and `MomoAdam` share: the intake of the loss, the state, and the order of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo.step_size import Scalar, Step, Term, average, truncated_step, weight_sum

_NOT_GIVEN: Any = object()
_HOW = (
    "Pass the loss whose gradient is in .grad: optimizer.step(loss=loss), optimizer.step(closure) with a closure that "
    "returns the loss, or optimizer.record_loss(loss) before a bare optimizer.step()."
)
_SHARED = ("lb", "use_fstar", "bias_correction")


class TruncatedModelOptimizer(Optimizer):
    """An optimizer whose step size comes from a truncated model of the loss. Subclasses name the direction."""

    direction: Any

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._recorded: list[Scalar] = []
        self._discarded = False
        self._last: tuple[Step, list[Scalar], Scalar] | None = None
        super().__init__(params, defaults)

    # ---- the loss, however it comes ----

    def record_loss(self, loss: Tensor | float) -> None:
        """Keep the loss for the next bare ``step()``. Several recorded losses are averaged."""
        self._recorded.append(self._loss_value(loss))
        self._discarded = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and the recorded losses that belong to them."""
        self._discarded = self._discarded or bool(self._recorded)
        self._recorded.clear()
        super().zero_grad(set_to_none=set_to_none)

    def _loss_value(self, loss: Any) -> Scalar:
        name = type(self).__name__
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise ValueError(
                    f"{name} needs one number as the loss, but got a tensor of shape {tuple(loss.shape)}: "
                    "reduce it (loss.mean()) as you did for backward()."
                )
            if loss.is_complex():
                raise ValueError(f"{name} needs a real loss, but got a tensor of dtype {loss.dtype}.")
            loss = loss.detach()
            if self._on_host():
                return loss.item()
            return loss.reshape(()).to(self._home(), _scalar_dtype(self._home()), copy=True)
        if isinstance(loss, bool) or not isinstance(loss, (int, float)):
            try:
                return float(loss.__float__())
            except AttributeError:
                raise TypeError(
                    f"{name} needs the loss as a tensor or a number, but got {type(loss).__name__}. {_HOW}"
                ) from None
        return float(loss)

    def _take_loss(self, closure: Any, loss: Any) -> tuple[Any, Scalar]:
        name = type(self).__name__
        if closure is not None and loss is not None:
            raise ValueError(f"{name}.step() got both a closure and a loss: pass one of them.")
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if loss is None:
                raise ValueError(f"the closure passed to {name}.step() returned None. It has to return the loss.")
        if loss is not None:
            if self._recorded:
                self._recorded.clear()
                raise ValueError(
                    f"{name}.step() got a loss, but record_loss() has already recorded one for this step: "
                    "use either of them. (The recorded loss is dropped now.)"
                )
            return loss, self._loss_value(loss)
        if not self._recorded:
            why = ""
            if self._discarded:
                why = (
                    " A loss had been recorded, but zero_grad() dropped it together with the gradients it belongs to: "
                    "call record_loss() after zero_grad()."
                )
            raise RuntimeError(f"{name}.step() needs the loss of this step, and none was given. {_HOW}{why}")
        value = sum(self._recorded[1:], self._recorded[0]) / len(self._recorded)
        self._recorded.clear()
        return None, value

    # ---- the step ----

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = _NOT_GIVEN, loss: Tensor | float | None = None) -> Any:
        """Take one step. See the class for the three ways to pass the loss."""
        if closure is None and loss is None and self._only_initialises():
            return None
        returned, value = self._take_loss(None if closure is _NOT_GIVEN else closure, loss)
        self._advance(value)
        return returned

    def _advance(self, loss: Scalar) -> None:
        shared = self.param_groups[0]
        beta = self._beta(shared)
        host = self._on_host()
        shared["step"] += 1
        k = shared["step"].item() if host else shared["step"]
        loss_average = shared["loss_average"].item() if host else shared["loss_average"]
        bias_correction = shared["bias_correction"]
        loss_average = average(loss_average, loss, beta, first=(k == 1) if not bias_correction else False)
        rho = weight_sum(k, beta, bias_correction)

        work = []
        terms = []
        gamma: Scalar = 0.0
        for group in self.param_groups:
            lr = group["lr"].item() if isinstance(group["lr"], Tensor) else group["lr"]
            c = 1 + lr * group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self._state_of(p)
                state["step"] += 1
                kp = state["step"].item() if host else state["step"]
                direction = self.direction.of(group, kp)
                buffers = [state[name].reshape(-1) for name in direction.buffers]
                x = p.reshape(-1)
                gx, dx, du = direction.update(x, p.grad.reshape(-1), *buffers, torch.empty_like(x))
                state["gamma"].lerp_(gx.to(state["gamma"].dtype), direction.average_weight)
                if host:
                    gx, dx, du = gx.item(), dx.item(), du.item()
                    gamma += state["gamma"].item()
                else:
                    gamma = gamma + state["gamma"]
                terms.append(Term(lr / weight_sum(kp, beta, bias_correction), c, dx, du))
                work.append((group, direction, p, x, buffers))
        floor = shared["lb"]
        answer = truncated_step(
            loss_average=loss_average,
            gamma=gamma,
            rho=rho,
            lower_bound=(shared["lower_bound"].item() if host else shared["lower_bound"]) if shared["use_fstar"] else floor,
            terms=terms,
            use_fstar=shared["use_fstar"],
            floor=floor,
        )
        for (group, direction, p, x, buffers), term in zip(work, terms):
            decay = term.decay
            if not group.get("divide", True):
                x.mul_(2 - decay)
                decay = 1.0
            direction.move(answer.multiplier * term.cap, decay, x, *buffers, torch.empty_like(x))
            if x.data_ptr() != p.data_ptr():
                p.copy_(x.view_as(p))
        shared["loss_average"].fill_(loss_average)
        shared["lower_bound"].fill_(answer.lower_bound)
        caps = [g["lr"] / rho for g in self.param_groups]
        self._last = (answer, caps, loss_average)

    def diagnostics(self) -> dict[str, Tensor]:
        """What the last step did."""
        if self._last is None:
            raise RuntimeError("diagnostics() tells about the last step, and no step has been taken yet.")
        answer, caps, loss_average = self._last
        home = self._home()

        def tensor(value: Any) -> Tensor:
            return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device=home)

        cap = torch.stack([tensor(c) for c in caps])
        return {
            "step_size": tensor(answer.multiplier) * cap,
            "adaptive_term": tensor(answer.adaptive) * cap,
            "cap": cap,
            "capped": torch.as_tensor(answer.capped, device=home),
            "loss_average": tensor(loss_average),
            "lower_bound": tensor(answer.lower_bound),
        }

    # ---- groups and state ----

    @staticmethod
    def _beta(group: dict[str, Any]) -> float:
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in torch. It may have its own learning rate and weight decay."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        shared = self.param_groups[0]
        if group is shared:
            home = self._home()
            for key in ("step", "loss_average"):
                group[key] = torch.zeros((), dtype=_scalar_dtype(home), device=home)
            group["lower_bound"] = torch.full((), group["lb"], dtype=_scalar_dtype(home), device=home)
        else:
            for key in ("step", "loss_average", "lower_bound"):
                group[key] = shared[key]

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["gamma"] = torch.zeros((), dtype=_scalar_dtype(p.device), device=p.device)
            for name in self.direction.buffers:
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state

    def _only_initialises(self) -> bool:
        return not self.state and all(float(group["lr"]) == 0 for group in self.param_groups)

    def _home(self) -> torch.device:
        for group in self.param_groups:
            for p in group["params"]:
                return p.device
        return torch.device("cpu")

    def _on_host(self) -> bool:
        return self._home().type == "cpu"


def _scalar_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
