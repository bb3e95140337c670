"""MoMo: momentum models for adaptive learning rates, for PyTorch."""

from momo.momo import Momo
from momo.momo_adam import MomoAdam

__all__ = ["Momo", "MomoAdam"]
