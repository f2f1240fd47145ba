"""Methods around a product of experts or a joint encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyro.distributions.transforms as T
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import Transform

from pyro_mmvae.flows import Transforms
from pyro_mmvae.fusion import JointEncoder, MoE, PoE
from pyro_mmvae.modality import Modality
from pyro_mmvae.objectives import Match, Objective, Pass, encoders_only, joint, random_subsets, unimodal
from pyro_mmvae.priors import Pooled, StandardNormal
from pyro_mmvae.recipes.base import Modalities, Ready, check_sizes
from pyro_mmvae.vae import MultimodalVAE


def shared_representation(modalities: Modalities, dim: int) -> Ready:
    """One code behind all modalities, inferred by a product of experts: the plain multimodal VAE.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.shared_representation(mm.guess_modalities(x, dim=2), dim=2)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    return MultimodalVAE(modalities, StandardNormal(dim), PoE()), Trace_ELBO()


def feature_fusion(modalities: Modalities, dim: int, net: nn.Module, sizes: Mapping[str, int]) -> Ready:
    """One network on the features of all modalities side by side, with indicators of which are there.

    Args:
        net, sizes: see `mm.JointEncoder`.

    Raises:
        ValueError: sizes of what is no modality, or none for one that is looked at.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> net = mm.encoder(3 + 2 + 2, 16, dim=2)
        >>> vae, loss = mm.recipes.feature_fusion(mm.guess_modalities(x, dim=2), 2, net, {"a": 3, "b": 2})
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    check_sizes(sizes, modalities)
    return MultimodalVAE(modalities, StandardNormal(dim), JointEncoder(net, sizes)), Trace_ELBO()


def mvae(modalities: Modalities, dim: int, subsets: int = 0) -> Ready:
    """MVAE: a product of experts; the ELBO of all modalities, of each alone, and of `subsets` random ones.

    Rows without a modality contribute nothing to its unimodal term.

    Reference:
        Wu and Goodman, 2018, Multimodal Generative Models for Scalable Weakly-Supervised Learning,
        https://arxiv.org/abs/1802.05335

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.mvae(mm.guess_modalities(x, dim=2), dim=2)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    return MultimodalVAE(modalities, StandardNormal(dim), PoE()), Objective([joint, unimodal, random_subsets(subsets)])


def mvtcae(modalities: Modalities, dim: int, alpha: float = 0.9, beta: float = 1.0) -> Ready:
    """MVTCAE: a product of experts without the prior, held against prior and experts alike.

    (M - alpha)/M sum_m -E log p(x_m | z) + beta [(1 - alpha) KL(q || N) + alpha/M sum_m KL(q || q_m)], divided by its
    first factor here. A missing expert's share of alpha goes to the prior, so that the weights sum to one on any row.

    Reference:
        Hwang, Kim, Hong and Kim, 2021, Multi-View Representation Learning via Total Correlation Objective,
        https://proceedings.neurips.cc/paper/2021/hash/65a99bb7a3115fdede20da98b08a370f-Abstract.html

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.mvtcae(mm.guess_modalities(x, dim=2), dim=2)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    count = len(modalities)
    vae = MultimodalVAE(modalities, Pooled(StandardNormal(dim), alpha / count), PoE(prior_expert=False))
    return vae, Objective([joint], beta=beta * count / (count - alpha))


def jmvae(modalities: Modalities, dim: int, net: nn.Module, sizes: Mapping[str, int], alpha: float = 0.1) -> Ready:
    """JMVAE-kl: a joint encoder, and unimodal encoders that follow it.

    sum_m -E log p(x_m | z) + KL(q || N) + alpha sum_m KL(q || q_m). The posterior of one modality is its expert q_m;
    other incomplete rows, of which the paper does not speak, are encoded by the product of their experts alone.

    Args:
        net, sizes: see `mm.JointEncoder`.

    Raises:
        ValueError: sizes of what is no modality, or none for one that is looked at.

    Reference:
        Suzuki, Nakayama and Matsuo, 2016, Joint Multimodal Learning with Deep Generative Models,
        https://arxiv.org/abs/1611.01891

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> net = mm.encoder(3 + 2 + 2, 16, dim=2)
        >>> vae, loss = mm.recipes.jmvae(mm.guess_modalities(x, dim=2), 2, net, {"a": 3, "b": 2})
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    check_sizes(sizes, modalities)
    total = 1 + alpha * len(modalities)
    prior = Pooled(StandardNormal(dim), alpha / total)
    vae = MultimodalVAE(modalities, prior, JointEncoder(net, sizes, otherwise=PoE(prior_expert=False)))
    return vae, Objective([joint], beta=total)


