"""`MomoMuon` and `MomoMuonMax`: Muon and the step size of the truncated model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from momo.directions import Adam, AdamFromFirst, Muon, MuonMax
from momo.directions.muon import COEFFICIENTS, STEPS
from momo.matrices import groups_of
from momo.optimizer import TruncatedModelOptimizer

if TYPE_CHECKING:
    from typing_extensions import Self


class _WithMatrices(TruncatedModelOptimizer):
    """What the two share: groups of matrices, with a direction of their own, and groups of everything else."""

    direction_of_matrices: ClassVar[Any]
    decoupled = True
    marks: ClassVar[tuple[str, ...]] = ("matrices",)

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], *, fused: bool | None, process_group: Any):
        super().__init__(params, {"matrices": False, **defaults}, fused=fused, process_group=process_group)
        if not self.matrices:
            name = type(self).__name__
            raise ValueError(
                f"{name} has no group with matrices=True, so it would be Adam alone. Use {name}.for_model(model), or "
                'give groups: [{"params": weights, "matrices": True}, {"params": others}].'
            )

    @classmethod
    def for_model(cls, model: nn.Module, **options: Any) -> Self:
        """The optimizer of a model, whose hidden weights are the matrices (:func:`momo.matrices.matrices_of`).

        Args:
            model: its parameters that need a gradient are optimized, in one group of matrices and one of all others.
            options: those of the class.

        Raises:
            ValueError: the model has no such matrix, or options are out of range.
        """
        return cls(groups_of(model, cls.__name__), **options)

    @property
    def matrices(self) -> list[Tensor]:
        """The parameters that are matrices."""
        return [p for group in self.param_groups if group["matrices"] for p in group["params"]]

    def _direction_of(self, group: Mapping[str, Any]) -> Any:
        return self.direction_of_matrices if group["matrices"] else self.direction


class MomoMuon(_WithMatrices):
    r"""Muon whose step size adapts to the loss; Adam, in the same step, for what is not a matrix.

    Matrices move against the matrix sign of their averaged gradient, all others as in :class:`momo.MomoAdam`. With the
    loss :math:`f_k` and gradient :math:`g_k` at the parameters :math:`x_k`, averages that start at zero, and
    :math:`\rho_k = 1 - \beta_1^k`, a step is

    .. math::
        \bar f_k &= \beta_1 \bar f_{k-1} + (1-\beta_1) f_k, \quad
        d_k = \beta_1 d_{k-1} + (1-\beta_1) g_k, \quad
        \gamma_k = \beta_1 \gamma_{k-1} + (1-\beta_1) \langle g_k, x_k\rangle \\
        u &= s\,O(d_k), \quad \mathrm{cap} = \alpha \quad \text{for matrices}, \qquad
        u = d_k / \big(\sqrt{v_k/(1-\beta_2^k)} + \epsilon\big), \quad
        \mathrm{cap} = \alpha_{\mathrm{Adam}}/\rho_k \quad \text{for others} \\
        t_k &= \mathrm{clip}\Big(\frac{\bar f_k - \gamma_k - \rho_k f_* + \langle d_k, x_k\rangle}
        {\langle \mathrm{cap}\, d_k, u\rangle},\; 0,\; 1\Big) \\
        x_{k+1} &= (1 - \alpha\lambda) x_k - t_k\, \mathrm{cap}\, u

    with inner products over all parameters, so there is one multiplier :math:`t_k` for all. :math:`O(d)` is the polar
    factor of :math:`d`, by five Newton–Schulz iterations in bfloat16, and :math:`s` a number that depends on the
    matrix's shape, both as in ``torch.optim.Muon``. A tensor of more than two dimensions is taken as the matrix
    ``[out, rest]``. With ``lb=-float("inf")`` the matrices move exactly as under ``torch.optim.Muon(nesterov=False)``.

    Which parameters are matrices: those of groups with ``matrices=True``. :meth:`for_model` makes the groups; what it
    chose is to be seen in :attr:`matrices` and by ``print(optimizer)``. Embeddings, the output layer, biases and the
    parameters of normalization don't belong in such a group.

    How the loss is passed, and parameters without a gradient, are as in :class:`momo.Momo`. Between the two passes of a
    step the matrices' :math:`O(d)` are kept, in bfloat16. Of a sharded matrix (FSDP2, tensor parallel) every rank
    gathers :math:`d` and computes all of :math:`O(d)`.

    Args:
        params: parameter groups, of which at least one has ``matrices=True``.
        lr: the learning rate :math:`\alpha` of matrices, a number or a tensor with one element.
        weight_decay: :math:`\lambda`, decoupled as in ``torch.optim.Muon`` and ``AdamW``.
        betas: :math:`\beta_1` of all averages and :math:`\beta_2` of Adam's squares, each from 0 to below 1. The first
            one must be the same in all groups.
        eps: Adam's :math:`\epsilon`.
        lb: a lower bound of the loss. Zero is right for most losses. Set it when you know more: the loss at the end of
            a similar training, or something negative if the loss can be negative.
        adam_lr: :math:`\alpha_{\mathrm{Adam}}`, the learning rate of groups that have no ``lr`` and no
            ``matrices=True``. By default half of ``lr``: 1e-2 where that is 0.02.
        adjust_lr_fn: what :math:`s` is: ``"original"`` (the same as None), :math:`\sqrt{\max(1, m/n)}` of an
            :math:`m \times n` matrix, or ``"match_rms_adamw"``, :math:`0.2 \sqrt{\max(m, n)}`, for learning rates like
            AdamW's.
        ns_coefficients: the three coefficients of the Newton–Schulz iteration.
        ns_steps: the number of iterations.
        fused: as in :class:`momo.Momo`, for all but the products of matrices, which are torch's.
        process_group: as in :class:`momo.Momo`.

    Raises:
        ValueError: for options out of range, no group of matrices, a tensor of fewer than two dimensions in one, and
            groups that differ in ``betas[0]`` or ``lb``.

    Example:
        >>> import torch
        >>> from momo import MomoMuon
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> optimizer = MomoMuon.for_model(model, lr=0.02)
        >>> [tuple(p.shape) for p in optimizer.matrices]
        [(8, 3)]
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 3)).square().mean()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)

    Reference: Michael Crawshaw, Chirag Modi, Mingrui Liu, Robert M. Gower: *An Exploration of Non-Euclidean Gradient
    Descent: Muon and its Many Variants*. ICML 2026. https://arxiv.org/abs/2510.09827
    """

    direction = Adam
    direction_of_matrices = Muon

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        lb: float = 0.0,
        adam_lr: float | Tensor | None = None,
        adjust_lr_fn: str | None = None,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        ns_steps: int = STEPS,
        *,
        fused: bool | None = None,
        process_group: Any = None,
    ) -> None:
        self._adam_lr = lr / 2 if adam_lr is None else adam_lr
        defaults = dict(
            lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, lb=lb,
            adjust_lr_fn=adjust_lr_fn, ns_coefficients=ns_coefficients, ns_steps=ns_steps,
        )  # fmt: skip
        super().__init__(params, defaults, fused=fused, process_group=process_group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in torch, at any time.

        With ``matrices=True`` it is one of matrices; else its ``lr`` is ``adam_lr`` unless it gives one.
        """
        if isinstance(param_group, dict) and not param_group.get("matrices"):
            param_group = {"lr": self._adam_lr, **param_group}
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_adam_lr": self._adam_lr}


