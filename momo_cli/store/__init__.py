"""The store: one Optuna study for each task and settings, one trial for each run.

Optuna keeps the runs, so that its dashboard, its Python API and this command read the same thing. A study's name ends
in a digest of its *key*: everything that changes a result. The same command finds the same study, reuses its runs and
adds what is missing.
"""

from momo_cli.store import unstored
from momo_cli.store.storage import DEFAULT_URL, GRACE, StudyInfo
from momo_cli.store.store import Store, study_key
from momo_cli.store.stored_runs import StoredRuns

__all__ = ["DEFAULT_URL", "GRACE", "Store", "StoredRuns", "StudyInfo", "study_key", "unstored"]
