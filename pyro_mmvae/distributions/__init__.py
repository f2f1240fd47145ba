"""Distributions that the two programs need beyond Pyro's own.

All of them leave the number of axes alone: batch axes are counted from the right, so that particles,
which stand on the left, come for free.
"""

from pyro_mmvae.distributions.base import Stacked, mapped, parameters_of, stacked
from pyro_mmvae.distributions.columns import Columnwise
from pyro_mmvae.distributions.mixture import Mixture
from pyro_mmvae.distributions.pool import LogPool
from pyro_mmvae.distributions.rows import Rows, Switch, feasible, masked

__all__ = [
    "Columnwise",
    "LogPool",
    "Mixture",
    "Rows",
    "Stacked",
    "Switch",
    "feasible",
    "mapped",
    "masked",
    "parameters_of",
    "stacked",
]
