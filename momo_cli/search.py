"""``--trials``: Optuna decides which learning rates (and further arguments) to try, and which runs to stop early.

Sampling and pruning are Optuna's, by ask and tell on a study in memory for each optimizer, so that a batch of
trials can be trained together. Every run goes to the same store as a grid's, and the sampler is told first of the
trials that are stored there.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from momo_cli.experiment import Display, Experiment, Session
from momo_cli.plan.grid import RunSpec, run_key
from momo_cli.plan.learning_rates import log_spaced, rounded
from momo_cli.plan.optimizers import OptimizerSpec
from momo_cli.runs import Run

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

_ROUNDS = 4  # a sampler that learns is asked at least this often, however many trials fit in a batch
_BATCH = 16
_LR_ALONE = 4  # a quarter of the trials varies the LR alone where further arguments are tuned


def _samplers(several: bool, seed: int) -> dict[str, Callable[[], Any]]:
    import optuna

    return {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=several, constant_liar=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=seed),
        # Optuna's own grid sampler stops a study from within, which ask and tell can't: the points are enqueued.
        "grid": lambda: optuna.samplers.RandomSampler(seed=seed),
    }


def _grid(space: dict[str, tuple[float, float]], trials: int) -> list[dict[str, float]]:
    """At least ``trials`` points, equally many values of each argument."""
    levels = math.ceil(trials ** (1 / len(space)) - 1e-9)
    return [
        dict(zip(space, values))
        for values in itertools.product(*(log_spaced(*ends, levels) for ends in space.values()))
    ]


def _pruners() -> dict[str, Callable[[], Any]]:
    import optuna

    return {
        "none": optuna.pruners.NopPruner,
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        "hyperband": optuna.pruners.HyperbandPruner,
        "wilcoxon": optuna.pruners.WilcoxonPruner,
    }


SAMPLERS = ("tpe", "random", "gp", "cmaes", "grid")
#: The packages that some of them need beside Optuna.
NEEDED = {"cmaes": "cmaes", "gp": "scipy", "wilcoxon": "scipy"}
PRUNERS = ("none", "median", "hyperband", "wilcoxon")


@dataclasses.dataclass(frozen=True)
class Search:
    """What to search.

    Attributes:
        trials: Trials for each optimizer.
        sampler: One of ``SAMPLERS``.
        pruner: One of ``PRUNERS``; it looks at the training loss at about 20 points of a run.
        lr_range: Lowest and highest LR; None for the default span of four decades.
        tune: Range of each further argument.
    """

    trials: int
    sampler: str = "tpe"
    pruner: str = "none"
    lr_range: tuple[float, float] | None = None
    tune: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Trials asked for, and trained, at a time."""
        if self.sampler in ("random", "grid") and self.pruner == "none":
            return self.trials
        return max(1, min(_BATCH, math.ceil(self.trials / _ROUNDS)))

    def range_of(self, optimizer: OptimizerSpec) -> tuple[float, float]:
        """The optimizer's range of LRs."""
        return self.lr_range or (optimizer.default_lr / 100, optimizer.default_lr * 100)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search came to: its runs, and sentences on the best trial, what mattered, and the LR alone."""

    session: Session
    runs: list[Run]
    lines: list[str]


def search(
    experiment: Experiment, optimizers: list[OptimizerSpec], asked: Search, seeds: int, display: Display
) -> Found:
    """Run the trials of every optimizer that aren't stored, batch by batch.

    Raises:
        UserError: Something is wrong; see :meth:`Experiment.collect`.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    watcher = _Watcher()
    runs: list[Run] = []
    lines: list[str] = []
    how = {
        "sampler": asked.sampler,
        "pruner": asked.pruner,
        "lr_range": asked.lr_range,
        "tune": asked.tune,
        "seeds": seeds,
    }
    with Session(dataclasses.replace(experiment, search=how), display, watcher, asked.batch * seeds) as session:
        for optimizer in optimizers:
            one = _OptimizerSearch(optimizer, asked, seeds, experiment.settings.maximize)
            runs += one.run(session, watcher)
            lines += one.sentences(session.objective)
    return Found(session, runs, lines)


