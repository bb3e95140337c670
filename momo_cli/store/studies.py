"""The Optuna studies that hold the runs of one key: the first, and its continuations."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from typing import Any

from momo_cli.errors import UserError
from momo_cli.plan.optimizers import KNOWN
from momo_cli.store.storage import KEY, Storage

BEFORE = "momo:train_loss before"


@dataclasses.dataclass(frozen=True)
class Study:
    """A study of Optuna's: its name, its id in the storage, and the optimizers that its trials can be of."""

    name: str
    id: int
    optimizers: list[str]


class Studies:
    """The studies of one key.

    A relational store allows one set of choices for a categorical parameter in a study, once and for all. The first
    study therefore offers every optimizer with a name of its own besides those asked for, and others that come
    later go to a study whose name ends in +2, +3, ….
    """

    def __init__(self, storage: Storage, name: str, key: dict[str, Any]) -> None:
        self.storage, self.name, self.key = storage, name, key
        self._known: list[Study] = []

    def found(self) -> list[Study]:
        """Those that are there; a file is not made for it.

        Raises:
            UserError: The storage refuses.
        """
        if not self._known:
            names = [info.name for info in self.storage.every_study() if info.study == self.name]
            self._known = [self._load(name) for name in sorted(names, key=lambda name: (len(name), name))]
        return self._known

    def start(self, optimizers: list[str], objective: str, maximize: bool) -> None:
        """Make what is missing for runs of ``optimizers``, and note what was asked and the time.

        Raises:
            UserError: The storage refuses.
        """
        self._known = []
        known = self.found()
        while True:  # another command may have made the study meanwhile, for other optimizers
            offered = {label for study in known for label in study.optimizers}
            new = [label for label in optimizers if label not in offered]
            if not known:
                known.append(self._create(self.name, list(dict.fromkeys([*KNOWN, *new]))))
            elif new:
                known.append(self._create(f"{self.name}+{len(known) + 1}", new))
            else:
                break
        self._known = known
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        storage = self.storage.opened()
        for name, value in (("objective", objective), ("maximize", maximize), ("latest", now)):
            storage.set_study_user_attr(known[0].id, name, value)

    def note(self, attributes: dict[str, Any]) -> None:
        """Keep attributes of the study; where the storage fails it goes without them."""
        with contextlib.suppress(UserError):
            for study in self.found()[:1]:
                for name, value in attributes.items():
                    self.storage.guarded(lambda: self.storage.opened().set_study_user_attr(study.id, name, value))  # noqa: B023

    def noted(self, name: str) -> dict[str, Any]:
        """A dictionary that :meth:`note` has kept."""
        attributes = [self.storage.opened().get_study_user_attrs(study.id) for study in self.found()[:1]]
        kept = attributes[0].get(name) if attributes else None
        return kept if isinstance(kept, dict) else {}

    def of(self, optimizer: str) -> Study:
        """The study whose ``optimizer`` parameter can take ``optimizer``, which :meth:`start` was told of."""
        return next(study for study in self.found() if optimizer in study.optimizers)

    def _load(self, name: str) -> Study:
        storage = self.storage.opened()
        study = storage.get_study_id_from_name(name)
        return Study(name, study, storage.get_study_user_attrs(study)["optimizers"])

    def _create(self, name: str, optimizers: list[str]) -> Study:
        import optuna

        storage = self.storage.opened()
        direction = "maximize" if self.key["settings"]["maximize"] else "minimize"
        optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)  # type: ignore[arg-type]
        study = storage.get_study_id_from_name(name)
        with self.storage.trials.transaction(study):
            if "optimizers" not in storage.get_study_user_attrs(study):
                storage.set_study_user_attr(study, "optimizers", optimizers)
                storage.set_study_user_attr(study, KEY, self.key)
        return self._load(name)
