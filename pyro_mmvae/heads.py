"""Encoder heads: modules that turn what a network gives, h (..., size), into a distribution of codes.

Any module of the user's that returns a Pyro distribution does as well: there is no base class and no registration.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_mmvae.distributions import NaturalNormal, Normal

SMALLEST = 1e-5  # the least scale that a network may give, in units of the data
FAINTEST = 1e-4  # the least precision that a full-rank expert has in any direction: a scale of 100


class NormalHead(nn.Module):
    """h (..., size) -> diagonal normal with event (dim,).

    Example:
        >>> NormalHead(128, 16)(torch.zeros(5, 128)).event_shape
        torch.Size([16])
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(size, 2 * dim)

    def forward(self, h: Tensor) -> Distribution:
        loc, raw = self.linear(h).chunk(2, -1)
        return Normal(loc, softplus(raw) + SMALLEST).to_event(1)


class LaplaceHead(nn.Module):
    """h (..., size) -> diagonal Laplace with event (dim,).

    Example:
        >>> LaplaceHead(128, 16)(torch.zeros(5, 128)).event_shape
        torch.Size([16])
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(size, 2 * dim)

    def forward(self, h: Tensor) -> Distribution:
        loc, raw = self.linear(h).chunk(2, -1)
        return dist.Laplace(loc, softplus(raw) + SMALLEST).to_event(1)


class FullRankHead(nn.Module):
    """h (..., size) -> normal with all covariances, event (dim,): `mm.PoE()` multiplies it as it does diagonal ones.

    The posterior of a modality that sees only a direction of z is correlated, and so is that of every subset of such
    modalities: with these heads a product of experts holds the posteriors of all subsets of a linear-Gaussian model
    exactly, where diagonal ones hold some. The head gives shift and root of the factor that the likelihood of its
    modality is in z, exp(shift' z - z' root root' z / 2).

    Limits: a step takes time in proportion to dim^2, the Cholesky factors of the product to dim^3.

    Example:
        >>> FullRankHead(128, 16)(torch.zeros(5, 128)).covariance_matrix.shape
        torch.Size([5, 16, 16])
    """

    places: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.dim, self.linear = dim, nn.Linear(size, dim + dim * (dim + 1) // 2)
        rows, columns = torch.tril_indices(dim, dim, -1)
        places = torch.cat([torch.arange(dim) * (dim + 1), rows * dim + columns])
        self.register_buffer("places", places, persistent=False)  # the diagonal, and what is below it

    def forward(self, h: Tensor) -> Distribution:
        says = self.linear(h).to(self.linear.weight.dtype)
        shift, diagonal, below = says.split([self.dim, self.dim, len(self.places) - self.dim], -1)
        with torch.autocast(h.device.type, enabled=False):
            entries = torch.cat([softplus(diagonal), below], -1)
            root = entries.new_zeros(*h.shape[:-1], self.dim**2).index_copy(-1, self.places, entries)
            root = root.unflatten(-1, (self.dim, self.dim))
            faint = FAINTEST * torch.eye(self.dim, dtype=root.dtype, device=root.device)
            return NaturalNormal(shift, root @ root.mT + faint)
