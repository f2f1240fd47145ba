"""The normal of codes and likelihoods, which `fit` builds and scores many times a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor
from torch.nn.functional import mse_loss

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Entries(dist.Independent):
    """Pyro's `Independent` over entries that have no event of their own, made and scored in fewer steps.

    Args:
        base: batch (..., *event).
        ndims: how many axes the event has.
    """

    def __init__(self, base: Distribution, ndims: int):
        cut = len(base.batch_shape) - ndims
        if cut < 0:
            raise ValueError(f"an event of {ndims} axes is asked of the batch {tuple(base.batch_shape)}; give fewer")
        self.base_dist, self.reinterpreted_batch_ndims = base, ndims
        self._batch_shape, self._event_shape = base.batch_shape[:cut], base.batch_shape[cut:]

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Entries:
        return Entries(self.base_dist.expand(torch.Size([*batch_shape, *self.event_shape])), len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base_dist.summed(value, tuple(range(-self.reinterpreted_batch_ndims, 0)))

    def log_prob_sum(self, value: Tensor) -> Tensor:
        """The sum of the log-probabilities over the whole batch, ()."""
        if value.shape != self.base_dist.batch_shape:
            return self.log_prob(value).sum()
        return self.base_dist.summed(value, tuple(range(-value.dim(), 0)))


class Entrywise:
    """What makes `Entries` of distributions of single entries: mixed in before the class of Pyro's."""

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Distribution:
        ndims = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims  # type: ignore[attr-defined]
        return Entries(self, ndims) if ndims > 0 else super().to_event(ndims)  # type: ignore[arg-type,misc]

    def summed(self, value: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The sum of the log-probabilities over the last axes, which are `axes`."""
        return self.log_prob(value).sum(axes)  # type: ignore[attr-defined,no-any-return]


def is_normal(q: Distribution) -> bool:
    """Is it a diagonal normal with event (dim,)?"""
    return isinstance(q, dist.Independent) and isinstance(q.base_dist, dist.Normal) and q.reinterpreted_batch_ndims == 1


class Normal(Entrywise, dist.Normal):
    """Pyro's normal with a density of fewer tensor operations.

    `torch.distributions` spreads a scale over all entries before it squares it and takes its logarithm: for pictures
    with one scale that is as much work as the density itself.

    Args:
        loc: (...).
        scale: positive, a number or a tensor that broadcasts to loc.

    Example:
        >>> Normal(torch.zeros(2, 3), torch.tensor(2.0)).log_prob(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor | float, validate_args: bool | None = None):
        if not (isinstance(scale, Tensor) and scale.dtype == loc.dtype and scale.device == loc.device):
            scale = torch.as_tensor(scale, dtype=loc.dtype, device=loc.device)
        self.narrow = scale
        self.loc, self.scale = loc, self.narrow
        as_loc = self.narrow.dim() == 0 or loc.shape == self.narrow.shape
        shape = loc.shape if as_loc else torch.broadcast_shapes(loc.shape, self.narrow.shape)
        if validate_args is not None:
            self._validate_args = validate_args
        self._batch_shape, self._event_shape = shape, torch.Size()
        if self._validate_args and not self._valid():
            torch.distributions.Distribution.__init__(self, shape)  # which says what is wrong
        if not shape == loc.shape == self.narrow.shape:
            self.loc, self.scale = loc.expand(shape), self.narrow.expand(shape)

    def _valid(self) -> bool:
        """Whether two numbers are enough to see that location and scale are; if not, that says nothing yet."""
        if not self.narrow.numel():
            return False
        return float(self.narrow.detach().amin()) > 0 and math.isfinite(float(self.loc.detach().sum()))

    def expand(self, batch_shape: Sequence[int], _instance: Normal | None = None) -> Normal:
        new = self._get_checked_instance(Normal, _instance)
        new.narrow, new.loc, new.scale = self.narrow, self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        new._batch_shape, new._event_shape, new._validate_args = new.loc.shape, self._event_shape, self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return torch.rsub(self._lost(value), -HALF_LOG_TWO_PI)

    def summed(self, value: Tensor, axes: tuple[int, ...]) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        entries = math.prod(self.loc.shape[axes[0] :])
        if self.narrow.dim() == 0:
            squares = self._squared(value).sum(axes)
            mean = torch.addcmul(self.narrow.log(), squares, self._precision(), value=0.5 / max(entries, 1))
            return torch.rsub(mean, -entries * HALF_LOG_TWO_PI, alpha=entries)
        return torch.rsub(self._lost(value).sum(axes), -entries * HALF_LOG_TWO_PI)

    def _lost(self, value: Tensor) -> Tensor:
        """The log-probability without its constant, with the sign of a loss."""
        if self.narrow.shape == self.loc.shape:
            error = (value - self.loc) / self.scale
            return torch.addcmul(self.scale.log(), error, error, value=0.5)
        return torch.addcmul(self.narrow.log(), self._squared(value), self._precision(), value=0.5)

    def _precision(self) -> Tensor:
        """To divide by the square has a gradient with the fourth power: in float32 zero from scales of 1e10 on."""
        return self.narrow.reciprocal().square()

    def _squared(self, value: Tensor) -> Tensor:
        loc, value = (self.loc, value) if self.loc.shape == value.shape else torch.broadcast_tensors(self.loc, value)
        return mse_loss(loc, value, reduction="none")
