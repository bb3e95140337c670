"""The report as pictures, by matplotlib (the extra ``plot``): legible in colour, in grey and in print.

Lines differ by colour, dashes and marker, in colours that the colour-blind can tell apart (Okabe and Ito).
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momo_cli.errors import UserError, did_you_mean
from momo_cli.figures import OptimizerFigures, counts, is_finite, value_intervals
from momo_cli.report import Report, numbers, tables
from momo_cli.report.exports import Target
from momo_cli.report.varied import VariedReport
from momo_cli.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("lr", "curves", "steps", "transfer")
"""What ``--plot-kind`` takes; ``transfer`` is of several reports, which differ in what ``--vary`` varies."""

SUFFIXES = (".png", ".svg", ".pdf")

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

#: Text in an SVG stays text, and the same report gives the same file.
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def check(target: Target) -> None:
    """Find out before any training whether a plot can be made.

    Raises:
        UserError: matplotlib isn't installed, the file's ending isn't one of a picture, or there is no such kind.
    """
    if target.plot_kind is not None and target.plot_kind not in KINDS:
        known = list(KINDS)
        raise UserError(
            f"--plot-kind {target.plot_kind}: there is no such plot.{did_you_mean(target.plot_kind, known)}\n"
            f"Kinds: {', '.join(known)}."
        )
    if Path(target.file).suffix.lower() not in SUFFIXES:
        raise UserError(f"--plot {target.file}: the name must end in {numbers.names(list(SUFFIXES), 'or')}.")
    check_library()


def check_library() -> None:
    """Find out whether plots can be made at all.

    Raises:
        UserError: matplotlib isn't installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("Plots need matplotlib. Install it with:  pip install 'momo-opt[plot]'") from None


def render(report: Report | VariedReport, target: Target) -> bytes:
    """A plot as PNG, SVG or PDF, as the file's ending says; see :data:`KINDS` and :func:`draw`.

    Raises:
        UserError: See :func:`check`; or the runs don't hold what the plot shows.
    """
    check(target)
    kind = target.plot_kind or ("transfer" if isinstance(report, VariedReport) else "lr")
    return _drawn(report, kind, Path(target.file).suffix.lower()[1:])


def svg(report: Report | VariedReport, kind: str) -> str:
    """The same as the text of an SVG, to be embedded."""
    return _drawn(report, kind, "svg").decode()


def _drawn(report: Report | VariedReport, kind: str, form: str) -> bytes:
    import matplotlib

    style: Any = STYLE | {"svg.hashsalt": f"momo {kind}"}
    with matplotlib.rc_context(style):
        file = io.BytesIO()
        if form == "png":
            draw(report, kind).savefig(file, format=form, dpi=160)
        else:  # without the date, so that the same report gives the same file
            metadata = {"Date" if form == "svg" else "CreationDate": None}
            draw(report, kind).savefig(file, format=form, metadata=metadata)
    return file.getvalue()


def figure(report: Report | VariedReport, kind: str) -> Figure:
    """The figure of a kind, ``stability`` being ``lr``, in the style of the files.

    Raises:
        UserError: See :func:`check`; or the runs don't hold what the plot shows.
    """
    check_library()
    import matplotlib

    names = {"stability": "lr", **{name: name for name in KINDS}}
    if kind not in names:
        raise UserError(f"There is no plot {kind!r}.{did_you_mean(kind, list(names))}\nWrite {', '.join(names)}.")
    style: Any = STYLE
    with matplotlib.rc_context(style):
        figure = draw(report, names[kind])
    # A notebook shows it by itself only where pyplot has been imported.
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def draw(report: Report | VariedReport, kind: str) -> Figure:
    """The figure, of one of :data:`KINDS`, not bound to any window.

    Raises:
        UserError: The report is not of that kind.
    """
    if isinstance(report, VariedReport):
        if kind != "transfer":
            raise UserError(
                f"The plot {kind!r} is of one value of {report.name}; of all of them there is 'transfer'.", 1
            )
        return draw_transfer(report)
    if kind == "transfer":
        raise UserError("The plot 'transfer' shows what --vary varies, and nothing is varied here.", 1)
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


# ------------------------------------------------------------------------------------ value against LR, each value


