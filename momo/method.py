r"""The step of every method here, pure: from averages and sums over all parameters to how far the parameters move.

At step :math:`k` an optimizer of this package knows the average of its losses :math:`\bar f`, the average of its
gradients :math:`d`, the offset :math:`\gamma` (the average of :math:`\langle g, x\rangle`), and the sum :math:`\rho` of
the weights in these averages. They make a model of the loss,

.. math:: m(y) = \max\{\bar f - \gamma + \langle d, y\rangle,\; \rho f_*\},

whose truncation at the lower bound :math:`f_*` is what adapts the step size. All that the step needs to know of the
parameters are a few sums over them (:class:`Sums`), so parameters may lie in any number of groups, shards and ranks.

Everything here works elementwise on

* Python numbers (how the optimizers call it when all parameters are on the CPU),
* 0-dimensional tensors on any device (nothing is copied to the host, so a step can be captured in a CUDA graph),
* tensors of shape ``[K]``: ``K`` independent runs trained side by side, each with its own learning rate and decay.

Numbers and tensors may be mixed; they broadcast.

Reference: Schaipp, Ohana, Eickenberg, Defazio, Gower, *MoMo: Momentum Models for Adaptive Learning Rates*, ICML 2024,
arXiv 2305.07583; Lemmas 3.1 and 3.2 for the step, Section 4 for the unknown lower bound.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = float | Tensor
Flag: TypeAlias = bool | Tensor


class Memory(NamedTuple):
    r"""What a method remembers of the loss from step to step.

    Attributes:
        average: :math:`\bar f`, the average of the losses.
        rho: :math:`\rho`, the sum of the weights in it; zero before the first step.
        lower_bound: :math:`f_*`, the lower bound of the loss; where each step has one, their weighted mean.
    """

    average: Scalar
    rho: Scalar
    lower_bound: Scalar


class Sums(NamedTuple):
    r"""What the step needs to know of the parameters, summed over all of them. Sums of shards add up.

    Attributes:
        loss: :math:`f`, the loss of this step.
        gamma: :math:`\gamma`.
        dx: :math:`\sum_i \langle d_i, x_i\rangle`, over the groups :math:`i` of parameters.
        decayed_dx: :math:`\sum_i \langle d_i, x_i\rangle / c_i`, where weight decay divides parameters by :math:`c_i`.
        descent: :math:`\sum_i \mathrm{cap}_i \langle d_i, u_i\rangle`: what a full step takes off the linear model.
        decayed_descent: :math:`\sum_i \mathrm{cap}_i \langle d_i, u_i\rangle / c_i`.
    """

    loss: Scalar
    gamma: Scalar
    dx: Scalar
    decayed_dx: Scalar
    descent: Scalar
    decayed_descent: Scalar


class Step(NamedTuple):
    r"""The result of :func:`truncated_step`.

    Attributes:
        multiplier: :math:`t \in [0, 1]`. Group :math:`i` moves by :math:`t\,\mathrm{cap}_i u_i`.
        adaptive: the multiplier before it was cut off at one: :math:`\zeta/\mathrm{cap}`, the same for all groups.
        capped: whether the step is the one of the method without adaptation (``multiplier`` is one).
        memory: what to go on with.
    """

    multiplier: Scalar
    adaptive: Scalar
    capped: Flag
    memory: Memory


def weight_of_new(beta: Scalar, rho: Scalar, from_zero: bool) -> Scalar:
    """The weight of a new value in an average: ``1 - beta``, or one for the first unless averages start from zero.

    >>> weight_of_new(0.75, rho=0.0, from_zero=True), weight_of_new(0.75, rho=0.0, from_zero=False)
    (0.25, 1.0)
    """
    return 1 - beta if from_zero else where(rho == 0, 1.0, 1 - beta)


def average(previous: Scalar, new: Scalar, weight: Scalar) -> Scalar:
    r"""The exponential moving average with the new value in it.

    Of the constant one, it is the sum of the weights :math:`\rho`, also where :math:`\beta` changes from step to step.

    >>> average(1.0, 2.0, 0.5)
    1.5
    """
    return (1 - weight) * previous + weight * new


def terms_of(dx: Scalar, descent: Scalar, decay: Scalar) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    r"""What one group adds to the last four of :class:`Sums`, with its :math:`c`.

    >>> terms_of(dx=3.0, descent=1.0, decay=2.0)
    (3.0, 1.5, 1.0, 0.5)
    """
    return dx, dx / decay, descent, descent / decay


def truncated_step(
    memory: Memory,
    sums: Sums,
    *,
    beta: Scalar,
    from_zero: bool,
    lb: Scalar,
    use_fstar: bool = False,
    lower_bound: Scalar | None = None,
) -> Step:
    r"""The step to the minimum of the truncated model, for any number of groups of parameters.

    With the groups :math:`i` it solves

    .. math::
        \min_y \; \max\{\bar f - \gamma + \langle d, y\rangle, \rho f_*\}
        + \sum_i \frac{1}{2\,\mathrm{cap}_i} \|y_i - x_i\|^2_{D_i}
        + \frac{\alpha_i\lambda_i}{2\,\mathrm{cap}_i} \|y_i\|^2_{D_i},
        \qquad u_i = D_i^{-1} d_i,

    whose solution :math:`x_i \leftarrow (x_i - t\,\mathrm{cap}_i u_i)/c_i`, :math:`c_i = 1 + \alpha_i\lambda_i`, has a
    single multiplier

    .. math::
        t = \mathrm{clip}\left(\frac{\bar f - \gamma - \rho f_* + \sum_i \langle d_i, x_i\rangle/c_i}
        {\sum_i \mathrm{cap}_i \langle d_i, u_i\rangle/c_i},\; 0,\; 1\right).

    For one group, :math:`t\,\mathrm{cap} = \min(\alpha/\rho, \zeta)` as in Lemma 3.1 of the paper. Where the
    denominator is zero (no gradient, or a learning rate of zero) the multiplier is zero. Sums that aren't finite make
    the multiplier NaN, as they do in any optimizer. A loss that isn't finite is replaced by the average of the losses
    so far, so that one such loss doesn't disable the method; the first one is taken as it is.

    Args:
        memory: from the last step; ``rho`` is zero at the first.
        sums: of this step. All are from averages that have this step's gradient in them, but ``loss`` is this step's
            own.
        beta: the momentum.
        from_zero: whether the averages start from zero, rather than from their first values.
        lb: the lower bound that the user gave; with ``use_fstar``, the estimate never falls below it.
        use_fstar: estimate the lower bound online (Section 4 of the paper).
        lower_bound: of this step's own loss. Where each step has one, their average, made with the weights of the
            losses, takes the place of :math:`\rho f_*`. One that isn't finite is replaced as such a loss is.

    Returns:
        A :class:`Step`.

    Raises:
        ValueError: ``lower_bound`` came with ``use_fstar``.

    One gradient of one at the parameter 2, and the loss 2: the model is exact, and the step to its minimum would be 2.
    The learning rate allows 0.5 in the first of three runs.

    >>> start = Memory(average=0.0, rho=0.0, lower_bound=0.0)
    >>> one = Sums(loss=2.0, gamma=2.0, dx=2.0, decayed_dx=2.0, descent=0.5, decayed_descent=0.5)
    >>> truncated_step(start, one, beta=0.9, from_zero=False, lb=0.0).multiplier
    1.0
    >>> caps = torch.tensor([0.5, 4.0, 8.0])
    >>> runs = one._replace(descent=caps, decayed_descent=caps)
    >>> truncated_step(start, runs, beta=0.9, from_zero=False, lb=0.0).multiplier * caps
    tensor([0.5000, 2.0000, 2.0000])
    """
    if use_fstar and lower_bound is not None:
        raise ValueError("lower_bound and use_fstar=True are two sources of one bound: use one of them.")
    weight = weight_of_new(beta, memory.rho, from_zero)
    rho = average(memory.rho, 1.0, weight)
    loss, before = _finite(memory, sums.loss)
    loss_average = average(before, loss, weight)

    offset = loss_average - sums.gamma
    at_decayed = offset + sums.decayed_dx  # the model where weight decay alone would lead, x_i / c_i
    bound = lb
    if lower_bound is not None:
        # The average over rho, in the form that leaves a constant bound as it is, to the bit.
        so_far = where(memory.rho > 0, memory.lower_bound, lower_bound)
        so_far = where(_isfinite(so_far), so_far, lower_bound)
        bound = so_far + where(_isfinite(lower_bound), weight / rho * (lower_bound - so_far), 0.0)
    elif use_fstar:
        reset = _maximum(at_decayed / (2 * rho), lb)
        bound = where(at_decayed < rho * memory.lower_bound, reset, memory.lower_bound)

    nothing_to_gain = sums.decayed_descent <= 0
    adaptive = (at_decayed - rho * bound) / where(nothing_to_gain, 1.0, sums.decayed_descent)
    adaptive = where(nothing_to_gain, 0.0, _maximum(adaptive, 0.0))
    multiplier = _minimum(adaptive, 1.0)

    if use_fstar:
        bound = _maximum((offset + sums.dx - multiplier * sums.descent / 2) / rho, lb)
    return Step(multiplier, adaptive, adaptive >= 1, Memory(loss_average, rho, bound))


def _finite(memory: Memory, loss: Scalar) -> tuple[Scalar, Scalar]:
    """The loss and the average before it, the one standing in for the other where only one of them is finite."""
    started = memory.rho > 0
    so_far = where(started, memory.average / where(started, memory.rho, 1.0), loss)
    loss = where(_isfinite(loss), loss, so_far)
    return loss, where(_isfinite(memory.average), memory.average, memory.rho * loss)


def where(condition: Flag, yes: Scalar, no: Scalar) -> Scalar:
    """``yes`` or ``no``, elementwise where the condition is a tensor."""
    if not isinstance(condition, Tensor):
        return yes if condition else no
    # torch.where would bring a number to the device by a copy that the host waits for.
    like = next((v for v in (yes, no) if isinstance(v, Tensor)), None)
    if like is None:
        like = condition.new_zeros((), dtype=torch.float32 if condition.device.type == "mps" else torch.float64)
    yes, no = (v if isinstance(v, Tensor) else like.new_full((), v) for v in (yes, no))
    return torch.where(condition, yes, no)


def _isfinite(value: Scalar) -> Flag:
    return torch.isfinite(value) if isinstance(value, Tensor) else math.isfinite(value)


def _maximum(a: Scalar, b: Scalar) -> Scalar:
    """The larger one; NaN in ``a`` stays NaN."""
    if isinstance(a, Tensor):
        return torch.clamp(a, min=b)
    return where(b > a, b, a)


def _minimum(a: Scalar, b: float) -> Scalar:
    """The smaller one; NaN in ``a`` stays NaN."""
    if isinstance(a, Tensor):
        return torch.clamp(a, max=b)
    return b if b < a else a
