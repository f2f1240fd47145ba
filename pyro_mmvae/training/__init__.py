"""Training: `fit`, and what it is made of."""

from pyro_mmvae.training.checkpoint import carry_on, give_up
from pyro_mmvae.training.history import History, constant, cosine
from pyro_mmvae.training.loop import fit

__all__ = ["History", "carry_on", "constant", "cosine", "fit", "give_up"]