def draw_transfer(report: VariedReport) -> Figure:
    """For each optimizer ℓ(η) at each value, light to dark, with its optimum, and the shared learning rate."""
    import matplotlib

    drawn = [each for each in report.optimizers if each.lrs]
    if not drawn:
        raise UserError("There is nothing to plot: no learning rate was tried at every value.", code=1)
    across = min(3, len(drawn))
    down = math.ceil(len(drawn) / across)
    figure = _new_figure(1.2 + 3.0 * across, 0.8 + 2.6 * down)
    axes = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    shades = matplotlib.colormaps["viridis_r"]
    for each, place in zip(drawn, axes):
        for i, (value, one, optimum) in enumerate(zip(report.values, report.reports, each.optima)):
            points = one.figures.of(each.optimizer).curve
            colour = shades(0.15 + 0.85 * i / max(1, len(report.values) - 1))
            place.plot(*zip(*points), color=colour, marker=MARKERS[i % len(MARKERS)], markersize=3,
                       label=label(report.place(value)))  # fmt: skip
            if optimum is not None:
                height = min(points, key=lambda point: abs(math.log10(point[0] / optimum)))[1]
                place.plot(optimum, height, marker="*", color=colour, markersize=10, markeredgecolor="black", zorder=5)
        if each.shared is not None:
            place.axvline(each.shared.lr, color="0.45", linewidth=1, linestyle=(0, (2, 2)))
        place.set_xscale("log")
        place.set_title(label(each.optimizer))
        place.set_xlabel("learning rate")
    for place in axes[len(drawn) :]:
        place.set_visible(False)
    axes[0].set_ylabel(label(f"final {report.reports[0].objective}"))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(report.values)))
    figure.suptitle(label(f"{report.task}: ★ optimum, dashed: the shared learning rate", 90))
    return figure


# ---------------------------------------------------------------------------------------------- value against LR


