"""Fusions: from the experts q(z | x_m) of the seen modalities to one posterior q(z | x_S).

A fusion is a module experts -> distribution, batch (row, 1), event (dim,). A prior has the same type, so every fusion
can be a prior that depends on the data. To write one, subclass `Fusion` and give `fuse`.
"""

from __future__ import annotations

from itertools import combinations

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.distributions import Mixture, mapped, stacked
from pyro_mmvae.modality import Experts, is_normal, otherwise


class Fusion(nn.Module):
    """Abstract: how the experts of a row are combined. A row with nothing given gets the model's own prior."""

    def forward(self, experts: Experts | None) -> Distribution:
        if experts is None:
            raise ValueError(
                f"{type(self).__name__}() as a prior depends on the data and cannot be drawn from without; give x, or"
                " use a prior such as mm.StandardNormal(dim)"
            )
        if not experts.given:
            return experts.prior
        where = experts.any()
        fused = self.fuse(experts)
        return fused if bool(where.all()) else otherwise(where, fused, experts.prior)

    def fuse(self, experts: Experts) -> Distribution:
        """The posterior of the rows with something given; what it returns for the others is not used.

        Args:
            experts: at least one; batch (row, repeat), event (dim,).

        Returns:
            A distribution with batch (row, 1), event (dim,), valid on every row.
        """
        raise NotImplementedError


def product(precision: Tensor, shift: Tensor, axis: int = 0) -> tuple[Tensor, Tensor]:
    """loc and scale of a product of normals from precisions and precision-weighted means along an axis."""
    total = precision.sum(axis)
    return shift.sum(axis) / total, total.rsqrt()


def natural(experts: Experts) -> tuple[Tensor, Tensor, Tensor]:
    """Precision and precision-weighted mean of the given experts, (expert, row, 1, dim), zero where not given, and
    `given` (expert, row, 1)."""
    stack = experts.stack()
    precision = torch.where(stack.given.unsqueeze(-1), stack.scale**-2, 0)
    return precision, precision * stack.loc, stack.given


def prior_factor(experts: Experts, like: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and shift (1, row, 1, dim) of the prior inside a product: the model's if it is normal, else N(0, I)."""
    prior = experts.prior
    if not is_normal(prior):
        return torch.ones_like(like[:1]), torch.zeros_like(like[:1])
    precision = prior.base_dist.scale**-2
    return precision.unsqueeze(0), (precision * prior.base_dist.loc).unsqueeze(0)


class PoE(Fusion):
    """Product of experts: q(z | x_S) ~ p(z) prod_m q_m(z | x_m), a normal. With a linear-Gaussian model it is exact.

    Args:
        prior_expert: whether the prior stands in the product, once (the model's own if it is normal, else N(0, I)).

    Reference:
        Wu and Goodman, 2018, Multimodal Generative Models for Scalable Weakly-Supervised Learning,
        https://arxiv.org/abs/1802.05335
    """

    def __init__(self, prior_expert: bool = True):
        super().__init__()
        self.prior_expert = prior_expert

    def fuse(self, experts: Experts) -> Distribution:
        precision, shift, given = natural(experts)
        if self.prior_expert:
            own, moved = prior_factor(experts, precision)
            precision, shift = torch.cat([own, precision]), torch.cat([moved, shift])
        else:  # a row without experts is replaced by the prior; until then its precision must not be zero
            precision = torch.where(given.any(0).unsqueeze(-1), precision, 1)
        loc, scale = product(precision, shift)
        return dist.Normal(loc, scale).to_event(1)


class MoE(Fusion):
    """Mixture of experts: q(z | x_S) = 1/|S| sum_m q_m(z | x_m), each draw from an expert of its own.

    Reference:
        Shi, Siddharth, Paige and Torr, 2019, Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
        Generative Models, https://arxiv.org/abs/1911.03393
    """

    def fuse(self, experts: Experts) -> Distribution:
        parts, given = [], []
        for name, seen in experts.given.items():
            for repeat in range(seen.shape[1]):
                parts.append(mapped(experts[name], lambda value, _, r=repeat: value[:, r : r + 1]))
                given.append(seen[:, repeat : repeat + 1])
        return Mixture(stacked(parts), even(torch.stack(given)))


def even(given: Tensor) -> Tensor:
    """Equal weights for the components that are given, (component, row, 1); for all of them where none is."""
    there = torch.where(given.any(0), given, True).double()
    return there / there.sum(0)


class MoPoE(Fusion):
    """Mixture of the products of every subset of the given modalities, with equal weights.

    The products of all 2^M - 1 subsets are one matrix product of a (subset, modality) indicator with the experts'
    natural parameters. Repeats of one modality enter its product together.

    Args:
        prior_expert: whether the prior stands in every product, once.

    Reference:
        Sutter, Daunhawer and Vogt, 2021, Generalized Multimodal ELBO, https://arxiv.org/abs/2105.02470
    """

    def __init__(self, prior_expert: bool = False):
        super().__init__()
        self.prior_expert = prior_expert

    def fuse(self, experts: Experts) -> Distribution:
        precision, shift, given = pooled_repeats(experts)
        subsets = indicator(len(precision)).to(precision)
        if self.prior_expert:
            own, moved = prior_factor(experts, precision)
            precision, shift = torch.cat([own, precision]), torch.cat([moved, shift])
            members = torch.cat([torch.ones_like(subsets[:, :1]), subsets], 1)
        else:
            members = subsets
        there = torch.tensordot(subsets, (~given).to(precision), 1) == 0  # (subset, row, 1): no member is missing
        total = torch.tensordot(members, precision, 1)
        moved = torch.tensordot(members, shift, 1)
        total = torch.where(there.unsqueeze(-1), total, 1)
        parts = dist.Normal(moved / total, total.rsqrt()).to_event(1)
        return Mixture(parts, even(there))


def pooled_repeats(experts: Experts) -> tuple[Tensor, Tensor, Tensor]:
    """As `natural`, with one entry a modality: the product of its repeats."""
    stack = experts.stack()
    precision, shift, given = natural(experts)
    count = len(experts)
    if count == len(precision):
        return precision, shift, given
    shape = (count, *precision.shape[1:])
    precision = precision.new_zeros(shape).index_add(0, stack.modality, precision)
    shift = shift.new_zeros(shape).index_add(0, stack.modality, shift)
    return precision, shift, (precision > 0).any(-1)


def indicator(modalities: int) -> Tensor:
    """Which modality is in which non-empty subset, (2^M - 1, M), the smaller subsets first.

    Example:
        >>> indicator(2)
        tensor([[1., 0.],
                [0., 1.],
                [1., 1.]])
    """
    rows = [s for size in range(1, modalities + 1) for s in combinations(range(modalities), size)]
    table = torch.zeros(len(rows), modalities)
    for position, members in enumerate(rows):
        table[position, list(members)] = 1
    return table
