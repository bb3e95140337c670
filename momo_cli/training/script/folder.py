"""The folder of a run, ``{dir}``, and the files beside it that take what the script prints while it runs."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from momo_cli.plan.grid import RunSpec
from momo_cli.training.script.sources import RESTARTED

_STDERR_LINES = 20
_TAIL = 1 << 16  # bytes that hold them


class RunFolder:
    """The files of one run.

    While the script runs, its output stands beside ``path``, which is empty at first; when it has ended, in ``path``.
    So output found beside it is that of a script that was interrupted, whose folder is left as it is.

    Args:
        under: The folder of all runs of a study.
        spec: The run.
    """

    def __init__(self, under: Path, spec: RunSpec) -> None:
        label = re.sub(r"[^\w.+-]", "_", spec.optimizer.label)
        if label != spec.optimizer.label:
            label += "-" + hashlib.sha256(spec.optimizer.label.encode()).hexdigest()[:4]
        further = "".join(f"-{name}{value:.12g}" for name, value in spec.params)
        self.path = under.absolute() / f"{label}-lr{spec.lr:.12g}-seed{spec.seed}{further}"
        self.stdout, self.stderr, self.log = (self._beside(kind) for kind in ("stdout", "stderr", "log"))

    def prepare(self) -> None:
        """Make the folder: empty, or as the interrupted script left it."""
        if self.stdout.exists():
            for file in (self.stdout, self.stderr, self.log):
                with file.open("ab") as out:
                    out.write(f"\n{RESTARTED}\n".encode())
        elif self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Keep the output in the folder, as ``momo-stdout.txt`` and so on: the run has ended."""
        self.path.mkdir(parents=True, exist_ok=True)
        for kind, file in (("stdout", self.stdout), ("stderr", self.stderr), ("log", self.log)):
            if file.exists():
                file.replace(self.path / f"momo-{kind}.txt")

    def last_errors(self) -> str:
        """The last 20 lines of the script's stderr."""
        with self.stderr.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_STDERR_LINES:]).strip()

    def _beside(self, kind: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{kind}.txt")
