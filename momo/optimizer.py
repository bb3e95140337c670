"""What the optimizers share: groups and options, the state, and the order of a step."""

from __future__ import annotations

import array
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo.block import SCALARS, Block, bring, make_blocks
from momo.loss import HOW, GradientVersions, Losses, RecordedLosses, loss_value, warn_if_not_finite
from momo.method import Memory, Scalar, Step, Sums, truncated_step, where
from momo.options import Options, check_options, check_shared, momentum_of
from momo.passes import whole_step
from momo.passes.members import Scratch, compute_dtype, on_host, refuse_sparse, scalar_device
from momo.reduction import Reduction
from momo.sharding import shards

if TYPE_CHECKING:
    from momo.passes.triton_ops import TritonStep

# What belongs to the loss, and stands in the state of each parameter: tools save and load the state by parameter.
# The number of steps is negative where each had its own lower bound, so that no other step can follow after loading.
_OF_THE_LOSS = ("loss_average", "loss_rho", "lower_bound", "loss_step")
_NOT_GIVEN: Any = object()
_ACCUMULATED = (
    "{name}.step(closure): gradients were there before the closure ran, and it added its own, so the loss that it "
    "returned isn't the one whose gradient is in .grad. Record each micro-batch's loss: with Lightning, by "
    "Trainer(callbacks=[momo.integrations.lightning.RecordLoss()]); in a loop of your own, by "
    "optimizer.record_loss(loss). Where nothing is to be accumulated, call optimizer.zero_grad() in the closure."
)


