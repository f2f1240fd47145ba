"""Objectives = passes x bound, each a drop-in loss for stock SVI, for `mm.fit`, and in the ELBO-module style.

A pass says what the guide may look at and what the model must explain; the bound turns the weights of the draws of a
row into a number. All losses are sums over rows, in nats.
"""

from pyro_mmvae.objectives.bounds import Bound, dreg, elbo, iwae, stl
from pyro_mmvae.objectives.loss import Loss
from pyro_mmvae.objectives.objective import Objective
from pyro_mmvae.objectives.passes import (
    Pass,
    Views,
    cross,
    dropped,
    every_subset,
    joint,
    random_subsets,
    strata,
    subset_strata,
    unimodal,
)
from pyro_mmvae.objectives.phases import Match, encoders_only

__all__ = [
    "Bound",
    "Loss",
    "Match",
    "Objective",
    "Pass",
    "Views",
    "cross",
    "dreg",
    "dropped",
    "elbo",
    "encoders_only",
    "every_subset",
    "iwae",
    "joint",
    "random_subsets",
    "stl",
    "strata",
    "subset_strata",
    "unimodal",
]
