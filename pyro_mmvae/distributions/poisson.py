"""The Poisson of log rates, which may be those of rates that are too small to be numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.distributions.base import Mapped


class Poisson(dist.Poisson):
    """Pyro's Poisson by the logarithm of its rate.

    In single precision Pyro's has an infinite gradient at a log rate of -88, and NaN from -104 on, even where the count
    is zero.

    Args:
        log_rate: (...).

    Example:
        >>> p = Poisson(torch.tensor([0.0, -800.0]))
        >>> p.log_prob(torch.tensor([0.0, 1.0]))
        tensor([  -1., -800.])
    """

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None):
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Poisson | None = None) -> Poisson:
        new = self._get_checked_instance(Poisson, _instance)
        new.log_rate = self.log_rate.expand(torch.Size(batch_shape))
        return super().expand(torch.Size(batch_shape), new)

    def mapped(self, function: Mapped) -> Poisson:
        return Poisson(function(self.log_rate, 0))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return value * self.log_rate - self.rate - torch.lgamma(1.0 + value)