def draw_lr(report: Report) -> Figure:
    """The stability plot: ℓ(η) with its interval for each optimizer; ℓ0; below, each one's good range."""
    entries = report.figures.optimizers
    initial = report.figures.initial
    if initial is None or not any(entry.curve for entry in entries):
        raise UserError("There is nothing to plot: no run ended with a finite value.", code=1)
    figure = _new_figure(6.4, 4.0 + 0.22 * len(entries))
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 0.3 + 0.22 * len(entries)])
    spreads = value_intervals(report.runs, maximize=report.maximize)
    strip = tables.strip(report)
    handles = []
    for i, entry in enumerate(entries):
        points = entry.curve
        look = _look(i)
        [line] = top.plot(*zip(*points), **look, markerfacecolor="white") if points else [None]
        if line is None:
            continue
        handles.append((line, label(entry.optimizer)))
        shade = [(lr, spread.low, spread.high) for lr, spread in spreads[entry.optimizer] if spread.low is not None]
        if shade:
            top.fill_between(*zip(*shade), color=look["color"], alpha=0.18, linewidth=0)
        lost = [
            (lr, value) for lr, value in points
            if (cell := strip.cells.get((entry.optimizer, lr))) and cell.level == "diverged"
        ]  # fmt: skip
        if lost:
            top.plot(*zip(*lost), linestyle="", marker="x", color=look["color"], markersize=9, markeredgewidth=2)
        if entry.best_lr is not None:
            top.plot(entry.best_lr, entry.best, linestyle="", marker=look["marker"], color=look["color"], zorder=5)
        _mark_range(below, entry, i, look["color"])
    top.set_xscale("log")
    values = [value for entry in entries for _, value in entry.curve]
    top.axhline(initial, color="0.45", linewidth=1, linestyle=(0, (2, 2)))
    known = "before training" if report.figures.initial_known else "worst"
    top.annotate(f"ℓ0 = {numbers.number(initial)} ({known})", (0.005, initial), xycoords=("axes fraction", "data"),
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
    below.set_yticks(range(len(entries)), [label(entry.optimizer) for entry in entries], fontsize=8)
    below.tick_params(axis="y", length=0)
    below.spines["left"].set_visible(False)
    below.set_title("good range: within 5 % of its best", loc="left", fontsize=8)
    below.set_xlabel("learning rate")
    return figure


def _legend(figure: Figure, handles: Sequence[tuple[Any, str]], title: str | None = None) -> None:
    lines, labels = zip(*handles)
    figure.legend(lines, labels, loc="outside right upper", title=title, title_fontsize=8, handlelength=3.2)


def _mark_range(axes: Axes, entry: OptimizerFigures, i: int, colour: str) -> None:
    """A bar from end to end; an arrow where it runs off the grid."""
    width = entry.good_range
    if width.low is None or width.high is None:
        return
    axes.plot([width.low, width.high], [i, i], color=colour, linewidth=5, solid_capstyle="butt", alpha=0.8)
    for end, is_open, arrow in ((width.low, width.open_low, "<"), (width.high, width.open_high, ">")):
        axes.plot(end, i, marker=arrow if is_open else "|", color=colour, markersize=8 if is_open else 9, linestyle="")


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic where positive values span so much that the best could not be told apart; intervals may run off."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 30:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.6, high * 1.6)
    elif high > low:
        axes.set_ylim(low - 0.09 * (high - low), high + 0.09 * (high - low))


# --------------------------------------------------------------------------------------------- loss over the steps


def draw_curves(report: Report) -> Figure:
    """The training loss over the steps: a panel for each optimizer, its three best learning rates."""
    panels = []
    for entry in report.figures.optimizers:
        lines = [
            (lr, curve)
            for lr in best_lrs(entry, report.maximize)
            if (curve := mean_curve(report.runs, entry.optimizer, lr))
        ]
        if lines:
            panels.append((entry.optimizer, lines))
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
                label=f"{numbers.number(lr)}" + (" (best)" if i == 0 else ""),
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


def best_lrs(entry: OptimizerFigures, maximize: bool, most: int = 3) -> list[float]:
    """An optimizer's learning rates from the best on."""
    ranked = sorted(entry.curve, key=lambda point: (-point[1] if maximize else point[1], point[0]))
    return [lr for lr, _ in ranked[:most]]


def mean_curve(runs: Sequence[Run], optimizer: str, lr: float) -> list[tuple[float, float]]:
    """The mean over seeds of the loss at each step that every run has.

    >>> mean_curve([Run("sgd", 1.0, s, curve=[[10, 1.0 + s], [20, 0.5]]) for s in range(2)], "sgd", 1.0)
    [(10, 1.5), (20, 0.5)]
    """
    curves = [
        {step: loss for step, loss in run.curve if is_finite(loss)}
        for run in runs
        if run.optimizer == optimizer and run.lr == lr and counts(run) and run.curve
    ]
    if not curves:
        return []
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [(step, math.fsum(curve[step] for curve in curves) / len(curves)) for step in common]


# ------------------------------------------------------------------------------------------------ step against cap


def draw_steps(report: Report) -> Figure:
    """The step size taken against its cap: a row for each of Momo's methods, three learning rates a decade apart."""
    rows = []
    for entry in report.figures.optimizers:
        name = entry.optimizer
        known = {run.lr: run for run in reversed(report.runs) if run.optimizer == name and run.step_sizes}
        if known:
            middle = entry.best_lr if entry.best_lr in known else sorted(known)[len(known) // 2]
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
            # The cap is drawn first and wide, so that a step that takes it is seen on it.
            [handles["cap"]] = axes.plot(steps, caps, "-", color=COLOURS[5], linewidth=4.5, alpha=0.6)
            positive = [(s, a) for s, a in zip(steps, adaptive) if is_finite(a) and a > 0]
            if positive:
                [handles["adaptive term"]] = axes.plot(*zip(*positive), ".", color="0.55", markersize=4)
            moved = [(s, t) for s, t in zip(steps, taken) if is_finite(t) and t > 0]
            if moved:
                [handles["step size taken"]] = axes.plot(*zip(*moved), "-", color=COLOURS[0], linewidth=1.4)
            axes.set_yscale("log")
            share = "" if run.capped is None else f"\ncapped {100 * run.capped:.0f} %"
            axes.set_title(label(f"{name}, lr {numbers.number(run.lr)}") + share, loc="left", fontsize=8)
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
