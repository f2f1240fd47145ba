"""Published methods: functions of a few lines from modalities to `(vae, loss)`, ready for `mm.fit` or stock SVI; those
of two phases give a loss for each.

Every recipe takes rows with missing modalities. Where a paper does not say how, its docstring says what is done here;
unless it says otherwise, experts of missing modalities are left out and their likelihoods are not scored. Losses are
sums over rows.
"""

from pyro_mmvae.recipes.base import ByComponent
from pyro_mmvae.recipes.levels import cvae, mhvae, nexus
from pyro_mmvae.recipes.mixtures import alignment, code, mmjsd, mmvae, mopoe, wasserstein
from pyro_mmvae.recipes.private import cmvae, dmvae, mmvaeplus, mmvm
from pyro_mmvae.recipes.products import (
    crmvae,
    feature_fusion,
    jmvae,
    jnf,
    mvae,
    mvtcae,
    shared_representation,
    telbo,
)

__all__ = [
    "ByComponent",
    "alignment",
    "cmvae",
    "code",
    "crmvae",
    "cvae",
    "dmvae",
    "feature_fusion",
    "jmvae",
    "jnf",
    "mhvae",
    "mmjsd",
    "mmvae",
    "mmvaeplus",
    "mmvm",
    "mopoe",
    "mvae",
    "mvtcae",
    "nexus",
    "shared_representation",
    "telbo",
    "wasserstein",
]
