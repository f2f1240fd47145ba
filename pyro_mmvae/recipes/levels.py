"""Methods with codes in levels, and one that is conditioned on modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pyro.distributions import Distribution
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_mmvae.checks import check_made_for, check_members
from pyro_mmvae.fusion import Conditioned, DeepSets, JointEncoder, Ladder, LadderPoE, LooksAt, WhereGiven
from pyro_mmvae.heads import NormalHead
from pyro_mmvae.levels import TwoLevelLoss, TwoLevels
from pyro_mmvae.likelihoods import NormalLikelihood
from pyro_mmvae.modality import Modality
from pyro_mmvae.networks import mlp
from pyro_mmvae.objectives import Objective, Pass, every_subset
from pyro_mmvae.priors import StandardNormal
from pyro_mmvae.recipes.base import Modalities, Ready, check_sizes
from pyro_mmvae.vae import MultimodalVAE
from pyro_mmvae.view import View


def cvae(
    modalities: Modalities,
    dim: int,
    target: str,
    net: nn.Module,
    sizes: Mapping[str, int],
    prior: Callable[..., Distribution] | None = None,
) -> Ready:
    """CVAE: one modality given the others, p(x_t | z, c) p(z | c), its posterior from one joint encoder.

    The others are looked at and never explained: their decoders are dropped, and the log-likelihood is that of the
    target given what is there of them. The target's decoder takes dim + sum of the others' sizes + one indicator for
    each of them. A row without the target has z from the prior.

    Args:
        target: the modality to explain.
        net, sizes: see `mm.JointEncoder`; sizes of all modalities.
        prior: of z given the experts of the others; N(0, I) by default.

    Raises:
        ValueError: a target, or a name in sizes, that is no modality.

    Reference:
        Sohn, Lee and Yan, 2015, Learning Structured Output Representation using Deep Conditional Generative Models,
        https://papers.nips.cc/paper/2015/hash/8d55a249e6baa5c06772297520da2051-Abstract.html

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> net = mm.encoder(3 + 2 + 2, 16, dim=2)
        >>> parts = mm.guess_modalities(x, dim=2 + 2 + 1)  # the decoder sees z, b, and whether b is there
        >>> vae, loss = mm.recipes.cvae(parts, 2, "a", net, {"a": 3, "b": 2})
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    check_sizes(sizes, modalities)
    if target not in modalities:
        raise ValueError(f"target is {target!r}; choose one of the modalities {', '.join(modalities)}")
    others = {name: size for name, size in sizes.items() if name != target}
    parts = {
        name: m if name == target else Modality(None, m.encoder, trunk=m.trunk, repeated=m.repeated)
        for name, m in modalities.items()
    }
    given = LooksAt(others, prior or StandardNormal(dim))
    guide = WhereGiven(target, JointEncoder(net, sizes), given)
    return MultimodalVAE(parts, Conditioned(given, others), Conditioned(guide, others)), Trace_ELBO()


