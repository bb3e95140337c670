"""The report as pictures, by matplotlib (the extra ``plot``): legible in colour, in grey and in print.

Lines differ by colour, dashes and marker, in colours that the colour-blind can tell apart (Okabe and Ito).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from momo_cli import figures
from momo_cli.errors import UserError, did_you_mean
from momo_cli.report import Report, formats, sentences, tables
from momo_cli.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["lr", "curves", "steps"]
KINDS = ("lr", "curves", "steps")
SUFFIXES = (".png", ".svg", ".pdf")

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

#: Text in an SVG stays text, and the same report gives the same file.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "momo",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def check(path: str | Path | None = None, kind: str = "lr") -> None:
    """Finds out before any training whether a plot can be made.

    Raises:
        UserError: matplotlib isn't installed, the file's ending isn't one of a picture, or there is no such kind.
    """
    if kind not in KINDS:
        raise UserError(
            f"--plot-kind {kind}: there is no such plot.{did_you_mean(kind, list(KINDS))}\nKinds: {', '.join(KINDS)}."
        )
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"--plot {path}: the name must end in {formats.names(list(SUFFIXES), 'or')}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("Plots need matplotlib. Install it with:  pip install 'momo-opt[plot]'") from None


def save(report: Report, path: str | Path, kind: str = "lr") -> None:
    """Draws one plot into a file; its ending says whether as PNG, SVG or PDF.

    Args:
        report: What to draw.
        path: The file.
        kind: ``lr``: final value against learning rate. ``curves``: loss over the steps. ``steps``: the step size
            taken against its cap, for Momo's methods.

    Raises:
        UserError: See :func:`check`; or the runs don't hold what the plot shows.
    """
    check(path, kind)
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = draw(report, kind)
        _write(figure, path, Path(path).suffix.lower()[1:])


def svg(report: Report, kind: str) -> str:
    """The same as the text of an SVG, to be embedded."""
    check(None, kind)
    import matplotlib

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"momo {kind}"}):
        file = io.StringIO()
        _write(draw(report, kind), file, "svg")
    return file.getvalue()


def _write(figure: Figure, file: Any, form: str) -> None:
    if form == "png":
        figure.savefig(file, format=form, dpi=160)
    else:  # without the date, so that the same report gives the same file
        figure.savefig(file, format=form, metadata={"Date" if form == "svg" else "CreationDate": None})


def draw(report: Report, kind: str) -> Figure:
    """The figure, of one of :data:`KINDS`, not bound to any window."""
    return {"lr": draw_lr, "curves": draw_curves, "steps": draw_steps}[kind](report)


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def label(text: str, longest: int = 36) -> str:
    """User text as a label: not too long, no mathematics in dollar signs, and not hidden by a leading underscore.

    >>> print(label("a$b$"), label("_mine:Adam"), label("momo(weight_decay=0.1)", longest=12))
    a\\$b\\$  _mine:Adam momo(weight…
    """
    text = " ".join(text.split())
    text = (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def _look(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[(i + i // len(DASHES)) % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
    }


# ---------------------------------------------------------------------------------------------- value against LR


def draw_lr(report: Report) -> Figure:
    """The stability plot: ℓ(η) with its interval for each optimizer; ℓ0; below, each one's good range."""
    entries = report.analysis["optimizers"]
    if not any(value is not None for entry in entries for value in entry["values"]):
        raise UserError("There is nothing to plot: no run ended with a finite value.", code=1)
    figure = _new_figure(6.4, 4.0 + 0.22 * len(entries))
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 0.3 + 0.22 * len(entries)])
    spreads = figures.value_intervals(report.runs, maximize=report.maximize)
    strip = tables.strip(report)
    handles = []
    for i, entry in enumerate(entries):
        points = [(lr, value) for lr, value in zip(entry["lrs"], entry["values"]) if value is not None and lr > 0]
        look = _look(i)
        [line] = top.plot(*zip(*points), **look, markerfacecolor="white") if points else [None]
        if line is None:
            continue
        handles.append((line, label(entry["optimizer"])))
        shade = [row for row in spreads.get(entry["optimizer"], []) if row[1] is not None]
        if shade:
            top.fill_between(*zip(*shade), color=look["color"], alpha=0.18, linewidth=0)
        lost = [
            (lr, value) for lr, value in points
            if (cell := strip.cells.get((entry["optimizer"], lr))) and cell.level == "diverged"
        ]  # fmt: skip
        if lost:
            top.plot(*zip(*lost), linestyle="", marker="x", color=look["color"], markersize=9, markeredgewidth=2)
        if entry["best_lr"] is not None:
            top.plot(
                entry["best_lr"], entry["best"], linestyle="", marker=look["marker"], color=look["color"], zorder=5
            )
        _mark_range(below, entry, i, look["color"])
    top.set_xscale("log")
    values = [value for entry in entries for value in entry["values"] if value is not None]
    initial = report.analysis["initial"]
    top.axhline(initial, color="0.45", linewidth=1, linestyle=(0, (2, 2)))
    known = "before training" if sentences.knows_initial(report.runs) else "worst"
    top.annotate(f"ℓ0 = {formats.number(initial)} ({known})", (0.005, initial), xycoords=("axes fraction", "data"),
                 xytext=(0, -3 if report.maximize else 3), textcoords="offset points",
                 va="top" if report.maximize else "bottom", color="0.35", fontsize=8)  # fmt: skip
    _scale(top, [*values, initial])
    top.set_ylabel(label(f"final {report.objective}"))
    top.set_title(label(report.task, 70), loc="left")
    _legend(
        figure,
        handles,
        "filled: best; ✗: diverged" if any(c.level == "diverged" for c in strip.cells.values()) else "filled: best",
    )
    below.set_ylim(len(entries) - 0.4, -0.6)
    below.set_yticks(range(len(entries)), [label(entry["optimizer"]) for entry in entries], fontsize=8)
    below.tick_params(axis="y", length=0)
    below.spines["left"].set_visible(False)
    below.set_title("good range: within 5 % of its best", loc="left", fontsize=8)
    below.set_xlabel("learning rate")
    return figure


