"""A run as an Optuna trial, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from momo_cli.runs import Run

if TYPE_CHECKING:
    import optuna

_RUN = "momo:run"
_LR_LOW, _LR_HIGH = 1e-12, 1e12
_POINTS = 10  # intermediate values: enough for Optuna's plots, and each costs a relational store a millisecond


def trial_of(run: Run, optimizers: list[str]) -> optuna.trial.FrozenTrial:
    """``run`` as a trial of a study whose ``optimizer`` parameter offers ``optimizers``."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    states = {"ok": "COMPLETE", "diverged": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}
    # A diverged run counts as its ℓ0, in Optuna's own views too; one without a finite ℓ0 has no value to show.
    value = run.objective if run.status == "ok" else run.initial
    complete = states[run.status] == "COMPLETE" and value is not None and math.isfinite(value)
    state = states[run.status] if complete or run.status in ("failed", "pruned") else "FAIL"
    fields = dataclasses.asdict(run)
    for name in ("optimizer", "lr", "seed", "params"):
        del fields[name]
    params: dict[str, Any] = {"optimizer": run.optimizer, "lr": run.lr, "seed": run.seed}
    distributions: dict[str, Any] = {
        "optimizer": CategoricalDistribution(tuple(optimizers)),
        "lr": FloatDistribution(min(_LR_LOW, run.lr), max(_LR_HIGH, run.lr), log=True),
        "seed": IntDistribution(0, max(run.seed, 2**31 - 1)),
    }
    for name, number in run.params.items():
        params[name] = number
        distributions[name] = FloatDistribution(min(number, 0.0), max(number, 1e12))
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        value=value if complete else None,
        params=params,
        distributions=distributions,
        intermediate_values=dict(_thinned(run.curve)),
        user_attrs={"status": run.status, _RUN: _finite(fields)},
    )


def run_of(trial: optuna.trial.FrozenTrial) -> Run | None:
    """The run that ``trial`` holds; None where someone else made it."""
    if _RUN not in trial.user_attrs:
        return None
    params = dict(trial.params)
    return Run(
        optimizer=params.pop("optimizer"),
        lr=params.pop("lr"),
        seed=params.pop("seed"),
        params=params,
        **trial.user_attrs[_RUN],
    )


def _thinned(curve: list[list[float]]) -> Iterator[tuple[int, float]]:
    """About ten points of the curve, its end among them."""
    every = -(-len(curve) // _POINTS) or 1
    return ((int(step), loss) for step, loss in curve[::-every])


def _finite(value: Any) -> Any:
    """``value`` with None for non-finite numbers, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value
