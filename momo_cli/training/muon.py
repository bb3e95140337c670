"""The optimizer ``muon``: torch's Muon on a model's hidden matrices and AdamW on the rest, with one learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from momo.matrices import groups_of
from momo_cli.errors import UserError


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` and ``torch.optim.AdamW`` as one optimizer.

    Args:
        params: Parameter groups; those with ``matrices=True`` are Muon's.
        lr: Of both.
        weight_decay: Of both; None for each one's own default.
        momentum, nesterov, adjust_lr_fn: Muon's.
        betas, eps: AdamW's.

    Raises:
        UserError: This torch has no Muon.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        weight_decay: float | None = None,
        momentum: float = 0.95,
        nesterov: bool = True,
        adjust_lr_fn: str | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"--optimizer muon needs torch 2.9 or newer, and this is {torch.__version__}.")
        decay: dict[str, Any] = {} if weight_decay is None else {"weight_decay": weight_decay}
        stand_in = [torch.nn.Parameter(torch.zeros(1, 1))]
        muon: Any = torch.optim.Muon(
            stand_in, lr=lr, momentum=momentum, nesterov=nesterov, adjust_lr_fn=adjust_lr_fn, **decay
        )
        self._inner: list[Any] = [torch.optim.AdamW(stand_in, lr=lr, betas=betas, eps=eps, **decay), muon]
        groups = [{**self._inner[bool(group.get("matrices"))].defaults, **group} for group in params]
        super().__init__(groups, {"lr": lr, "matrices": False})

    @classmethod
    def for_model(cls, model: torch.nn.Module, **options: Any) -> Muon:
        """The optimizer of a model, whose hidden weights are the matrices: see :func:`momo.matrices.matrices_of`."""
        return cls(groups_of(model, "muon"), **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch's may return a loss
        """One step of both; a closure isn't needed."""
        for group in self.param_groups:
            inner = self._inner[group["matrices"]]
            inner.param_groups, inner.state = [group], self.state
            deep = [(p, p.shape) for p in group["params"] if group["matrices"] and p.dim() > 2]
            for p, shape in deep:  # torch's takes two dimensions only
                _reshape(p, (shape[0], shape[1:].numel()))
            inner.step()
            for p, shape in deep:
                _reshape(p, shape)


def _reshape(p: torch.Tensor, shape: tuple[int, ...]) -> None:
    grad, p.grad = p.grad, None
    p.data = p.data.reshape(shape)
    p.grad = None if grad is None else grad.reshape(shape)