def _legend(figure: Figure, handles: Sequence[tuple[Any, str]], title: str | None = None) -> None:
    lines, labels = zip(*handles)
    figure.legend(lines, labels, loc="outside right upper", title=title, title_fontsize=8, handlelength=3.2)


def _mark_range(axes: Axes, entry: dict[str, Any], i: int, colour: str) -> None:
    """A bar from end to end; an arrow where it runs off the grid."""
    width = entry["good_range"]
    if width["low"] is None:
        return
    axes.plot([width["low"], width["high"]], [i, i], color=colour, linewidth=5, solid_capstyle="butt", alpha=0.8)
    for end, is_open, arrow in ((width["low"], width["open_low"], "<"), (width["high"], width["open_high"], ">")):
        axes.plot(end, i, marker=arrow if is_open else "|", color=colour, markersize=8 if is_open else 9, linestyle="")


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic where positive values span so much that the best could not be told apart."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 30:
        axes.set_yscale("log")
    elif high > low:
        axes.set_ylim(low - 0.09 * (high - low), high + 0.09 * (high - low))


# --------------------------------------------------------------------------------------------- loss over the steps


def draw_curves(report: Report) -> Figure:
    """The training loss over the steps: a panel for each optimizer, its three best learning rates."""
    panels = []
    for entry in report.analysis["optimizers"]:
        lines = [
            (lr, curve)
            for lr in best_lrs(entry, report.maximize)
            if (curve := mean_curve(report.runs, entry["optimizer"], lr))
        ]
        if lines:
            panels.append((entry["optimizer"], lines))
    if not panels:
        raise UserError(
            "There are no curves to plot: these runs have no losses over the steps (an imported table has none).",
            code=1,
        )
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure = _new_figure(max(2.6 * columns + 0.6, 4.5), 2.5 * rows + 0.5)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    every = [loss for _, lines in panels for _, curve in lines for _, loss in curve]
    for axes, (name, lines) in zip(grid.flat, panels):
        for i, (lr, curve) in enumerate(lines):
            look = {
                "color": COLOURS[i],
                "linestyle": DASHES[i],
                "marker": MARKERS[i],
                "markevery": max(len(curve) // 6, 1),
            }
            axes.plot(
                *zip(*curve),
                **look,
                markerfacecolor="white",
                label=f"{formats.number(lr)}" + (" (best)" if i == 0 else ""),
            )
        axes.set_title(label(name), loc="left")
        axes.legend(title="learning rate", fontsize=8, title_fontsize=8, handlelength=3)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    if min(every) > 0 and max(every) / min(every) > 30:
        grid[0, 0].set_yscale("log")
    for axes in grid[:, 0]:
        axes.set_ylabel("training loss")
    for axes in grid[-1, :]:
        axes.set_xlabel("step")
    figure.suptitle(label(f"{report.task}: the three best learning rates of each", 70), x=0.01, ha="left", fontsize=10)
    return figure


def best_lrs(entry: dict[str, Any], maximize: bool, most: int = 3) -> list[float]:
    """An optimizer's learning rates from the best on.

    >>> best_lrs({"lrs": [0.1, 1.0, 10.0], "values": [2.0, 1.0, None]}, maximize=False)
    [1.0, 0.1]
    """
    known = [(lr, value) for lr, value in zip(entry["lrs"], entry["values"]) if value is not None]
    known.sort(key=lambda pair: (-pair[1] if maximize else pair[1], pair[0]))
    return [lr for lr, _ in known[:most]]


def mean_curve(runs: Sequence[Run], optimizer: str, lr: float) -> list[tuple[float, float]]:
    """The mean over seeds of the loss at each step that every run has.

    >>> mean_curve([Run("sgd", 1.0, s, curve=[[10, 1.0 + s], [20, 0.5]]) for s in range(2)], "sgd", 1.0)
    [(10, 1.5), (20, 0.5)]
    """
    curves = [
        {step: loss for step, loss in run.curve if figures.is_finite(loss)}
        for run in runs
        if run.optimizer == optimizer and run.lr == lr and figures.counts(run) and run.curve
    ]
    if not curves:
        return []
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [(step, math.fsum(curve[step] for curve in curves) / len(curves)) for step in common]


# ------------------------------------------------------------------------------------------------ step against cap


def draw_steps(report: Report) -> Figure:
    """The step size taken against its cap: a row for each of Momo's methods, three learning rates a decade apart."""
    rows = []
    for entry in report.analysis["optimizers"]:
        name = entry["optimizer"]
        known = {run.lr: run for run in reversed(report.runs) if run.optimizer == name and run.step_sizes}
        if known:
            middle = entry["best_lr"] if entry["best_lr"] in known else sorted(known)[len(known) // 2]
            rows.append((name, [known[lr] for lr in around(sorted(known), middle)]))
    if not rows:
        raise UserError(
            "There are no step sizes to plot: none of these runs is of a Momo method (or the table was imported).",
            code=1,
        )
    columns = max(len(some) for _, some in rows)
    figure = _new_figure(max(2.5 * columns + 0.4, 4.5), 2.3 * len(rows) + 0.7)
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey="row")
    handles: dict[str, Any] = {}
    for row, (name, some) in zip(grid, rows):
        for axes, run in zip(row, some):
            steps, taken, caps, adaptive = zip(*((s, t, c, a) for s, t, c, a in run.step_sizes or []))
            positive = [(s, a) for s, a in zip(steps, adaptive) if figures.is_finite(a) and a > 0]
            if positive:
                [handles["adaptive term"]] = axes.plot(*zip(*positive), ".", color="0.55", markersize=4)
            moved = [(s, t) for s, t in zip(steps, taken) if figures.is_finite(t) and t > 0]
            if moved:
                [handles["step size taken"]] = axes.plot(*zip(*moved), "-", color=COLOURS[0], linewidth=1.8)
            [handles["cap"]] = axes.plot(steps, caps, "--", color=COLOURS[1], linewidth=1.2)
            axes.set_yscale("log")
            share = "" if run.capped is None else f"\ncapped {100 * run.capped:.0f} %"
            axes.set_title(label(f"{name}, lr {formats.number(run.lr)}") + share, loc="left", fontsize=8)
        for axes in row[len(some) :]:
            axes.set_visible(False)
        row[0].set_ylabel("step size")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    figure.legend(list(handles.values()), list(handles), loc="outside upper right", ncols=3, fontsize=8)
    figure.suptitle(label(report.task, 70), x=0.01, ha="left", fontsize=10)
    return figure


def around(lrs: Sequence[float], middle: float) -> list[float]:
    """A learning rate, and those nearest a decade below and above it.

    >>> around([0.01, 0.0316, 0.1, 0.316, 1.0, 3.16], 0.1)
    [0.01, 0.1, 1.0]
    >>> around([0.1], 0.1)
    [0.1]
    """
    below = [lr for lr in lrs if lr < middle]
    above = [lr for lr in lrs if lr > middle]
    nearest = [
        min(some, key=lambda lr: abs(math.log10(lr) - math.log10(middle) - shift))
        for some, shift in ((below, -1), (above, 1))
        if some
    ]
    return sorted([middle, *nearest])
