"""Which runs are this process's to do, through the states of Optuna's trials: waiting, running, ended.

Any number of processes do the runs of one key. Whoever needs a run adds a waiting trial for it, unless there is one;
sets it running to do it, which the storage grants to one process alone; and ends it with the run's result. Of several
trials for a run, which processes that begin at once may add where a storage has no transactions, the first counts.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence

import optuna
from optuna.trial import TrialState

from momo_cli.plan.grid import run_key
from momo_cli.runs import Run
from momo_cli.store import holder
from momo_cli.store.storage import Storage
from momo_cli.store.studies import Studies, Study
from momo_cli.store.trials import HOLDER, Phase, ended_trial, outcome_of, waiting_trial

Key = tuple[object, ...]


class Claims:
    """The runs of one key that this process does, and what becomes of the others.

    Runs are asked for as :class:`Run` without a result. Every method raises what the storage raises.

    Args:
        storage: Used by this object alone.
        name: As for :class:`Studies`.
        key: As for :class:`Studies`.
    """

    def __init__(self, storage: Storage, name: str, key: dict[str, object]) -> None:
        self.storage = storage
        self._studies = Studies(storage, name, key)
        self._seen: frozenset[int] = frozenset()
        self._boards: dict[int, _Board] = {}
        self._held: dict[Key, _Board] = {}
        self._freed = 0.0

    def start(self, optimizers: list[str], objective: str, maximize: bool, seen: frozenset[int]) -> None:
        """Make the studies, where they are new, for runs of ``optimizers``.

        Args:
            optimizers: The labels of all that may come.
            objective: The objective's resolved name.
            maximize: Whether larger values of it are better.
            seen: The ids of trials whose runs are known already; these neither count nor are looked at again.
        """
        if not self.storage.exists():  # or not any more: what is known of a deleted file's trials is void
            self.storage.close()
            self._boards.clear()
            self._held.clear()
        self._seen = seen
        self._studies.start(optimizers, objective, maximize)

    def open(self, asked: Sequence[Run]) -> None:
        """See to it that there is a trial for each run, for any process to take."""
        for board, runs in self._by_study(asked):
            with self._changing(board):
                self._open(board, runs)
            if not self.storage.trials.locks:
                board.refresh()
                for run in runs:
                    for superfluous in board.open_trials(run_key(run))[1:]:
                        self._set(superfluous, TrialState.FAIL)

    def take(self, asked: Sequence[Run], most: int) -> list[Key]:
        """Take up to ``most`` of these runs; returns the keys of those that this process now holds."""
        taken: list[Key] = []
        for board, runs in self._by_study(asked):
            if len(taken) >= most:
                break
            with self._changing(board):
                self._open(board, runs)
                for run in runs:
                    key = run_key(run)
                    trial, phase = board.current(key)
                    if len(taken) < most and phase == "waiting" and self._set(trial, TrialState.RUNNING):
                        self._hold(board, key, trial)
                        taken.append(key)
        return taken

    def look(self, asked: Sequence[Run]) -> tuple[list[Run], list[Key], str]:
        """What has become of runs that others hold.

        Returns:
            The runs that have ended, the keys of those that nobody holds, and who holds one of the rest.
        """
        ended: list[Run] = []
        free: list[Key] = []
        who = ""
        for board, runs in self._by_study(asked):
            board.refresh()
            keys = [run_key(run) for run in runs]
            running = [board.current(key)[0] for key in keys if board.current(key)[1] == "running"]
            theirs = [trial for trial in running if trial not in self._held_trials()]
            if theirs:
                who = self._free_the_dead(board, theirs) or who
                board.refresh()
            known = {trial: key for key in keys for trial, phase in [board.current(key)] if phase == "ended"}
            for stored in self.storage.trials.read(board.study.id, only=known, runs=True) if known else []:
                run = stored.as_run()
                ended += [run] if run is not None else []
            free += [key for key in keys if board.current(key)[1] in ("waiting", "void")]
        return ended, free, who

    def end(self, run: Run) -> None:
        """Store what a run came to, unless another process's result of it is stored."""
        key = run_key(run)
        board = self._board(self._studies.of(run.optimizer))
        with self._changing(board):
            trial, phase = board.current(key)
            if phase == "void":
                self._add(board, [ended_trial(run, board.study.optimizers)])
            elif phase != "ended":
                self._end(trial, run)
        self._held.pop(key, None)

    def add(self, runs: Sequence[Run]) -> None:
        """Store many runs that have ended, in one go."""
        for board, ended in self._by_study(runs):
            with self._changing(board):
                self._add(
                    board,
                    [
                        ended_trial(run, board.study.optimizers)
                        for run in ended
                        if board.current(run_key(run))[1] == "void"
                    ],
                )
                for run in ended:
                    trial, phase = board.current(run_key(run))
                    if phase in ("waiting", "running"):
                        self._end(trial, run)

    def give_back(self) -> None:
        """Let others have what this process holds and has not ended."""
        for board in set(self._held.values()):
            with self._changing(board):
                for key in [key for key, where in self._held.items() if where is board]:
                    trial, phase = board.current(key)
                    if phase == "running":
                        self._set(trial, TrialState.WAITING)
        self._held.clear()

    def beat(self) -> None:
        """Send a heartbeat for every run that is held, where the storage takes them."""
        if not self.storage.has_heartbeats:
            return
        for board in set(self._held.values()):
            with self.storage.trials.transaction(board.study.id):
                for key, where in self._held.items():
                    if where is board:
                        self._beat(board.current(key)[0])

    def _by_study(self, runs: Iterable[Run]) -> Iterator[tuple[_Board, list[Run]]]:
        by_name: dict[str, tuple[Study, list[Run]]] = {}
        for run in runs:
            study = self._studies.of(run.optimizer)
            by_name.setdefault(study.name, (study, []))[1].append(run)
        for study, members in by_name.values():
            yield self._board(study), members

    def _board(self, study: Study) -> _Board:
        if study.id not in self._boards:
            self._boards[study.id] = _Board(self.storage, study, self._seen)
        return self._boards[study.id]

    @contextlib.contextmanager
    def _changing(self, board: _Board) -> Iterator[None]:
        with self.storage.trials.transaction(board.study.id):
            board.refresh()
            yield

    def _open(self, board: _Board, runs: Sequence[Run]) -> None:
        missing = [run for run in runs if board.current(run_key(run))[1] == "void"]
        if missing:
            self._add(board, [waiting_trial(run, board.study.optimizers) for run in missing])
            board.refresh()

    def _add(self, board: _Board, trials: list[optuna.trial.FrozenTrial]) -> None:
        if trials:
            self.storage.trials.add(board.study.id, trials)

    def _hold(self, board: _Board, key: Key, trial: int) -> None:
        self.storage.opened().set_trial_user_attr(trial, HOLDER, holder.this_process())
        self._beat(trial)
        self._held[key] = board

    def _beat(self, trial: int) -> None:
        storage = self.storage.opened()
        if isinstance(storage, optuna.storages.RDBStorage):
            storage.record_heartbeat(trial)

    def _end(self, trial: int, run: Run) -> None:
        storage, outcome = self.storage.opened(), outcome_of(run)
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process has ended it
            for name, value in outcome.attributes.items():
                storage.set_trial_user_attr(trial, name, value)
            for step, loss in outcome.intermediate_values.items():
                storage.set_trial_intermediate_value(trial, step, loss)
            storage.set_trial_state_values(trial, outcome.state, None if outcome.value is None else [outcome.value])

    def _set(self, trial: int, state: TrialState) -> bool:
        try:
            return self.storage.opened().set_trial_state_values(trial, state)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _held_trials(self) -> set[int]:
        return {board.current(key)[0] for key, board in self._held.items()}

    def _free_the_dead(self, board: _Board, running: list[int]) -> str:
        """End the trials of processes that are known to have died; returns who holds one of the others."""
        trials = self.storage.trials.read(board.study.id, only=running)
        dead = [trial.id for trial in trials if holder.is_gone(trial.holder)]
        if dead:
            with self._changing(board):
                for trial in dead:
                    if board.phases.get(trial) == "running":
                        self._set(trial, TrialState.FAIL)
        if self.storage.has_heartbeats and time.monotonic() - self._freed > self.storage.heartbeat:
            self._freed = time.monotonic()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study = optuna.load_study(study_name=board.study.name, storage=self.storage.opened())
                optuna.storages.fail_stale_trials(study)
        return next((holder.where(trial.holder) for trial in trials if trial.id not in dead), "")


