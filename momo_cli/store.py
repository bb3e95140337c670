"""The store: one Optuna study for each task and settings, one trial for each run.

Optuna keeps the runs, so that its dashboard, its Python API and this command read the same thing. A study's name ends in
a digest of its *key*: everything that changes a result. The same command finds the same study, reuses its runs and adds
what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import queue
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momo_cli.errors import UserError, did_you_mean
from momo_cli.plan.grid import run_key
from momo_cli.plan.optimizers import KNOWN
from momo_cli.runs import Run

if TYPE_CHECKING:
    import optuna

DEFAULT_URL = "sqlite:///momo.db"
_KEY, _RUN = "momo:key", "momo:run"
_LR_LOW, _LR_HIGH = 1e-12, 1e12


@dataclasses.dataclass(frozen=True)
class StudyInfo:
    """A stored study: its name, key, the objective's resolved name, and how much is in it."""

    name: str
    key: dict[str, Any]
    objective: str
    runs: int
    latest: str

    @property
    def study(self) -> str:
        """The name without the ``+2`` of a continuation."""
        return re.sub(r"\+\d+$", "", self.name)

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.key["task"])

    @property
    def maximize(self) -> bool:
        """Whether larger values of the objective are better."""
        return bool(self.key["settings"]["maximize"])


class Store:
    """An Optuna storage, opened.

    Args:
        url: Optuna's storage URL, or the name of a SQLite file ending in ``.db``. A SQLite file comes into being with the first run that is stored.

    Raises:
        UserError: The storage can't be opened.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        if "://" not in url and Path(url).suffix in (".db", ".sqlite", ".sqlite3"):
            url = f"sqlite:///{url}"
        self.url = url
        file = self._sqlite_file()
        if file is not None and not file.absolute().parent.is_dir():
            raise UserError(f"--storage {url}: there is no folder {str(file.parent)!r}.")
        self._storage: optuna.storages.BaseStorage | None = None

    def exists(self) -> bool:
        """False for a SQLite file that isn't there yet."""
        file = self._sqlite_file()
        return file is None or file.exists()

    def studies(self) -> list[StudyInfo]:
        """Every study of this command's, the latest used last; runs in a study's continuations are counted with it."""
        found: dict[str, StudyInfo] = {}
        for info in sorted(self._all_studies(), key=lambda info: len(info.name)):
            first = found.get(info.study)
            found[info.study] = dataclasses.replace(first, runs=first.runs + info.runs) if first else info
        return sorted(found.values(), key=lambda info: info.latest)

    def _all_studies(self) -> list[StudyInfo]:
        if not self.exists():
            return []
        import optuna

        found = []
        for study in self._guarded(lambda: optuna.get_all_study_summaries(self._opened(), include_best_trial=False)):
            key = study.user_attrs.get(_KEY)
            if key is None:
                continue
            found.append(
                StudyInfo(study.study_name, key, study.user_attrs.get("objective", ""), study.n_trials,
                          study.user_attrs.get("latest", ""))
            )
        return found

    def open(self, key: dict[str, Any], name: str | None = None) -> StoredRuns:
        """The runs of ``key``, for reading and adding.

        Args:
            key: Everything that changes a result.
            name: The study's name; by default the task's with a digest of the key.

        Raises:
            UserError: A study of that name holds runs of other settings.
        """
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:8]
        chosen = name or f"{key['task']}-{digest}"
        key = json.loads(json.dumps(key, default=str))
        same = [info for info in self.studies() if info.name == chosen]
        if same and same[0].key != key:
            raise UserError(
                f"--study {chosen} holds runs of other settings: {_difference(same[0].key, key)}.\n"
                "Give another name, or leave --study out: each settings then has a study of its own."
            )
        if name and not same and self.exists() and name in self._names():
            raise UserError(f"--study {name} exists in {self.url} and isn't this command's.\nGive another name.")
        return StoredRuns(self, chosen, key)

    def read(self, name: str) -> StoredRuns:
        """The runs of the study called ``name``.

        Raises:
            UserError: There is none.
        """
        studies = {info.name: info for info in self.studies()}
        if name not in studies:
            known = f"It has {', '.join(list(studies)[-5:])}." if studies else "It has none yet: run momo sweep TASK."
            raise UserError(f"There is no study {name!r} in {self.url}.{did_you_mean(name, list(studies))}\n{known}")
        return StoredRuns(self, name, studies[name].key)

    def _names(self) -> list[str]:
        import optuna

        return self._guarded(lambda: optuna.get_all_study_names(self._opened()))

    def _opened(self) -> optuna.storages.BaseStorage:
        if self._storage is None:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self._storage = self._guarded(lambda: optuna.storages.get_storage(self.url))
        return self._storage

    def _guarded(self, act: Any) -> Any:
        import logging

        # Alembic tells every step of making a new database's tables at level INFO; Optuna's own logger is set above.
        logging.getLogger("alembic").setLevel(logging.ERROR)
        try:
            return act()
        except UserError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"--storage {self.url} can't be used: {reason}\nGive a storage URL of Optuna's, for instance {DEFAULT_URL}."
            ) from None

    def _sqlite_file(self) -> Path | None:
        prefix = "sqlite:///"
        return Path(self.url[len(prefix) :].partition("?")[0]) if self.url.startswith(prefix) else None


