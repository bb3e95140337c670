"""The command of a script: its placeholders, its environment, and the files that it names."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import shutil
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from momo_cli.errors import UserError, did_you_mean
from momo_cli.plan.grid import RunSpec
from momo_cli.task.loading import local_sources

SCRIPT = "script"
"""The label of a script's one optimizer, where none is named."""

_OWN = ("lr", "optimizer", "seed", "steps", "epochs", "dir")
_EXAMPLE = "For instance: -- python train.py --lr {lr} --seed {seed}"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line with placeholders, run once for each run.

    Attributes:
        words: The argument list; ``{lr}``, ``{optimizer}``, ``{seed}``, ``{steps}``, ``{epochs}``, ``{dir}`` and
            ``{NAME}`` of ``arguments`` stand for values, ``{{`` and ``}}`` for braces.
        arguments: The user's ``--set key=value``.
        steps: ``--steps``, or None.
        epochs: ``--epochs``, or None.
    """

    words: tuple[str, ...]
    arguments: tuple[tuple[str, Any], ...] = ()
    steps: int | None = None
    epochs: float | None = None

    @classmethod
    def parse(cls, words: Sequence[str], **fields: Any) -> Command:
        """The command of an argument list; one argument with spaces is split as a shell splits words.

        >>> Command.parse(["python train.py --name 'a b' --lr {lr}"]).words
        ('python', 'train.py', '--name', 'a b', '--lr', '{lr}')

        Raises:
            UserError: There is no word, or a brace or quote is not closed.
        """
        split = list(words)
        if len(split) == 1:
            try:
                split = shlex.split(split[0])
            except ValueError as error:
                raise UserError(f"The command {words[0]!r} can't be split into words: {error}.") from None
        if not split:
            raise UserError(f"There is no command after --.\n{_EXAMPLE}")
        command = cls(tuple(split), **fields)
        placeholders(command.words)
        return command

    @property
    def file(self) -> Path:
        """The script: the first Python file that the command names, else the first file, else the program."""
        named = self._named()
        return next((file for file in named if file.suffix == ".py"), (*named, Path(self.words[0]))[0])

    @property
    def name(self) -> str:
        """The script's file name: the task's name in tables and in the store."""
        return self.file.name

    def check(self, optimizers: Sequence[str], further: Sequence[str] = (), file: str | None = None) -> None:
        """Find before any run starts what would make runs alike that should differ.

        Args:
            optimizers: The optimizers' labels.
            further: Names that get a value for each run besides ``arguments``, as ``--tune`` gives them.
            file: ``--read-file``, whose placeholders are checked, too.

        Raises:
            UserError: A placeholder is unknown or has no value, or something asked for reaches the script in no way.
        """
        found, sources = placeholders(self.words), b"".join(file.read_bytes() for file in self.files())
        own = [*(name for name, _ in self.arguments), *further]
        for text in filter(None, (*self.words, file)):
            self._check_placeholders(text, own)

        def reaches(name: str, variable: str) -> bool:
            return name in found or variable.encode() in sources

        if not reaches("lr", "MOMO_LR"):
            raise UserError(
                f"The command holds no {{lr}}, so that every learning rate would be the same run.\n{_EXAMPLE}\n"
                "Or read the environment variable MOMO_LR in the script."
            )
        if len(optimizers) > 1 and not reaches("optimizer", "MOMO_OPTIMIZER"):
            raise UserError(
                f"The command holds no {{optimizer}}, so that {' and '.join(optimizers)} would be the same runs.\n"
                "For instance: -- python train.py --lr {lr} --opt {optimizer}\n"
                "Or read the environment variable MOMO_OPTIMIZER in the script."
            )
        for name, value in (("steps", self.steps), ("epochs", self.epochs)):
            if value is not None and not reaches(name, f"MOMO_{name.upper()}"):
                raise UserError(f"--{name} {value:g} reaches no script: write {{{name}}} in the command.")
        for name in own:
            if not reaches(name, f"MOMO_SET_{name}"):
                raise UserError(f"{name} reaches no script: write {{{name}}} in the command.")
        program = self.words[0]
        if "{" not in program and shutil.which(program) is None:
            raise UserError(f"There is no program {program!r} to run (looked in the PATH).")

    def _check_placeholders(self, text: str, own: list[str]) -> None:
        for _, name in _parts(text):
            if name is not None and name not in _OWN and name not in own:
                known = ", ".join(f"{{{known}}}" for known in (*_OWN, *own))
                raise UserError(
                    f"{{{name}}} in {text!r} is no placeholder.{did_you_mean(name, [*_OWN, *own])}\n"
                    f"They are {known} and {{NAME}} for --set NAME=…; {{{{ and }}}} stand for braces."
                )
            if (name == "steps" and self.steps is None) or (name == "epochs" and self.epochs is None):
                raise UserError(f"{{{name}}} in {text!r} has no value: add --{name} N.")

    def filled(self, spec: RunSpec, folder: Path) -> tuple[list[str], dict[str, str]]:
        """The argument list of a run, and what its environment has besides this process's.

        >>> from momo_cli.plan import OptimizerSpec
        >>> command = Command(("train", "--lr={lr}", "{{}}"))
        >>> command.filled(RunSpec(OptimizerSpec.parse("adam"), 1e-05, 0), Path("run"))[0]
        ['train', '--lr=1e-05', '{}']
        """
        values = self.values(spec, folder)
        own = {name: text for name, text in values.items() if name in _OWN}
        environment = {f"MOMO_{name.upper()}": text for name, text in own.items()}
        environment |= {f"MOMO_SET_{name}": text for name, text in values.items() if name not in _OWN}
        return [fill(word, values) for word in self.words], environment

    def values(self, spec: RunSpec, folder: Path) -> dict[str, str]:
        """What each placeholder stands for in a run."""
        given: dict[str, Any] = {**dict(self.arguments), **dict(spec.params), "lr": spec.lr, "seed": spec.seed}
        epochs = self.epochs if self.epochs is None or self.epochs % 1 else int(self.epochs)
        given |= {"optimizer": spec.optimizer.label, "steps": self.steps, "epochs": epochs, "dir": folder}
        return {name: str(value) for name, value in given.items() if value is not None}  # of a float Python's shortest

    def files(self) -> list[Path]:
        """The files that the command names and that exist, and what those in Python import from the user's folders."""
        found = [file.resolve() for file in self._named()]
        sources = [source for file in found if file.suffix == ".py" for source in local_sources(file)]
        return list(dict.fromkeys([*found, *sources]))

    def _named(self) -> list[Path]:
        named = [Path(part) for word in self.words for part in (word, word.partition("=")[2]) if "{" not in part]
        for flag, module in zip(self.words, self.words[1:]):
            if flag == "-m":
                stem = Path(*module.split("."))
                named += [stem.with_suffix(".py"), stem / "__main__.py"]
        return [file for file in named if file.is_file()]

    def fingerprint(self) -> str:
        """A digest of the command and of the content of its files: another one means other results."""
        digest = hashlib.sha256(repr(self.words).encode())
        for file in self.files():
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


def placeholders(words: Sequence[str]) -> set[str]:
    """The names in braces.

    Raises:
        UserError: A brace stands alone.
    """
    return {name for word in words for _, name in _parts(word) if name is not None}


def fill(text: str, values: dict[str, str]) -> str:
    """``text`` with each placeholder's value in its place."""
    return "".join(literal + ("" if name is None else values[name]) for literal, name in _parts(text))


def _parts(word: str) -> Iterator[tuple[str, str | None]]:
    """Literal text and the placeholder that follows it, or None."""
    try:
        for literal, name, form, conversion in string.Formatter().parse(word):
            yield (
                literal,
                name if not (form or conversion) else f"{name}{'!' if conversion else ':'}{conversion or form}",
            )
    except ValueError:
        raise UserError(
            f"A brace in {word!r} stands alone.\nWrite {{lr}} for a placeholder, {{{{ and }}}} for braces."
        ) from None
