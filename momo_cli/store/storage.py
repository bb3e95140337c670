"""An Optuna storage, and the studies in it that are this command's."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from momo_cli.errors import UserError, first_line, printable

if TYPE_CHECKING:
    import optuna

    from momo_cli.store.tables import Trials

DEFAULT_URL = "sqlite:///momo.db"
KEY = "momo:key"
GRACE = 60  # seconds after its last heartbeat in which a process keeps the runs that it holds
_HEARTBEAT = 10  # seconds between heartbeats, at most
_SQLITE, _GRPC, _REDIS = "sqlite:///", "grpc://", "redis"
_GRPC_PORT = 13000  # Optuna's own default
_ATTEMPTS, _PAUSE = 4, 0.3  # seconds between them: another command may be making the same database

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class StudyInfo:
    """A stored study.

    Attributes:
        name: Its name in Optuna's storage.
        key: Everything that changes a result.
        objective: The name of the objective last asked for; empty where no run has ended.
        maximize: Whether larger values of it are better.
        runs: Runs that have ended.
        open: Runs that wait for a process, or that one is training.
        latest: When it was last used, as an ISO date; empty where that isn't known.
    """

    name: str
    key: dict[str, Any]
    objective: str
    maximize: bool
    runs: int
    open: int
    latest: str

    @property
    def study(self) -> str:
        """The name without the ``+2`` of a continuation."""
        return re.sub(r"\+\d+$", "", self.name)

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.key["task"])


class Storage:
    """An Optuna storage, opened when it is first needed. A file comes into being with the first run that is stored.

    Args:
        url: A database's URL as SQLAlchemy takes it, ``redis://…``, ``grpc://host:port`` of Optuna's proxy, or the name
            of a file: ``….db`` of a SQLite database, ``….log`` of Optuna's journal.
        grace: Seconds after which the runs of a process that has stopped sending heartbeats go to others.

    Raises:
        UserError: Its folder isn't there.
    """

    def __init__(self, url: str = DEFAULT_URL, grace: int = GRACE) -> None:
        if "://" not in url and Path(url).suffix in (".db", ".sqlite", ".sqlite3"):
            url = f"{_SQLITE}{url}"
        self.url, self.grace = url, grace
        self.shown = without_password(url)
        self._location, self._file = url, None
        path, mark, query = url.removeprefix(_SQLITE).partition("?")
        if (url.startswith(_SQLITE) and path and not path.startswith((":", "file:"))) or self._is_journal:
            # A task's own code may change the folder before the storage is opened.
            self._file = Path(path).absolute()
            self._location = str(self._file) if self._is_journal else f"{_SQLITE}{self._file}{mark}{query}"
            if not self._file.parent.is_dir():
                raise UserError(f"--storage {self.shown}: there is no folder {str(Path(path).parent)!r}.")
            try:
                self._file.exists()
            except OSError as error:
                raise UserError(f"--storage {self.shown[:100]} can't be used: {error.strerror}.") from None
        self._storage: optuna.storages.BaseStorage | None = None
        self._trials: Trials | None = None

    @property
    def _is_journal(self) -> bool:
        return "://" not in self.url and Path(self.url).suffix == ".log"

    @property
    def folder(self) -> Path:
        """The folder of a SQLite or journal file; the current one for other storages."""
        return Path.cwd() if self._file is None else self._file.parent

    @property
    def heartbeat(self) -> int:
        """Seconds between heartbeats."""
        return max(1, min(_HEARTBEAT, self.grace // 3))

    @property
    def has_heartbeats(self) -> bool:
        """Whether runs of a process that died go to others while these are running."""
        return not (self._is_journal or self.url.startswith((_GRPC, _REDIS)))

    def exists(self) -> bool:
        """False for a file that isn't there (yet, or any more)."""
        return self._file is None or self._file.exists()

    def every_study(self) -> list[StudyInfo]:
        """Every study of this command's that can be read, continuations too."""
        return self._studies()[0]

    def unreadable(self) -> list[str]:
        """The names of studies that are this command's by their attributes, which can't be read."""
        return self._studies()[1]

    def _studies(self) -> tuple[list[StudyInfo], list[str]]:
        if not self.exists():
            return [], []
        found, broken = [], []
        storage = self.opened()
        counts = self.guarded(self.trials.counts)
        for study in self.guarded(storage.get_all_studies):
            attributes = study.user_attrs
            if KEY not in attributes:
                continue
            key, (runs, waiting) = attributes[KEY], counts.get(study.study_name, (0, 0))
            objective, latest = str(attributes.get("objective", "")), str(attributes.get("latest", ""))
            shown = f"{study.study_name}{texts(key)}{objective}{latest}"
            if _is_key(key) and isinstance(attributes.get("optimizers"), list) and printable(shown) == shown:
                maximize = bool(attributes.get("maximize", key["settings"]["maximize"]))
                found.append(StudyInfo(study.study_name, key, objective, maximize, runs, waiting, latest))
            else:
                broken.append(study.study_name)
        return found, broken

    def warm_up(self) -> None:
        """Load what opening the storage takes; a file that isn't there is not made."""
        with contextlib.suppress(UserError):  # met again when it is opened in earnest
            if self.exists():
                self.opened()
            else:
                Storage("sqlite://").opened()

    def names(self) -> list[str]:
        """The names of all studies, other people's too."""
        return [study.study_name for study in self.guarded(self.opened().get_all_studies)]

    @property
    def trials(self) -> Trials:
        """The storage's trials, read and written many at a time."""
        self.opened()
        assert self._trials is not None
        return self._trials

    def opened(self) -> optuna.storages.BaseStorage:
        """Optuna's storage.

        Raises:
            UserError: It can't be opened.
        """
        for attempt in range(_ATTEMPTS):
            if self._storage is not None:
                break
            try:
                self._storage, self._trials = self.guarded(self._connected)
            except UserError:
                if attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(_PAUSE)
        assert self._storage is not None
        return self._storage

    def again(self) -> Storage:
        """The same storage with a connection of its own; it can be sent to another process."""
        other = copy.copy(self)
        other.close()
        return other

    def close(self) -> None:
        """Forget the connection; the next use makes another."""
        self._storage = self._trials = None

    def _connected(self) -> tuple[optuna.storages.BaseStorage, Trials]:
        import logging

        import optuna

        from momo_cli.store.tables import OneByOne, Relational

        # Alembic tells every step of making a new database's tables at level INFO.
        logging.getLogger("alembic").setLevel(logging.ERROR)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            other = self._not_relational()
            if other is not None:
                return other, OneByOne(other)
            options = (
                {} if self._location.startswith("sqlite") else {"pool_pre_ping": True}
            )  # for a server that restarts
            storage = optuna.storages.RDBStorage(
                self._location, options, heartbeat_interval=self.heartbeat, grace_period=self.grace
            )
            return storage, Relational(storage)

    def _not_relational(self) -> optuna.storages.BaseStorage | None:
        import optuna
        from optuna.storages import journal

        if self._is_journal:
            return optuna.storages.JournalStorage(journal.JournalFileBackend(self._location))
        if self.url.startswith(_REDIS):
            return optuna.storages.JournalStorage(journal.JournalRedisBackend(self._location))
        if self.url.startswith(_GRPC):
            host, _, port = self.url.removeprefix(_GRPC).partition(":")
            if not (port or str(_GRPC_PORT)).isdecimal():
                raise UserError(f"--storage {self.shown}: write grpc://host:port, for instance grpc://localhost:13000.")
            proxy = optuna.storages.GrpcStorageProxy(host=host or "localhost", port=int(port or _GRPC_PORT))
            proxy.wait_server_ready(timeout=5)
            return proxy
        return None

    def guarded(self, act: Callable[[], T]) -> T:
        """What ``act`` returns.

        Raises:
            UserError: It raises: the storage refuses.
        """
        try:
            return act()
        except UserError:
            raise
        except Exception as raised:
            raise UserError(
                f"--storage {self.shown} can't be used: {self.reason(raised)}\n"
                f"Give a storage URL of Optuna's, for instance {DEFAULT_URL}."
            ) from None

    def reason(self, error: BaseException) -> str:
        """What the storage's ``error`` says, in one line and without a password."""
        if self._file is not None and self._storage is not None and not self._file.exists():
            return f"{self._file.name} is gone"
        while error.__cause__ is not None:  # Optuna's own words name neither a lock nor a missing permission
            error = error.__cause__
        said = first_line(error).replace(self.url, self.shown)
        for piece in _password(self.url).split("@"):  # which SQLAlchemy takes for the end of an unquoted password
            said = said.replace(piece, "***") if piece else said
        return said


def without_password(url: str) -> str:
    """``url`` as it may be shown.

    >>> without_password("postgresql://ann:se@cret@host/db?password=x"), without_password("momo.db")
    ('postgresql://ann:***@host/db?password=***', 'momo.db')
    """
    url = re.sub(r"(://[^:/@]*:).*(@)", r"\1***\2", url)
    return re.sub(r"((?:password|passwd|pwd|passfile|sslpassword)=)[^&]*", r"\1***", url, flags=re.IGNORECASE)


def _password(url: str) -> str:
    found = re.search(r"://[^:/@]*:(.+)@", url)
    return found[1] if found else ""


def texts(value: Any) -> str:
    """Every text in ``value``, a document of JSON."""
    if isinstance(value, dict):
        return "".join(map(texts, [*value, *value.values()]))
    return "".join(map(texts, value)) if isinstance(value, list) else str(value)


def _is_key(key: Any) -> bool:
    return (
        isinstance(key, dict)
        and isinstance(key.get("task"), str)
        and isinstance(key.get("set"), dict)
        and isinstance(key.get("settings"), dict)
        and isinstance(key["settings"].get("maximize"), bool)
    )
