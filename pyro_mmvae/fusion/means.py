"""Pools that are neither products nor mixtures: the Wasserstein barycentre and Hoelder pooling."""

from __future__ import annotations

import math

import torch
from pyro.distributions import Distribution
from torch import Tensor

from pyro_mmvae.distributions import Mixture, Normal
from pyro_mmvae.experts import Experts
from pyro_mmvae.fusion.base import WithPriorExpert, prior_normal


class WassersteinMean(WithPriorExpert):
    """Wasserstein barycentre of diagonal normals: locations and scales are averaged over the given experts.

    Args:
        prior_expert: whether the prior is one of the experts: the model's own if it is a diagonal normal, else N(0, I).

    Reference:
        Qiu et al., 2025, Multimodal Variational Autoencoder: a Barycentric View, https://arxiv.org/abs/2412.20487

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), WassersteinMean())
        >>> bool(vae.posterior(x).mean.allclose(sum(vae.posterior(x, given=[m]).mean for m in x) / 2, atol=1e-6))
        True
    """

    def fuse(self, experts: Experts) -> Distribution:
        loc, scale, given = side_by_side(experts, self.prior_expert)
        seen = given.unsqueeze(-1).to(loc)
        count = seen.sum(0).clamp(min=1)
        scale = torch.where(given.any(0).unsqueeze(-1), (seen * scale).sum(0) / count, 1)
        return Normal((seen * loc).sum(0) / count, scale).to_event(1)


class HoelderMixture(WithPriorExpert):
    """Hoelder pooling with exponent one half: q(z | x_S) ~ (sum_m sqrt q_m(z | x_m))^2, exactly.

    The square is a mixture of the experts and of the normalised geometric means of all pairs of them, which weigh
    twice their Bhattacharyya coefficient. The weights depend on the experts, and the draws carry that gradient, see
    `Mixture`. n experts make n (n + 1) / 2 components.

    Args:
        prior_expert: whether the prior is one of the experts: the model's own if it is a diagonal normal, else N(0, I).

    Reference:
        Vo, Martinez-Garcia and Valera, 2026, Hoelder++: Improving the Quality-Coherence Trade-off in Multimodal VAEs,
        https://arxiv.org/abs/2606.13381

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), HoelderMixture())
        >>> vae.fusion(vae.experts(x)).components.batch_shape
        torch.Size([3, 5, 1])
    """

    def fuse(self, experts: Experts) -> Distribution:
        return hoelder(*side_by_side(experts, self.prior_expert))


class Hellinger(WithPriorExpert):
    """The diagonal normal with the mean and the variances of `HoelderMixture`.

    The moments are those of the pool of the whole vectors z, pairs weighing by the Bhattacharyya coefficient over all
    dimensions together.

    Args:
        prior_expert: whether the prior is one of the experts: the model's own if it is a diagonal normal, else N(0, I).

    Reference:
        Vo and Valera, 2026, Hellinger Multimodal Variational Autoencoders, https://arxiv.org/abs/2601.06572

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), Hellinger())
        >>> vae.posterior(x).event_shape
        torch.Size([2])
    """

    def fuse(self, experts: Experts) -> Distribution:
        pool = hoelder(*side_by_side(experts, self.prior_expert))
        return Normal(pool.mean, pool.variance.sqrt()).to_event(1)


def side_by_side(experts: Experts, prior_expert: bool) -> tuple[Tensor, Tensor, Tensor]:
    """loc and scale (expert, row, 1, dim) and given (expert, row, 1), with the prior in front if it is asked for."""
    stack = experts.stack()
    if not prior_expert:
        return stack.loc, stack.scale, stack.given
    prior = prior_normal(experts).expand(stack.loc.shape[1:])
    loc = torch.cat([prior.loc.unsqueeze(0), stack.loc])
    scale = torch.cat([prior.scale.unsqueeze(0), stack.scale])
    return loc, scale, torch.cat([torch.ones_like(stack.given[:1]), stack.given])


def hoelder(loc: Tensor, scale: Tensor, given: Tensor) -> Mixture:
    """The normalised square of the sum of the square roots of normals (expert, row, 1, dim)."""
    experts = len(loc)
    pairs = torch.triu_indices(experts, experts, 1, device=loc.device)
    precision = scale**-2
    both = (precision[pairs[0]] + precision[pairs[1]]) / 2
    middle = (precision[pairs[0]] * loc[pairs[0]] + precision[pairs[1]] * loc[pairs[1]]) / (2 * both)
    parts = Normal(torch.cat([loc, middle]), torch.cat([scale, both.rsqrt()])).to_event(1)
    there = torch.cat([given, given[pairs[0]] & given[pairs[1]]])
    there = torch.where(given.any(0), there, True)
    alone = loc.new_zeros(experts, *loc.shape[1:3])
    twice = overlap(loc[pairs[0]], scale[pairs[0]], loc[pairs[1]], scale[pairs[1]]) + math.log(2)
    logits = torch.cat([alone, twice])
    return Mixture(parts, logits.masked_fill(~there, -torch.inf).softmax(0))


def overlap(loc: Tensor, scale: Tensor, other_loc: Tensor, other_scale: Tensor) -> Tensor:
    """Logarithm of the Bhattacharyya coefficient of diagonal normals, summed over the last axis."""
    total = scale**2 + other_scale**2
    return (0.5 * (2 * scale * other_scale / total).log() - (loc - other_loc) ** 2 / (4 * total)).sum(-1)
