"""Methods with a private code for each modality."""

from __future__ import annotations

from pyro.infer import Trace_ELBO
from torch import nn

from pyro_mmvae.fusion import MoE, PoE
from pyro_mmvae.modality import Modality
from pyro_mmvae.objectives import Bound, Objective, cross, elbo, iwae, joint, strata
from pyro_mmvae.priors import GaussianMixture, LearnedNormal, StandardNormal
from pyro_mmvae.recipes.base import Modalities, Ready
from pyro_mmvae.vae import MultimodalVAE


def dmvae(modalities: Modalities, dim: int, private: int) -> Ready:
    """DMVAE: shared and private codes; the ELBO of all modalities, and one with z from each modality alone.

    The posterior of one modality, too, is a product with the prior, as in MVAE; the paper takes the expert alone.

    Args:
        private: size of the private codes, for every modality that has `Modality(private=...)`.

    Reference:
        Lee and Pavlovic, 2021, Private-Shared Disentangled Multimodal VAE for Learning of Hybrid Latent
        Representations,
        https://arxiv.org/abs/2012.13024

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> def part(size):
        ...     decoder = mm.NormalLikelihood(mm.mlp(2 + 1, 16, size))
        ...     return mm.Modality(decoder, mm.encoder(size, 16, dim=2), private=mm.encoder(size, 16, dim=1))
        >>> vae, loss = mm.recipes.dmvae({"a": part(3), "b": part(2)}, dim=2, private=1)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    own = {name: StandardNormal(private) for name, m in modalities.items() if m.private is not None}
    vae = MultimodalVAE(modalities, StandardNormal(dim), PoE(), private_prior=own)
    return vae, Objective([joint, cross], elbo)


def mmvaeplus(
    modalities: Modalities,
    dim: int,
    private: int,
    num_particles: int = 10,
    bound: Bound = iwae,
    prior: nn.Module | None = None,
) -> Ready:
    """MMVAE+: MMVAE with private codes; what is generated across modalities takes its private code from a learnt
    auxiliary prior.

    The paper's distributions are Laplace, and its auxiliary priors learn a scale alone; here they are normals, with a
    learnt mean too. Once trained, codes that nothing was seen of come from the private prior, as in the paper.

    Args:
        private: size of the private codes, for every modality that has `Modality(private=...)`.
        bound: the paper's gradient is `mm.objectives.dreg`, biased for more than one draw.
        prior: of z; N(0, I) by default.

    Reference:
        Palumbo, Daunhawer and Vogt, 2023, MMVAE+: Enhancing the Generative Quality of Multimodal VAEs without
        Compromises, https://openreview.net/forum?id=sdQGxouELX

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> def part(size):
        ...     decoder = mm.NormalLikelihood(mm.mlp(2 + 1, 16, size))
        ...     return mm.Modality(decoder, mm.encoder(size, 16, dim=2), private=mm.encoder(size, 16, dim=1))
        >>> vae, loss = mm.recipes.mmvaeplus({"a": part(3), "b": part(2)}, dim=2, private=1)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    owners = [name for name, modality in modalities.items() if modality.private is not None]
    vae = MultimodalVAE(
        modalities,
        prior or StandardNormal(dim),
        MoE(),
        private_prior={name: StandardNormal(private) for name in owners},
        auxiliary_prior={name: LearnedNormal(private) for name in owners},
    )
    return vae, Objective([strata], bound, num_particles=num_particles)


def cmvae(modalities: Modalities, dim: int, private: int, clusters: int = 10, num_particles: int = 10) -> Ready:
    """CMVAE: MMVAE+ with clusters: a mixture of normals as the prior of z.

    The paper's expectation over q(c | z), taken exactly, is log p(z). Its diffusion decoders are left out, and the
    scales of the clusters are learnt, which the authors' code fixes at one. To which clusters a row belongs:
    `vae.prior().responsibilities(z).mean(0)` over draws z (draw, row, dim) of its code.

    Reference:
        Palumbo, Manduchi, Laguna, Chopard and Vogt, 2024, Deep Generative Clustering with Multimodal Diffusion
        Variational Autoencoders, https://openreview.net/forum?id=k5THrhXDV3

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> def part(size):
        ...     decoder = mm.NormalLikelihood(mm.mlp(2 + 1, 16, size))
        ...     return mm.Modality(decoder, mm.encoder(size, 16, dim=2), private=mm.encoder(size, 16, dim=1))
        >>> vae, loss = mm.recipes.cmvae({"a": part(3), "b": part(2)}, dim=2, private=1, clusters=3)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    return mmvaeplus(modalities, dim, private, num_particles, prior=GaussianMixture(dim, clusters))


def mmvm(modalities: Modalities, prior: nn.Module | None = None) -> Ready:
    """MMVM: a code for each modality and none that is shared; each is held against all of them.

    sum_m { -E_{q_m} log p(x_m | w_m) + KL(q_m || 1/|S| sum_n q_n) }: the mixture itself is the prior, as in the paper's
    formula. The code of a missing modality is drawn from the prior. There is nothing to draw from without data:
    `mm.generate` says so.

    Limits: each code is in the mixture, so that to lie apart costs log M nats at most, and little draws the codes
    together: names of digits from pictures stay at chance (10 %) after 100 epochs. The authors' code has the looser
    1/|S| sum_n KL(q_m || q_n) for the KL to the mixture, which names 87 % there: give `prior`.

    Args:
        modalities: their encoders give the codes, all of one size.
        prior: of each code; the mixture by default. `mm.Pooled(mm.StandardNormal(dim), 1 / M)` for M modalities of
            codes (dim,) is the bound of the authors' code; it can be drawn from without data.

    Reference:
        Sutter, Meng, Agostini, Chopard, Fortin, Vogt, Shahbaba and Mandt, 2024, Unity by Diversity: Improved
        Representation Learning in Multimodal VAEs, https://arxiv.org/abs/2403.05300

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.mmvm(mm.guess_modalities(x, dim=2))
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    own = {name: Modality(m.decoder, None, m.encoder, m.trunk, m.weight, m.repeated) for name, m in modalities.items()}
    return MultimodalVAE(own, None, None, private_prior=dict.fromkeys(own, prior or MoE())), Trace_ELBO()
