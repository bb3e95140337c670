"""The lines to paste: the import and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping

from momo_cli.errors import UserError
from momo_cli.plan.optimizers import KNOWN, OptimizerSpec, is_momo


def code(optimizer: str, lr: str, comment: str = "", params: Mapping[str, float] | None = None) -> str:
    """The lines to paste.

    Args:
        optimizer: The optimizer's spec.
        lr: Its learning rate, as it is to be written.
        comment: Stands behind the optimizer's line.
        params: Values of further arguments.

    >>> print(code("sgd-m", "0.5"))
    import torch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, dampening=0.9)
    >>> print(code("momo-adam", "0.01", params={"weight_decay": 0.1}))
    import momo
    optimizer = momo.MomoAdam(model.parameters(), lr=0.01, weight_decay=0.1)
    # in the loop, after loss.backward():  optimizer.step(loss=loss)
    >>> print(code("prodigyopt:Prodigy", "1"))
    import prodigyopt
    optimizer = prodigyopt.Prodigy(model.parameters(), lr=1.0)
    >>> print(code("mine", "1"))
    lr = 1.0  # of mine
    """
    lr = lr if "." in lr or "e" in lr else f"{lr}.0"
    try:
        spec = OptimizerSpec.parse(optimizer)
        known = KNOWN.get(spec.name)
        path = known.path if known else spec.name
        if ":" not in path:
            path = f"torch.optim:{spec.load()[0].__name__}"
    except UserError:  # a name of an imported table
        return f"lr = {lr}  # of {' '.join(optimizer.split())}"
    module, _, cls = path.partition(":")
    options = {**dict(known.arguments if known else ()), **dict(spec.arguments), **(params or {})}
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    lines = ["import torch" if module == "torch.optim" else f"import {module}"]
    lines.append(f"optimizer = {module}.{cls}(model.parameters(), lr={lr}{arguments})")
    if comment:
        lines[1] += f"  # {comment}"
    if is_momo(optimizer):
        lines.append("# in the loop, after loss.backward():  optimizer.step(loss=loss)")
    return "\n".join(lines)