class MomoMuonMax(_WithMatrices):
    r"""Steepest descent under the norm of MuonMax, whose step size adapts to the loss; one learning rate for all.

    With the averages :math:`\bar f_k, d_k, \gamma_k` of :class:`momo.Momo`, which start at the first loss and gradient,
    and the average :math:`v_k` of squared gradients, which does so too, a step is

    .. math::
        n_l &= \langle d_l, O(d_l)\rangle, \quad N = \sum_l n_l \quad \text{over all matrices } l \\
        u_l &= N s_l O(d_l) \quad \text{for matrices}, \qquad
        u = d_k / (\sqrt{v_k} + \epsilon) \quad \text{for others} \\
        \tau_k &= \min\Big\{\alpha,\;
        \frac{[\bar f_k - \gamma_k - f_* + \langle d_k, x_k\rangle]_+}{\langle d_k, u\rangle}\Big\} \\
        x_{k+1} &= (1 - \alpha\lambda) x_k - \tau_k u

    :math:`n_l` estimates the nuclear norm of a matrix. :math:`O(d)` and the scale :math:`s_l` of its shape are those of
    :class:`momo.MomoMuon`, as are :meth:`for_model` and everything that isn't said here. Where all :math:`s_l` are
    equal this is the direction of steepest descent of one norm on all parameters, as in the paper, which advocates this
    method for the range of learning rates over which its loss stays low (there: MuonMax-Momo).

    Matrices of a group with a learning rate of zero add nothing to :math:`N`.

    Args:
        params: parameter groups, of which at least one has ``matrices=True``.
        lr: the learning rate :math:`\alpha`, a number or a tensor with one element.
        weight_decay: :math:`\lambda`, decoupled.
        betas: of the averages of the loss and the gradient, and of the squared gradient, each from 0 to below 1. The
            first one must be the same in all groups.
        eps: :math:`\epsilon`.
        lb: a lower bound of the loss, as in :class:`momo.MomoMuon`.
        stale_norms: use the :math:`n_l` of the step before in :math:`N` and in :math:`\langle d_k, u\rangle` (the
            paper's cheaper form). Here :math:`O(d)` is computed once in a step in either case, so it saves nothing; it
            repeats such an experiment.
        adjust_lr_fn, ns_coefficients, ns_steps, fused, process_group: as in :class:`momo.MomoMuon`.

    Raises:
        ValueError: as in :class:`momo.MomoMuon`.

    Example:
        >>> import torch
        >>> from momo import MomoMuonMax
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> matrices = {"params": [model[0].weight], "matrices": True}
        >>> others = {"params": [model[0].bias, *model[2].parameters()]}
        >>> optimizer = MomoMuonMax([matrices, others], lr=0.02, weight_decay=0.1)
        >>> loss = model(torch.ones(4, 3)).square().mean()
        >>> loss.backward()
        >>> _ = optimizer.step(loss=loss)

    Reference: as in :class:`momo.MomoMuon`.
    """

    direction = AdamFromFirst
    direction_of_matrices = MuonMax
    from_zero = False
    marks = ("matrices", "stale_norms")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        lb: float = 0.0,
        stale_norms: bool = False,
        adjust_lr_fn: str | None = None,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        ns_steps: int = STEPS,
        *,
        fused: bool | None = None,
        process_group: Any = None,
    ) -> None:
        defaults = dict(
            lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, lb=lb, stale_norms=stale_norms,
            adjust_lr_fn=adjust_lr_fn, ns_coefficients=ns_coefficients, ns_steps=ns_steps,
        )  # fmt: skip
        super().__init__(params, defaults, fused=fused, process_group=process_group)
