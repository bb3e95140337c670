"""The directions: what an optimizer averages, and against what it moves its parameters.

A method is a direction :math:`u`, made from the averaged gradient :math:`d`, and a step size. The step size is the same
for all (:mod:`momo.method`), so a method is only the few lines of its file here.
"""

from momo.directions.adam import Adam, AdamFromFirst
from momo.directions.momentum import Momentum
from momo.directions.muon import Muon, MuonMax
from momo.directions.protocol import Direction, Elementwise

__all__ = ["Adam", "AdamFromFirst", "Direction", "Elementwise", "Momentum", "Muon", "MuonMax"]
