"""A normal with all covariances, in the form in which a product is a sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal
from torch import Tensor

from pyro_mmvae.distributions.base import Frozen, Mapped
from pyro_mmvae.distributions.normal import HALF_LOG_TWO_PI, Normal, is_normal


class NaturalNormal(Frozen):
    """The normal of precision matrix P and mean P^-1 shift, event (dim,).

    Args:
        shift: (..., dim).
        precision: (..., dim, dim), symmetric; draws and densities are NaN where it is not positive definite.

    Example:
        >>> q = NaturalNormal(torch.tensor([2.0, 0.0]), torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
        >>> q.mean, q.variance
        (tensor([1., 0.]), tensor([0.5000, 0.2500]))
    """

    def __init__(self, shift: Tensor, precision: Tensor):
        self.shift, self.precision = shift, precision
        self._root: Tensor | None = None
        batch = torch.broadcast_shapes(shift.shape[:-1], precision.shape[:-2])
        super().__init__(batch, shift.shape[-1:], validate_args=False)

    has_rsample = True

    def mapped(self, function: Mapped) -> NaturalNormal:
        return NaturalNormal(function(self.shift, 1), function(self.precision, 2))

    @property
    def root(self) -> Tensor:
        """The lower Cholesky factor of the precision."""
        wanted = torch.is_grad_enabled() and self.precision.requires_grad
        if self._root is None or (wanted and not self._root.requires_grad):  # one made without gradients will not do
            root, failed = torch.linalg.cholesky_ex(self.precision)
            self._root = torch.where((failed > 0).unsqueeze(-1).unsqueeze(-1), torch.nan, root)
        return self._root

    def _solve(self, value: Tensor, transposed: bool) -> Tensor:
        """root^-1 value, or the same with the transpose."""
        root = self.root.mT if transposed else self.root
        return torch.linalg.solve_triangular(root, value.unsqueeze(-1), upper=transposed).squeeze(-1)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape, *self.event_shape])
        noise = torch.randn(shape, dtype=self.shift.dtype, device=self.shift.device)
        return self._solve(self._solve(self.shift, False) + noise, True)

    def log_prob(self, value: Tensor) -> Tensor:
        root = self.root
        white = (root.mT @ value.unsqueeze(-1)).squeeze(-1) - self._solve(self.shift, False)
        log_root = root.diagonal(dim1=-2, dim2=-1).log()
        return (log_root - 0.5 * white**2 - HALF_LOG_TWO_PI).sum(-1)

    @property
    def mean(self) -> Tensor:
        return self._solve(self._solve(self.shift, False), True).expand(self.batch_shape + self.event_shape)

    @property
    def covariance_matrix(self) -> Tensor:
        """(..., dim, dim)."""
        return torch.cholesky_inverse(self.root).expand(self.batch_shape + 2 * self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self.covariance_matrix.diagonal(dim1=-2, dim2=-1)


def product(precision: Tensor, shift: Tensor) -> Distribution:
    """The diagonal normal of a product: of that precision and precision-weighted mean (..., dim)."""
    return Normal(shift / precision, precision.rsqrt()).to_event(1)


def is_correlated(q: Distribution) -> bool:
    """Is it a normal with all covariances, of ours or of Pyro's?"""
    return isinstance(q, (NaturalNormal, MultivariateNormal, LowRankMultivariateNormal))


def natural_form(q: Distribution) -> tuple[Tensor, Tensor] | None:
    """Shift (..., dim) and precision (..., dim, dim) of a normal with event (dim,); None for any other family."""
    if isinstance(q, NaturalNormal):
        return q.shift, q.precision
    if isinstance(q, (MultivariateNormal, LowRankMultivariateNormal)):
        return (q.precision_matrix @ q.loc.unsqueeze(-1)).squeeze(-1), q.precision_matrix
    if is_normal(q):
        own = q.base_dist.scale**-2
        return own * q.base_dist.loc, torch.diag_embed(own)
    return None
