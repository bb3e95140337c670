"""The store as the rest of the command sees it: the runs of a task and its settings, found by their key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from momo_cli.errors import UserError, did_you_mean, printable
from momo_cli.plan.grid import run_key
from momo_cli.store.storage import DEFAULT_URL, GRACE, Storage, StudyInfo, texts
from momo_cli.store.stored_runs import StoredRuns
from momo_cli.store.unstored import Unstored


class Store:
    """The runs in an Optuna storage.

    Args:
        url: As for :class:`momo_cli.store.storage.Storage`.
        grace: As for :class:`momo_cli.store.storage.Storage`.

    Raises:
        UserError: Its folder isn't there.
    """

    def __init__(self, url: str = DEFAULT_URL, grace: int = GRACE) -> None:
        self._storage = Storage(url, grace)

    @property
    def url(self) -> str:
        """The storage's URL as it may be shown: without a password."""
        return self._storage.shown

    @property
    def folder(self) -> Path:
        """Where files that belong to the runs are kept: beside the storage."""
        return self._storage.folder

    @property
    def has_heartbeats(self) -> bool:
        """Whether runs of a process that died go to others while these are running."""
        return self._storage.has_heartbeats

    def studies(self) -> list[StudyInfo]:
        """Every study of this command's, the latest used last; runs in a study's continuations are counted with it."""
        found: dict[str, StudyInfo] = {}
        for info in sorted(self._storage.every_study(), key=lambda info: len(info.name)):
            first = found.get(info.study)
            both = first and dataclasses.replace(first, runs=first.runs + info.runs, open=first.open + info.open)
            found[info.study] = both or info
        return sorted(found.values(), key=lambda info: info.latest)

    def unreadable(self) -> list[str]:
        """The names of studies that are this command's and can't be read."""
        return self._storage.unreadable()

    def open(self, key: dict[str, Any], name: str | None = None) -> StoredRuns:
        """The runs of ``key``, for reading and adding.

        Args:
            key: Everything that changes a result, from :func:`study_key`.
            name: The study's name; by default the task's with a digest of the key.

        Raises:
            UserError: A study of that name holds runs of other settings.
        """
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
        chosen = name or f"{key['task']}-{digest}"
        same = [info for info in self.studies() if info.name == chosen]
        if same and same[0].key != key:
            raise UserError(
                f"--study {chosen} holds runs of other settings: {_difference(same[0].key, key)}.\n"
                "Give another name, or leave --study out: each settings then has a study of its own."
            )
        if name and not same and self._storage.exists() and name in self._storage.names():
            raise UserError(f"--study {name} exists in {self.url} and isn't this command's.\nGive another name.")
        return StoredRuns(self._storage, chosen, key)

    def read(self, name: str) -> StoredRuns:
        """The runs of the study called ``name``.

        Raises:
            UserError: There is none.
        """
        studies = {info.name: info for info in self.studies()}
        if name not in studies:
            known = f"It has {', '.join(list(studies)[-5:])}." if studies else "It has none yet: run momo sweep TASK."
            raise UserError(f"There is no study {name!r} in {self.url}.{did_you_mean(name, list(studies))}\n{known}")
        return StoredRuns(self._storage, name, studies[name].key)

    def restore(self, unstored: Unstored) -> StoredRuns:
        """Store runs that could not be stored before, where they aren't meanwhile.

        Raises:
            UserError: The storage refuses.
        """
        with self.open(unstored.key, unstored.name) as stored:
            known = {run_key(run) for run in stored.runs() if run.status != "failed"}
            maximize = [info.maximize for info in self.studies() if info.name == stored.name]
            labels = list(dict.fromkeys(run.optimizer for run in unstored.runs))
            stored.start(labels, unstored.objective, any(maximize) or bool(unstored.key["settings"]["maximize"]))
            stored.add_all([run for run in unstored.runs if run_key(run) not in known])
        return stored


def study_key(
    task: str, source: str, arguments: dict[str, Any], settings: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Everything that changes a run's result, in JSON's own types.

    Args:
        task: The task's name, or an imported file's.
        source: The digest of its source file, or of the imported one.
        arguments: ``--set``, or how a file was read.
        settings: From :meth:`momo_cli.plan.Settings.key`.
        more: ``imported=True``; ``search``, how an Optuna study samples. None is left out.
    """
    given = {name: value for name, value in more.items() if value is not None}
    values = {name: _in_json(value) for name, value in arguments.items()}
    key = {"task": task, "source": source, "set": values, "settings": settings, **given}
    in_json: dict[str, Any] = json.loads(json.dumps(key, default=str))
    return in_json


def _in_json(value: Any) -> Any:
    """``value``, or how Python writes it where JSON can't, or what can't be shown is in it."""
    try:
        written = json.loads(json.dumps(value, default=str))
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value if printable(texts(written)) == texts(written) else repr(value)


def _difference(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    flat = [{**key, **key.get("settings", {})} for key in (stored, asked)]
    differing = [name for name in flat[1] if name != "settings" and flat[0].get(name) != flat[1][name]]
    return (
        ", ".join(f"{name} {flat[0].get(name)!r}, not {flat[1][name]!r}" for name in differing) or "an older version's"
    )
