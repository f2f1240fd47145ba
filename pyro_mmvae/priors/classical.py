"""Priors that ignore the experts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_mmvae.arrays import whole
from pyro_mmvae.distributions import Mixture, Normal
from pyro_mmvae.experts import Experts
from pyro_mmvae.flows import Transforms


class StandardNormal(nn.Module):
    """N(0, I).

    Example:
        >>> StandardNormal(16)().event_shape
        torch.Size([16])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim), persistent=False)

    def forward(self, experts: Experts | None = None) -> Distribution:
        return Normal(self.loc, self.scale).to_event(1)


class LearnedNormal(nn.Module):
    """A diagonal normal whose mean and scale are learnt; it starts at N(0, I).

    Example:
        >>> LearnedNormal(2)().stddev.tolist()
        [1.0, 1.0]
    """

    def __init__(self, dim: int):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, experts: Experts | None = None) -> Distribution:
        return Normal(self.loc, self.log_scale.exp()).to_event(1)


class Laplace(nn.Module):
    """Independent Laplace distributions around zero, whose scales are learnt and start at one.

    As in MMVAE, but for the scales: theirs are a softmax and sum to dim, these are free.

    Reference:
        Shi, Siddharth, Paige and Torr, 2019, Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
        Generative Models, https://arxiv.org/abs/1911.03393

    Example:
        >>> bool(Laplace(2)().variance.allclose(torch.tensor(2.0)))
        True
    """

    def __init__(self, dim: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, experts: Experts | None = None) -> Distribution:
        return dist.Laplace(torch.zeros_like(self.log_scale), self.log_scale.exp()).to_event(1)


class GaussianMixture(nn.Module):
    """A mixture of diagonal normals: weights, means and scales are learnt. For clusters, and for better joint samples.

    The means start spread, so that components differ from the first step, and the whole has unit variance
    on average.

    Raises:
        ValueError: fewer than one component.

    Example:
        >>> prior = GaussianMixture(16, components=10)
        >>> z = prior().sample((100,))
        >>> z.shape, prior().responsibilities(z).shape  # p(component | z)
        (torch.Size([100, 16]), torch.Size([100, 10]))
    """

    def __init__(self, dim: int, components: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(whole("components", components)))
        self.loc = nn.Parameter(torch.randn(components, dim) * 0.5**0.5)
        self.log_scale = nn.Parameter(torch.full((components, dim), 0.5 * math.log(0.5)))

    def forward(self, experts: Experts | None = None) -> Distribution:
        return Mixture(Normal(self.loc, self.log_scale.exp()).to_event(1), self.logits.softmax(0))


class FlowPrior(nn.Module):
    """N(0, I) pushed through learnt transforms.

    The guide's draws are scored by the inverse: choose transforms that have a fast one, such as couplings and splines.

    Args:
        dim: of z.
        transforms: applied in this order, see `Transforms`.

    Example:
        >>> import pyro.distributions.transforms as T
        >>> prior = FlowPrior(4, [T.affine_coupling(4, [32]), T.permute(4), T.affine_coupling(4, [32])])
    """

    def __init__(self, dim: int, transforms: Sequence[Transform]):
        super().__init__()
        self.base, self.transforms = StandardNormal(dim), Transforms(transforms)

    def forward(self, experts: Experts | None = None) -> Distribution:
        return self.transforms(self.base())
