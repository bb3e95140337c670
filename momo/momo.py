"""`Momo`: SGD with momentum and the step size of the truncated model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from momo.directions import Momentum
from momo.optimizer import TruncatedModelOptimizer


class Momo(TruncatedModelOptimizer):
    r"""SGD with momentum whose step size adapts to the loss.

    With the loss :math:`f_k` and gradient :math:`g_k` at the parameters :math:`x_k`, a step is

    .. math::
        \bar f_k &= \beta \bar f_{k-1} + (1-\beta) f_k, \quad
        d_k = \beta d_{k-1} + (1-\beta) g_k, \quad
        \gamma_k = \beta \gamma_{k-1} + (1-\beta) \langle g_k, x_k\rangle \\
        \tau_k &= \min\Big\{\frac{\alpha}{\rho_k},\;
        \frac{[(1+\alpha\lambda)(\bar f_k - \gamma_k - \rho_k f_*) + \langle d_k, x_k\rangle]_+}{\|d_k\|^2}\Big\} \\
        x_{k+1} &= (x_k - \tau_k d_k) / (1 + \alpha\lambda)

    with the learning rate :math:`\alpha`, the momentum :math:`\beta`, the weight decay :math:`\lambda` and the lower
    bound :math:`f_*` of the loss. The averages start at the first loss and gradient and :math:`\rho_k = 1`; with
    ``bias_correction`` they start at zero and :math:`\rho_k = 1 - \beta^k`. So the learning rate is the largest step
    size, and where it is too large, the loss itself says so. With ``lb=-float("inf")`` this is ``torch.optim.SGD`` with
    ``momentum=beta`` and ``dampening=beta``.

    Several parameter groups may have their own ``lr`` and ``weight_decay``; the step is then the minimiser of one model
    of the loss for all of them (:func:`momo.method.truncated_step`). The rest belongs to the loss and must be the same.

    A parameter without a gradient is left out of the step: it doesn't move, its averages stand still, and it adds
    nothing to the sums. When its first gradient comes late (it was frozen, or its group was added during training), its
    averages start then; with ``bias_correction`` the cap of its own step is :math:`\alpha/(1 - \beta^j)` with its own
    number of gradients :math:`j`. A loss or gradient that is NaN makes the parameters NaN, as in torch.

    The loss has to be known: pass it as ``step(loss=loss)``, or return it from a closure, ``step(closure)``, or call
    :meth:`record_loss` before ``step()``. It must be the loss that ``backward()`` was called on; but unscaled if a
    ``GradScaler`` is used, and not divided by the number of micro-batches if their losses are recorded one by one.

    Args:
        params: parameters, named parameters, or parameter groups, as for any optimizer in torch.
        lr: the learning rate :math:`\alpha`, a number or a tensor with one element. The paper advises 1, and a constant
            one works well where SGD needs a schedule; schedules and warm-up from zero are fine too.
        weight_decay: :math:`\lambda`. The decay is proximal: parameters are divided by :math:`1 + \alpha\lambda`.
        beta: the momentum :math:`\beta`, from 0 to below 1. Zero gives a stochastic Polyak step with a cap.
        lb: a lower bound of the loss. Zero is right for most losses (cross entropy, squares). Set it when you know
            more: the loss at the end of a similar training, or something negative if the loss can be negative.
        bias_correction: start the averages at zero and correct for that, as Adam does. Off by default.
        use_fstar: estimate the lower bound during training, never below ``lb``. For when the smallest loss is far above
            zero and not known, as with label smoothing, or in language models; then ``lb`` may be left at zero.

    Raises:
        ValueError: for options out of range, parameters that aren't real floating-point tensors, and groups that
            differ in ``beta``, ``lb``, ``use_fstar`` or ``bias_correction``.

    Example:
        >>> import torch
        >>> from momo import Momo
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = Momo(model.parameters(), lr=1.0, weight_decay=1e-4)
        >>> inputs, targets = torch.randn(8, 3), torch.randn(8, 1)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(inputs), targets)
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> sorted(optimizer.diagnostics())
        ['adaptive_term', 'cap', 'capped', 'loss_average', 'lower_bound', 'step_size']

    Reference: Fabian Schaipp, Ruben Ohana, Michael Eickenberg, Aaron Defazio, Robert M. Gower: *MoMo: Momentum Models
    for Adaptive Learning Rates*. ICML 2024. https://arxiv.org/abs/2305.07583 (Lemma 3.1; Section 4 for ``use_fstar``)
    """

    direction = Momentum

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        beta: float = 0.9,
        lb: float = 0.0,
        bias_correction: bool = False,
        use_fstar: bool = False,
        *,
        fused: bool | None = None,
        process_group: Any = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "beta": beta,
            "momentum": beta,  # the name that schedulers look for
            "lb": lb,
            "bias_correction": bias_correction,
            "use_fstar": use_fstar,
        }
        super().__init__(params, defaults, fused=fused, process_group=process_group)
