"""A recommendation in words: why, how sure that is, and the lines to paste."""

from __future__ import annotations

from collections.abc import Mapping

from momo_cli.errors import UserError
from momo_cli.figures import OptimizerFigures, Prefer, Recommendation, counts, recommend
from momo_cli.plan.optimizers import OptimizerSpec, is_momo
from momo_cli.plan.schedules import Schedule
from momo_cli.plan.settings import Settings
from momo_cli.report import Advice, Report, conclusions, numbers
from momo_cli.report.code import code, script_command
from momo_cli.report.lower_bound import lower_bound_comment
from momo_cli.report.warnings import nothing_learned, warnings


def answer(report: Report, prefer: Prefer = "robust") -> tuple[str, str]:
    """What to use, and the reason in one sentence; where nothing can be recommended, what is missing.

    >>> from momo_cli.figures import Figures
    >>> answer(Report("task.py", "", "val_loss", [], Figures()))
    ('No recommendation: no run ended with a finite value.', '')
    """
    found = recommend(report.figures, prefer)
    if found is None:
        if report.figures.best is None:
            return "No recommendation: no run ended with a finite value.", ""
        return "No recommendation: nothing was learned.", nothing_learned(report)
    return use(report, found), _reason(report, report.figures.of(found.optimizer), found, prefer)


def use(report: Report, found: Recommendation | Advice) -> str:
    """What to use, as a sentence."""
    tuned = [f"{name} {numbers.number(value)}" for name, value in found.params.items()]
    more = f" with {numbers.names(tuned)}" if tuned else ""
    return f"Use {found.optimizer} at {report.lr(found.lr, found.optimizer)}{more}."


def advise(report: Report, prefer: Prefer = "robust") -> Advice | None:
    """The recommendation of :func:`momo_cli.figures.recommend` in words; None where there is none."""
    found = recommend(report.figures, prefer)
    if found is None:
        return None
    chosen = report.figures.of(found.optimizer)
    return Advice(
        found.optimizer,
        found.lr,
        found.best_lr,
        found.good_range,
        found.expected,
        because=_because(report, chosen, found, prefer),
        warnings=warnings(report, chosen),
        code=lines_to_paste(report, found.optimizer, found.lr, found.params),
        params=found.params,
    )


def lines_to_paste(report: Report, optimizer: str, rate: float, params: Mapping[str, float] | None = None) -> str:
    """The lines to paste: of a script its command, else the optimizer."""
    lr = report.lr(rate, optimizer)
    if report.script:
        return script_command(report.script, optimizer, lr, {**report.settings, **(params or {})})
    comment = lower_bound_comment(report.runs, optimizer)
    return code(optimizer, lr, comment, params, _schedule(report, optimizer))


def _schedule(report: Report, optimizer: str) -> Schedule | None:
    """The schedule of the optimizer's runs; None for a name of an imported table."""
    try:
        spec = OptimizerSpec.parse(optimizer)
    except UserError:
        return None
    given = {name: report.settings[name] for name in ("schedule", "warmup") if name in report.settings}
    return Settings(**given).schedule_of(spec)


def _reason(report: Report, chosen: OptimizerFigures, found: Recommendation, prefer: Prefer) -> str:
    """Why this optimizer and learning rate, in one sentence."""
    expected = f"it gives {report.objective} {numbers.number(found.expected, 4)}"
    if prefer == "best":
        return f"The best value of all: {expected}."
    others = [entry.optimizer for entry in report.figures.near if entry is not chosen]
    if len(report.figures.known) == 1 or chosen.regret.value is None:
        lead = ""
    elif others:
        lead = f"The least regret of {numbers.names([chosen.optimizer, *others])}, which come near the best value; "
    else:
        lead = "No other comes near its best value; "
    width = chosen.good_range
    if width.decades is None:
        return _sentence(f"{lead}{expected}.")
    middle = f"the middle of its good range, {numbers.number(width.low, 2)} to {numbers.number(width.high, 2)}"
    return _sentence(f"{lead}{middle}: {expected}.")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _because(report: Report, chosen: OptimizerFigures, found: Recommendation, prefer: Prefer) -> list[str]:
    lines = [_choice(report, chosen, found, prefer)]
    best, near = report.figures.best, report.figures.near
    far = [entry.optimizer for entry in report.figures.known if entry not in near]
    if prefer == "robust" and far and best is not None:
        lines.append(
            f"The best of {numbers.names(far, 'or')} is too far from {best.optimizer}'s {numbers.number(best.best, 4)}."
        )
    if prefer == "robust" and chosen.good_range.decades is not None:
        lines.append(_of_lr(report, chosen, found))
    if is_momo(chosen.optimizer):
        own = (pair for pair in report.figures.comparisons if pair.a == chosen.optimizer)
        lines += [line for pair in own if (line := conclusions.of_comparison(report, pair))]
    lines.append(
        f"Based on {numbers.count(sum(map(counts, report.runs)), 'run')}: "
        f"{numbers.count(len(report.figures.known), 'optimizer')}, "
        f"{numbers.count(len(chosen.lrs), 'learning rate')} of {chosen.optimizer}, "
        f"{numbers.count(report.seeds(), 'seed')}."
    )
    return lines


def _choice(report: Report, chosen: OptimizerFigures, found: Recommendation, prefer: Prefer) -> str:
    """Why this optimizer."""
    name, show = chosen.optimizer, numbers.number
    if prefer == "best":
        reached = f"{name} reaches the best final value of all, {show(found.expected, 4)}"
        return f"{reached}, at a learning rate of {report.lr(found.lr, name)}."
    if len(report.figures.known) == 1:
        return f"{name} is the only optimizer with finite results."
    if chosen.regret.value is None:
        return f"{name} has the best final value of those that can be compared ({show(chosen.best, 4)})."
    others = [entry.optimizer for entry in report.figures.near if entry is not chosen]
    spread = numbers.interval(chosen.regret.low, chosen.regret.high)
    lead = (
        f"Of {numbers.names([name, *others])}, whose best values are within 5 % of the best of all, {name} has the "
        "least regret"
        if others
        else f"Only {name} comes within 5 % of the best of all; its regret is the least that counts"
    )
    return f"{lead}: over its learning rates it ends {show(chosen.regret.value)} from the best value on average" + (
        f" (95 % interval {spread})." if spread else "."
    )


def _of_lr(report: Report, chosen: OptimizerFigures, found: Recommendation) -> str:
    """Why this learning rate."""
    show, ends, name = numbers.number, conclusions.ends(chosen), chosen.optimizer
    if found.lr == found.best_lr:
        return (
            f"{report.lr(found.lr, name)} is its best learning rate and the nearest the middle of its good range, "
            f"{ends}; it gives {show(found.expected, 4)}."
        )
    return (
        f"{report.lr(found.lr, name)} is the tried learning rate nearest the middle of its good range, {ends}; "
        f"it gives {show(found.expected, 4)}, the best one, {report.lr(found.best_lr, name)}, gives "
        f"{show(chosen.best, 4)}."
    )
