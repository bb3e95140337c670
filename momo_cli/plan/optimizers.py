"""Optimizers by name: ``momo``, ``adamw(weight_decay=0.1)``, any class of ``torch.optim``, ``package.module:Class``."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from momo_cli.errors import NO_LITERAL, UserError, did_you_mean, first_line
from momo_cli.plan.schedules import SCHEDULES, Schedule
from momo_cli.user_code import OURS, UserCodeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


@dataclasses.dataclass(frozen=True)
class Known:
    """An optimizer with a name of its own: its class, its fixed arguments, and the LR its grids are centred on."""

    path: str
    default_lr: float
    arguments: tuple[tuple[str, Any], ...] = ()


KNOWN: dict[str, Known] = {
    "momo": Known("momo:Momo", 1.0),
    "momo-adam": Known("momo:MomoAdam", 1e-2),
    "momo-muon": Known("momo:MomoMuon", 0.02),
    "momo-muonmax": Known("momo:MomoMuonMax", 0.02),
    "momo-star": Known("momo:Momo", 1.0, (("use_fstar", True),)),
    "momo-adam-star": Known("momo:MomoAdam", 1e-2, (("use_fstar", True),)),
    "sgd": Known("torch.optim:SGD", 0.1),
    "sgd-m": Known("torch.optim:SGD", 1.0, (("momentum", 0.9), ("dampening", 0.9))),
    "sgd-nesterov": Known("torch.optim:SGD", 0.1, (("momentum", 0.9), ("nesterov", True))),
    "adam": Known("torch.optim:Adam", 1e-3),
    "adamw": Known("torch.optim:AdamW", 1e-3),
    "muon": Known("momo_cli.training.muon:Muon", 0.02),
}

#: Classes that are made from a model, to know its matrices.
FOR_MODEL = ("momo:MomoMuon", "momo:MomoMuonMax", "momo_cli.training.muon:Muon")

#: The optimizers of a sweep where none are named: Momo beside its baseline, whose step is Momo's when capped.
SWEPT = "momo,sgd-m"

#: Those of a comparison, and its seeds.
COMPARED, SEEDS = "momo,sgd-m,momo-adam,adam,adamw+cosine", 3

#: Momo's methods by name; their classes, as ``momo:Momo``, count too.
MOMO_METHODS = ("momo", "momo-adam", "momo-star", "momo-adam-star", "momo-muon", "momo-muonmax")


def is_momo(label: str) -> bool:
    """Whether a spec, as typed, names one of Momo's methods.

    >>> [is_momo(spec) for spec in ("momo+cosine", "momo-adam(lb=-1)", "momo:MomoAdam", "adam", "mine:Momo")]
    [True, True, True, False, False]
    """
    name = split_outside_brackets(label, "+")[0].split("(")[0].strip()
    module, _, cls = name.partition(":")
    return name in MOMO_METHODS or (module.split(".")[0] == "momo" and cls.startswith("Momo"))


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer as the user typed it.

    Attributes:
        label: The spec as typed: the optimizer's name in every table and in the store.
        name: The name before the brackets.
        arguments: The keyword arguments in the brackets.
        schedule: The spec's own schedule; None where ``--schedule`` says.
        warmup: The spec's own warm-up; None where ``--warmup`` says.
    """

    label: str
    name: str
    arguments: tuple[tuple[str, Any], ...] = ()
    schedule: str | None = None
    warmup: float | None = None

    @classmethod
    def parse(cls, text: str) -> OptimizerSpec:
        """Read ``name`` or ``name(argument=value, …)``, perhaps with ``+schedule`` and ``+warmup=FRACTION`` behind it.

        >>> OptimizerSpec.parse("adamw(weight_decay=0.1)").arguments
        (('weight_decay', 0.1),)
        >>> spec = OptimizerSpec.parse("adamw+wsd+warmup=0.1")
        >>> spec.name, spec.schedule, spec.warmup
        ('adamw', 'wsd', 0.1)

        Raises:
            UserError: The brackets don't hold keyword arguments with literal values, or there is no such schedule.
        """
        text = text.strip()
        body, *behind = split_outside_brackets(text, "+") or [""]
        schedule, warmup = _schedule(text, behind)
        name, bracket, rest = body.partition("(")
        name = name.strip()
        if not bracket:
            return cls(text, name, (), schedule, warmup)
        try:
            call = ast.parse(f"f({rest}", mode="eval").body
            if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
                raise ValueError
            arguments = tuple((str(k.arg), ast.literal_eval(k.value)) for k in call.keywords)
        except NO_LITERAL:
            raise UserError(
                f"--optimizer {text!r}: the brackets must hold keyword arguments.\n"
                f"For instance {name}(weight_decay=0.1)."
            ) from None
        if "lr" in dict(arguments):
            raise UserError(f"--optimizer {text!r}: the learning rate is given with --lrs {text.partition('(')[0]}=….")
        return cls(text, name, arguments, schedule, warmup)

    def load(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        """The optimizer's class and the keyword arguments it is built with besides ``lr``.

        Raises:
            UserError: There is no such class.
        """
        known = KNOWN.get(self.name)
        path = known.path if known else self.name
        if ":" not in path:
            import torch

            by_name = {name.lower(): name for name, value in vars(torch.optim).items() if _is_optimizer_class(value)}
            if path not in by_name:
                names = list(KNOWN) + sorted(by_name)
                raise UserError(
                    f"There is no optimizer {self.name!r}.{did_you_mean(self.name, names)}\n"
                    f"Known: {', '.join(KNOWN)}, any class of torch.optim by its lower-case name, or "
                    "package.module:Class."
                )
            path = f"torch.optim:{by_name[path]}"
        module_name, _, class_name = path.partition(":")
        if not all(map(str.isidentifier, [*module_name.split("."), class_name])):
            raise UserError(f"--optimizer {self.label}: {path!r} is not package.module:Class.")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            missing = getattr(error, "name", None) or module_name
            raise UserError(
                f"--optimizer {self.label}: the module {missing!r} can't be imported.\n"
                "Install it, or put its folder on PYTHONPATH."
            ) from None
        except OURS:
            raise
        except BaseException as error:
            raise UserCodeError(module_name, error) from error
        loaded = getattr(module, class_name, None)
        if not callable(loaded):
            has = [name for name, value in vars(module).items() if _is_optimizer_class(value)]
            raise UserError(
                f"--optimizer {self.label}: {module_name} has no class {class_name!r}.{did_you_mean(class_name, has)}\n"
                f"Its optimizers: {', '.join(has) or 'none'}."
            )
        return loaded, dict(known.arguments if known else ()) | dict(self.arguments)

    def build(self, model: torch.nn.Module, lr: float, extra: dict[str, float] | None = None) -> torch.optim.Optimizer:
        """The optimizer of ``model`` at learning rate ``lr``; ``extra`` are further tuned arguments.

        A class with a ``for_model`` is made by that, others over the model's trainable parameters.

        Raises:
            UserError: The model has none of the matrices that the optimizer is for.
        """
        loaded, arguments = self.load()
        options = {"lr": lr, **arguments, **(extra or {})}
        if not hasattr(loaded, "for_model"):
            return loaded([p for p in model.parameters() if p.requires_grad], **options)
        self.check_matrices(model)
        made: torch.optim.Optimizer = loaded.for_model(model, **options)
        return made

    def check_matrices(self, model: torch.nn.Module) -> None:
        """Find a model that an optimizer for matrices can't train.

        Raises:
            UserError: The model has no hidden matrix.
        """
        from momo.matrices import matrices_of

        path = KNOWN[self.name].path if self.name in KNOWN else self.name
        if path in FOR_MODEL and not matrices_of(model):
            raise UserError(
                f"--optimizer {self.label}: {type(model).__name__} has no hidden weight of two or more dimensions, "
                "which Muon is for (embeddings and the output layer don't count).\nUse another one, such as momo-adam."
            )

    def check(self, lr: float, extra: dict[str, float] | None = None) -> None:
        """Build the optimizer over one small parameter, to find a wrong argument before any run starts.

        Raises:
            UserError: The class can't be built with these arguments.
        """
        if self.name in KNOWN and not self.arguments and not extra:
            return  # nothing of the user's to be wrong; and torch's first optimizer costs a second that stacks save
        import torch

        try:
            self.build(torch.nn.Sequential(*(torch.nn.Linear(2, 2, bias=False) for _ in range(2))), lr, extra)
        except (UserCodeError, *OURS):
            raise
        except BaseException as error:
            loaded, _ = self.load()
            takes = [p for p in inspect.signature(loaded.__init__).parameters if p not in ("self", "params", "lr")]
            raise UserError(
                f"--optimizer {self.label} can't be built: {first_line(error)}\n"
                f"{getattr(loaded, '__name__', self.name)} takes {', '.join(takes)}."
            ) from None

    @property
    def default_lr(self) -> float:
        """The LR that its default grid is centred on: the project's advice, else the class's own default.

        Raises:
            UserError: The class has no default LR, so ``--lrs`` must say.
        """
        if self.name in KNOWN:
            return KNOWN[self.name].default_lr
        loaded, _ = self.load()
        parameter = inspect.signature(loaded.__init__).parameters.get("lr")
        default = getattr(parameter, "default", None)
        try:
            value = float(default)  # type: ignore[arg-type]  # torch's own may be a tensor
        except (TypeError, ValueError):
            value = 0.0
        if not value > 0:
            raise UserError(
                f"{self.label} has no default learning rate to centre a grid on.\nSay which with --lrs {self.label}=…."
            )
        return value


def parse_optimizers(texts: Iterable[str]) -> list[OptimizerSpec]:
    """Every spec of repeated or comma-separated ``--optimizer``, each once, in the order typed.

    >>> [spec.label for spec in parse_optimizers(["momo,adamw(betas=(0.9, 0.95))", "momo"])]
    ['momo', 'adamw(betas=(0.9, 0.95))']
    """
    labels = [label for text in texts for label in split_outside_brackets(text)]
    return list({label: OptimizerSpec.parse(label) for label in labels}.values())


def split_outside_brackets(text: str, separator: str = ",") -> list[str]:
    """The parts of ``text`` between separators; those within brackets don't separate."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _schedule(text: str, parts: list[str]) -> tuple[str | None, float | None]:
    """The schedule and the warm-up that stand behind a spec."""
    kind: str | None = None
    warmup: float | None = None
    for part in parts:
        name, equals, value = part.partition("=")
        try:
            if name.strip() == "warmup" and equals:
                warmup = Schedule(warmup=float(value)).warmup
            else:
                kind = Schedule(part).kind
        except (UserError, ValueError):
            raise UserError(
                f"--optimizer {text!r}: {part!r} is neither a schedule nor a warm-up from 0 to 1."
                f"{did_you_mean(part, list(SCHEDULES))}\n"
                f"Schedules: {', '.join(SCHEDULES)}; for instance adamw+cosine+warmup=0.1."
            ) from None
    return kind, warmup


def _is_optimizer_class(value: Any) -> bool:
    import torch

    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
