"""What users may set: one way to check it, when it is given and whenever it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from momo.passes.members import on_host

SHARED = (
    "lb",
    "use_fstar",
    "bias_correction",
    "stale_norms",
)  # options that belong to the loss, where a method has them


class Options(dict[str, Any]):
    """A parameter group in which ``momentum`` is another name of ``beta``: schedulers that cycle it write that."""

    _TWINS: ClassVar[dict[str, str]] = {"beta": "momentum", "momentum": "beta"}

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key in self._TWINS:
            super().__setitem__(self._TWINS[key], value)


def momentum_of(group: Mapping[str, Any]) -> float:
    """The momentum, which methods like Adam's have as the first of their betas."""
    found: float = group["beta"] if "beta" in group else group["betas"][0]
    return found


def momentum_name(group: Mapping[str, Any]) -> str:
    """What users know it by."""
    return "beta" if "beta" in group else "betas[0]"


def check_options(group: Mapping[str, Any]) -> None:
    """Check the options of one group.

    Raises:
        ValueError: one is out of range.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr as a tensor must have one element, and has the shape {tuple(lr.shape)}.")
    if not isinstance(lr, Tensor) or on_host(lr.device):
        _check_number("lr", float(lr), 0)
    _check_number("weight_decay", group["weight_decay"], 0)
    lb = group["lb"]
    if not isinstance(lb, (int, float)) or math.isnan(lb) or lb == math.inf:
        raise ValueError(f"lb must be a number below the loss, and is {lb!r}.")
    if group.get("maximize"):
        raise ValueError("maximize isn't supported: the step size needs a lower bound of the loss. Negate the loss.")
    if "beta" in group:
        _check_number("beta", group["beta"], 0, 1)
    if "betas" in group:
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, and are {betas!r}.")
        for i, beta in enumerate(betas):
            _check_number(f"betas[{i}]", beta, 0, 1)
        _check_number("eps", group["eps"], 0)
    if "matrices" in group:
        _check_matrices(group)


def _check_matrices(group: Mapping[str, Any]) -> None:
    for name in ("matrices", "stale_norms"):
        if group.get(name, False) not in (True, False):
            raise ValueError(f"{name} must be True or False, and is {group[name]!r}.")
    if group["adjust_lr_fn"] not in (None, "original", "match_rms_adamw"):
        raise ValueError(f'adjust_lr_fn must be "original" or "match_rms_adamw", and is {group["adjust_lr_fn"]!r}.')
    coefficients, steps = group["ns_coefficients"], group["ns_steps"]
    if (
        not isinstance(coefficients, (tuple, list))
        or len(coefficients) != 3
        or not all(map(math.isfinite, coefficients))
    ):
        raise ValueError(f"ns_coefficients must be three numbers, and are {coefficients!r}.")
    if not isinstance(steps, int) or not 1 <= steps < 100:
        raise ValueError(f"ns_steps must be a whole number from 1 to 99, and is {steps!r}.")
    vectors = [tuple(p.shape) for p in group["params"] if p.dim() < 2] if group["matrices"] else []
    if vectors:
        raise ValueError(
            f"a group with matrices=True holds a tensor of shape {vectors[0]}, and a matrix has two dimensions or "
            "more: put it into a group without."
        )


def check_shared(groups: list[dict[str, Any]]) -> None:
    """Check that groups agree in the options that belong to the loss.

    Raises:
        ValueError: they don't.
    """
    first = groups[0]
    named: list[tuple[str, Callable[[Mapping[str, Any]], Any]]] = [(momentum_name(first), momentum_of)]
    named += [(name, lambda group, name=name: group.get(name)) for name in SHARED]  # type: ignore[misc]
    for group in groups[1:]:
        for name, value in named:
            if value(group) != value(first):
                raise ValueError(
                    f"all parameter groups must have the same {name}, because there is one average of the loss: "
                    f"got {value(first)} and {value(group)}."
                )


def _check_number(name: str, value: Any, least: float, below: float = math.inf) -> None:
    if not isinstance(value, (int, float)) or not least <= value < below:
        wanted = f"at least {least} and below {below}" if below < math.inf else f"finite and at least {least}"
        raise ValueError(f"{name} must be {wanted}, and is {value!r}.")
