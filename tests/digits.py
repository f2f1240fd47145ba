"""Every recipe on the built-in digits: name -> a function of nothing that gives (vae, first loss, *what follows)."""

from __future__ import annotations

from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.demo import digit_features, digit_modalities

DIM, HIDDEN, PRIVATE = 8, 32, 4
R = mm.recipes


def recipes(dim=DIM, hidden=HIDDEN, private=PRIVATE):
    """The recipes with codes and networks of these sizes."""
    sizes = digit_features(hidden)

    def parts(size=dim, own=0):
        return digit_modalities(size, hidden, own)

    def joint():
        return mm.encoder(sum(sizes.values()) + len(sizes), hidden, dim=dim)

    def of_label():
        """Modalities for p(image | speech, label): the decoder of the image sees z and what is conditioned on."""
        wide = dim + sizes["speech"] + sizes["label"] + 2
        modalities = looked_at_by_a_fusion(parts())
        modalities["image"] = looked_at_by_a_fusion(parts(wide))["image"]
        return modalities

    return {
        "shared_representation": lambda: R.shared_representation(parts(), dim),
        "feature_fusion": lambda: R.feature_fusion(looked_at_by_a_fusion(parts()), dim, joint(), sizes),
        "alignment": lambda: R.alignment(parts(), dim),
        "mvae": lambda: R.mvae(parts(), dim, subsets=1),
        "mmvae": lambda: R.mmvae(parts(), dim, num_particles=2),
        "mopoe": lambda: R.mopoe(parts(), dim),
        "mvtcae": lambda: R.mvtcae(parts(), dim),
        "jmvae": lambda: R.jmvae(parts(), dim, joint(), sizes),
        "telbo": lambda: R.telbo(parts(), dim, joint(), sizes),
        "mmjsd": lambda: R.mmjsd(parts(), dim),
        "crmvae": lambda: R.crmvae(parts(), dim),
        "wasserstein": lambda: R.wasserstein(parts(), dim),
        "code": lambda: R.code(parts(), dim),
        "dmvae": lambda: R.dmvae(parts(own=private), dim, private),
        "mmvaeplus": lambda: R.mmvaeplus(parts(own=private), dim, private, num_particles=2),
        "cmvae": lambda: R.cmvae(parts(own=private), dim, private, num_particles=2),
        "mmvm": lambda: R.mmvm(parts()),
        "jnf": lambda: R.jnf(parts(), dim, joint(), sizes),
        "nexus": lambda: R.nexus(parts(), dim, dict.fromkeys(sizes, dim), hidden),
        "mhvae": lambda: R.mhvae(bottom(parts(), dim), [dim, dim], sizes, hidden),
        "cvae": lambda: R.cvae(of_label(), dim, "image", joint(), sizes),
    }


def looked_at_by_a_fusion(modalities):
    """Modalities whose unimodal encoders nobody calls."""
    for modality in modalities.values():
        modality.encoder = nn.Identity()
    return modalities


def bottom(modalities, dim):
    """Modalities whose decoders see the last `dim` of the codes."""
    for modality in modalities.values():
        modality.decoder.net = nn.Sequential(mm.Last(dim), modality.decoder.net)
    return looked_at_by_a_fusion(modalities)


RECIPES = recipes()
