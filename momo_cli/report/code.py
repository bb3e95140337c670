"""The lines to paste: the import and the optimizer."""

from __future__ import annotations

from momo_cli.errors import UserError
from momo_cli.plan.optimizers import KNOWN, OptimizerSpec, is_momo
from momo_cli.report import numbers


def code(optimizer: str, lr: float, comment: str = "") -> str:
    """The lines to paste: the import and the optimizer.

    >>> print(code("sgd-m", 0.5))
    import torch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, dampening=0.9)
    >>> print(code("momo-adam(weight_decay=0.1)", 0.01))
    import momo
    optimizer = momo.MomoAdam(model.parameters(), lr=0.01, weight_decay=0.1)
    # in the loop, after loss.backward():  optimizer.step(loss=loss)
    >>> print(code("prodigyopt:Prodigy", 1.0))
    import prodigyopt
    optimizer = prodigyopt.Prodigy(model.parameters(), lr=1.0)
    >>> print(code("mine", 1.0))
    lr = 1.0  # of mine
    """
    try:
        spec = OptimizerSpec.parse(optimizer)
        known = KNOWN.get(spec.name)
        path = known.path if known else spec.name
        if ":" not in path:
            path = f"torch.optim:{spec.load()[0].__name__}"
    except UserError:  # a name of an imported table
        return f"lr = {numbers.exact(lr)}  # of {' '.join(optimizer.split())}"
    module, _, cls = path.partition(":")
    options = dict(known.arguments if known else ()) | dict(spec.arguments)
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    lines = ["import torch" if module == "torch.optim" else f"import {module}"]
    lines.append(f"optimizer = {module}.{cls}(model.parameters(), lr={numbers.exact(lr)}{arguments})")
    if comment:
        lines[1] += f"  # {comment}"
    if is_momo(optimizer):
        lines.append("# in the loop, after loss.backward():  optimizer.step(loss=loss)")
    return "\n".join(lines)