class StoredRuns:
    """The runs of one key: read at once, added to by a thread, so that storing never holds up training.

    Use it as a context manager around training: leaving it waits until every run given to :meth:`add` is stored.
    """

    def __init__(self, store: Store, name: str, key: dict[str, Any]) -> None:
        self.store, self.name, self.key = store, name, key
        self._queue: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._studies: list[optuna.Study] | None = None
        self._objective = ""

    @property
    def objective(self) -> str:
        """The objective's name as the runs that are stored resolved it; empty before the first."""
        return next((info.objective for info in self.store.studies() if info.name == self.name), "") or self._objective

    def runs(self) -> list[Run]:
        """Every stored run; of equal ones the newest."""
        found: dict[tuple[object, ...], Run] = {}
        for study in self._opened(create=False):
            for trial in self.store._guarded(lambda: study.get_trials(deepcopy=False)):  # noqa: B023
                if _RUN in trial.user_attrs:
                    run = _run_of(trial)
                    key = run_key(run)
                    found.pop(key, None)
                    found[key] = run
        return list(found.values())

    def start(self, optimizers: list[str], objective: str) -> None:
        """Make the study, if it is new, for runs of ``optimizers``; :meth:`add` may be called from here on.

        Raises:
            UserError: The storage refuses.
        """
        import datetime

        self._objective = objective
        for study in self._opened(create=True, optimizers=optimizers)[:1]:
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
            self.store._guarded(lambda: (study.set_user_attr("objective", objective), study.set_user_attr("latest", now)))
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._write, name="momo-store", daemon=True)
        self._thread.start()

    def add(self, run: Run) -> None:
        """Store ``run``; returns at once."""
        self._queue.put(run)

    def __enter__(self) -> StoredRuns:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
            if self._error is not None and exception[0] is None:
                raise UserError(f"--storage {self.store.url} failed while runs were stored: {self._error}", code=1)

    def _write(self) -> None:
        while (run := self._queue.get()) is not None:
            try:
                study = self._study_for(run.optimizer)
                study.add_trial(_trial_of(run, study.user_attrs["optimizers"]))
            except Exception as error:  # the other runs may still be stored
                self._error = self._error or error

    def _study_for(self, optimizer: str) -> optuna.Study:
        assert self._studies
        return next(s for s in self._studies if optimizer in s.user_attrs["optimizers"])

    def _opened(self, create: bool, optimizers: list[str] | None = None) -> list[optuna.Study]:
        """The study and, where optimizers came later that its ``optimizer`` parameter can't take, its continuations.

        A relational store allows one set of choices for a categorical parameter in a study, once and for all. The first
        study therefore offers every optimizer with a name of its own besides those asked for, and others that come
        later go to a study whose name ends in +2, +3, ….
        """
        if self._studies is None:
            if not create and not self.store.exists():
                return []
            names = [info.name for info in self.store._all_studies() if info.study == self.name]
            self._studies = [self._load(name) for name in sorted(names, key=lambda name: (len(name), name))]
        if create:
            offered = {label for study in self._studies for label in study.user_attrs["optimizers"]}
            new = [label for label in optimizers or [] if label not in offered]
            if not self._studies:
                self._studies.append(self._create(self.name, list(dict.fromkeys([*KNOWN, *new]))))
            elif new:
                self._studies.append(self._create(f"{self.name}+{len(self._studies) + 1}", new))
        return self._studies

    def _load(self, name: str) -> optuna.Study:
        import optuna

        return self.store._guarded(lambda: optuna.load_study(study_name=name, storage=self.store._opened()))

    def _create(self, name: str, optimizers: list[str]) -> optuna.Study:
        import optuna

        def create() -> optuna.Study:
            direction = "maximize" if self.key["settings"]["maximize"] else "minimize"
            study = optuna.create_study(
                study_name=name, storage=self.store._opened(), direction=direction, load_if_exists=True
            )
            study.set_user_attr("optimizers", optimizers)
            study.set_user_attr(_KEY, self.key)
            return study

        return self.store._guarded(create)


def study_key(
    task: str, source: str, arguments: dict[str, Any], settings: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Everything that changes a run's result.

    Args:
        task: The task's name, or an imported file's.
        source: The digest of its source file, or of the imported one.
        arguments: ``--set``, or how a file was read.
        settings: From :meth:`momo_cli.plan.Settings.key`.
        more: ``imported=True``; ``search``, how an Optuna study samples. None is left out.
    """
    given = {name: value for name, value in more.items() if value is not None}
    return {"task": task, "source": source, "set": arguments, "settings": settings, **given}


def _trial_of(run: Run, optimizers: list[str]) -> optuna.trial.FrozenTrial:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    states = {"ok": "COMPLETE", "diverged": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}
    # A diverged run counts as its ℓ0, in Optuna's own views too; one without a finite ℓ0 has no value to show.
    value = run.objective if run.status == "ok" else run.initial
    complete = states[run.status] == "COMPLETE" and value is not None and math.isfinite(value)
    state = states[run.status] if complete or run.status in ("failed", "pruned") else "FAIL"
    fields = dataclasses.asdict(run)
    for name in ("optimizer", "lr", "seed", "curve", "params"):
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
        intermediate_values={int(step): loss for step, loss in run.curve},
        user_attrs={"status": run.status, _RUN: _finite(fields)},
    )


def _run_of(trial: optuna.trial.FrozenTrial) -> Run:
    params = dict(trial.params)
    return Run(
        optimizer=params.pop("optimizer"),
        lr=params.pop("lr"),
        seed=params.pop("seed"),
        params=params,
        curve=[[step, value] for step, value in sorted(trial.intermediate_values.items())],
        **trial.user_attrs[_RUN],
    )


def _finite(value: Any) -> Any:
    """``value`` with None for non-finite numbers, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value


def _difference(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    flat = [{**key, **key.get("settings", {})} for key in (stored, asked)]
    differing = [name for name in flat[1] if name != "settings" and flat[0].get(name) != flat[1][name]]
    return ", ".join(f"{name} {flat[0].get(name)!r}, not {flat[1][name]!r}" for name in differing) or "an older version's"
