"""An Optuna storage, and the studies in it that are this command's."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momo_cli.errors import UserError, first_line

if TYPE_CHECKING:
    import optuna

DEFAULT_URL = "sqlite:///momo.db"
KEY = "momo:key"
_SQLITE = "sqlite:///"
_ATTEMPTS, _PAUSE = 4, 0.3  # seconds between them: another command may be making the same database


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


class Storage:
    """An Optuna storage, opened when it is first needed. A SQLite file comes into being with the first run that is stored.

    Args:
        url: Optuna's storage URL, or the name of a SQLite file ending in ``.db``.

    Raises:
        UserError: Its folder isn't there.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        if "://" not in url and Path(url).suffix in (".db", ".sqlite", ".sqlite3"):
            url = f"sqlite:///{url}"
        self.url = url
        self._location, self._file = url, None
        path, mark, query = url.removeprefix(_SQLITE).partition("?")
        if url.startswith(_SQLITE) and path and not path.startswith((":", "file:")):
            # A task's own code may change the folder before the storage is opened.
            self._file = Path(path).absolute()
            self._location = f"{_SQLITE}{self._file}{mark}{query}"
            if not self._file.parent.is_dir():
                raise UserError(f"--storage {url}: there is no folder {str(Path(path).parent)!r}.")
        self._storage: optuna.storages.BaseStorage | None = None

    def exists(self) -> bool:
        """False for a SQLite file that isn't there yet."""
        return self._file is None or self._file.exists()

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
                StudyInfo(
                    study.study_name,
                    key,
                    study.user_attrs.get("objective", ""),
                    study.n_trials,
                    study.user_attrs.get("latest", ""),
                )
            )
        return found

    def warm_up(self) -> None:
        """Load what opening the storage takes; a SQLite file that isn't there is not made."""
        with contextlib.suppress(UserError):  # met again when it is opened in earnest
            if self.exists():
                self.opened()
            else:
                self._connected("sqlite://")

    def names(self) -> list[str]:
        """The names of all studies, other people's too."""
        import optuna

        return self.guarded(lambda: optuna.get_all_study_names(self.opened()))

    def opened(self) -> optuna.storages.BaseStorage:
        """Optuna's storage.

        Raises:
            UserError: It can't be opened.
        """
        for attempt in range(_ATTEMPTS):
            if self._storage is not None:
                break
            try:
                self._storage = self._connected(self._location)
            except UserError:
                if attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(_PAUSE)
        return self._storage

    def _connected(self, url: str) -> optuna.storages.BaseStorage:
        import logging

        import optuna

        # Alembic tells every step of making a new database's tables at level INFO.
        logging.getLogger("alembic").setLevel(logging.ERROR)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return self.guarded(lambda: optuna.storages.get_storage(url))

    def guarded(self, act: Any) -> Any:
        """What ``act`` returns.

        Raises:
            UserError: It raises: the storage refuses.
        """
        try:
            return act()
        except UserError:
            raise
        except Exception as raised:
            error: BaseException = raised
            while error.__cause__ is not None:  # Optuna's own words name neither a lock nor a missing permission
                error = error.__cause__
            raise UserError(
                f"--storage {self.url} can't be used: {first_line(error)}\nGive a storage URL of Optuna's, for instance {DEFAULT_URL}."
            ) from None
