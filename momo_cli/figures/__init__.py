"""The figures: what a table of runs says about each optimizer. Numbers only; the words are the report's."""

from momo_cli.figures.analysis import analyze, value_intervals
from momo_cli.figures.formulas import next_lrs
from momo_cli.figures.recommendation import Prefer, recommend
from momo_cli.figures.results import (
    GUESSES,
    LEARNED,
    TOLERANCE,
    Comparison,
    Figures,
    GoodRange,
    Interval,
    OptimizerFigures,
    Recommendation,
    good_bound,
)
from momo_cli.figures.samples import counts, diverged, is_finite

__all__ = [
    "GUESSES",
    "LEARNED",
    "TOLERANCE",
    "Comparison",
    "Figures",
    "GoodRange",
    "Interval",
    "OptimizerFigures",
    "Prefer",
    "Recommendation",
    "analyze",
    "counts",
    "diverged",
    "good_bound",
    "is_finite",
    "next_lrs",
    "recommend",
    "value_intervals",
]
