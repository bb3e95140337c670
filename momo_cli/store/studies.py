"""The Optuna studies that hold the runs of one key: the first, and its continuations."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from momo_cli.plan.optimizers import KNOWN
from momo_cli.store.storage import KEY, Storage

if TYPE_CHECKING:
    import optuna


class Studies:
    """The studies of one key, opened when they are first needed.

    A relational store allows one set of choices for a categorical parameter in a study, once and for all. The first
    study therefore offers every optimizer with a name of its own besides those asked for, and others that come
    later go to a study whose name ends in +2, +3, ….
    """

    def __init__(self, storage: Storage, name: str, key: dict[str, Any]) -> None:
        self.storage, self.name, self.key = storage, name, key
        self._opened: list[optuna.Study] | None = None

    def found(self) -> list[optuna.Study]:
        """Those that are there; a SQLite file is not made for it.

        Raises:
            UserError: The storage refuses.
        """
        if self._opened is None:
            if not self.storage.exists():
                return []
            names = [info.name for info in self.storage.every_study() if info.study == self.name]
            self._opened = [self._load(name) for name in sorted(names, key=lambda name: (len(name), name))]
        return self._opened

    def start(self, optimizers: list[str], objective: str) -> None:
        """Make what is missing for runs of ``optimizers``, and note ``objective`` and the time.

        Raises:
            UserError: The storage refuses.
        """
        self._opened = self.found()
        while True:  # another command may have made the study meanwhile, for other optimizers
            offered = {label for study in self._opened for label in study.user_attrs["optimizers"]}
            new = [label for label in optimizers if label not in offered]
            if not self._opened:
                self._opened.append(self._create(self.name, list(dict.fromkeys([*KNOWN, *new]))))
            elif new:
                self._opened.append(self._create(f"{self.name}+{len(self._opened) + 1}", new))
            else:
                break
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        first = self._opened[0]
        self.storage.guarded(lambda: (first.set_user_attr("objective", objective), first.set_user_attr("latest", now)))

    def of(self, optimizer: str) -> optuna.Study:
        """The study whose ``optimizer`` parameter can take ``optimizer``, which :meth:`start` was told of."""
        return next(study for study in self.found() if optimizer in study.user_attrs["optimizers"])

    def _load(self, name: str) -> optuna.Study:
        import optuna

        return self.storage.guarded(lambda: optuna.load_study(study_name=name, storage=self.storage.opened()))

    def _create(self, name: str, optimizers: list[str]) -> optuna.Study:
        import optuna

        def create() -> optuna.Study:
            direction = "maximize" if self.key["settings"]["maximize"] else "minimize"
            study = optuna.create_study(
                study_name=name, storage=self.storage.opened(), direction=direction, load_if_exists=True
            )
            if "optimizers" not in study.user_attrs:
                study.set_user_attr("optimizers", optimizers)
            study.set_user_attr(KEY, self.key)
            return study

        return self.storage.guarded(create)
