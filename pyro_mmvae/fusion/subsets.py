"""Mixtures over the subsets of the given modalities."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.arrays import whole
from pyro_mmvae.checks import check_made_for
from pyro_mmvae.distributions import Mixture, Normal, ProductMixture, indicator, members_of, pick_subsets, product
from pyro_mmvae.experts import Experts
from pyro_mmvae.fusion.base import Fusion, even, natural, prior_normal, times_prior
from pyro_mmvae.stack import Stack

COMPONENTS = 63  # all subsets of six modalities
EXACT = 1023  # all subsets of ten
STACKED = 31  # of five: up to here a stack of all components is the faster way


class MoPoE(Fusion):
    """Mixture of the products of every subset of the given modalities, with equal weights.

    Repeats of one modality enter its product together.

    Limits: a row with n given modalities has 2^n - 1 subsets, and a step takes time in proportion. The backward pass
    keeps few numbers whatever n is, see `ProductMixture`. With more than `components` subsets, so many of them (but 63
    at most) are drawn, uniformly and anew at every call, and the posterior is the mixture of those: a valid posterior,
    whose ELBO is on average between that of the full mixture and, for `components=1`, the published one.

    Args:
        prior_expert: whether the prior stands in every product, once: the model's own if it is a diagonal normal, else
            N(0, I).
        components: the most subsets that are all taken; ten modalities have 1,023.

    Reference:
        Sutter, Daunhawer and Vogt, 2021, Generalized Multimodal ELBO, https://arxiv.org/abs/2105.02470

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), MoPoE())
        >>> vae.posterior(x).sample((1000,)).shape
        torch.Size([1000, 5, 2])
    """

    def __init__(self, prior_expert: bool = False, components: int = EXACT):
        super().__init__()
        self.prior_expert, self.components = prior_expert, whole("components", components)

    def fuse(self, experts: Experts) -> Distribution:
        precision, shift, stack = natural(experts)
        parts = pooled(experts, precision, shift)
        if STACKED < 2 ** len(experts) - 1 <= self.components:
            return self._in_chunks(experts, parts, stack)
        members, there = subsets(parts.given, min(self.components, COMPONENTS))
        precision, shift = over(members, parts.sums[0]), over(members, parts.sums[1])
        if self.prior_expert:
            precision, shift = times_prior(experts, precision, shift)
        else:
            precision = torch.where(there.unsqueeze(-1), precision, 1)
        return Mixture(product(precision, shift), even(there))

    def _in_chunks(self, experts: Experts, parts: Sums, stack: Stack) -> Distribution:
        (precision, shift), given = parts.sums, parts.given
        loc = stack.loc  # nothing new to keep for the backward pass, unless repeats were pooled
        if len(experts) < len(loc):
            loc = shift / torch.where(given.unsqueeze(-1), precision, 1)
        if not self.prior_expert:
            return ProductMixture(loc, precision, given, whole=stack.whole)
        prior = prior_normal(experts).expand(loc.shape[1:])
        return ProductMixture(loc, precision, given, (prior.loc, prior.scale**-2), whole=stack.whole)


class MixtureOfWasserstein(Fusion):
    """Mixture of the Wasserstein barycentres of every subset of the given modalities, with equal weights.

    Args:
        components: the most subsets a row; beyond, as many are drawn, see `MoPoE`.

    Reference:
        Qiu et al., 2025, Multimodal Variational Autoencoder: a Barycentric View, https://arxiv.org/abs/2412.20487

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), MixtureOfWasserstein())
        >>> vae.posterior(x).sample((1000,)).shape
        torch.Size([1000, 5, 2])
    """

    def __init__(self, components: int = COMPONENTS):
        super().__init__()
        self.components = whole("components", components)

    def fuse(self, experts: Experts) -> Distribution:
        stack = experts.stack()
        seen = stack.given.unsqueeze(-1).to(stack.loc)
        parts = pooled(experts, stack.loc * seen, stack.scale * seen, seen)
        members, there = subsets(parts.given, self.components)
        loc, scale, count = (over(members, value) for value in parts.sums)
        fine = there.unsqueeze(-1)
        count = torch.where(fine, count, 1)
        return Mixture(Normal(loc / count, torch.where(fine, scale / count, 1)).to_event(1), even(there))


class CoDE(Fusion):
    """Mixture over subsets of the consensus of dependent experts, with learnt weights of the subsets.

    The experts' errors are correlated: their locations are draws around z with covariance rho scale_i scale_j, so
    precision = 1' C^-1 1 and loc = 1' C^-1 loc_i / precision in each dimension; rho = 0 is a product of experts. The
    weights are renormalised over the subsets that a row has. Repeats are experts of their own.

    The gradient reaches the weights through the draws as well, see `Mixture`. The paper weighs the ELBOs of the subsets
    instead of scoring their mixture, and its code rewards the entropy of the weights; the ELBO here is tighter, and
    has no such reward.

    Args:
        names: the modalities, six at most.
        rho: the correlation, 0 <= rho < 1.

    Raises:
        ValueError: too many modalities, or a rho out of range.

    Reference:
        Mancisidor, Jenssen, Yu and Kampffmeyer, 2025, Aggregation of Dependent Expert Distributions in Multimodal
        Variational Autoencoders, https://arxiv.org/abs/2505.01134

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), CoDE(['a', 'b'], rho=0.3))
        >>> vae.fusion.logits.shape  # a weight for {a}, {b} and {a, b}
        torch.Size([3])
    """

    def __init__(self, names: Collection[str], rho: float = 0.5):
        super().__init__()
        if not 0 <= rho < 1:
            raise ValueError(f"rho is {rho:g}; give a correlation from 0 to below 1")
        if 2 ** len(names) - 1 > COMPONENTS:
            raise ValueError(
                f"CoDE over {len(names)} modalities has {2 ** len(names) - 1} subsets; give six names at most"
            )
        self.names, self.rho = sorted(names), rho
        self.logits = nn.Parameter(torch.zeros(2 ** len(names) - 1))

    def fuse(self, experts: Experts) -> Distribution:
        stack = experts.stack()
        seen = stack.given.unsqueeze(-1).to(stack.loc)
        inverse = seen / stack.scale
        parts = pooled(experts, inverse**2, inverse, inverse**2 * stack.loc, inverse * stack.loc, seen)
        members, there = self._subsets(list(experts), parts.given)
        square, plain, shift, cross, count = (over(members, value) for value in parts.sums)
        shared = self.rho / (1 + (count - 1).clamp(min=0) * self.rho)
        fine = there.unsqueeze(-1)
        precision = torch.where(fine, (square - shared * plain**2) / (1 - self.rho), 1)
        loc = torch.where(fine, (shift - shared * plain * cross) / (1 - self.rho), 0) / precision
        logits = self.logits.unsqueeze(-1).unsqueeze(-1).masked_fill(~there & there.any(0), -torch.inf)
        return Mixture(Normal(loc, precision.rsqrt()).to_event(1), logits.softmax(0))

    def _subsets(self, names: list[str], given: Tensor) -> tuple[Tensor, Tensor]:
        """As `subsets`, in the one order that the weights have."""
        check_made_for(names, self.names, "weights in CoDE; add it to names")
        own, none = dict(zip(names, given, strict=True)), torch.zeros_like(given[0])
        full = torch.stack([own.get(name, none) for name in self.names])
        wanted = indicator(len(self.names), given.device).bool().unsqueeze(-1).unsqueeze(-1)
        there = (full | ~wanted).all(1)
        return torch.stack([wanted[:, self.names.index(name)] for name in names], 1), there


class Sums(NamedTuple):
    """Sums over the repeats of each modality.

    Attributes:
        sums: each (modality, row, 1, dim).
        given: bool (modality, row, 1).
    """

    sums: list[Tensor]
    given: Tensor


def pooled(experts: Experts, *values: Tensor) -> Sums:
    """Values (expert, row, 1, dim), zero where not given, summed over the repeats of each modality."""
    stack = experts.stack()
    if len(experts) == len(stack.modality):
        return Sums(list(values), stack.given)
    given = torch.stack([seen.any(-1, keepdim=True) for seen in experts.given.values()])
    repeats = [seen.shape[1] for seen in experts.given.values()]
    return Sums([torch.stack([part.sum(0) for part in value.split(repeats)]) for value in values], given)


def subsets(given: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The non-empty subsets of what each row was given: all of them, or `most` drawn at random where they are more.

    Args:
        given: bool (modality, row, 1).
        most: of subsets a row.

    Returns:
        members: bool (subset, modality, row or 1, 1), and which subsets are there, (subset, row, 1). Values of a subset
        that is not there are of no use.
    """
    if 2 ** len(given) - 1 <= most:
        members = indicator(len(given), given.device).bool().unsqueeze(-1).unsqueeze(-1)
        return members, (given | ~members).all(1)
    number = 2 ** given.sum(0) - 1
    index = torch.arange(1, most + 1, device=given.device).reshape(-1, 1, 1).expand(-1, *number.shape)
    chosen = torch.where(number > most, pick_subsets(given, index.shape).minimum(number), index)
    return members_of(chosen, given), index <= number


def over(members: Tensor, values: Tensor) -> Tensor:
    """Sums of values (modality, row, 1, dim) over the members that `subsets` gives: (subset, row, 1, dim)."""
    members = members.to(values)
    if members.shape[2] == 1:
        return torch.tensordot(members.flatten(1), values, 1)
    return torch.einsum("smrk,mrkd->srkd", members, values)
