"""What follows from the figures, in full sentences: what was seen, why it is doubtful, and what helps.

Every form of the report shows the same sentences. They take the analysis and the runs, not a drawn table.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

from momo_cli import figures
from momo_cli.report import Report, formats
from momo_cli.report.lower_bound import lower_bound_advice
from momo_cli.runs import Run


def seeds_of(runs: Sequence[Run], optimizer: str | None = None) -> int:
    """The smallest number of seeds that any learning rate has (of one optimizer, or of all); 0 without runs."""
    seeds: dict[tuple[str, float], set[int]] = {}
    for run in runs:
        if figures.counts(run) and optimizer in (None, run.optimizer):
            seeds.setdefault((run.optimizer, run.lr), set()).add(run.seed)
    return min(map(len, seeds.values()), default=0)


def heading(report: Report) -> str:
    """What the values are, and where they began.

    >>> heading(Report("task.py", "", "accuracy", True, [], {"initial": 0.1}))
    'task.py: final accuracy (larger is better, worst 0.1)'
    """
    direction = "larger" if report.maximize else "smaller"
    initial = formats.number(report.analysis["initial"])
    start = f"{initial} before training" if knows_initial(report.runs) else f"worst {initial}"
    seeds = seeds_of(report.runs)
    over = f", {formats.count(seeds, 'seed')}" if seeds else ""
    return f"{report.task}: final {report.objective} ({direction} is better, {start}){over}"


def knows_initial(runs: Sequence[Run]) -> bool:
    """Whether some run knows its value before training."""
    return any(figures.is_finite(run.initial) for run in runs if figures.counts(run))


# ------------------------------------------------------------------------------------------------------ conclusions


def conclusions(report: Report) -> list[str]:
    """What the sweep says: each optimizer's best and good range, then how they compare."""
    lines = [of_best(report)] if best_entry(report) else []
    lines += ranges(report)
    return lines + [line for pair in report.analysis["comparisons"] if (line := comparison(report, pair))]


def best_entry(report: Report) -> dict[str, Any] | None:
    """The optimizer of the best value of all; None where every run diverged or failed."""
    known = [entry for entry in report.analysis["optimizers"] if entry["best"] is not None]
    sign = -1 if report.maximize else 1
    return min(known, key=lambda entry: sign * entry["best"], default=None)


def of_best(report: Report) -> str:
    """The best value reached, and where."""
    entry = best_entry(report)
    assert entry is not None
    reached = f"The best {report.objective} is {formats.number(entry['best'], 4)}"
    return f"{reached}, with {entry['optimizer']} at a learning rate of {formats.number(entry['best_lr'])}."


def ranges(report: Report) -> list[str]:
    """Which learning rates are good, as one sentence for all the optimizers."""
    parts = []
    for entry in report.analysis["optimizers"]:
        width = entry["good_range"]
        if width["decades"] is None:
            continue
        ends = f"{formats.number(width['low'], 2)} to {formats.number(width['high'], 2)}"
        parts.append(f"{entry['optimizer']} from {ends} ({wide(entry)})")
    if not parts:
        return []
    return [f"Learning rates that come within 5 % of an optimizer's best: {formats.names(parts)}."]


def wide(entry: dict[str, Any]) -> str:
    """A good range's width in words."""
    width = entry["good_range"]
    return f"{'at least ' if width['open_low'] or width['open_high'] else ''}{width['decades']:.1f} decades"


