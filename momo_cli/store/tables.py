"""The trials of a storage, read and written many at a time.

Optuna's own functions read every value of every trial to count them, commit each value that they write, and take some
ten statements to add a trial. In a relational storage, :class:`Relational` therefore reads and adds trials in a few
statements on Optuna's tables, and lets Optuna's functions share a transaction. A trial's state is changed by Optuna's
own functions alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sql
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from momo_cli.store.trials import HOLDER, RUN, Phase, Trial, phase_of

if TYPE_CHECKING:
    import optuna
    from sqlalchemy.engine import Connection

_TABLES = ("studies", "trials", "trial_params", "trial_values", "trial_user_attributes", "trial_intermediate_values")
_MANY = 500  # ids in a statement; databases allow some thousands


class Trials(Protocol):
    """The trials of a storage.

    Attributes:
        locks: Whether what :meth:`transaction` holds is done as one, and by no other process meanwhile.
    """

    locks: bool

    def transaction(self, study: int) -> contextlib.AbstractContextManager[None]:
        """Reading and writing a study's trials in one go."""

    def phases(self, study: int, after: int = -1) -> dict[int, Phase]:
        """The phases of a study's trials whose ids are greater than ``after``, by id, in the order of their making."""

    def read(self, study: int, after: int = -1, only: Collection[int] | None = None, runs: bool = False) -> list[Trial]:
        """A study's trials whose ids are greater than ``after``, or among ``only``; their runs' fields on demand."""

    def counts(self) -> dict[str, tuple[int, int]]:
        """By each study's name, how many of its runs have ended, and how many are open."""

    def add(self, study: int, trials: Sequence[FrozenTrial]) -> None:
        """Add trials to a study."""


class OneByOne:
    """The trials of a storage that isn't relational, by Optuna's own functions."""

    locks = False

    def __init__(self, storage: optuna.storages.BaseStorage) -> None:
        self._storage = storage

    def transaction(self, study: int) -> contextlib.AbstractContextManager[None]:
        """As :meth:`Trials.transaction`."""
        return contextlib.nullcontext()

    def phases(self, study: int, after: int = -1) -> dict[int, Phase]:
        """As :meth:`Trials.phases`."""
        return {
            trial._trial_id: phase_of(trial.state, RUN in trial.user_attrs)
            for trial in self._all(study)
            if trial._trial_id > after
        }

    def read(self, study: int, after: int = -1, only: Collection[int] | None = None, runs: bool = False) -> list[Trial]:
        """As :meth:`Trials.read`."""
        return [
            Trial(trial._trial_id, trial.params, trial.user_attrs.get(RUN), trial.user_attrs.get(HOLDER, ""))
            for trial in self._all(study)
            if (trial._trial_id > after if only is None else trial._trial_id in only)
        ]

    def counts(self) -> dict[str, tuple[int, int]]:
        """As :meth:`Trials.counts`."""
        counted = {}
        for study in self._storage.get_all_studies():
            phases = list(self.phases(self._storage.get_study_id_from_name(study.study_name)).values())
            counted[study.study_name] = phases.count("ended"), phases.count("waiting") + phases.count("running")
        return counted

    def add(self, study: int, trials: Sequence[FrozenTrial]) -> None:
        """As :meth:`Trials.add`."""
        for trial in trials:
            self._storage.create_new_trial(study, trial)

    def _all(self, study: int) -> list[FrozenTrial]:
        return self._storage.get_all_trials(study, deepcopy=False)


