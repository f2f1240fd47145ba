"""Encoder heads: modules that turn what a network gives, h (..., size), into a distribution of codes.

Any module of the user's that returns a Pyro distribution does as well: there is no base class and no registration.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_mmvae.distributions import NaturalNormal, Normal

SMALLEST = 1e-5  # the least scale that a network may give, in units of the data


def one_tensor(h: Tensor, head: nn.Module) -> Tensor:
    """The same; ValueError for what is no tensor, such as the tuple that a recurrent layer returns."""
    if not isinstance(h, Tensor):
        raise ValueError(f"the network of {type(head).__name__} gives a {type(h).__name__}, not one tensor")
    return h


def as_exact(out: Tensor, z: Tensor) -> Tensor:
    """What a network gives, at least as exact as what it was given: layers in bfloat16 round that much and no more."""
    return out if out.dtype == z.dtype else out.to(torch.promote_types(out.dtype, z.dtype))


class DiagonalHead(nn.Module):
    """h (..., size) -> independent coordinates of one family of locations and scales, event (dim,). Abstract."""

    family: Callable[[Tensor, Tensor], Distribution]

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(size, 2 * dim)

    def forward(self, h: Tensor) -> Distribution:
        loc, raw = self.linear(one_tensor(h, self)).to(self.linear.weight.dtype).chunk(2, -1)
        scale = softplus(raw.contiguous()) + SMALLEST  # of a strided tensor with short rows it takes five times as long
        return self.family(loc, scale).to_event(1)


class NormalHead(DiagonalHead):
    """h (..., size) -> diagonal normal with event (dim,).

    Example:
        >>> NormalHead(128, 16)(torch.zeros(5, 128)).event_shape
        torch.Size([16])
    """

    family = Normal


class LaplaceHead(DiagonalHead):
    """h (..., size) -> diagonal Laplace with event (dim,).

    Example:
        >>> LaplaceHead(128, 16)(torch.zeros(5, 128)).event_shape
        torch.Size([16])
    """

    family = dist.Laplace


class FullRankHead(nn.Module):
    """h (..., size) -> normal with all covariances, event (dim,): `mm.PoE()` multiplies it as it does diagonal ones.

    The posterior of a modality that sees only a direction of z is correlated, and so is that of every subset of such
    modalities: with these heads a product of experts can hold the posteriors of all subsets of a linear-Gaussian model
    exactly, where diagonal ones hold some. The covariance is U diag(scale^2) U', U lower triangular with ones on its
    diagonal; with U = I, where training starts, it is what `NormalHead` gives.

    Limits: a step takes time in proportion to dim^3 for the triangular factors, beside the networks. In float32 the
    product has numbers for covariances of a condition up to some 1e6: standardise data that are far from unit scale.

    Example:
        >>> FullRankHead(128, 16)(torch.zeros(5, 128)).covariance_matrix.shape
        torch.Size([5, 16, 16])
    """

    below: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.dim, self.linear = dim, nn.Linear(size, 2 * dim + dim * (dim - 1) // 2)
        nn.init.zeros_(self.linear.weight[2 * dim :])  # factors at random are all but singular for many dimensions, and
        nn.init.zeros_(self.linear.bias[2 * dim :])  # for features far from unit scale: the product is NaN in float32
        rows, columns = torch.tril_indices(dim, dim, -1)
        self.register_buffer("below", rows * dim + columns, persistent=False)

    def forward(self, h: Tensor) -> Distribution:
        says = self.linear(one_tensor(h, self)).to(self.linear.weight.dtype)
        loc, raw, below = says.split([self.dim, self.dim, len(self.below)], -1)
        eye = torch.eye(self.dim, dtype=says.dtype, device=says.device).expand(*h.shape[:-1], -1, -1)
        with torch.autocast(h.device.type, enabled=False):
            factor = eye.flatten(-2).index_copy(-1, self.below, below).unflatten(-1, (self.dim, self.dim))
            inverse = torch.linalg.solve_triangular(factor, eye, upper=False, unitriangular=True)
            root = inverse.mT / (softplus(raw.contiguous()) + SMALLEST).unsqueeze(-2)
            precision = root @ root.mT
            return NaturalNormal((precision @ loc.unsqueeze(-1)).squeeze(-1), precision)
