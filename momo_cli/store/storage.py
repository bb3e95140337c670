"""An Optuna storage, opened, and the studies in it that are this command's."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momo_cli.errors import UserError, did_you_mean
from momo_cli.store.stored_runs import StoredRuns
from momo_cli.store.studies import KEY

if TYPE_CHECKING:
    import optuna

DEFAULT_URL = "sqlite:///momo.db"


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
        for info in sorted(self.every_study(), key=lambda info: len(info.name)):
            first = found.get(info.study)
            found[info.study] = dataclasses.replace(first, runs=first.runs + info.runs) if first else info
        return sorted(found.values(), key=lambda info: info.latest)

    def every_study(self) -> list[StudyInfo]:
        """Every study of this command's, continuations too."""
        if not self.exists():
            return []
        import optuna

        found = []
        for study in self.guarded(lambda: optuna.get_all_study_summaries(self.opened(), include_best_trial=False)):
            key = study.user_attrs.get(KEY)
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

    def warm_up(self) -> None:
        """Load what opening the storage takes; a SQLite file that isn't there is not made."""
        import optuna

        with contextlib.suppress(UserError):  # met again when it is opened in earnest
            if self.exists():
                self.opened()
            else:
                self.guarded(lambda: optuna.storages.get_storage("sqlite://"))

    def _names(self) -> list[str]:
        import optuna

        return self.guarded(lambda: optuna.get_all_study_names(self.opened()))

    def opened(self) -> optuna.storages.BaseStorage:
        """Optuna's storage.

        Raises:
            UserError: It can't be opened.
        """
        if self._storage is None:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self._storage = self.guarded(lambda: optuna.storages.get_storage(self.url))
        return self._storage

    def guarded(self, act: Any) -> Any:
        """What ``act`` returns.

        Raises:
            UserError: It raises: the storage refuses.
        """
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
    key = {"task": task, "source": source, "set": arguments, "settings": settings, **given}
    return json.loads(json.dumps(key, default=str))


def _difference(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    flat = [{**key, **key.get("settings", {})} for key in (stored, asked)]
    differing = [name for name in flat[1] if name != "settings" and flat[0].get(name) != flat[1][name]]
    return ", ".join(f"{name} {flat[0].get(name)!r}, not {flat[1][name]!r}" for name in differing) or "an older version's"