class _Board:
    """What is known of a study's trials, but for those that were seen before."""

    def __init__(self, storage: Storage, study: Study, seen: frozenset[int]) -> None:
        self.study = study
        self.phases: dict[int, Phase] = {}
        self._storage, self._seen = storage, seen
        self._by_key: dict[Key | None, list[int]] = {}
        self._settled = -1  # this trial and all before it don't change any more

    def refresh(self) -> None:
        """Read what has changed."""
        trials = self._storage.trials
        now = trials.phases(self.study.id, self._settled)
        new = [trial for trial in now if trial not in self.phases and trial not in self._seen]
        if new:
            for trial in trials.read(self.study.id, only=new):
                self._by_key.setdefault(trial.key, []).append(trial.id)
        self.phases.update(now)
        unsettled = [trial for trial, phase in now.items() if phase in ("waiting", "running")]
        self._settled = min(unsettled, default=max(now, default=self._settled) + 1) - 1

    def current(self, key: Key) -> tuple[int, Phase]:
        """The trial that stands for a run, and its phase; ``void`` where there is none."""
        for trial in self._by_key.get(key, ()):
            if self.phases[trial] != "void":
                return trial, self.phases[trial]
        return -1, "void"

    def open_trials(self, key: Key) -> list[int]:
        """Every trial of a run that waits or is running, the first one first."""
        return [trial for trial in self._by_key.get(key, ()) if self.phases[trial] in ("waiting", "running")]
