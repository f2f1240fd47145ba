"""Every recipe on the built-in digits: name -> a function of nothing that gives (vae, first loss, *what follows)."""

from __future__ import annotations

from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.demo import digit_features, digit_modalities

DIM, HIDDEN, PRIVATE = 8, 32, 4
SIZES = digit_features(HIDDEN)
R = mm.recipes


def parts(dim=DIM, private=0):
    return digit_modalities(dim, HIDDEN, private)


def joint():
    return mm.encoder(sum(SIZES.values()) + len(SIZES), HIDDEN, dim=DIM)


def looked_at_by_a_fusion(modalities):
    """Modalities whose unimodal encoders nobody calls."""
    for modality in modalities.values():
        modality.encoder = nn.Identity()
    return modalities


def bottom(modalities):
    """Modalities whose decoders see the last DIM of the codes."""
    for modality in modalities.values():
        modality.decoder.net = nn.Sequential(mm.Last(DIM), modality.decoder.net)
    return looked_at_by_a_fusion(modalities)


def of_label():
    """Modalities for p(image | speech, label): the decoder of the image sees z and what is conditioned on."""
    wide = DIM + SIZES["speech"] + SIZES["label"] + 2
    modalities = looked_at_by_a_fusion(parts())
    modalities["image"] = looked_at_by_a_fusion(parts(wide))["image"]
    return modalities


RECIPES = {
    "shared_representation": lambda: R.shared_representation(parts(), DIM),
    "feature_fusion": lambda: R.feature_fusion(looked_at_by_a_fusion(parts()), DIM, joint(), SIZES),
    "alignment": lambda: R.alignment(parts(), DIM),
    "mvae": lambda: R.mvae(parts(), DIM, subsets=1),
    "mmvae": lambda: R.mmvae(parts(), DIM, num_particles=2),
    "mopoe": lambda: R.mopoe(parts(), DIM),
    "mvtcae": lambda: R.mvtcae(parts(), DIM),
    "jmvae": lambda: R.jmvae(parts(), DIM, joint(), SIZES),
    "telbo": lambda: R.telbo(parts(), DIM, joint(), SIZES),
    "mmjsd": lambda: R.mmjsd(parts(), DIM),
    "crmvae": lambda: R.crmvae(parts(), DIM),
    "wasserstein": lambda: R.wasserstein(parts(), DIM),
    "code": lambda: R.code(parts(), DIM),
    "dmvae": lambda: R.dmvae(parts(private=PRIVATE), DIM, PRIVATE),
    "mmvaeplus": lambda: R.mmvaeplus(parts(private=PRIVATE), DIM, PRIVATE, num_particles=2),
    "cmvae": lambda: R.cmvae(parts(private=PRIVATE), DIM, PRIVATE, num_particles=2),
    "mmvm": lambda: R.mmvm(parts()),
    "jnf": lambda: R.jnf(parts(), DIM, joint(), SIZES),
    "nexus": lambda: R.nexus(parts(), DIM, dict.fromkeys(SIZES, DIM), HIDDEN),
    "mhvae": lambda: R.mhvae(bottom(parts()), [DIM, DIM], SIZES, HIDDEN),
    "cvae": lambda: R.cvae(of_label(), DIM, "image", joint(), SIZES),
}
