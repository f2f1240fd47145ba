"""Training: `fit`, and what it is made of."""

from pyro_mmvae.training.history import History, constant, cosine
from pyro_mmvae.training.loop import fit

__all__ = ["History", "constant", "cosine", "fit"]
