"""Lightning: a callback that records the loss, for ``lightning`` and for ``pytorch_lightning``."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from momo.recording import record_loss

# A trainer calls every hook of a callback, so this one has to have those of the package that the trainer is from.
_PACKAGES = ("lightning", "pytorch_lightning")
_CALLBACKS = tuple(
    importlib.import_module(f"{name}.pytorch" if name == "lightning" else name).Callback
    for name in _PACKAGES
    if importlib.util.find_spec(name) is not None
)
if not _CALLBACKS:
    raise ImportError("momo.integrations.lightning needs Lightning: pip install lightning")


class RecordLoss(*_CALLBACKS):  # type: ignore[misc]
    """Records for the optimizer whatever is backpropagated, as it is backpropagated.

    Needed with ``accumulate_grad_batches`` and with ``precision="16-mixed"``, where Lightning doesn't pass the losses
    on; harmless elsewhere. Lightning divides the losses of micro-batches by their number, a ``GradScaler``
    multiplies them: recorded are the divided losses without the scale, for their sum has its gradient in ``.grad``.

    It works in automatic optimization, and in manual optimization with one optimizer and ``manual_backward``. It can't
    tell to which of several optimizers a loss belongs: call ``momo.record_loss(optimizer, loss)`` in ``training_step``.

    Raises:
        ValueError: as training starts, if there are several optimizers.
        TypeError: as the first loss is recorded, if the optimizer isn't one of this package.

    Example:
        >>> import lightning, momo, torch
        >>> from momo.integrations.lightning import RecordLoss
        >>> class Regression(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = torch.nn.Linear(3, 1)
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         return torch.nn.functional.mse_loss(self.model(x), y)
        ...     def configure_optimizers(self):
        ...         return momo.Momo(self.parameters())
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 3), torch.randn(64, 1))
        >>> trainer = lightning.Trainer(
        ...     max_epochs=1, accumulate_grad_batches=4, callbacks=[RecordLoss()], accelerator="cpu",
        ...     logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ... )
        >>> trainer.fit(Regression(), torch.utils.data.DataLoader(data, batch_size=4))
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse several optimizers."""
        if len(trainer.optimizers) > 1:
            raise ValueError(
                "RecordLoss can't tell which of several optimizers a loss belongs to: in training_step, call "
                "momo.record_loss(optimizer, loss) before optimizer.step() instead."
            )

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Record the loss."""
        loss = loss.detach()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # it has scaled the loss by now
            loss = loss / scaler.scale(torch.ones_like(loss, dtype=torch.float32))
        record_loss(trainer.optimizers[0], loss, reduction="sum")
