"""A run as an Optuna trial, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from momo_cli.errors import printable
from momo_cli.plan.grid import run_key
from momo_cli.runs import Run

RUN, HOLDER = "momo:run", "momo:holder"
_LR_LOW, _LR_HIGH = 1e-12, 1e12
_POINTS = 10  # intermediate values: enough for Optuna's plots, and each costs a relational store a millisecond
_NUMBER, _TEXT = (int, float, type(None)), (str, type(None))
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("objective", "initial", "train_loss", "val_loss", "seconds", "capped"), _NUMBER),
    **{"status": str, "metrics": dict, "initials": dict, "steps": int, "error": _TEXT, "curve": list},
    "step_sizes": (list, type(None)),
}

Phase = Literal["waiting", "running", "ended", "void"]
"""Where a run is: ``void`` for a trial that ended without one, of a process that died or of someone else."""


def phase_of(state: TrialState, has_run: bool) -> Phase:
    """The phase of a trial in ``state``."""
    if state == TrialState.WAITING:
        return "waiting"
    if state == TrialState.RUNNING:
        return "running"
    return "ended" if has_run else "void"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A stored trial: its id in the storage, its params, the fields of its run, and which process holds it."""

    id: int
    params: dict[str, Any]
    run: Any = None
    holder: str = ""

    @property
    def key(self) -> tuple[object, ...] | None:
        """The identity of the run it stands for; None where someone else made it."""
        asked = self.asked()
        return run_key(asked) if asked is not None else None

    def as_run(self) -> Run | None:
        """The run that it holds; None where someone else made it or its run can't be read."""
        run = self.asked()
        if run is None or not isinstance(self.run, dict):
            return None
        known = {
            name: _safe(value) for name, value in self.run.items() if name in _KINDS
        }  # a newer version's have more
        if not all(isinstance(value, _KINDS[name]) for name, value in known.items()):
            return None
        return dataclasses.replace(run, **known)

    def asked(self) -> Run | None:
        """The run it stands for, without a result; None where someone else made it."""
        further = dict(self.params)
        try:
            label, lr, seed = further.pop("optimizer"), further.pop("lr"), further.pop("seed")
        except KeyError:
            return None
        return Run(printable(str(label)), lr, seed, params=further)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What ends a trial: its state, its value, and what else is stored of its run."""

    state: TrialState
    value: float | None
    attributes: dict[str, Any]
    intermediate_values: dict[int, float]


def waiting_trial(run: Run, optimizers: list[str]) -> FrozenTrial:
    """A trial for a run of that optimizer, learning rate and seed, in a study that offers ``optimizers``."""
    params, distributions = _params(run, optimizers)
    return create_trial(state=TrialState.WAITING, params=params, distributions=distributions)


def ended_trial(run: Run, optimizers: list[str]) -> FrozenTrial:
    """``run`` as a trial of a study that offers ``optimizers``."""
    params, distributions = _params(run, optimizers)
    outcome = outcome_of(run)
    return create_trial(
        state=outcome.state,
        value=outcome.value,
        params=params,
        distributions=distributions,
        intermediate_values=outcome.intermediate_values,
        user_attrs=outcome.attributes,
    )


def outcome_of(run: Run) -> Outcome:
    """How ``run`` ends its trial."""
    states = {"ok": "COMPLETE", "diverged": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}
    # A diverged run counts as its ℓ0, in Optuna's own views too; one without a finite ℓ0 has no value to show.
    value = run.objective if run.status == "ok" else run.initial
    complete = states[run.status] == "COMPLETE" and value is not None and math.isfinite(value)
    state = states[run.status] if complete or run.status in ("failed", "pruned") else "FAIL"
    fields = dataclasses.asdict(run)
    for name in ("optimizer", "lr", "seed", "params"):
        del fields[name]
    return Outcome(
        TrialState[state],
        value if complete else None,
        {"status": run.status, RUN: _finite(fields)},
        dict(_thinned(run.curve)),
    )


def _params(run: Run, optimizers: list[str]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    params: dict[str, Any] = {"optimizer": run.optimizer, "lr": run.lr, "seed": run.seed}
    distributions: dict[str, BaseDistribution] = {
        "optimizer": CategoricalDistribution(tuple(optimizers)),
        "lr": FloatDistribution(min(_LR_LOW, run.lr), max(_LR_HIGH, run.lr), log=True),
        "seed": IntDistribution(0, max(run.seed, 2**31 - 1)),
    }
    for name, number in run.params.items():
        params[name] = number
        distributions[name] = FloatDistribution(min(number, 0.0), max(number, 1e12))
    return params, distributions


def _safe(value: Any) -> Any:
    """``value`` with nothing in its texts that a terminal would obey."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(name): _safe(v) for name, v in value.items()}
    return value


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