def comparison(report: Report, pair: dict[str, Any]) -> str:
    """One pair of sensitivities, or that the data can't tell."""
    a, b, figure = pair["a"], pair["b"], pair["sensitivity_ratio"]
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return ""
    known = low is not None or high is not None
    above = math.inf if high is None else high
    if known and low is not None and low <= 1 <= above:
        between = f"a ratio of {formats.number(value, 2)}, 95 % interval {formats.interval(low, high, 2)}"
        few = seeds_of(report.runs)
        return (
            f"Whether {a} or {b} is less sensitive to the learning rate, "
            f"{formats.count(few, 'seed')} can't tell ({between})."
        )
    if value == 0:
        return f"{a} isn't sensitive to the learning rate at all over its grid; {b} is."
    less = value < 1
    times = 1 / value if less else value
    spread = ""
    if known and low is not None:
        ends = (1 / above if above else None, 1 / low if low > 0 else None) if less else (low, high)
        spread = f" (95 % interval {formats.interval(*ends, 2)})"
    elif not known:
        spread = " (one seed)"
    if formats.number(times, 2) == "1":
        return f"{a} and {b} are equally sensitive to the learning rate{spread}."
    word = "less" if less else "more"
    return f"{a} is {formats.number(times, 2)}× {word} sensitive to the learning rate than {b}{spread}."


# --------------------------------------------------------------------------------------------------------- warnings


def warnings(report: Report) -> list[str]:
    """What makes the figures doubtful, over all the optimizers of a report."""
    entries, runs, command = report.analysis["optimizers"], report.runs, report.command
    found = [
        at_edge(entries, command),
        spans(entries, command),
        lost(entries, command),
        failed(entries, runs),
        nothing_learned(report),
        *(below_bound(runs, entry["optimizer"]) for entry in entries),
        one_seed(runs, command),
        unknown_initial(runs, report.analysis["initial"]),
    ]
    return [line for line in found if line]


def extension_command(command: str, entries: Sequence[dict[str, Any]], decades: float = 1.0) -> str:
    """The command that runs the learning rates beyond the end, for the optimizers whose best is there.

    >>> extension_command("momo sweep task.py", [
    ...     {"optimizer": "sgd", "lrs": [0.1, 1.0], "values": [2.0, 1.0], "best_lr": 1.0, "best_at_edge": True}])
    'momo sweep task.py -o sgd --lrs sgd=0.1,1,10'

    The rates that are stored stand in it, too: they are reused, and the answer is about all of them.
    """
    parts = [command]
    for entry in entries:
        if entry["best_at_edge"]:
            known = {lr for lr, value in zip(entry["lrs"], entry["values"]) if value is not None}
            lrs = ",".join(f"{lr:.12g}" for lr in sorted(known | set(beyond(entry, decades))))
            parts.append(f"-o {shlex.quote(entry['optimizer'])} --lrs {shlex.quote(entry['optimizer'] + '=' + lrs)}")
    return " ".join(parts)


def beyond(entry: dict[str, Any], decades: float = 1.0) -> list[float]:
    """The learning rates to run next for one optimizer of an analysis."""
    known = [lr for lr, value in zip(entry["lrs"], entry["values"]) if value is not None and lr > 0]
    return figures.next_lrs(known, entry["best_lr"], decades) if entry["best_lr"] is not None else []


def at_edge(entries: Sequence[dict[str, Any]], command: str | None) -> str:
    """The best learning rate is the first or last of its grid."""
    ends = [entry for entry in entries if entry["best_at_edge"]]
    if not ends:
        return ""
    parts = []
    for entry in ends:
        known = [lr for lr, value in zip(entry["lrs"], entry["values"]) if value is not None]
        where = "only" if len(known) == 1 else "smallest" if entry["best_lr"] == min(known) else "largest"
        parts.append(
            f"{entry['optimizer']}'s best learning rate is the {where} tried ({formats.number(entry['best_lr'])})"
        )
    sentence = (
        f"{formats.names(parts)}: the true best may lie beyond, and its sensitivity and good range are then wrong."
    )
    if command:
        return f"{sentence} Try next: `{extension_command(command, ends)}`"
    lrs = [f"{formats.names([formats.number(lr) for lr in beyond(e)])} with {e['optimizer']}" for e in ends]
    return f"{sentence} Try {formats.names(lrs)} next."