def mhvae(modalities: Modalities, dims: Sequence[int], sizes: Mapping[str, int], hidden: int = 64) -> Ready:
    """MHVAE: codes in levels, each inferred given the one above by a product of its prior with the given modalities;
    the mean over all subsets of the ELBO in which the guide sees a subset and the model explains everything.

    A subset of which a row has nothing adds nothing to its mean, where the paper's code draws z from the prior. The
    last level alone is decoded.

    Limits: of M modalities a step has 2^M - 1 passes, all of them in memory until it ends: with eight it took 27 times
    as long as with four.

    Args:
        dims: size of each level, from the top.
        sizes: name -> number of features that the trunk gives, or the data has where there is no trunk.
        hidden: size of the networks between the levels.

    Raises:
        ValueError: sizes of what is no modality, none for one that is looked at, or dims that are no sizes.

    Reference:
        Dorent et al., 2023, Unified Brain MR-Ultrasound Synthesis using Multi-Modal Hierarchical Representations,
        https://arxiv.org/abs/2309.08747

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> def part(size):
        ...     decoder = mm.NormalLikelihood(torch.nn.Sequential(mm.Last(2), mm.mlp(2, 16, size)))
        ...     return mm.Modality(decoder, torch.nn.Identity())
        >>> vae, loss = mm.recipes.mhvae({"a": part(3), "b": part(2)}, [2, 2], {"a": 3, "b": 2})
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    check_sizes(sizes, modalities)
    prior, names = Ladder(dims, hidden), tuple(modalities)
    vae = MultimodalVAE(modalities, prior, LadderPoE(prior, sizes, hidden))

    def subsets(there: Sequence[str]) -> list[View]:
        """Of all modalities, so that a row counts the same whatever the rest of its batch lacks."""
        return [view for view in every_subset(names) if not set(there).isdisjoint(view.given or ())]

    subsets.__qualname__ = every_subset.__qualname__  # by which it is shown
    return vae, Objective([Pass(subsets, weight=1 / (2 ** len(names) - 1))])


def nexus(
    modalities: Modalities,
    dim: int,
    private: Mapping[str, int],
    hidden: int = 64,
    message: int = 32,
    dropout: float = 0.2,
    beta: float = 1.0,
    weights: Mapping[str, float] | None = None,
) -> tuple[TwoLevels, TwoLevelLoss]:
    """Nexus: a VAE for each modality, and one above them whose data are their codes; the levels do not share gradients.

    The paper's "forced perceptual dropout" hides all but a random subset of the modalities from the top's guide, here
    with probability `dropout` for a batch; the top still explains all codes. Messages of the given modalities are
    averaged. Its schedules (KL weights that rise over 20 epochs) are `mm.fit(warmup=...)`. The scale of the codes given
    z is learnt, where the paper's is one, and afterwards z is inferred from their means, where training draws them.

    Limits: the levels learn nothing from each other. The code of a modality of few nats, such as a label, collapses at
    weights of one, and then nothing can be carried to or from it: on written and spoken digits the picture names 10 %
    after 60 epochs, and 77 % with `Modality(weight=20)` of the label and 10 here.

    Args:
        dim: of the top code z.
        private: name -> size of the code that the modality's encoder gives and its decoder takes.
        hidden, message: sizes of the top's networks.
        dropout: probability.
        beta: weight of the top's KL.
        weights: gamma_m, name -> weight of that modality's code among the data of the top; 1 for a name that it lacks.

    Raises:
        ValueError: a modality without a size in `private`, or a name in it or in `weights` that is no modality.

    Reference:
        Vasco, Yin, Melo and Paiva, 2022, Leveraging Hierarchy in Multimodal Generative Models for Effective Cross-
        Modality Inference, https://doi.org/10.1016/j.neunet.2021.11.019

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae, loss = mm.recipes.nexus(mm.guess_modalities(x, dim=2), 2, {"a": 2, "b": 2})
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """
    check_sizes(private, modalities, "private")
    check_made_for(modalities, private, "size; add it to private")
    own = {name: Modality(m.decoder, None, m.encoder, m.trunk, m.weight, m.repeated) for name, m in modalities.items()}
    bottom = MultimodalVAE(own, None, None, {name: StandardNormal(private[name]) for name in own})
    gamma = {**dict.fromkeys(own, 1.0), **(weights or {})}
    check_members("weights", gamma, own)
    heads = {name: NormalLikelihood(mlp(dim, hidden, private[name])) for name in own}
    codes = {name: Modality(head, nn.Identity(), weight=gamma[name]) for name, head in heads.items()}
    messages = {name: mlp(private[name], hidden, message) for name in own}
    head = nn.Sequential(nn.ReLU(), NormalHead(message, dim))
    top = MultimodalVAE(codes, StandardNormal(dim), DeepSets(messages, head, average=True))
    return TwoLevels(bottom, top), TwoLevelLoss(dropout, beta)