class TruncatedModelOptimizer(Optimizer):
    """An optimizer whose step size comes from a truncated model of the loss.

    A subclass names its ``direction`` (see :mod:`momo.directions`), which may differ between groups. Everything that
    determines the next step is in the state of the parameters, so also in what tools save for each of them; parameter
    groups hold nothing but options.
    """

    direction: ClassVar[Any]
    decoupled: ClassVar[bool] = False  # whether weight decay is no part of the model
    from_zero: ClassVar[bool] = True  # whether averages start from zero, where no option ``bias_correction`` says
    marks: ClassVar[tuple[str, ...]] = ()  # options by which groups in a saved state are known to be this method's

    def _direction_of(self, group: Mapping[str, Any]) -> Any:
        return self.direction

    def __init__(
        self, params: Iterable[Any], defaults: dict[str, Any], *, fused: bool | None = None, process_group: Any = None
    ) -> None:
        if fused not in (None, True, False):
            raise ValueError(f"fused must be None, True or False, and is {fused!r}.")
        self._set_up(fused, process_group)
        super().__init__(params, defaults)

    def _set_up(self, fused: bool | None, process_group: Any) -> None:
        """What is not part of the state, and is made anew after copying or loading."""
        self._fused = fused
        self._reduction = Reduction(process_group, type(self).__name__)
        self._recorded = RecordedLosses()
        self._warned = False
        self._versions = GradientVersions()
        self._checked_options: list[tuple[Any, ...]] = []
        self._blocks: list[Block] | None = None
        self._whole: TritonStep | str | None = None  # of these blocks; or why there is none
        self._scratch = Scratch()
        self._known: set[int] = set()  # positions of the parameters in the blocks
        self._blocks_state: Any = None
        self._memory: Tensor | None = None  # [loss_average, loss_rho, lower_bound, loss_step]
        self._numbers = array.array("d")  # the same memory, if it is on the CPU: a number costs less than an operation
        self._bounded: bool | None = None  # whether each step had its own lower bound; None before the first
        self._last: tuple[Step, list[Scalar]] | None = None

    def _patch_step_function(self) -> None:
        # With its hooks, a step is one piece to a compiler: traced, what it writes would not all reach the state.
        super()._patch_step_function()
        cls = type(self)
        if not getattr(cls.step, "whole", False):
            step: Any = torch._disable_dynamo(cls.step)  # type: ignore[attr-defined]
            step.hooked = step.whole = True
            cls.step = step  # type: ignore[method-assign]

    # ---- the loss, however it comes ----

    def record_loss(
        self, loss: Tensor | float, reduction: str = "mean", lower_bound: Tensor | float | None = None
    ) -> None:
        """Keep the loss for the next bare ``step()``.

        For training loops that call ``step()`` themselves: Hugging Face's ``Trainer``, Lightning, Accelerate,
        ``GradScaler``. The loss must be the one whose gradient is in ``.grad``. With gradient accumulation, record each
        micro-batch's loss. With a loss scaler, record the unscaled loss.

        ``step()`` uses the recorded losses up. They are dropped with the gradients that they belong to: by this
        optimizer's ``zero_grad()``, and where a ``GradScaler`` skips the step. So record after ``zero_grad()``; before
        it only if the backward pass comes later still, as in Lightning's ``training_step``.

        Args:
            loss: a tensor with one element, or a number.
            reduction: ``"mean"``: the losses of the micro-batches, whose mean is the step's; ``"sum"``: parts that were
                divided already, whose sum is the step's.
            lower_bound: a lower bound of this very loss, see :meth:`step`. It is reduced as the losses are.

        Raises:
            ValueError: the loss isn't one real number, or the losses of one step have different reductions, or only
                some of them a lower bound.
            TypeError: it is neither a tensor nor a number.
        """
        if self._recorded.kept and not self._versions.new(self._gradients()):
            self._recorded.drop()  # zero_grad() came twice without a backward pass, so that loss had none
        self._recorded.add(self._values(loss, lower_bound), reduction)

    def _values(self, loss: Any, lower_bound: Any) -> Losses:
        """A loss and its lower bound as numbers."""
        name = type(self).__name__
        return Losses(
            loss_value(loss, name), None if lower_bound is None else loss_value(lower_bound, name, "lower_bound")
        )

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # torch.amp.GradScaler asks right before it takes or skips a step: see RecordedLosses.
        self._recorded.scaler_asks()
        self._versions.spend(self._gradients())
        return False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients as in torch, and drop the recorded losses that belong to them."""
        if self._recorded:
            self._recorded.zero_grad(drop=self._versions.new(self._gradients()))
        super().zero_grad(set_to_none=set_to_none)
        self._versions.zero_grad([] if set_to_none else self._gradients())

    def _gradients(self) -> list[Tensor | None]:
        return [p.grad for group in self.param_groups for p in group["params"]]

    def _run(self, closure: Callable[[], Any], lower_bound: Any) -> tuple[Any, Losses | None]:
        """What the closure returned, and the loss: None if there is neither a loss nor a gradient, so no step."""
        name = type(self).__name__
        before, calls = self._versions.not_zeroed(self._gradients()), self._versions.zero_grad_calls
        with torch.enable_grad():
            returned = closure()
        if self._recorded:
            return returned, self._recorded_loss(lower_bound)
        if returned is None:
            if all(g is None for g in self._gradients()):
                return None, None
            raise ValueError(
                f"the closure given to {name}.step() returned None. It has to return the loss, unless the loss is "
                "given by optimizer.step(loss=loss) or optimizer.record_loss(loss). (The steps of Lightning's manual "
                "optimization come with a closure.)"
            )
        if before and self._versions.zero_grad_calls == calls:
            versions = {id(g): g._version for g in self._gradients() if g is not None}
            if any(versions.get(id(g), version) != version for g, version in before):
                raise RuntimeError(_ACCUMULATED.format(name=name))
        return returned, self._values(returned, lower_bound)

    def _recorded_loss(self, lower_bound: Any) -> Losses:
        if lower_bound is not None:
            self._recorded.drop()
            raise ValueError(
                f"{type(self).__name__}.step() got a lower_bound, and the loss was recorded: give it to "
                "record_loss(loss, lower_bound=...), too. (What was recorded is dropped now.)"
            )
        self._versions.spend(self._gradients())
        return self._recorded.take()

    def _take_loss(self, closure: Any, loss: Any, lower_bound: Any) -> tuple[Any, Losses | None]:
        """The loss as it was given, which ``step`` returns, and as a number, with its lower bound."""
        name = type(self).__name__
        if closure is not None:
            if not callable(closure):
                raise TypeError(
                    f"{name}.step() takes a closure first, and got {type(closure).__name__}. "
                    "Pass a loss by name: optimizer.step(loss=loss)."
                )
            if loss is None:
                return self._run(closure, lower_bound)
            with torch.enable_grad():
                returned = closure()
            if returned is not None:
                raise ValueError(f"{name}.step() got both a closure and a loss. Pass one of them.")
        if loss is not None:
            if self._recorded:
                self._recorded.drop()
                raise ValueError(
                    f"{name}.step() got a loss, and record_loss() had recorded one for this step already. "
                    "Use one of the two. (What was recorded is dropped now.)"
                )
            return loss, self._values(loss, lower_bound)
        if not self._recorded:
            if any(hasattr(p, "_in_backward_optimizers") for group in self.param_groups for p in group["params"]):
                raise RuntimeError(
                    f"{name} can't be an optimizer_in_backward, one for each parameter: a step needs sums over all "
                    "parameters of the model. Make one optimizer for all, and step it after backward()."
                )
            why = ""
            if self._recorded.dropped_by_zero_grad:
                why = (
                    " A loss was recorded, but zero_grad() dropped it with the gradients: record it after zero_grad()."
                )
            raise RuntimeError(
                f"{name}.step() needs the loss, and none was given. {HOW} With Lightning, by "
                "Trainer(callbacks=[momo.integrations.lightning.RecordLoss()]); with Hugging Face, by "
                f"momo.integrations.transformers.Trainer.{why}"
            )
        return None, self._recorded_loss(lower_bound)

    # ---- the step ----

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = _NOT_GIVEN,
        loss: Tensor | float | None = None,
        lower_bound: Tensor | float | None = None,
    ) -> Any:
        """Take one step.

        Args:
            closure: computes the loss and its gradients anew, and returns the loss. Where losses were recorded, also
                while it runs, these count instead. No step is taken if it returns None and there are no gradients.
            loss: the loss whose gradient is in ``.grad``, a tensor with one element or a number. A closure that comes
                with it runs first, and has to return None.
            lower_bound: a lower bound of this minibatch's loss where one is known, such as the teacher's loss in
                distillation: a tensor with one element or a number. The average of these bounds then takes the place of
                ``lb``; a constant one is the same as ``lb``. All steps have one or none.

        With neither a closure nor a loss, the losses given to :meth:`record_loss` are used.

        Returns:
            The loss as it was given, or None if it was recorded.

        Raises:
            RuntimeError: if there is no loss, or a closure added to gradients that were there before, or a gradient is
                sparse, or ranks hold different parameters.
            ValueError: if there are two losses, or the loss isn't one real number, or an option is out of range, or
                options that belong to the loss rather than to the parameters (the momentum, ``lb``, ``use_fstar``)
                differ between groups, or only some steps have a lower bound, or it comes with ``use_fstar``.
        """
        if closure is None and loss is None and not self._recorded and self._asked_to_initialise():
            return None
        self._check_options()
        returned, value = self._take_loss(None if closure is _NOT_GIVEN else closure, loss, lower_bound)
        if value is None:
            return returned
        if not self._warned:
            self._warned = warn_if_not_finite(value.loss, type(self).__name__)
        self._advance(*value)
        return returned

    def _check_bounds(self, given: bool) -> None:
        """All steps have a lower bound of their own, or none."""
        name = type(self).__name__
        if given and self.param_groups[0].get("use_fstar"):
            raise ValueError(f"{name}: lower_bound and use_fstar=True are two sources of one bound. Use one of them.")
        if self._bounded not in (None, given):
            before, now = ("has one", "none") if self._bounded else ("has none", "one")
            raise ValueError(
                f"{name}: the loss of each step before {before}, and this step got {now}: give all steps a lower_bound "
                "or none."
            )

    def _advance(self, loss: Scalar, lower_bound: Scalar | None) -> None:
        grads = self._gradients()
        blocks = self._prepared(grads)
        assert self._memory is not None
        if lower_bound is not None or self._bounded:
            self._check_bounds(lower_bound is not None)
        home, options = self._memory.device, self.param_groups[0]
        beta, from_zero = momentum_of(options), options.get("bias_correction", self.from_zero)

        lrs = {id(group): self._number(group["lr"], home) for group in self.param_groups}
        whole = self._whole_step(blocks, grads, lower_bound)
        if whole is not None:
            star = options.get("use_fstar", False)
            taken = whole.take(self._memory, bring(loss, home), lrs, beta, from_zero, options["lb"], star)
            self._bounded, self._last = False, (taken, [lrs[id(group)] for group in self.param_groups])
            return

        # The averages take in this step, and the parameters are summed over.
        terms: list[list[Scalar]] = []
        for block in blocks:
            lr = bring(lrs[id(block.group)], block.device)
            found = block.accumulate(grads, beta, from_zero, lr)
            terms.append([bring(v, home) for v in found])
        given = [bring(loss, home)] + ([] if lower_bound is None else [bring(lower_bound, home)])
        (loss, *bound), totals = self._reduced(given, terms, blocks, home)
        sums = Sums(loss, *totals[:5])
        norm: Scalar = 1.0
        if len(totals) > 5:
            per_norm, norm = totals[5:]
            shared = per_norm * norm
            sums = sums._replace(descent=sums.descent + shared, decayed_descent=sums.decayed_descent + shared)

        # How far the model allows to go.
        *numbers, steps = self._numbers or self._memory.unbind()
        memory = Memory(*numbers)
        memory = memory._replace(lower_bound=where(memory.rho > 0, memory.lower_bound, options["lb"]))
        step = truncated_step(
            memory, sums, beta=beta, from_zero=from_zero, lb=options["lb"],
            use_fstar=options.get("use_fstar", False), lower_bound=bound[0] if bound else None,
        )  # fmt: skip

        # The parameters move.
        for block in blocks:
            block.move(bring(step.multiplier, block.device), bring(norm, block.device))
        steps = steps - 1 if bound else steps + 1
        if self._numbers:
            self._numbers[:] = array.array("d", map(float, (*step.memory, steps)))
        else:
            self._memory.copy_(self._vector([*step.memory, steps], home))
        self._bounded = bool(bound)
        self._last = step, [lrs[id(group)] for group in self.param_groups]

    def _whole_step(
        self, blocks: list[Block], grads: list[Tensor | None], lower_bound: Scalar | None
    ) -> TritonStep | None:
        """A GPU's step in a few launches, where it is asked for.

        Only with ``fused=True``: no GPU has run these kernels yet.
        """
        if not self._fused or not blocks or self._numbers:
            return None
        if self._whole is None:
            self._whole = whole_step(blocks)
        reason: str | None
        if isinstance(self._whole, str):
            reason = self._whole
        elif lower_bound is not None or self._reduction.group() is not None:
            reason = "torch's operations make steps over ranks or with a lower_bound of their own"
        else:
            reason = self._whole.why_not(grads)
        if reason is not None:
            raise RuntimeError(
                f"fused=True needs a compiled step, and {reason}. Use fused=None for torch's operations."
            )
        assert not isinstance(self._whole, str)
        return self._whole

    def _reduced(
        self, given: list[Scalar], terms: list[list[Scalar]], blocks: list[Block], home: torch.device
    ) -> tuple[list[Scalar], list[Scalar]]:
        """The means of what was given with the loss, and the sums of the blocks' terms, over all ranks."""
        columns = list(itertools.zip_longest(*terms, fillvalue=0.0)) or [(0.0,)] * 5
        if self._reduction.group() is None:
            totals: list[Scalar] = [sum(column) for column in columns]
            for block in blocks:
                if block.sharded:
                    totals[0] = totals[0] + bring(block.update_gamma(block.gx), home)
            return given, totals
        # What is sharded has gamma after the sums over its shards are known.
        parts = [block.gx.to(home) * block.counted for block in blocks if block.sharded]
        weighted = [sum(block.counted * v for block, v in zip(blocks, column)) for column in columns]
        own = self._vector([*(v * self._reduction.weight([], 1) for v in given), *weighted], home)

        def held_by_every_rank() -> tuple[float, Scalar]:
            held = [block for block in blocks if not block.sharded]
            size = sum(p.numel() for block in held for p in block.members.whole_params)
            return float(size), sum(bring(block.positive, home) for block in held)

        every = self._reduction(torch.cat([own, *parts]), held_by_every_rank)
        first, at = every[: len(own)], len(own)
        for block in blocks:
            if block.sharded:
                gx = every[at : at + len(block.gx)]
                first[len(given)] += bring(block.update_gamma(gx.to(block.device)), home)
                at += len(gx)
        numbers: list[Scalar] = first.tolist() if on_host(home) else list(first.unbind())
        return numbers[: len(given)], numbers[len(given) :]

    @staticmethod
    def _number(lr: Scalar, home: torch.device) -> Scalar:
        """A learning rate: a number, unless it is on a device."""
        if not isinstance(lr, Tensor):
            return lr
        lr = lr.detach().reshape(())
        return lr.item() if on_host(lr.device) else bring(lr.to(torch.float64, copy=True), home)

    @staticmethod
    def _vector(values: list[Scalar], device: torch.device) -> Tensor:
        """Scalars as one tensor, made on the device."""
        if on_host(device):
            return torch.tensor([float(v) for v in values], dtype=torch.float64)
        full = (v if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float64, device=device) for v in values)
        return torch.stack([v.to(device, torch.float64, non_blocking=True).reshape(()) for v in full])

    def diagnostics(self) -> dict[str, Tensor]:
        r"""What the last step did, as tensors on the parameters' device (nothing is copied to the host).

        Returns:
            ``step_size``, ``adaptive_term`` and ``cap``, with an element for each parameter group: the step size
            :math:`\tau` that was taken, the one that the model asked for (:math:`\zeta`), and the largest one that the
            learning rate allows (:math:`\alpha/\rho`); the step size is the smaller one of the two. ``capped``, whether
            that was the learning rate's; ``loss_average``; ``lower_bound``, which changes with ``use_fstar``.

        The share of capped steps tells most about a run. Near one, the method is SGD with momentum (or Adam) and a
        larger learning rate may help; near zero, the learning rate no longer matters.

        Raises:
            RuntimeError: before the first step.
        """
        if self._last is None or self._memory is None:
            raise RuntimeError("diagnostics() tells about the last step, and none has been taken yet.")
        step, lrs = self._last
        home = self._memory.device
        scaled = [self._direction_of(group).scales for group in self.param_groups]
        cap = self._vector([lr / (step.memory.rho if scales else 1.0) for lr, scales in zip(lrs, scaled)], home)
        multiplier, adaptive, capped, average, bound = self._vector(
            [step.multiplier, step.adaptive, step.capped, step.memory.average, step.memory.lower_bound], home
        ).unbind()
        return {
            "step_size": multiplier * cap,
            "adaptive_term": adaptive * cap,
            "cap": cap,
            "capped": capped.bool(),
            "loss_average": average,
            "lower_bound": bound,
        }

    # ---- groups and options ----

    def _check_options(self) -> None:
        """Check the options where they have changed: they may be set at any time."""
        now = [tuple(v for k, v in group.items() if k != "params") for group in self.param_groups]
        if now == self._checked_options and not any(isinstance(group["lr"], Tensor) for group in self.param_groups):
            return
        for group in self.param_groups:
            check_options(group)
        check_shared(self.param_groups)
        self._checked_options = now

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in torch, at any time.

        It may have its own ``lr``, ``weight_decay`` (and ``eps``, second beta and ``divide`` in ``MomoAdam``).
        """
        if "beta" in self.defaults and isinstance(param_group, dict) and {"beta", "momentum"} & set(param_group):
            beta = param_group.get("beta", param_group.get("momentum"))
            param_group = {**param_group, "beta": beta, "momentum": beta}
        super().add_param_group(param_group)
        group = self.param_groups[-1] = Options(self.param_groups[-1])
        try:
            check_options(group)
            check_shared(self.param_groups)
            for p in group["params"]:
                if not p.is_floating_point():
                    raise ValueError(f"{type(self).__name__} needs real floating-point parameters, and got {p.dtype}.")
                if type(p).__name__ == "FlatParameter":
                    raise ValueError(
                        f"{type(self).__name__} doesn't work with FullyShardedDataParallel's flat parameters: use "
                        "fully_shard (FSDP2)."
                    )
        except ValueError:
            self.param_groups.pop()
            raise
        self._blocks = None
        self._reduction = Reduction(self._reduction.process_group, type(self).__name__)

    def __repr__(self) -> str:
        """The options of each group, as in torch, but for the values of tensors on a device."""
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            for key in sorted(group.keys() - {"params", "momentum"}):
                value = group[key]
                on_device = isinstance(value, Tensor) and value.device.type != "cpu"
                lines.append(f"    {key}: {f'a tensor on {value.device}' if on_device else value}")
            if group.get("matrices") and "param_names" not in group:
                lines.append(f"    shapes: {[tuple(p.shape) for p in group['params']]}")
        return "\n".join([*lines, ")"])

    # ---- the state ----

    def _home(self) -> torch.device:
        """Where the scalars are: on the CPU only if all parameters' scalars are."""
        devices = [scalar_device(p.device) for group in self.param_groups for p in group["params"]]
        return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))

    def _state_of(self, p: Tensor, direction: Any) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            for name, dtype in {**SCALARS, **direction.scalars}.items():
                state[name] = torch.zeros((), dtype=dtype, device=scalar_device(p.device))
            for name in direction.buffers:
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format, dtype=compute_dtype(p.dtype))
        if self._memory is not None:
            state.update(zip(_OF_THE_LOSS, self._memory.unbind()))
        return state

    def _prepared(self, grads: list[Tensor | None]) -> list[Block]:
        """The blocks of all parameters that have ever had a gradient."""
        if self._blocks is not None and self._blocks_state is self.state and len(self.state) == len(self._known):
            if len(self._known) == len(grads) or all(i in self._known for i, g in enumerate(grads) if g is not None):
                return self._blocks
        elif self._blocks is not None:
            self._memory = None  # the state is another one
        refuse_sparse(grads)
        params = [p for group in self.param_groups for p in group["params"]]
        wanted = {i for i, p in enumerate(params) if grads[i] is not None or self.state.get(p)}
        self._remember(params)
        self._blocks = make_blocks(
            self.param_groups, wanted, self._state_of, [self._direction_of(group) for group in self.param_groups],
            decoupled=self.decoupled, shards=shards, counted=self._reduction.weight,
            scratch=self._scratch, fused=self._fused,
        )  # fmt: skip
        self._whole = None
        self._known, self._blocks_state = wanted, self.state
        return self._blocks

    def _remember(self, params: list[Tensor]) -> None:
        """Have what belongs to the loss at hand, from the state if there is one."""
        if self._memory is not None:
            return
        home = self._home()
        saved = next((self.state[p] for p in params if self.state.get(p)), None)
        values = [saved[name] for name in _OF_THE_LOSS] if saved is not None else [0.0] * len(_OF_THE_LOSS)
        self._memory = self._vector(values, home)
        steps = 0.0 if saved is None else float(values[-1])
        self._bounded = None if steps == 0 else steps < 0
        self._numbers = array.array("d", self._memory.tolist() if on_host(home) else [])
        if on_host(home):
            self._memory = torch.frombuffer(self._numbers, dtype=torch.float64)

    def _asked_to_initialise(self) -> bool:
        """Whether this is ``torch.distributed.checkpoint`` making the state, with a step that is none.

        It calls ``step(closure=None)`` on a fresh optimizer, with learning rates and gradients of zero. The state is
        made then, and the step isn't counted.
        """
        if self.state or any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        params = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not params or any(p.grad.any() for p, _ in params):
            return False
        self._remember([p for p, _ in params])
        for p, group in params:
            self._state_of(p, self._direction_of(group))
        return True

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` gave, and go on as if training had never stopped.

        Devices and dtypes are adapted to the parameters as in torch. Call it after making LR schedulers.

        Raises:
            ValueError: if it isn't the state of this kind of optimizer, or its groups don't fit.
        """
        loaded: dict[str, Any] = {}
        name = type(self).__name__

        def keep(_: Optimizer, given: dict[str, Any]) -> None:
            loaded.update(given)
            for own in ("betas" if "betas" in self.defaults else "beta", *self.marks):
                if any(own not in group for group in given["param_groups"]):
                    raise ValueError(f"this isn't the state of a {name}: its groups have no {own}.")
            direction = {i: self._direction_of(group) for group in given["param_groups"] for i in group["params"]}
            for i, state in given["state"].items():
                needed = (*SCALARS, *direction[i].scalars, *direction[i].buffers, *_OF_THE_LOSS)
                missing = [n for n in needed if n not in state]
                if missing:
                    raise ValueError(
                        f"this isn't the state of a {name}: it has no {', '.join(missing)}. (The state of momo-opt "
                        "0.1.0 can't be continued: it lacks the average of the losses and the lower bound.)"
                    )
                foreign = [n for n in state if n not in needed]
                if foreign:
                    raise ValueError(f"this isn't the state of a {name}, which has no {', '.join(foreign)}.")

        def restore(_: Optimizer) -> None:
            # torch gives all of a parameter's state the parameter's dtype. These stay as they were saved.
            ids = [i for group in loaded["param_groups"] for i in group["params"]]
            params = [(p, self._direction_of(group)) for group in self.param_groups for p in group["params"]]
            for i, (p, direction) in zip(ids, params):
                saved = loaded["state"].get(i)
                if saved is None:
                    continue
                where_to = scalar_device(p.device)
                for n in (*SCALARS, *direction.scalars, *_OF_THE_LOSS):
                    dtype = SCALARS.get(n, torch.float64)
                    self.state[p][n] = torch.as_tensor(saved[n]).to(where_to, dtype, copy=True)
                if compute_dtype(p.dtype) is not p.dtype:
                    for n in direction.buffers:
                        self.state[p][n] = saved[n].to(p.device, compute_dtype(p.dtype), copy=True)

        handles = [
            self.register_load_state_dict_pre_hook(keep),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_fused": self._fused}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fused = state.pop("_fused", self.__dict__.get("_fused"))
        super().__setstate__(state)
        before = self.__dict__.get("_reduction")
        self._set_up(fused, before.process_group if before is not None else None)
        for i, group in enumerate(self.param_groups):
            self.param_groups[i] = Options(group)
            for name, value in self.defaults.items():
                self.param_groups[i].setdefault(name, value)
