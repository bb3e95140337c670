"""The lines to paste: the import and the optimizer."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from momo_cli.errors import UserError
from momo_cli.plan.optimizers import FOR_MODEL, KNOWN, OptimizerSpec, is_momo
from momo_cli.plan.schedules import DECAY, Schedule
from momo_cli.plan.settings import Settings
from momo_cli.training.script.command import SCRIPT, fill, placeholders


def code(
    optimizer: str,
    lr: str,
    comment: str = "",
    params: Mapping[str, float] | None = None,
    schedule: Schedule | None = None,
) -> str:
    """The lines to paste.

    Args:
        optimizer: The optimizer's spec.
        lr: Its learning rate, as it is to be written.
        comment: Stands behind the optimizer's line.
        params: Values of further arguments.
        schedule: Of the learning rate; by default the spec's own.

    >>> print(code("sgd-m", "0.5"))
    import torch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, dampening=0.9)
    >>> print(code("momo-adam", "0.01", params={"weight_decay": 0.1}))
    import momo
    optimizer = momo.MomoAdam(model.parameters(), lr=0.01, weight_decay=0.1)
    # in the loop, after loss.backward():  optimizer.step(loss=loss)
    >>> print(code("momo-muon", "0.02"))
    import momo
    optimizer = momo.MomoMuon.for_model(model, lr=0.02)
    # in the loop, after loss.backward():  optimizer.step(loss=loss)
    >>> print(code("prodigyopt:Prodigy", "1"))
    import prodigyopt
    optimizer = prodigyopt.Prodigy(model.parameters(), lr=1.0)
    >>> print(code("adamw+cosine+warmup=0.1", "0.001"))
    import math
    import torch
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    warmup = round(0.1 * steps)  # steps: all that you train
    def factor(step):
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    # in the loop, after optimizer.step():  scheduler.step()
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
    made = ".for_model(model" if path in FOR_MODEL else "(model.parameters()"
    lines.append(f"optimizer = {module}.{cls}{made}, lr={lr}{arguments})")
    if comment:
        lines[1] += f"  # {comment}"
    if is_momo(optimizer):
        lines.append("# in the loop, after loss.backward():  optimizer.step(loss=loss)")
    if schedule is None:
        schedule = Settings().schedule_of(spec)
    if schedule != Schedule():
        imports = ["import math"] * (schedule.kind == "cosine") + ["import torch"] * (module != "torch.optim")
        lines = [*imports, *lines, *_scheduler(schedule)]
    return "\n".join(lines)


def script_command(words: Sequence[str], optimizer: str, lr: str, settings: Mapping[str, object]) -> str:
    """A script's command with the optimizer and the learning rate in its placeholders, else in its environment.

    >>> print(script_command(["python", "train.py", "--lr={lr}", "{optimizer}", "{seed}"], "adam", "0.01", {}))
    python train.py --lr=0.01 adam 0
    >>> print(script_command(["python", "train.py"], "script", "0.01", {}))
    MOMO_LR=0.01 python train.py
    """
    values = {"seed": "0", "dir": ".", **{name: str(value) for name, value in settings.items()}}
    values |= {"lr": lr, "optimizer": optimizer}
    found = placeholders(words)
    needed = ("lr",) if optimizer == SCRIPT else ("lr", "optimizer")
    own = [f"MOMO_{name.upper()}={shlex.quote(values[name])}" for name in needed if name not in found]
    tuned = {name: f"{{{name}}}" for name in found}  # differs from trial to trial
    return " ".join([*own, shlex.join(fill(word, tuned | values) for word in words)])


def _scheduler(schedule: Schedule) -> list[str]:
    """The lines that make a schedule; the factors are those of :meth:`Schedule.factor`."""
    progress = "(step - warmup) / max(1, steps - warmup)" if schedule.warmup else "step / steps"
    after = {
        "constant": "1.0",
        "cosine": f"(1 + math.cos(math.pi * {progress})) / 2",
        "linear": f"1 - {progress}",
        "wsd": f"min(1.0, (1 - {progress}) / {DECAY})",
    }[schedule.kind]
    rise = [
        f"warmup = round({schedule.warmup:g} * steps)  # steps: all that you train",
        "def factor(step):",
        "    if step < warmup:",
        "        return (step + 1) / warmup",
    ]
    return [
        *(rise if schedule.warmup else ["def factor(step):  # steps: all that you train"]),
        f"    return {after}",
        "scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)",
        "# in the loop, after optimizer.step():  scheduler.step()",
    ]
