"""`MomoAdam`: Adam and the step size of the truncated model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from momo.directions import Adam
from momo.optimizer import TruncatedModelOptimizer


class MomoAdam(TruncatedModelOptimizer):
    r"""Adam whose step size adapts to the loss.

    With the loss :math:`f_k` and gradient :math:`g_k` at the parameters :math:`x_k`, averages that start at zero, and
    :math:`\rho_k = 1 - \beta_1^k`, a step is

    .. math::
        \bar f_k &= \beta_1 \bar f_{k-1} + (1-\beta_1) f_k, \quad
        d_k = \beta_1 d_{k-1} + (1-\beta_1) g_k, \quad
        \gamma_k = \beta_1 \gamma_{k-1} + (1-\beta_1) \langle g_k, x_k\rangle \\
        v_k &= \beta_2 v_{k-1} + (1-\beta_2) g_k^2, \quad D_k = \sqrt{v_k/(1-\beta_2^k)} + \epsilon \\
        \tau_k &= \min\Big\{\frac{\alpha}{\rho_k},\;
        \frac{[(1+\alpha\lambda)(\bar f_k - \gamma_k - \rho_k f_*) + \langle d_k, x_k\rangle]_+}
        {\langle d_k, D_k^{-1} d_k\rangle}\Big\} \\
        x_{k+1} &= (x_k - \tau_k D_k^{-1} d_k) / (1 + \alpha\lambda)

    With ``divide=False`` the last line is :math:`(1 - \alpha\lambda) x_k - \tau_k D_k^{-1} d_k`, the decay of AdamW.
    With ``lb=-float("inf")`` this is ``torch.optim.Adam`` (``AdamW`` with ``divide=False``).

    How the loss is passed, parameter groups, and parameters without a gradient are as in :class:`momo.Momo`. A
    parameter whose first gradient comes late counts its own steps, as in ``torch.optim.Adam``: for its :math:`v` and
    for its cap.

    Args:
        params: parameters, named parameters, or parameter groups, as for any optimizer in torch.
        lr: the learning rate :math:`\alpha`, a number or a tensor with one element. The paper advises 1e-2.
        betas: :math:`\beta_1` and :math:`\beta_2`, each from 0 to below 1. The first one must be the same in all
            groups.
        eps: :math:`\epsilon`, for numerical stability. With float16 parameters the squares of small gradients vanish,
            as in ``torch.optim.Adam``: take 1e-4 or more.
        weight_decay: :math:`\lambda`, decoupled from the gradient as in AdamW.
        lb: a lower bound of the loss. Zero is right for most losses. Set it when you know more: the loss at the end of
            a similar training, or something negative if the loss can be negative.
        divide: whether the decay is proximal (a division), or as in AdamW. They differ little.
        use_fstar: estimate the lower bound during training, never below ``lb``. For when the smallest loss is far above
            zero and not known, as with label smoothing, or in language models.

    Raises:
        ValueError: for options out of range, parameters that aren't real floating-point tensors, and groups that
            differ in ``betas[0]``, ``lb`` or ``use_fstar``.

    Example:
        >>> import torch
        >>> from momo import MomoAdam
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = MomoAdam(model.parameters(), lr=1e-2)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(1, 3)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)

    Reference: Fabian Schaipp, Ruben Ohana, Michael Eickenberg, Aaron Defazio, Robert M. Gower: *MoMo: Momentum Models
    for Adaptive Learning Rates*. ICML 2024. https://arxiv.org/abs/2305.07583 (Lemma 3.2; Section 4 for ``use_fstar``)
    """

    direction = Adam

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lb: float = 0.0,
        divide: bool = True,
        use_fstar: bool = False,
        *,
        fused: bool | None = None,
        process_group: Any = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "lb": lb,
            "divide": divide,
            "use_fstar": use_fstar,
        }
        super().__init__(params, defaults, fused=fused, process_group=process_group)
