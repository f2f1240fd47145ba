"""Methods around a mixture: of experts, of subsets, or held against one."""

from __future__ import annotations

from pyro.infer import Trace_ELBO

from pyro_mmvae.fusion import CoDE, GeometricMean, MixtureOfWasserstein, MoE, MoPoE
from pyro_mmvae.objectives import Bound, Objective, iwae, strata
from pyro_mmvae.priors import DynamicPrior, LearnedNormal, Pooled, StandardNormal
from pyro_mmvae.recipes.base import ByComponent, Modalities, Ready
from pyro_mmvae.vae import MultimodalVAE


def alignment(modalities: Modalities, dim: int, alpha: float = 0.9) -> Ready:
    """Unimodal experts pulled towards one another: each explains all modalities from a code of its own, and each KL is
    taken to a log-linear pool of the prior (weight 1 - alpha) with all experts (alpha / M each).

    sum_m 1/|S| { -E_{q_m} log p(x | z) + KL(q_m || pool) }: cross-generation as in MMVAE, alignment as in mmJSD.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.alignment(mm.guess_modalities(x, dim=2), dim=2)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    prior = Pooled(StandardNormal(dim), alpha / len(modalities))
    return MultimodalVAE(modalities, prior, ByComponent(MoE())), Objective([strata])


def mmvae(modalities: Modalities, dim: int, num_particles: int = 10, bound: Bound = iwae) -> Ready:
    """MMVAE: a mixture of experts, `num_particles` draws from each of them, an IWAE bound for each expert.

    The paper's gradient is `bound=mm.objectives.dreg`, biased for more than one draw; the default is unbiased. Its
    experts (`mm.LaplaceHead`) and prior are Laplace distributions; here the prior is a normal, with a learnt mean too.

    Reference:
        Shi, Siddharth, Paige and Torr, 2019, Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
        Generative Models, https://arxiv.org/abs/1911.03393

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.mmvae(mm.guess_modalities(x, dim=2), dim=2)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    vae = MultimodalVAE(modalities, LearnedNormal(dim), MoE())
    return vae, Objective([strata], bound, num_particles=num_particles)


def mopoe(modalities: Modalities, dim: int) -> Ready:
    """MoPoE: a mixture of the products over all subsets, one component drawn for each row and scored by itself.

    On an incomplete row, or given a subset, the mixture is over the subsets of what there is; the authors' code takes
    the product of all that is given, and in the product of all modalities the prior as one more factor.

    Reference:
        Sutter, Daunhawer and Vogt, 2021, Generalized Multimodal ELBO, https://arxiv.org/abs/2105.02470

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.mopoe(mm.guess_modalities(x, dim=2), dim=2)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    return MultimodalVAE(modalities, StandardNormal(dim), ByComponent(MoPoE())), Trace_ELBO()


def mmjsd(modalities: Modalities, dim: int) -> Ready:
    """mmJSD: a mixture of experts, each held against the geometric mean of all of them and the prior.

    sum_m -E log p(x_m | z) + 1/(M + 1) sum_m KL(q_m || geometric mean); z from each expert in turn. On an incomplete
    row the sum is over what it has, with the weight M/(M + 1) of the whole kept. The paper's divergence counts the
    prior among its members, and so has 1/(M + 1) KL(prior || geometric mean) as well, which is left out here.

    Reference:
        Sutter, Daunhawer and Vogt, 2020, Multimodal Generative Learning Utilizing Jensen-Shannon-Divergence,
        https://arxiv.org/abs/2006.08242

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.mmjsd(mm.guess_modalities(x, dim=2), dim=2)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    prior = DynamicPrior(GeometricMean(prior_expert=True), otherwise=StandardNormal(dim))
    vae = MultimodalVAE(modalities, prior, ByComponent(MoE()))
    return vae, Objective([strata], beta=len(modalities) / (len(modalities) + 1))


def wasserstein(modalities: Modalities, dim: int) -> Ready:
    """MWB-VAE: a mixture of the Wasserstein means over all subsets.

    Reference:
        Qiu et al., 2025, Multimodal Variational Autoencoder: a Barycentric View, https://arxiv.org/abs/2412.20487

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.wasserstein(mm.guess_modalities(x, dim=2), dim=2)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    return MultimodalVAE(modalities, StandardNormal(dim), ByComponent(MixtureOfWasserstein())), Trace_ELBO()


def code(modalities: Modalities, dim: int, rho: float = 0.5) -> Ready:
    """CoDE: a mixture over subsets of the consensus of experts whose errors have correlation rho, weights learnt.

    The paper weighs the subsets' ELBOs; here the mixture is scored as a whole, which is no looser.

    Reference:
        Mancisidor, Jenssen, Yu and Kampffmeyer, 2025, Aggregation of Dependent Expert Distributions in Multimodal
        Variational Autoencoders, https://arxiv.org/abs/2505.01134

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.code(mm.guess_modalities(x, dim=2), dim=2)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    return MultimodalVAE(modalities, StandardNormal(dim), CoDE(list(modalities), rho)), Trace_ELBO()