class _Watcher:
    """Asks the pruner; all seeds of a trial that is pruned stop, the first one is what the pruner sees."""

    def __init__(self) -> None:
        self.trials: dict[RunSpec, optuna.Trial] = {}
        self.pruned: set[int] = set()
        self.leading: set[RunSpec] = set()

    def __call__(self, spec: RunSpec, step: int, steps: int, loss: float) -> bool:
        trial = self.trials.get(spec)
        if trial is None:
            return False
        if spec in self.leading and math.isfinite(loss):
            # In 20ths of a run, not steps: Hyperband's brackets then fit runs of any length.
            trial.report(loss, round(20 * step / steps))
            if trial.should_prune():
                self.pruned.add(trial.number)
        return trial.number in self.pruned


class _OptimizerSearch:
    """The trials of one optimizer: a study in memory that samples and prunes, and what came of each trial."""

    def __init__(self, optimizer: OptimizerSpec, asked: Search, seeds: int, maximize: bool) -> None:
        from optuna.distributions import FloatDistribution

        self.optimizer, self.asked, self.seeds, self.maximize = optimizer, asked, seeds, maximize
        space = {"lr": asked.range_of(optimizer), **asked.tune}
        self.space: dict[str, BaseDistribution] = {
            name: FloatDistribution(low, high, log=True) for name, (low, high) in space.items()
        }
        self._low_high = space
        self.results: list[tuple[dict[str, float], list[Run]]] = []

    def run(self, session: Session, watcher: _Watcher) -> list[Run]:
        """Ask, train and tell until there are enough trials; returns every trial's runs."""
        import optuna

        known = self._stored(session)
        study = optuna.create_study(
            # Another seed when it goes on: with the same one it would propose again what is stored.
            sampler=_samplers(len(self.space) > 1, len(known))[self.asked.sampler](),
            pruner=_pruners()[self.asked.pruner](),
            direction="minimize",
        )
        for params, runs in known:
            self._add(study, params, runs)
        left = self.asked.trials - len(known)
        if left > 0:
            self.optimizer.check(self._low_high["lr"][0], {name: low for name, (low, _) in self.asked.tune.items()})
        if self.asked.sampler == "grid":
            for point in _grid(self._low_high, self.asked.trials):
                if point not in [params for params, _ in known]:
                    study.enqueue_trial(point)
        alone = self._lr_alone(known)[:left] if session.experiment.tuned_have_defaults else []
        if alone:
            self._train(study, session, watcher, [(params, None) for params in alone])
            left -= len(alone)
        while left > 0:
            batch = []
            for _ in range(min(self.asked.batch, left)):
                trial = study.ask(self.space)
                batch.append(({name: rounded(value) for name, value in trial.params.items()}, trial))
            self._train(study, session, watcher, batch)
            left -= len(batch)
        return [run for _, runs in self.results for run in runs]

    def _stored(self, session: Session) -> list[tuple[dict[str, float], list[Run]]]:
        """Trials that are stored with every seed, and lie in the space searched now."""
        trials: dict[tuple[Any, ...], list[Run]] = {}
        for run in session.found.values():
            params = {"lr": run.lr, **run.params}
            inside = all(
                name in self.space and self._low_high[name][0] <= value <= self._low_high[name][1]
                for name, value in params.items()
            )
            if (
                run.optimizer == self.optimizer.label
                and run.seed < self.seeds
                and inside
                and len(params) in (1, len(self.space))
            ):
                trials.setdefault(tuple(sorted(params.items())), []).append(run)
        whole = [(dict(key), runs) for key, runs in trials.items() if len(runs) == self.seeds][: self.asked.trials]
        session.reused += sum(len(runs) for _, runs in whole)
        return whole

    def _lr_alone(self, known: list[tuple[dict[str, float], list[Run]]]) -> list[dict[str, float]]:
        """LRs to try with the further arguments at their defaults, unless that has been done."""
        if not self.asked.tune or any(len(params) == 1 for params, _ in known):
            return []
        low, high = self._low_high["lr"]
        count = max(2, self.asked.trials // _LR_ALONE)
        return [{"lr": lr} for lr in log_spaced(low, high, count + 2)[1:-1]]

    def _train(
        self, study: Any, session: Session, watcher: _Watcher, batch: list[tuple[dict[str, float], Any]]
    ) -> None:
        specs = []
        for params, trial in batch:
            extra = tuple((name, value) for name, value in params.items() if name != "lr")
            of_trial = [RunSpec(self.optimizer, params["lr"], seed, extra) for seed in range(self.seeds)]
            if trial is not None:
                watcher.leading.add(of_trial[0])
                watcher.trials.update(dict.fromkeys(of_trial, trial))
            specs.append(of_trial)
        runs = {run_key(run): run for run in session.collect([spec for of_trial in specs for spec in of_trial])}
        for (params, trial), of_trial in zip(batch, specs):
            self._add(study, params, [runs[spec.key] for spec in of_trial if spec.key in runs], trial)

    def _add(self, study: Any, params: dict[str, float], runs: list[Run], trial: Any = None) -> None:
        """Tell the study of a trial's end."""
        import optuna

        self.results.append((params, runs))
        value = self._value(runs)
        state = "PRUNED" if any(run.status == "pruned" for run in runs) else "COMPLETE" if value is not None else "FAIL"
        told = None if value is None else -value if self.maximize else value
        if trial is not None:
            study.tell(trial, told if state == "COMPLETE" else None, state=optuna.trial.TrialState[state])
        elif state == "COMPLETE":
            distributions: dict[str, BaseDistribution] = {name: self.space[name] for name in params}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=told))
        self.study = study

    def _value(self, runs: list[Run]) -> float | None:
        """ℓ of a trial, as the figures take it: a diverged run counts as its ℓ0."""
        from momo_cli import figures

        return figures.analyze(runs, maximize=self.maximize).optimizers[0].values[0] if runs else None

    def sentences(self, objective: str) -> list[str]:
        """The best trial, what mattered, and what the LR alone gave."""
        scored = [
            (params, self._value(runs))
            for params, runs in self.results
            if not any(r.status in ("pruned", "failed") for r in runs)
        ]
        known = [(params, value) for params, value in scored if value is not None]
        if not known:
            return [f"{self.optimizer.label}: no trial came to an end."]
        pick = max if self.maximize else min
        params, value = pick(known, key=lambda pair: pair[1])
        shown = ", ".join(f"{name} {number:.4g}" for name, number in params.items())
        lines = [
            f"{self.optimizer.label}: the best of {len(self.results)} trials has {objective} {value:.4g}, at {shown}."
        ]
        if len(self.space) > 1:
            lines += self._importance()
            alone = [pair for pair in known if len(pair[0]) == 1]
            if alone:
                lr, without = pick(alone, key=lambda pair: pair[1])
                lines.append(
                    f"{self.optimizer.label}: the learning rate alone, the other arguments at their defaults, gave "
                    f"{without:.4g} (at lr {lr['lr']:.4g}, the best of {len(alone)} trials)."
                )
        return lines

    def _importance(self) -> list[str]:
        import optuna

        try:
            # fANOVA, Optuna's default, needs scikit-learn; PED-ANOVA (Watanabe et al., IJCAI 2023) doesn't.
            weights = optuna.importance.get_param_importances(
                self.study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), params=list(self.space)
            )
        except (ValueError, RuntimeError):
            return []
        shares = ", ".join(f"{name} {100 * weight:.0f} %" for name, weight in weights.items())
        return [f"{self.optimizer.label}: importance of each argument (PED-ANOVA): {shares}."]
