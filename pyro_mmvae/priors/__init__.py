"""Priors of the shared code: modules experts -> distribution with event (dim,).

A classical prior ignores the experts. Any function that returns a distribution is a prior as well, and so is any
fusion; `DynamicPrior` gives a fusion something to fall back on where nothing is observed. A prior with latent sites of
its own adds `guide(z)`.
"""

from pyro_mmvae.priors.classical import FlowPrior, GaussianMixture, Laplace, LearnedNormal, StandardNormal
from pyro_mmvae.priors.dependent import DynamicPrior, Pooled, VampPrior
from pyro_mmvae.priors.hierarchical import HierarchicalNormal

__all__ = [
    "DynamicPrior",
    "FlowPrior",
    "GaussianMixture",
    "HierarchicalNormal",
    "Laplace",
    "LearnedNormal",
    "Pooled",
    "StandardNormal",
    "VampPrior",
]
