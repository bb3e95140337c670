"""Hugging Face's ``transformers``: a ``Trainer`` that records the loss, and the mixin that does so for any other."""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor

from momo.recording import record_loss


class RecordLoss:
    """A mixin for ``transformers.Trainer`` and its subclasses, whose loss it records for the optimizer.

    Name it before them: ``class MyTrainer(RecordLoss, SomeTrainer)``. What is recorded is the loss that
    ``training_step()`` returns, which is the one that was backpropagated: divided by the number of micro-batches or of
    tokens.

    Raises:
        TypeError: as the first loss is recorded, if the optimizer isn't one of this package.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train on one (micro-)batch, and record its loss."""
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        record_loss(self.optimizer, loss, reduction="sum")  # type: ignore[attr-defined]
        return loss


class Trainer(RecordLoss, transformers.Trainer):  # type: ignore[misc,unused-ignore]
    """``transformers.Trainer`` for the optimizers of this package.

    It takes the same arguments. Name the optimizer and its options by ``optimizer_cls_and_kwargs``, as in the example:
    ``learning_rate`` and ``optim`` in ``TrainingArguments`` aren't used. The learning rate falls linearly, as always in
    ``transformers``, unless ``lr_scheduler_type="constant"`` says otherwise.

    Example:
        >>> import tempfile
        >>> import momo, torch, transformers
        >>> from momo.integrations.transformers import Trainer
        >>> config = transformers.GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
        >>> tokens = [{"input_ids": x, "labels": x} for x in torch.randint(32, (16, 8))]
        >>> trainer = Trainer(
        ...     model=transformers.GPT2LMHeadModel(config),
        ...     args=transformers.TrainingArguments(
        ...         tempfile.mkdtemp(), max_steps=2, gradient_accumulation_steps=2, lr_scheduler_type="constant",
        ...         use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        ...     ),
        ...     train_dataset=tokens,
        ...     optimizer_cls_and_kwargs=(momo.MomoAdam, {"lr": 1e-2}),
        ... )
        >>> trainer.train().global_step  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        2
    """
