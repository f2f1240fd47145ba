"""Columns of different kinds side by side: one distribution for a table with mixed columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mmvae.distributions.base import Frozen, Mapped, mapped


class ColumnwiseConstraint(constraints.Constraint):
    """Each column of (..., column) on a support of its own."""

    def __init__(self, parts: Sequence[constraints.Constraint]):
        self.parts = list(parts)

    def check(self, value: Tensor) -> Tensor:
        fits = [part.check(column) for part, column in zip(self.parts, value.unbind(-1), strict=True)]
        return torch.stack(torch.broadcast_tensors(*fits), -1)

    def __repr__(self) -> str:
        return f"Columnwise({', '.join(map(str, self.parts))})"


class Columnwise(Frozen):
    """Independent entries of different families along the last batch axis; `.to_event(1)` makes a row of a table.

    Args:
        parts: one distribution a column, batch (...), event (); values of all of them are stored as real numbers.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> table = Columnwise([dist.Normal(torch.zeros(5), 1.0), dist.Poisson(torch.ones(5))]).to_event(1)
        >>> table.batch_shape, table.event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    def __init__(self, parts: Sequence[Distribution]):
        self.parts = list(parts)
        batch = torch.broadcast_shapes(*[p.batch_shape for p in self.parts])
        super().__init__(torch.Size((*batch, len(self.parts))), torch.Size(), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return ColumnwiseConstraint([p.support for p in self.parts])

    @property
    def has_rsample(self) -> bool:
        return all(p.has_rsample for p in self.parts)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Columnwise:
        return Columnwise([p.expand(torch.Size(batch_shape[:-1])) for p in self.parts])

    def mapped(self, function: Mapped) -> Columnwise:
        def one(value: Tensor, event_dims: int) -> Tensor:
            axis = -1 - event_dims
            return function(value.unsqueeze(axis), event_dims).squeeze(axis)

        return Columnwise([mapped(p, one) for p in self.parts])

    def _stacked(self, columns: Sequence[Tensor]) -> Tensor:
        kind = torch.get_default_dtype()
        for column in columns:
            kind = torch.promote_types(kind, column.dtype) if column.is_floating_point() else kind
        return torch.stack(torch.broadcast_tensors(*[c.to(kind) for c in columns]), -1)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self._stacked([p.expand(self.batch_shape[:-1])(torch.Size(sample_shape)) for p in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        return self._stacked([p.log_prob(v) for p, v in zip(self.parts, value.unbind(-1), strict=True)])

    @property
    def mean(self) -> Tensor:
        """The expected value; for a column of categories the most probable one."""
        return self._stacked([p.probs.argmax(-1) if isinstance(p, dist.Categorical) else p.mean for p in self.parts])

    def categories(self) -> dict[int, Tensor]:
        """The probabilities (..., category) of the columns of categories, by their number."""
        every, lead = enumerate(self.parts), self.batch_shape[:-1]
        return {n: p.expand(lead).probs for n, p in every if isinstance(p, dist.Categorical)}

    @property
    def variance(self) -> Tensor:
        """NaN for a column of categories."""
        return self._stacked([p.variance for p in self.parts])


def numbers_of(p: Distribution) -> int:
    """How many numbers it is made of, about: one an entry, but of categories one each."""
    base = getattr(p, "base_dist", p)
    if isinstance(base, Columnwise):
        return sum(map(numbers_of, base.parts))
    entries = math.prod(p.batch_shape) * math.prod(p.event_shape)  # plain tuples in some of Pyro
    return entries * base.param_shape[-1] if isinstance(base, dist.Categorical) else entries
