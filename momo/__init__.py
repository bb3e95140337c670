"""MoMo: momentum models for adaptive learning rates, for PyTorch.

`Momo` is SGD with momentum, `MomoAdam` is Adam, `MomoMuon` and `MomoMuonMax` are Muon, all with a step size that adapts
to the loss and is never larger than what the learning rate allows. Schaipp, Ohana, Eickenberg, Defazio, Gower, ICML
2024, https://arxiv.org/abs/2305.07583; for Muon: Crawshaw, Modi, Liu, Gower, ICML 2026, https://arxiv.org/abs/2510.09827.
"""

from momo.momo import Momo
from momo.momo_adam import MomoAdam
from momo.momo_muon import MomoMuon, MomoMuonMax
from momo.recording import record_loss

__all__ = ["Momo", "MomoAdam", "MomoMuon", "MomoMuonMax", "record_loss"]
