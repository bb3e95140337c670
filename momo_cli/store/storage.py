"""An Optuna storage, and the studies in it that are this command's."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momo_cli.errors import UserError

if TYPE_CHECKING:
    import optuna

DEFAULT_URL = "sqlite:///momo.db"
KEY = "momo:key"


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
        UserError: It can't be opened.
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

    def warm_up(self) -> None:
        """Load what opening the storage takes; a SQLite file that isn't there is not made."""
        import optuna

        with contextlib.suppress(UserError):  # met again when it is opened in earnest
            if self.exists():
                self.opened()
            else:
                self.guarded(lambda: optuna.storages.get_storage("sqlite://"))

    def names(self) -> list[str]:
        """The names of all studies, other people's too."""
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