class Relational:
    """The trials of a relational storage, by statements on Optuna's tables."""

    locks = True

    def __init__(self, storage: optuna.storages.RDBStorage) -> None:
        self._storage = storage
        self._inside: Connection | None = None
        self._distributions: dict[str, BaseDistribution] = {}
        tables = sql.MetaData()
        tables.reflect(storage.engine, only=_TABLES)
        self._studies, self._trials, self._params, self._values, self._attributes, self._intermediate = (
            tables.tables[name] for name in _TABLES
        )
        for column in itertools.chain.from_iterable(table.columns for table in tables.tables.values()):
            if hasattr(column.type, "asdecimal"):  # MySQL's, which then would round to ten digits
                column.type.asdecimal = False

    @contextlib.contextmanager
    def transaction(self, study: int) -> Iterator[None]:
        """As :meth:`Trials.transaction`: what Optuna's functions write in here is committed at its end, in one."""
        self._storage.remove_session()
        with self._storage.engine.connect() as connection, connection.begin():
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:  # the row that Optuna locks, too, when it makes a trial
                row = sql.select(self._studies.c.study_id).where(self._studies.c.study_id == study)
                connection.execute(row.with_for_update())
            # Each of Optuna's functions asks for its thread's session, and commits it; in this one, that does nothing.
            self._storage.scoped_session(bind=connection, join_transaction_mode="rollback_only")
            self._inside = connection
            try:
                yield
            finally:
                self._inside = None
                self._storage.remove_session()

    def phases(self, study: int, after: int = -1) -> dict[int, Phase]:
        """As :meth:`Trials.phases`."""
        trials, attributes = self._trials, self._attributes
        has_run = sql.and_(attributes.c.trial_id == trials.c.trial_id, attributes.c.key == RUN)
        query = (
            sql.select(trials.c.trial_id, trials.c.state, attributes.c.trial_id.is_not(None))
            .select_from(trials.outerjoin(attributes, has_run))
            .where(trials.c.study_id == study, trials.c.trial_id > after)
            .order_by(trials.c.trial_id)
        )
        return {trial: phase_of(_state(state), has) for trial, state, has in self._rows(query)}

    def read(self, study: int, after: int = -1, only: Collection[int] | None = None, runs: bool = False) -> list[Trial]:
        """As :meth:`Trials.read`."""
        if only is not None:
            after = min(only, default=0) - 1
        trials, params, attributes = self._trials, self._params, self._attributes
        chosen = sql.and_(trials.c.study_id == study, trials.c.trial_id > after)
        if only is not None and len(only) <= _MANY:
            chosen = sql.and_(chosen, trials.c.trial_id.in_(only))
        found: dict[int, dict[str, Any]] = {}
        for (trial,) in self._rows(sql.select(trials.c.trial_id).where(chosen).order_by(trials.c.trial_id)):
            if only is None or trial in only:
                found[trial] = {}
        named = sql.select(params.c.trial_id, params.c.param_name, params.c.param_value, params.c.distribution_json)
        for trial, name, value, text in self._rows(named.join(trials).where(chosen).order_by(params.c.param_id)):
            if trial in found:
                found[trial][name] = self._distribution(text).to_external_repr(value)
        wanted = attributes.c.key.in_([RUN, HOLDER] if runs else [HOLDER])
        notes = sql.select(attributes.c.trial_id, attributes.c.key, attributes.c.value_json)
        noted: dict[tuple[int, str], Any] = {}
        for trial, key, text in self._rows(notes.join(trials).where(chosen, wanted)):
            if trial in found:
                noted[trial, key] = json.loads(text)
        return [
            Trial(trial, by_name, noted.get((trial, RUN)), noted.get((trial, HOLDER), ""))
            for trial, by_name in found.items()
        ]

    def counts(self) -> dict[str, tuple[int, int]]:
        """As :meth:`Trials.counts`."""
        studies, trials, attributes = self._studies, self._trials, self._attributes
        ended = (
            sql.select(trials.c.study_id, sql.func.count())
            .join(attributes, attributes.c.trial_id == trials.c.trial_id)
            .where(attributes.c.key == RUN)
            .group_by(trials.c.study_id)
        )
        waiting = (
            sql.select(trials.c.study_id, sql.func.count())
            .where(trials.c.state.in_([TrialState.WAITING.name, TrialState.RUNNING.name]))
            .group_by(trials.c.study_id)
        )
        runs, opened = dict(self._rows(ended)), dict(self._rows(waiting))
        names = self._rows(sql.select(studies.c.study_id, studies.c.study_name))
        return {name: (runs.get(study, 0), opened.get(study, 0)) for study, name in names}

    def add(self, study: int, trials: Sequence[FrozenTrial]) -> None:
        """As :meth:`Trials.add`; within a :meth:`transaction`, which makes the numbers of the trials its own."""
        assert self._inside is not None
        ours = self._trials.c.study_id == study
        (count,) = self._inside.execute(sql.select(sql.func.count()).where(ours)).one()
        self._insert(
            self._trials,
            [
                {
                    "number": count + i,
                    "study_id": study,
                    "state": trial.state.name,
                    "datetime_start": trial.datetime_start,
                    "datetime_complete": trial.datetime_complete,
                }
                for i, trial in enumerate(trials)
            ],
        )
        query = sql.select(self._trials.c.trial_id).where(ours, self._trials.c.number >= count)
        ids = [trial for (trial,) in self._rows(query.order_by(self._trials.c.number))]
        pairs = list(zip(ids, trials))
        texts: dict[int, str] = {}

        def text_of(distribution: BaseDistribution) -> str:
            if id(distribution) not in texts:
                texts[id(distribution)] = distribution_to_json(distribution)
            return texts[id(distribution)]

        self._insert(
            self._params,
            [
                {
                    "trial_id": trial_id,
                    "param_name": name,
                    "param_value": trial.distributions[name].to_internal_repr(value),
                    "distribution_json": text_of(trial.distributions[name]),
                }
                for trial_id, trial in pairs
                for name, value in trial.params.items()
            ],
        )
        self._insert(
            self._values,
            [
                {"trial_id": trial_id, "objective": 0, "value": trial.value, "value_type": "FINITE"}
                for trial_id, trial in pairs
                if trial.value is not None
            ],
        )
        self._insert(
            self._attributes,
            [
                {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
                for trial_id, trial in pairs
                for key, value in trial.user_attrs.items()
            ],
        )
        self._insert(
            self._intermediate,
            [
                {
                    "trial_id": trial_id,
                    "step": step,
                    "intermediate_value": value,
                    "intermediate_value_type": "FINITE",
                }
                for trial_id, trial in pairs
                for step, value in trial.intermediate_values.items()
                if abs(value) < float("inf")
            ],
        )

    def _insert(self, table: sql.Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            assert self._inside is not None
            self._inside.execute(sql.insert(table), rows)

    def _rows(self, query: sql.Executable) -> list[Any]:
        if self._inside is not None:
            return list(self._inside.execute(query))
        with self._storage.engine.connect() as connection:
            return list(connection.execute(query))

    def _distribution(self, text: str) -> BaseDistribution:
        if text not in self._distributions:
            self._distributions[text] = json_to_distribution(text)
        return self._distributions[text]


def _state(stored: Any) -> TrialState:
    return TrialState[stored if isinstance(stored, str) else stored.name]
