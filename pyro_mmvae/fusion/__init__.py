"""Fusions: from the experts q(z | x_m) of the seen modalities to one posterior q(z | x_S).

A fusion is a module experts -> distribution, batch (row, 1), event (dim,). A prior has the same type, so every fusion
can be a prior that depends on the data. To write one, subclass `Fusion` and give `fuse`.
"""

from pyro_mmvae.fusion.base import Fusion
from pyro_mmvae.fusion.conditional import Conditioned, LooksAt, WhereGiven
from pyro_mmvae.fusion.flow import Flow
from pyro_mmvae.fusion.ladder import Ladder, LadderPoE
from pyro_mmvae.fusion.learned import Attention, DeepSets, JointEncoder
from pyro_mmvae.fusion.means import Hellinger, HoelderMixture, WassersteinMean
from pyro_mmvae.fusion.products import GeneralizedPoE, GeometricMean, MoE, PoE
from pyro_mmvae.fusion.subsets import CoDE, MixtureOfWasserstein, MoPoE

__all__ = [
    "Attention",
    "CoDE",
    "Conditioned",
    "DeepSets",
    "Flow",
    "Fusion",
    "GeneralizedPoE",
    "GeometricMean",
    "Hellinger",
    "HoelderMixture",
    "JointEncoder",
    "Ladder",
    "LadderPoE",
    "LooksAt",
    "MixtureOfWasserstein",
    "MoE",
    "MoPoE",
    "PoE",
    "WassersteinMean",
    "WhereGiven",
]
