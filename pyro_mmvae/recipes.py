"""Published methods: functions of a few lines from modalities to `(vae, loss)`, ready for `mm.fit` or stock SVI.

Every recipe takes rows with missing modalities. Where a paper does not say how, its docstring says what is done here;
unless it says otherwise, experts of missing modalities are left out and their likelihoods are not scored. Losses are
sums over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyro.distributions import Distribution
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_mmvae.distributions import by_component
from pyro_mmvae.fusion import CoDE, Fusion, GeometricMean, JointEncoder, MixtureOfWasserstein, MoE, MoPoE, PoE
from pyro_mmvae.modality import Experts, Modality
from pyro_mmvae.objectives import (
    Bound,
    Objective,
    Pass,
    cross,
    elbo,
    encoders_only,
    iwae,
    joint,
    random_subsets,
    strata,
    unimodal,
)
from pyro_mmvae.priors import DynamicPrior, GaussianMixture, LearnedNormal, Pooled, StandardNormal
from pyro_mmvae.vae import MultimodalVAE

Modalities = Mapping[str, Modality]
Ready = tuple[MultimodalVAE, Objective | Trace_ELBO]


class ByComponent(Fusion):
    """A fusion whose mixture is scored by the component that each draw came from: the bound of MoPoE and mmJSD."""

    def __init__(self, fusion: Fusion):
        super().__init__()
        self.fusion = fusion

    def forward(self, experts: Experts | None) -> Distribution:
        return by_component(self.fusion(experts))


def shared_representation(modalities: Modalities, dim: int) -> Ready:
    """One code behind all modalities, inferred by a product of experts: the plain multimodal VAE."""
    return MultimodalVAE(modalities, StandardNormal(dim), PoE()), Trace_ELBO()


def feature_fusion(modalities: Modalities, dim: int, net: nn.Module, sizes: Mapping[str, int]) -> Ready:
    """One network on the features of all modalities side by side, with indicators of which are there.

    Args:
        net, sizes: see `mm.JointEncoder`.
    """
    return MultimodalVAE(modalities, StandardNormal(dim), JointEncoder(net, sizes)), Trace_ELBO()


def alignment(modalities: Modalities, dim: int, alpha: float = 0.9) -> Ready:
    """Unimodal experts pulled towards one another: each explains all modalities from a code of its own, and each KL is
    taken to a log-linear pool of the prior (weight 1 - alpha) with all experts (alpha / M each).

    sum_m 1/|S| { -E_{q_m} log p(x | z) + KL(q_m || pool) }: cross-generation as in MMVAE, alignment as in mmJSD.
    """
    prior = Pooled(StandardNormal(dim), alpha / len(modalities))
    return MultimodalVAE(modalities, prior, ByComponent(MoE())), Objective([strata])


def mvae(modalities: Modalities, dim: int, subsets: int = 0) -> Ready:
    """MVAE: a product of experts; the ELBO of all modalities, of each alone, and of `subsets` random ones.

    Rows without a modality contribute nothing to its unimodal term.

    Reference:
        Wu and Goodman, 2018, Multimodal Generative Models for Scalable Weakly-Supervised Learning,
        https://arxiv.org/abs/1802.05335
    """
    return MultimodalVAE(modalities, StandardNormal(dim), PoE()), Objective([joint, unimodal, random_subsets(subsets)])


def mmvae(modalities: Modalities, dim: int, num_particles: int = 10, bound: Bound = iwae) -> Ready:
    """MMVAE: a mixture of experts, `num_particles` draws from each of them, an IWAE bound for each expert.

    The paper's gradient is `bound=mm.objectives.dreg`, biased for more than one draw; the default is unbiased.

    Reference:
        Shi, Siddharth, Paige and Torr, 2019, Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
        Generative Models, https://arxiv.org/abs/1911.03393
    """
    vae = MultimodalVAE(modalities, LearnedNormal(dim), MoE())
    return vae, Objective([strata], bound, num_particles=num_particles)


def mopoe(modalities: Modalities, dim: int) -> Ready:
    """MoPoE: a mixture of the products over all subsets, one component drawn for each row and scored by itself.

    On an incomplete row the mixture is over the subsets of what it has.

    Reference:
        Sutter, Daunhawer and Vogt, 2021, Generalized Multimodal ELBO, https://arxiv.org/abs/2105.02470
    """
    return MultimodalVAE(modalities, StandardNormal(dim), ByComponent(MoPoE())), Trace_ELBO()


def wasserstein(modalities: Modalities, dim: int) -> Ready:
    """MWB-VAE: a mixture of the Wasserstein means over all subsets.

    Reference:
        Qiu et al., 2025, Multimodal Variational Autoencoder: a Barycentric View, https://arxiv.org/abs/2412.20487
    """
    return MultimodalVAE(modalities, StandardNormal(dim), ByComponent(MixtureOfWasserstein())), Trace_ELBO()


def code(modalities: Modalities, dim: int, rho: float = 0.5) -> Ready:
    """CoDE: a mixture over subsets of the consensus of experts whose errors have correlation rho, weights learnt.

    The paper weighs the subsets' ELBOs; here the mixture is scored as a whole, which is no looser.

    Reference:
        Mancisidor, Jenssen, Yu and Kampffmeyer, 2025, Aggregation of Dependent Expert Distributions in Multimodal
        Variational Autoencoders, https://arxiv.org/abs/2505.01134
    """
    return MultimodalVAE(modalities, StandardNormal(dim), CoDE(list(modalities), rho)), Trace_ELBO()


def mvtcae(modalities: Modalities, dim: int, alpha: float = 0.9, beta: float = 1.0) -> Ready:
    """MVTCAE: a product of experts without the prior, held against prior and experts alike.

    (M - alpha)/M sum_m -E log p(x_m | z) + beta [(1 - alpha) KL(q || N) + alpha/M sum_m KL(q || q_m)], divided by its
    first factor here. A missing expert's share of alpha goes to the prior, so that the weights sum to one on any row.

    Reference:
        Hwang, Kim, Hong and Kim, 2021, Multi-View Representation Learning via Total Correlation Objective,
        https://proceedings.neurips.cc/paper/2021/hash/65a99bb7a3115fdede20da98b08a370f-Abstract.html
    """
    count = len(modalities)
    vae = MultimodalVAE(modalities, Pooled(StandardNormal(dim), alpha / count), PoE(prior_expert=False))
    return vae, Objective([joint], beta=beta * count / (count - alpha))


def jmvae(modalities: Modalities, dim: int, net: nn.Module, sizes: Mapping[str, int], alpha: float = 0.1) -> Ready:
    """JMVAE-kl: a joint encoder, and unimodal encoders that follow it.

    sum_m -E log p(x_m | z) + KL(q || N) + alpha sum_m KL(q || q_m). Incomplete rows, of which the paper does not
    speak, are encoded by a product of their experts.

    Args:
        net, sizes: see `mm.JointEncoder`.

    Reference:
        Suzuki, Nakayama and Matsuo, 2016, Joint Multimodal Learning with Deep Generative Models,
        https://arxiv.org/abs/1611.01891
    """
    total = 1 + alpha * len(modalities)
    prior = Pooled(StandardNormal(dim), alpha / total)
    vae = MultimodalVAE(modalities, prior, JointEncoder(net, sizes, otherwise=PoE()))
    return vae, Objective([joint], beta=total)


def telbo(
    modalities: Modalities, dim: int, net: nn.Module, sizes: Mapping[str, int]
) -> tuple[MultimodalVAE, Objective, Callable[[], Objective]]:
    """TELBO, in two phases: `vae, first, second = telbo(...)`; fit with `loss=first`, then with `loss=second()`.

    First the joint ELBO; `second()` freezes all but the unimodal encoders, which then learn the ELBO of their own
    modality. Incomplete rows are encoded by a product of the experts alone.

    Reference:
        Vedantam, Fischer, Huang and Murphy, 2018, Generative Models of Visually Grounded Imagination,
        https://arxiv.org/abs/1705.10762
    """
    fusion = JointEncoder(net, sizes, otherwise=PoE(prior_expert=False))
    vae = MultimodalVAE(modalities, StandardNormal(dim), fusion)

    def second() -> Objective:
        encoders_only(vae)
        return Objective([unimodal])

    return vae, Objective([joint]), second


def mmjsd(modalities: Modalities, dim: int) -> Ready:
    """mmJSD: a mixture of experts, each held against the geometric mean of all of them and the prior.

    sum_m -E log p(x_m | z) + 1/(M + 1) sum_m KL(q_m || geometric mean); z from each expert in turn. On an incomplete
    row the sum is over what it has, with the weight M/(M + 1) of the whole kept.

    Reference:
        Sutter, Daunhawer and Vogt, 2020, Multimodal Generative Learning Utilizing Jensen-Shannon-Divergence,
        https://arxiv.org/abs/2006.08242
    """
    prior = DynamicPrior(GeometricMean(prior_expert=True), otherwise=StandardNormal(dim))
    vae = MultimodalVAE(modalities, prior, ByComponent(MoE()))
    return vae, Objective([strata], beta=len(modalities) / (len(modalities) + 1))


def crmvae(modalities: Modalities, dim: int, beta: float = 1.0) -> Ready:
    """CRMVAE: a product of experts held against prior and experts, and each modality also rebuilt from its own expert.

    1/(2 (M + 1)) sum_m [-E_q log p(x_m | z) - E_{q_m} log p(x_m | z)] + beta/(M + 1) [KL(q || N) + sum_m KL(q || q_m)],
    multiplied by 2 (M + 1) here. A missing expert's weight goes to the prior.

    Reference:
        Suzuki and Matsuo, 2022, Mitigating the Limitations of Multimodal VAEs with Coordination-Based Approach,
        https://openreview.net/forum?id=Rn8u4MYgeNJ
    """
    total = 1 + len(modalities)
    vae = MultimodalVAE(modalities, Pooled(StandardNormal(dim), 1 / total), PoE(prior_expert=False))
    return vae, Objective([Pass(joint, beta=2 * total * beta), Pass(unimodal, beta=0.0)])


def dmvae(modalities: Modalities, dim: int, private: int) -> Ready:
    """DMVAE: shared and private codes; the ELBO of all modalities, and one with z from each modality alone.

    Args:
        private: size of the private codes, for every modality that has `Modality(private=...)`.

    Reference:
        Lee and Pavlovic, 2021, Private-Shared Disentangled Multimodal VAE for Learning of Hybrid Latent
        Representations,
        https://arxiv.org/abs/2012.13024
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

    Args:
        private: size of the private codes, for every modality that has `Modality(private=...)`.
        bound: the paper's gradient is `mm.objectives.dreg`, biased for more than one draw.
        prior: of z; N(0, I) by default.

    Reference:
        Palumbo, Daunhawer and Vogt, 2023, MMVAE+: Enhancing the Generative Quality of Multimodal VAEs without
        Compromises, https://openreview.net/forum?id=sdQGxouELX
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

    The paper's expectation over q(c | z), taken exactly, is log p(z). Its diffusion decoders are left out.

    Reference:
        Palumbo, Manduchi, Laguna, Chopard and Vogt, 2024, Deep Generative Clustering with Multimodal Diffusion
        Variational Autoencoders, https://openreview.net/forum?id=k5THrhXDV3
    """
    return mmvaeplus(modalities, dim, private, num_particles, prior=GaussianMixture(dim, clusters))