def open_range(entry: dict[str, Any], command: str | None) -> str:
    """A good range that runs off the grid, where the best value itself is bracketed."""
    width = entry["good_range"]
    ends = [end for end, is_open in (("lower", width["open_low"]), ("upper", width["open_high"])) if is_open]
    if not ends or entry["best_at_edge"]:
        return ""
    many = "ends" if len(ends) > 1 else "end"
    return (
        f"The good range of {entry['optimizer']} runs off the {formats.names(ends)} {many} of its grid, so its middle isn't "
        "known" + (": widen --lrs to see where it ends." if command else ".")
    )


def spans(entries: Sequence[dict[str, Any]], command: str | None) -> str:
    """The grids span different numbers of decades."""
    widths = {}
    for entry in entries:
        known = [lr for lr, value in zip(entry["lrs"], entry["values"]) if value is not None]
        if len(known) > 1:
            widths[entry["optimizer"]] = math.log10(max(known)) - math.log10(min(known))
    if len(widths) < 2 or max(widths.values()) - min(widths.values()) < 0.01:
        return ""
    parts = [f"{name} {width:.1f}" for name, width in widths.items()]
    return (
        f"The grids span different numbers of decades ({formats.names(parts)}): sensitivities and regrets over "
        "them are not comparable."
        + (" Give every optimizer as many decades with --lrs, or leave --lrs out." if command else "")
    )


def lost(entries: Sequence[dict[str, Any]], command: str | None) -> str:
    """Optimizers all of whose runs diverged."""
    names = [e["optimizer"] for e in entries if e["best"] is None and e["diverged"]]
    if not names:
        return ""
    return f"Every run of {formats.names(names)} diverged, so there is no best learning rate and no sensitivity." + (
        " Try smaller learning rates with --lrs." if command else ""
    )


def failed(entries: Sequence[dict[str, Any]], runs: Sequence[Run]) -> str:
    """Runs that raised."""
    parts = [f"{entry['failed']} of {entry['optimizer']}" for entry in entries if entry["failed"]]
    if not parts:
        return ""
    total = sum(entry["failed"] for entry in entries)
    last = next((run.error.strip().splitlines()[-1] for run in runs if run.status == "failed" and run.error), "")
    verb = "failed and doesn't" if total == 1 else "failed and don't"
    return f"{formats.count(total, 'run')} ({formats.names(parts)}) {verb} count" + (f": {last}" if last else ".")


def one_seed(runs: Sequence[Run], command: str | None) -> str:
    """Some learning rate ran with one seed only."""
    if seeds_of(runs) != 1:
        return ""
    most = len({run.seed for run in runs if figures.counts(run)})
    seen = "Some learning rates ran with one seed only" if most > 1 else "Each figure is from one seed"
    advice = " Use --seeds 3 or more." if command else ""
    return f"{seen}: how much of a difference is chance can't be told, and there are no intervals.{advice}"


def nothing_learned(report: Report) -> str:
    """No run ended better than it began."""
    best = best_entry(report)
    if best is None or not math.isclose(best["best"], report.analysis["initial"]) or len(report.runs) < 2:
        return ""
    if not knows_initial(report.runs):
        return ""
    return (
        f"No run ended with a better {report.objective} than it began with "
        f"({formats.number(report.analysis['initial'])}): train longer with --steps or --epochs, or widen --lrs."
    )


def below_bound(runs: Sequence[Run], optimizer: str) -> str:
    """One of Momo's methods whose loss went below the bound that it takes: its figures then say little."""
    went_below = any(
        figures.is_finite(value) and value < 0
        for run in runs
        if run.optimizer == optimizer
        for value in (run.train_loss, run.val_loss, *(loss for _, loss in run.curve))
    )
    return lower_bound_advice(runs, optimizer) if went_below else ""


def unknown_initial(runs: Sequence[Run], initial: float | None) -> str:
    """No run knows its ℓ0."""
    if initial is None or knows_initial(runs):
        return ""
    return (
        f"The value before training isn't known, so the worst value of any run ({formats.number(initial)}) stands for it; "
        "give it to `momo import` with --initial."
    )
