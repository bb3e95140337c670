"""What makes the figures doubtful, and the flag that helps: one list of warnings for every view.

A warning says what was seen, why it is doubtful, and what helps; what can't be typed for these runs (an imported table
has no command), or is in use already, is not offered. A command to paste stands at its end, between backquotes.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable

from momo_cli.figures import OptimizerFigures, counts, next_lrs
from momo_cli.report import Report, numbers
from momo_cli.report.lower_bound import lower_bound_advice, went_below

Entries = Iterable[OptimizerFigures]


def warnings(report: Report, chosen: OptimizerFigures | None = None) -> list[str]:
    """All that is doubtful in a report, or about one optimizer that it recommends."""
    return [line for warning in WARNINGS if (line := warning(report, chosen))]


def split_command(line: str) -> tuple[str, str]:
    """A warning without the command at its end, and the command; empty where it has none.

    >>> split_command("It may lie beyond. Try next: `momo sweep task.py`")
    ('It may lie beyond. Try next:', 'momo sweep task.py')
    """
    if not line.endswith("`"):
        return line, ""
    said, _, command = line.removesuffix("`").partition("`")
    return said.rstrip(), command


def extension_command(report: Report, entries: Entries, decades: float = 1.0) -> str:
    """The command that runs the learning rates beyond the end, for the optimizers whose best is there.

    The rates that are stored stand in it, too: they are reused, and the figures are then about all of them.
    """
    parts = [str(report.command)]
    for entry in entries:
        if entry.best_at_edge:
            lrs = ",".join(f"{lr:.12g}" for lr in sorted({*(lr for lr, _ in entry.curve), *beyond(entry, decades)}))
            parts.append(f"-o {shlex.quote(entry.optimizer)} --lrs {shlex.quote(entry.optimizer + '=' + lrs)}")
    return " ".join([*parts, "--", shlex.join(report.script)] if report.script else parts)


def beyond(entry: OptimizerFigures, decades: float = 1.0) -> list[float]:
    """The learning rates to run next for an optimizer, ``decades`` past the end where its best is; else none."""
    return [] if entry.best_lr is None else next_lrs([lr for lr, _ in entry.curve], entry.best_lr, decades)


def _at_edge(report: Report, chosen: OptimizerFigures | None) -> str:
    at_end = [entry for entry in _entries(report, chosen) if entry.best_at_edge]
    if not at_end:
        return ""
    parts = []
    for entry in at_end:
        tried = [lr for lr, _ in entry.curve]
        where = "only" if len(tried) == 1 else "smallest" if entry.best_lr == tried[0] else "largest"
        parts.append(
            f"{entry.optimizer}'s best learning rate is the {where} tried ({report.lr(entry.best_lr, entry.optimizer)})"
        )
    sentence = (
        f"{numbers.names(parts)}: the true best may lie beyond, and its sensitivity and good range are then wrong."
    )
    if report.command:
        return f"{sentence} Try next: `{extension_command(report, at_end)}`"
    lrs = [f"{numbers.names([numbers.lr(lr) for lr in beyond(e)])} with {e.optimizer}" for e in at_end]
    return f"{sentence} Try {numbers.names(lrs)} next."


def _open_range(report: Report, chosen: OptimizerFigures | None) -> str:
    """A good range that runs off the grid, where the best value itself is bracketed."""
    if chosen is None or chosen.best_at_edge or not chosen.good_range.is_open:
        return ""
    width = chosen.good_range
    off = [end for end, is_open in (("lower", width.open_low), ("upper", width.open_high)) if is_open]
    return (
        f"The good range of {chosen.optimizer} runs off the {numbers.names(off)} end{'s' * (len(off) - 1)} of its "
        "grid, so its middle isn't known" + (": widen --lrs to see where it ends." if report.command else ".")
    )


def _spans(report: Report, chosen: OptimizerFigures | None) -> str:
    if report.figures.sampled:  # a study's trials span about the same range, which is given
        return ""
    widths = [(e.optimizer, f"{e.decades:.1f}") for e in report.figures.optimizers if e.decades is not None]
    if len({width for _, width in widths}) < 2:
        return ""
    parts = [f"{name} {width}" for name, width in widths]
    return (
        f"The grids span different numbers of decades ({numbers.names(parts)}): sensitivities and regrets over "
        "them are not comparable."
        + (" Give every optimizer as many decades with --lrs, or leave --lrs out." if report.command else "")
    )


def _lost(report: Report, chosen: OptimizerFigures | None) -> str:
    lost = [entry.optimizer for entry in report.figures.optimizers if entry.best is None and entry.diverged]
    if not lost:
        return ""
    return f"Every run of {numbers.names(lost)} diverged, so there is no best learning rate and no sensitivity." + (
        " Try smaller learning rates with --lrs." if report.command else ""
    )


def _failed(report: Report, chosen: OptimizerFigures | None) -> str:
    entries = [entry for entry in report.figures.optimizers if entry.failed]
    if not entries:
        return ""
    parts = [f"{entry.failed} of {entry.optimizer}" for entry in entries]
    total = sum(entry.failed for entry in entries)
    last = next((r.error.strip().splitlines()[-1] for r in report.runs if r.status == "failed" and r.error), "")
    verb = "failed and doesn't" if total == 1 else "failed and don't"
    return f"{numbers.count(total, 'run')} ({numbers.names(parts)}) {verb} count" + (f": {last}" if last else ".")


def nothing_learned(report: Report, chosen: OptimizerFigures | None = None) -> str:
    """The best of all is hardly better than the start, so that no figure means anything."""
    best = report.figures.best
    if best is None or report.figures.learned:
        return ""
    return (
        f"The best {report.objective}, {numbers.number(best.best, 4)}, improves on the start, "
        f"{numbers.number(report.figures.initial, 4)}, by less than 1 %, so no learning rate can be told from another: "
        f"train longer with {_longer(report)}, widen --lrs, or look at the task with `momo check {_task(report)}`"
    )


def _lower_bound(report: Report, chosen: OptimizerFigures | None) -> str:
    if chosen is not None:
        return lower_bound_advice(report.runs, chosen.optimizer)
    below = [entry.optimizer for entry in report.figures.optimizers if went_below(report.runs, entry.optimizer)]
    return next((line for name in below if (line := lower_bound_advice(report.runs, name))), "")


def _one_seed(report: Report, chosen: OptimizerFigures | None) -> str:
    if report.seeds(chosen.optimizer if chosen else None) != 1:
        return ""
    own = [run for run in report.runs if counts(run) and (chosen is None or run.optimizer == chosen.optimizer)]
    several = len({run.seed for run in own}) > 1
    seen = "Some learning rates ran with one seed only" if several else "Each figure is from one seed"
    advice = " Use --seeds 3 or more." if report.command else ""
    return f"{seen}: how much of a difference is chance can't be told, and there are no intervals.{advice}"


def _unknown_initial(report: Report, chosen: OptimizerFigures | None) -> str:
    if report.figures.initial is None or report.figures.initial_known:
        return ""
    instead = "report it at step 0" if report.script else "give it to `momo import` with --initial"
    return (
        "The value before training isn't known, so the worst value of any run "
        f"({numbers.number(report.figures.initial)}) stands for it; {instead}."
    )


#: Every warning, the gravest first; each takes the report and the optimizer recommended, if one is.
WARNINGS: tuple[Callable[[Report, OptimizerFigures | None], str], ...] = (
    nothing_learned,
    _at_edge,
    _open_range,
    _spans,
    _lost,
    _failed,
    _lower_bound,
    _one_seed,
    _unknown_initial,
)


def _entries(report: Report, chosen: OptimizerFigures | None) -> Entries:
    return report.figures.optimizers if chosen is None else (chosen,)


def _task(report: Report) -> str:
    return shlex.quote(report.task)


def _longer(report: Report) -> str:
    for name in ("steps", "epochs"):
        if name in report.settings:
            return f"more than --{name} {report.settings[name]:g}"
    return "--steps or --epochs"