def telbo(
    modalities: Modalities, dim: int, net: nn.Module, sizes: Mapping[str, int]
) -> tuple[MultimodalVAE, Objective, Callable[[], Objective]]:
    """TELBO, in two phases: `vae, first, second = telbo(...)`; fit with `loss=first`, then with `loss=second()`.

    First the joint ELBO; `second()` freezes all but the unimodal encoders, which then learn the ELBO of their own
    modality. Incomplete rows are encoded by a product of the experts alone.

    Raises:
        ValueError: sizes of what is no modality, or none for one that is looked at.

    Reference:
        Vedantam, Fischer, Huang and Murphy, 2018, Generative Models of Visually Grounded Imagination,
        https://arxiv.org/abs/1705.10762

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x, sizes = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}, {"a": 3, "b": 2}
        >>> net = mm.encoder(3 + 2 + 2, 16, dim=2)
        >>> vae, first, second = mm.recipes.telbo(mm.guess_modalities(x, dim=2), 2, net, sizes)
        >>> history = mm.fit(vae, x, loss=first, epochs=2, progress=False)
        >>> history = mm.fit(vae, x, loss=second(), epochs=2, progress=False)
    """
    check_sizes(sizes, modalities)
    fusion = JointEncoder(net, sizes, otherwise=PoE(prior_expert=False))
    vae = MultimodalVAE(modalities, StandardNormal(dim), fusion)

    def second() -> Objective:
        encoders_only(vae)
        return Objective([unimodal])

    return vae, Objective([joint]), second


def crmvae(modalities: Modalities, dim: int, beta: float = 1.0) -> Ready:
    """CRMVAE: a product of experts held against prior and experts, and each modality also rebuilt from its own expert.

    1/(2 (M + 1)) sum_m [-E_q log p(x_m | z) - E_{q_m} log p(x_m | z)] + beta/(M + 1) [KL(q || N) + sum_m KL(q || q_m)],
    multiplied by 2 (M + 1) here. A missing expert's weight goes to the prior.

    Reference:
        Suzuki and Matsuo, 2022, Mitigating the Limitations of Multimodal VAEs with Coordination-Based Approach,
        https://openreview.net/forum?id=Rn8u4MYgeNJ

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.crmvae(mm.guess_modalities(x, dim=2), dim=2)
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    total = 1 + len(modalities)
    vae = MultimodalVAE(modalities, Pooled(StandardNormal(dim), 1 / total), PoE(prior_expert=False))
    return vae, Objective([Pass(joint, beta=2 * total * beta), Pass(unimodal, beta=0.0)])


def jnf(
    modalities: Modalities,
    dim: int,
    net: nn.Module,
    sizes: Mapping[str, int],
    transforms: Callable[[], Sequence[Transform]] | None = None,
) -> tuple[MultimodalVAE, Objective, Callable[[], Match]]:
    """JNF, in two phases: `vae, first, second = jnf(...)`; fit with `loss=first`, then with `loss=second()`.

    First the joint ELBO of a joint encoder. `second()` freezes all but the unimodal encoders, normalizing flows, which
    then learn to cover the joint posterior: -sum_m E_{q(z | x)} log q_m(z | x_m), over complete rows. An incomplete row
    has the mixture of its experts, from where `mm.posterior_draws` goes on to the posterior; the paper runs fixed-step
    HMC on the product of the flows.

    Args:
        net, sizes: see `mm.JointEncoder`.
        transforms: makes the transforms of one expert; two affine coupling layers by default, which are fast both ways
            where the paper's masked autoregressive ones are not.

    Raises:
        ValueError: sizes of what is no modality, or none for one that is looked at.

    Reference:
        Senellart, Chadebec and Allassonniere, 2023, Improving Multimodal Joint Variational Autoencoders through
        Normalizing Flows and Correlation Analysis, https://arxiv.org/abs/2305.11832

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x, sizes = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}, {"a": 3, "b": 2}
        >>> net = mm.encoder(3 + 2 + 2, 16, dim=2)
        >>> vae, first, second = mm.recipes.jnf(mm.guess_modalities(x, dim=2), 2, net, sizes)
        >>> history = mm.fit(vae, x, loss=first, epochs=2, progress=False)
        >>> history = mm.fit(vae, x, loss=second(), epochs=2, progress=False)
    """
    check_sizes(sizes, modalities)
    make = transforms or (lambda: couplings(dim))
    looked_at = {name: m.encoder for name, m in modalities.items() if m.encoder is not None}
    experts = {name: nn.Sequential(encoder, Transforms(make())) for name, encoder in looked_at.items()}
    flows = {
        name: Modality(m.decoder, experts.get(name), None, m.trunk, m.weight, m.repeated)
        for name, m in modalities.items()
    }
    vae = MultimodalVAE(flows, StandardNormal(dim), JointEncoder(net, sizes, otherwise=MoE()))

    def second() -> Match:
        encoders_only(vae)
        return Match(vae)

    return vae, Objective([joint]), second


def couplings(dim: int) -> list[Transform]:
    """Two affine coupling layers that change both halves of a code of two or more dimensions."""
    turn = T.permute(dim, torch.arange(dim).flip(0))
    return [T.affine_coupling(dim, [64]), turn, T.affine_coupling(dim, [64])]
