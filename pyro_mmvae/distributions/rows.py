"""Distributions that differ from row to row: another one here, none there, hidden entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import Distribution, Independent, MaskedDistribution
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_mmvae.distributions.base import Frozen, Mapped, log_prob_sum, mapped, plain_support
from pyro_mmvae.distributions.columns import Columnwise


class Switch(Frozen):
    """One distribution where `condition` holds and another elsewhere, row by row.

    Args:
        condition: bool, of the batch shape (row, 1).
        yes, no: distributions that broadcast to that batch shape.

    Example:
        >>> import pyro.distributions as dist
        >>> near, far = (dist.Normal(torch.full((3, 1, 2), loc), 1.0).to_event(1) for loc in (0.0, 9.0))
        >>> Switch(torch.tensor([[True], [False], [True]]), near, far).mean[:, 0, 0]
        tensor([0., 9., 0.])
    """

    def __init__(self, condition: Tensor, yes: Distribution, no: Distribution):
        self.condition = condition
        self.yes, self.no = yes.expand(condition.shape), no.expand(condition.shape)
        super().__init__(condition.shape, yes.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.yes.support

    @property
    def has_rsample(self) -> bool:
        return self.yes.has_rsample and self.no.has_rsample

    def mapped(self, function: Mapped) -> Switch:
        return Switch(function(self.condition, 0), mapped(self.yes, function), mapped(self.no, function))

    def _choose(self, yes: Tensor, no: Tensor, event_dims: int) -> Tensor:
        return torch.where(self.condition.reshape(*self.condition.shape, *[1] * event_dims), yes, no)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape[: len(self.batch_shape) - self.condition.dim()]])
        return self._choose(self.yes(shape), self.no(shape), len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self._choose(self.yes.log_prob(value), self.no.log_prob(value), 0)

    @property
    def mean(self) -> Tensor:
        return self._choose(self.yes.mean, self.no.mean, len(self.event_shape))

    @property
    def variance(self) -> Tensor:
        return self._choose(self.yes.variance, self.no.variance, len(self.event_shape))


class Rows(Frozen):
    """The likelihood of a few rows, scored in the batch of all of them: zero on the rows that were not observed.

    Args:
        base: batch (..., observed, repeat).
        index: which rows they are, (observed,).
        rows: the number of all rows.
        known: a value of all rows, and what of it is in those few, where both are at hand.

    Example:
        >>> import pyro.distributions as dist
        >>> seen = dist.Normal(torch.zeros(2, 1), 1.0)  # the likelihood of rows 0 and 3
        >>> Rows(seen, torch.tensor([0, 3]), rows=4).log_prob(torch.zeros(4, 1)).squeeze(-1)
        tensor([-0.9189,  0.0000,  0.0000, -0.9189])
    """

    def __init__(self, base: Distribution, index: Tensor, rows: int, known: tuple[Tensor, Tensor] | None = None):
        self.base, self.index, self.known = base, index, known
        shape = torch.Size((*base.batch_shape[:-2], rows, base.batch_shape[-1]))
        super().__init__(shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.base.support

    has_rsample = False

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        raise NotImplementedError("a partly observed modality is scored, not drawn; draw it with mm.impute")

    def log_prob(self, value: Tensor) -> Tensor:
        seen = self.base.log_prob(self._seen(value))
        return seen.new_zeros(*seen.shape[:-2], *self.batch_shape[-2:]).index_copy(-2, self.index, seen)

    def log_prob_sum(self, value: Tensor) -> Tensor:
        """The sum of the log-probabilities over all rows, ()."""
        return log_prob_sum(self.base, self._seen(value))

    def _seen(self, value: Tensor) -> Tensor:
        if self.known is not None and value is self.known[0]:
            return self.known[1]
        return value.index_select(-2 - len(self.event_shape), self.index)


def masked(distribution: Distribution, mask: Tensor, event_dims: int = 0) -> Distribution:
    """The distribution with entries of its batch hidden, or of its event: `event_dims` axes of the mask belong to that.

    Raises:
        TypeError: the mask is finer than the entries that the distribution calls independent.
    """
    if event_dims == 0:
        return MaskedDistribution(distribution, mask)
    if not isinstance(distribution, Independent) or distribution.reinterpreted_batch_ndims < event_dims:
        raise TypeError(
            f"{type(distribution).__name__} has no independent entries to hide one by one; mask whole rows, or use"
            " another likelihood"
        )
    whole = distribution.reinterpreted_batch_ndims
    mask = mask.reshape(*mask.shape, *[1] * (whole - event_dims))
    return MaskedDistribution(distribution.base_dist, mask).to_event(whole)


def feasible(distribution: Distribution, like: Tensor) -> Tensor:
    """A value on the support, to stand where an observation is hidden, of the dtype and on the device of `like`.

    It broadcasts with a value of the whole batch. It is a draw where the support is not known, or not how to get there.
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, Columnwise):
        return torch.stack(torch.broadcast_tensors(*[feasible(part, like) for part in distribution.parts]), -1)
    try:
        support = plain_support(distribution.support)
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        event = distribution.event_shape[len(distribution.event_shape) - support.event_dim :]
        if support.is_discrete:
            value = like.new_zeros(event) + getattr(support, "lower_bound", 0)
            return value if support is not constraints.one_hot else value.index_fill(-1, value.new_zeros(1).long(), 1)
        path = transform_to(support)
        return path(like.new_zeros(path.inverse_shape(event)))
    except (NotImplementedError, ValueError):
        return distribution.sample().to(like.dtype)
