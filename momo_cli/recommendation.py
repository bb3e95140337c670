"""Which optimizer and learning rate to use, why, how sure that is, and the line to paste."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from momo_cli import figures
from momo_cli.errors import UserError
from momo_cli.plan.optimizers import KNOWN, OptimizerSpec
from momo_cli.report import Report, formats, sentences
from momo_cli.report.lower_bound import lower_bound_advice, lower_bound_comment
from momo_cli.runs import Run


def recommend(
    analysis: dict[str, Any],
    runs: Sequence[Run],
    *,
    prefer: Literal["robust", "best"] = "robust",
    task: str | None = None,
    command: str | None = None,
    maximize: bool = False,
) -> dict[str, Any] | None:
    """The ``recommendation`` of the JSON document; None where no run ended with a finite value.

    Robust: the optimizer of least regret among those whose ``ℓ*`` is within 5 % of the way from the best of all to
    ``ℓ0``, and of its learning rates the one nearest the log-centre of its good range. Best: the optimizer and
    learning rate of the smallest ``ℓ(η)`` of all.

    Args:
        analysis: From :func:`momo_cli.figures.analyze`.
        runs: What it was made from.
        prefer: ``robust`` or ``best``.
        task: The task as typed; None where it can't be run again.
        command: The command line that adds runs to the study; ``momo sweep TASK`` if left out.
        maximize: Whether larger is better.

    >>> runs = [Run("momo", lr, objective=v, initial=3.0) for lr, v in [(0.1, 1.0), (1.0, 1.01), (10.0, 1.02)]]
    >>> advice = recommend(figures.analyze(runs), runs)
    >>> advice["optimizer"], advice["lr"], advice["best_lr"]
    ('momo', 1.0, 0.1)
    >>> print(advice["code"].splitlines()[1])
    optimizer = momo.Momo(model.parameters(), lr=1.0)
    """
    sign = -1.0 if maximize else 1.0
    known = [entry for entry in analysis["optimizers"] if entry["best"] is not None]
    if not known:
        return None
    if command is None and task:
        command = f"momo sweep {task}"
    best = min(known, key=lambda entry: sign * entry["best"])
    bound = figures.good_bound(sign * best["best"], sign * analysis["initial"])
    near = [entry for entry in known if sign * entry["best"] <= bound]

    def regret(entry: dict[str, Any]) -> tuple[float, float]:
        value = entry["regret"]["value"]
        return (math.inf if value is None else value, sign * entry["best"])

    chosen = best if prefer == "best" else min(near, key=regret)
    lr = chosen["best_lr"] if prefer == "best" else central_lr(chosen, sign)
    expected = chosen["values"][chosen["lrs"].index(lr)]
    report = Report(task or "", "", "final value", maximize, list(runs), analysis, command=command)
    return {
        "optimizer": chosen["optimizer"],
        "lr": lr,
        "best_lr": chosen["best_lr"],
        "good_range": chosen["good_range"],
        "expected": expected,
        "because": _because(report, chosen, lr, expected, best, near, known, prefer),
        "warnings": _warnings(report, chosen),
        "code": code(chosen["optimizer"], lr, lower_bound_comment(runs, chosen["optimizer"], lr)),
    }


def central_lr(entry: dict[str, Any], sign: float = 1.0) -> float:
    """The learning rate tried that is nearest the log-centre of the good range; of two as near, the better.

    >>> entry = {"lrs": [0.1, 1.0, 10.0], "values": [3.0, 1.0, 1.1], "good_range": {"low": 0.9, "high": 10.0}}
    >>> central_lr(entry)
    1.0
    """
    width = entry["good_range"]
    centre = (math.log10(width["low"]) + math.log10(width["high"])) / 2
    tried = [(lr, value) for lr, value in zip(entry["lrs"], entry["values"]) if value is not None and lr > 0]
    return min(tried, key=lambda pair: (round(abs(math.log10(pair[0]) - centre), 9), sign * pair[1], pair[0]))[0]


def next_lrs(entry: dict[str, Any], decades: float = 1.0) -> list[float]:
    """The learning rates to run next for an optimizer of an analysis, ``decades`` past the end where its best is.

    Empty where the best is bracketed. ``--extend`` runs them and asks again.
    """
    return sentences.beyond(entry, decades)


def next_command(command: str, entries: Sequence[dict[str, Any]], decades: float = 1.0) -> str:
    """The command to paste that runs :func:`next_lrs` of every optimizer whose best is at an end."""
    return sentences.extension_command(command, entries, decades)


# ------------------------------------------------------------------------------------------------------- the reasons


def _because(
    report: Report, chosen: dict, lr: float, expected: float, best: dict, near: list, known: list, prefer: str
) -> list[str]:
    name, show = chosen["optimizer"], formats.number
    lines = []
    if prefer == "best":
        lines.append(
            f"{name} reaches the best final value of all, {show(expected, 4)}, at a learning rate of {show(lr)}."
        )
    elif len(known) == 1:
        lines.append(f"{name} is the only optimizer with finite results.")
    else:
        regret = chosen["regret"]
        others = [entry["optimizer"] for entry in near if entry is not chosen]
        far = [entry["optimizer"] for entry in known if entry not in near]
        if regret["value"] is not None:
            spread = formats.interval(regret["low"], regret["high"])
            spread = f" (95 % interval {spread})" if spread else ""
            lead = (
                f"Of {formats.names([name, *others])}, whose best values are within 5 % of the best of all, {name} has the least regret"
                if others
                else f"Only {name} comes within 5 % of the best of all; its regret is the least that counts"
            )
            lines.append(
                f"{lead}: over its learning rates it ends {show(regret['value'])} from the best value on average{spread}."
            )
        else:
            lines.append(f"{name} has the best final value of those that can be compared ({show(chosen['best'], 4)}).")
        if far:
            lines.append(
                f"The best of {formats.names(far, 'or')} is too far from {best['optimizer']}'s {show(best['best'], 4)}."
            )
    width = chosen["good_range"]
    if prefer != "best" and width["decades"] is not None:
        ends = f"{show(width['low'], 2)} to {show(width['high'], 2)}"
        lines.append(
            f"{show(lr, 4)} is the tried learning rate nearest the middle of its good range, {ends} "
            f"({sentences.wide(chosen)}); it gives {show(expected, 4)}, the best one, {show(chosen['best_lr'], 4)}, gives {show(chosen['best'], 4)}."
            if lr != chosen["best_lr"]
            else f"{show(lr, 4)} is its best learning rate and the nearest the middle of its good range, {ends} "
            f"({sentences.wide(chosen)}); it gives {show(expected, 4)}."
        )
    if figures.is_momo(name):
        lines += [
            line
            for pair in report.analysis["comparisons"]
            if pair["a"] == name and (line := sentences.comparison(report, pair))
        ]
    counted = [run for run in report.runs if figures.counts(run)]
    seeds = sentences.seeds_of(counted)
    lines.append(
        f"Based on {formats.count(len(counted), 'run')}: {formats.count(len(known), 'optimizer')}, "
        f"{formats.count(len(chosen['lrs']), 'learning rate')} of {name}, {formats.count(seeds, 'seed')}."
    )
    return lines


def _warnings(report: Report, chosen: dict[str, Any]) -> list[str]:
    """Where the evidence is thin."""
    entries, own = report.analysis["optimizers"], [r for r in report.runs if r.optimizer == chosen["optimizer"]]
    found = [
        sentences.one_seed(own, report.command),
        sentences.at_edge([chosen], report.command),
        sentences.open_range(chosen, report.command),
        sentences.spans(entries, report.command),
        sentences.failed(entries, report.runs),
        sentences.lost(entries, report.command),
        sentences.nothing_learned(report),
        sentences.unknown_initial(report.runs, report.analysis["initial"]),
        lower_bound_advice(report.runs, chosen["optimizer"]),
    ]
    return [line for line in found if line]


# ---------------------------------------------------------------------------------------------------------- the code


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
        return f"lr = {formats.exact(lr)}  # of {' '.join(optimizer.split())}"
    module, _, cls = path.partition(":")
    options = dict(known.arguments if known else ()) | dict(spec.arguments)
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    lines = ["import torch" if module == "torch.optim" else f"import {module}"]
    lines.append(f"optimizer = {module}.{cls}(model.parameters(), lr={formats.exact(lr)}{arguments})")
    if comment:
        lines[1] += f"  # {comment}"
    if figures.is_momo(optimizer):
        lines.append("# in the loop, after loss.backward():  optimizer.step(loss=loss)")
    return "\n".join(lines)
