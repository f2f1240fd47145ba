"""Priors of the shared code: modules experts -> distribution with event (dim,).

A classical prior ignores the experts. Any function that returns a distribution is a prior as well, and so is any
fusion.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.distributions import Mixture
from pyro_mmvae.modality import Experts


class StandardNormal(nn.Module):
    """N(0, I).

    Example:
        >>> StandardNormal(16)().event_shape
        torch.Size([16])
    """

    loc: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("loc", torch.zeros(dim))

    def forward(self, experts: Experts | None = None) -> Distribution:
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


class LearnedNormal(nn.Module):
    """A diagonal normal whose mean and scale are learnt; it starts at N(0, I)."""

    def __init__(self, dim: int):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, experts: Experts | None = None) -> Distribution:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class GaussianMixture(nn.Module):
    """A mixture of diagonal normals: weights, means and scales are learnt. For clusters, and for better joint samples.

    The means start spread, so that components differ from the first step, and the whole has unit variance.

    Limits: a draw from this prior carries no gradient to the weights. Nothing in training needs it: a guide scores
    the prior, and where it *is* the prior (a row with nothing seen) both sides cancel.
    """

    def __init__(self, dim: int, components: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, dim) * 0.5**0.5)
        self.log_scale = nn.Parameter(torch.full((components, dim), 0.5 * math.log(0.5)))

    def forward(self, experts: Experts | None = None) -> Distribution:
        return Mixture(dist.Normal(self.loc, self.log_scale.exp()).to_event(1), self.logits.softmax(0))
