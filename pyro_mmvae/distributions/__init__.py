"""Distributions that the two programs need beyond Pyro's own.

All of them leave the number of axes alone: batch axes are counted from the right, so that particles,
which stand on the left, come for free.
"""

from pyro_mmvae.distributions.base import (
    Stacked,
    like,
    log_prob_sum,
    mapped,
    moments_of,
    parameters_of,
    plain_support,
    stacked,
)
from pyro_mmvae.distributions.binomial import Binomial
from pyro_mmvae.distributions.categorical import Categorical
from pyro_mmvae.distributions.chain import Beside, Chain, drawn_part
from pyro_mmvae.distributions.columns import Columnwise, numbers_of
from pyro_mmvae.distributions.mixture import Mixture
from pyro_mmvae.distributions.natural import NaturalNormal, is_correlated, natural_form, product
from pyro_mmvae.distributions.negative_binomial import NegativeBinomial
from pyro_mmvae.distributions.normal import Normal, is_normal
from pyro_mmvae.distributions.poisson import Poisson
from pyro_mmvae.distributions.pool import LogPool
from pyro_mmvae.distributions.products import ProductMixture, indicator, members_of, pick_subsets
from pyro_mmvae.distributions.rows import Rows, Switch, feasible, masked
from pyro_mmvae.distributions.strata import (
    Stratum,
    Surrogate,
    as_whole,
    by_component,
    components_of,
    detached,
    is_mixture,
    stratum,
)

__all__ = [
    "Beside",
    "Binomial",
    "Categorical",
    "Chain",
    "Columnwise",
    "LogPool",
    "Mixture",
    "NaturalNormal",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "ProductMixture",
    "Rows",
    "Stacked",
    "Stratum",
    "Surrogate",
    "Switch",
    "as_whole",
    "by_component",
    "components_of",
    "detached",
    "drawn_part",
    "feasible",
    "indicator",
    "is_correlated",
    "is_mixture",
    "is_normal",
    "like",
    "log_prob_sum",
    "mapped",
    "masked",
    "members_of",
    "moments_of",
    "natural_form",
    "numbers_of",
    "parameters_of",
    "pick_subsets",
    "plain_support",
    "product",
    "stacked",
    "stratum",
]
