"""The binomial of grey levels: many entries, one total count, and few gamma functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_mmvae.distributions.base import Mapped
from pyro_mmvae.distributions.normal import Entrywise

EXACT = 80.0
"""Beyond this softplus is its argument, to the last digit in single and in double precision."""


class Binomial(Entrywise, dist.Binomial):
    """Pyro's binomial with one total count for all entries, whose coefficients come from a table if those are many.

    Two gamma functions an entry cost more than all the rest of the density, and there are only so many counts. They
    cancel, so they are taken in double precision: in single, a picture of 12,288 grey levels would be off by 0.7 nats.

    Args:
        total_count: the largest count.
        logits: (...).

    Example:
        >>> p = Binomial(16, torch.zeros(3))
        >>> p.log_prob(torch.tensor([0.0, 8.0, 16.0])).exp()
        tensor([1.5259e-05, 1.9638e-01, 1.5259e-05])
    """

    def __init__(self, total_count: int, logits: Tensor, validate_args: bool | None = None):
        self.top = total_count
        self.logits = self._param = logits
        self.total_count = logits.new_full((), total_count)
        torch.distributions.Distribution.__init__(self, logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Binomial | None = None) -> Binomial:
        new = self._get_checked_instance(Binomial, _instance)
        new.top = self.top
        return super().expand(torch.Size(batch_shape), new)

    def mapped(self, function: Mapped) -> Binomial:
        return Binomial(self.top, function(self.logits, 0))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        ways = self._ways(value.detach().clamp(0, self.top))
        return torch.sub(value * self.logits + ways, softplus(self.logits, threshold=EXACT), alpha=self.top)

    def _ways(self, value: Tensor) -> Tensor:
        """The logarithms of the binomial coefficients."""
        if value.numel() <= self.top:
            k = value.double()
            return (math.lgamma(self.top + 1) - (k + 1).lgamma() - (self.top + 1 - k).lgamma()).to(self.logits.dtype)
        log = torch.arange(1, self.top + 2, dtype=torch.float64, device=value.device).lgamma()
        table = (log[-1] - log - log.flip(0)).to(self.logits.dtype)
        return table.index_select(0, value.flatten().long()).view(value.shape)
