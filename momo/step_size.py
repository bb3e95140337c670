r"""The step size of every method here: where the truncated model of the loss reaches its lower bound.

At step :math:`k` an optimizer of this package knows the average of its losses :math:`\bar f`, the average of its
gradients :math:`d`, the offset :math:`\gamma` (the average of :math:`\langle g, x\rangle`), and the sum :math:`\rho` of
the weights in these averages. They make a model of the loss,

.. math:: m(y) = \max\{\bar f - \gamma + \langle d, y\rangle,\; \rho f_*\},

whose truncation at the lower bound :math:`f_*` is what adapts the step size. The functions of this module are the whole
scalar mathematics of that step, written once. They are pure, and work elementwise on

* Python numbers (how the optimizers call them when all parameters are on the CPU),
* 0-dimensional tensors on any device (nothing is copied to the host, so a step can be captured in a CUDA graph),
* tensors of shape ``[K]``: ``K`` independent runs trained side by side, each with its own learning rate, weight decay,
  lower bound and even its own ``use_fstar`` flag. Numbers and tensors may be mixed; they broadcast.

Reference: Schaipp, Ohana, Eickenberg, Defazio, Gower, *MoMo: Momentum Models for Adaptive Learning Rates*, ICML 2024,
arXiv 2305.07583; Lemmas 3.1 and 3.2 for the step, Section 4 for the unknown lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = float | Tensor
Flag: TypeAlias = bool | Tensor


class Term(NamedTuple):
    r"""What one group of parameters adds to the step.

    Attributes:
        cap: the step size the method without adaptation would take: :math:`\alpha/\rho` for a direction that scales
            with the averaged gradient (SGD, Adam), :math:`\alpha` for one that doesn't (sign, Muon).
        decay: :math:`c = 1 + \alpha\lambda`, with the learning rate :math:`\alpha` and the weight decay :math:`\lambda`.
        dx: :math:`\langle d, x\rangle`, the averaged gradient times the parameters.
        du: :math:`\langle d, u\rangle`, the averaged gradient times the direction that the parameters go against.
    """

    cap: Scalar
    decay: Scalar
    dx: Scalar
    du: Scalar


class Step(NamedTuple):
    r"""The answer of :func:`truncated_step`.

    Attributes:
        multiplier: :math:`t \in [0, 1]`. Group ``i`` moves by ``t * cap[i]`` times its direction.
        adaptive: the multiplier before it was cut off at one: :math:`\zeta/\mathrm{cap}`, the same for all groups.
        capped: whether the step is the one of the method without adaptation (``multiplier`` is one).
        lower_bound: the lower bound to go on with. What was given, unless ``use_fstar``.
    """

    multiplier: Scalar
    adaptive: Scalar
    capped: Flag
    lower_bound: Scalar


def average(previous: Scalar, new: Scalar, beta: Scalar, first: Flag = False) -> Scalar:
    """The exponential moving average ``beta * previous + (1 - beta) * new``, or ``new`` itself where ``first``.

    >>> average(1.0, 2.0, 0.5)
    1.5
    >>> average(0.0, 2.0, 0.5, first=True)
    2.0
    """
    return _where(first, new, beta * previous + (1 - beta) * new)


def weight_sum(step: Scalar, beta: Scalar, bias_correction: bool = True) -> Scalar:
    r"""The sum of the weights in an average of ``step`` values, :math:`\rho_k`.

    An average that starts from zero has :math:`1 - \beta^k`. One that starts from its first value has one.

    >>> weight_sum(2, 0.5), weight_sum(2, 0.5, bias_correction=False)
    (0.75, 1.0)
    """
    return 1 - beta**step if bias_correction else 1.0


def truncated_step(
    *,
    loss_average: Scalar,
    gamma: Scalar,
    rho: Scalar,
    lower_bound: Scalar,
    terms: Sequence[Term],
    use_fstar: Flag = False,
    floor: Scalar | None = None,
) -> Step:
    r"""The step to the minimum of the truncated model, for any number of groups of parameters.

    With the terms :math:`i` of all groups it solves

    .. math::
        \min_y \; \max\{\bar f - \gamma + \langle d, y\rangle, \rho f_*\}
        + \sum_i \frac{1}{2\,\mathrm{cap}_i} \|y_i - x_i\|^2_{D_i}
        + \frac{\alpha_i\lambda_i}{2\,\mathrm{cap}_i} \|y_i\|^2_{D_i},
        \qquad u_i = D_i^{-1} d_i,

    whose solution :math:`x_i \leftarrow (x_i - t\,\mathrm{cap}_i u_i)/c_i` has a single multiplier

    .. math::
        t = \mathrm{clip}\left(\frac{\bar f - \gamma - \rho f_* + \sum_i \langle d_i, x_i\rangle/c_i}
        {\sum_i \mathrm{cap}_i \langle d_i, u_i\rangle/c_i},\; 0,\; 1\right).

    For one group, :math:`t\,\mathrm{cap} = \min(\alpha/\rho, \zeta)` as in Lemma 3.1 of the paper. Where the denominator
    is zero (no gradient, or a learning rate of zero) the multiplier is zero. NaN or infinite input is passed on: it
    makes the multiplier NaN, as it does in any optimizer.

    Args:
        loss_average: :math:`\bar f`.
        gamma: :math:`\gamma`, summed over all parameters.
        rho: :math:`\rho`, see :func:`weight_sum`.
        lower_bound: :math:`f_*`, the present lower bound of the loss.
        terms: a :class:`Term` for each group of parameters.
        use_fstar: estimate the lower bound online (Section 4 of the paper). A boolean tensor chooses for each element.
        floor: the value that the estimated lower bound never falls below. By default ``lower_bound``. Only used with
            ``use_fstar``.

    Returns:
        A :class:`Step`. The caller moves group ``i`` by ``x.sub_(multiplier * cap_i * u).div_(decay_i)``.

    One run with a gradient of one at the parameter 2, and the loss 2: the model is exact, and the step to its minimum
    would be 2. The learning rate allows 0.5 in the first of three runs.

    >>> Term(cap=0.5, decay=1.0, dx=2.0, du=1.0)
    Term(cap=0.5, decay=1.0, dx=2.0, du=1.0)
    >>> truncated_step(loss_average=2.0, gamma=2.0, rho=1.0, lower_bound=0.0, terms=[_]).multiplier
    1.0
    >>> runs = Term(cap=torch.tensor([0.5, 4.0, 8.0]), decay=1.0, dx=torch.full((3,), 2.0), du=torch.ones(3))
    >>> truncated_step(loss_average=2.0, gamma=2.0, rho=1.0, lower_bound=0.0, terms=[runs]).multiplier * runs.cap
    tensor([0.5000, 2.0000, 2.0000])
    """
    if floor is None:
        floor = lower_bound
    offset = loss_average - gamma
    at_decayed = offset  # the model where weight decay alone would lead, x_i / c_i
    at_current = offset  # the model at x
    full_descent = 0.0  # what a full step (t = 1) takes off the model
    decayed_descent = 0.0
    for term in terms:
        moved = term.cap * term.du
        at_decayed = at_decayed + term.dx / term.decay
        at_current = at_current + term.dx
        full_descent = full_descent + moved
        decayed_descent = decayed_descent + moved / term.decay

    estimated = use_fstar is not False
    bound = lower_bound
    if estimated:
        reset = _maximum(at_decayed / (2 * rho), floor)
        bound = _where(_and(use_fstar, at_decayed < rho * bound), reset, bound)

    nothing_to_gain = decayed_descent <= 0
    adaptive = (at_decayed - rho * bound) / _where(nothing_to_gain, 1.0, decayed_descent)
    adaptive = _where(nothing_to_gain, 0.0, _maximum(adaptive, 0.0))
    multiplier = _minimum(adaptive, 1.0)

    if estimated:
        reached = (at_current - multiplier * full_descent / 2) / rho
        bound = _where(use_fstar, _maximum(reached, floor), bound)
    return Step(multiplier, adaptive, adaptive >= 1, bound)


def _where(condition: Flag, yes: Scalar, no: Scalar) -> Scalar:
    if not isinstance(condition, Tensor):
        return yes if condition else no
    # torch.where would bring a number to the device by a copy that the host waits for.
    like = yes if isinstance(yes, Tensor) else no
    if not isinstance(like, Tensor):
        like = condition.new_zeros((), dtype=torch.get_default_dtype())
    yes, no = (v if isinstance(v, Tensor) else like.new_full((), v) for v in (yes, no))
    return torch.where(condition, yes, no)


def _and(a: Flag, b: Flag) -> Flag:
    if isinstance(a, bool):
        return b if a else False
    return a & b


def _maximum(a: Scalar, b: Scalar) -> Scalar:
    """The larger one; NaN in ``a`` stays NaN."""
    if isinstance(a, Tensor):
        return torch.clamp(a, min=b)
    if isinstance(b, Tensor):
        return _where(b > a, b, a)
    return b if b > a else a


def _minimum(a: Scalar, b: float) -> Scalar:
    """The smaller one; NaN in ``a`` stays NaN."""
    if isinstance(a, Tensor):
        return torch.clamp(a, max=b)
    return b if b < a else a
