"""Negative binomial counts, exact in single precision at any dispersion."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LARGE = 30.0
"""Dispersion from which the logarithms of the gamma function are subtracted by Stirling's series: it errs by 1e-7
there, and they cancel."""


class NegativeBinomial(dist.NegativeBinomial):
    """`NegativeBinomial(total_count, logits=...)` of Pyro, whose density loses all digits at large `total_count`.

    Example:
        >>> p = NegativeBinomial(torch.tensor(1e7), logits=torch.tensor(5.0 / 1e7).log())
        >>> five = torch.tensor(5.0)
        >>> round(float(p.log_prob(five)), 3), round(float(dist.Poisson(five).log_prob(five)), 3)
        (-1.74, -1.74)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """log p, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        r, k = torch.broadcast_tensors(self.total_count, value)
        chance = r * logsigmoid(-self.logits) + k * logsigmoid(self.logits)
        return chance + _rise(r, k) - torch.lgamma(1.0 + k)


def _rise(r: Tensor, k: Tensor) -> Tensor:
    """log gamma(r + k) - log gamma(r)."""
    large = r > LARGE
    high = torch.where(large, r, LARGE)
    series = (high + k - 0.5) * torch.log1p(k / high) + k * high.log() - k
    series = series + (1 / (high + k) - 1 / high) / 12
    low = torch.where(large, LARGE, r)
    return torch.where(large, series, torch.lgamma(low + k) - torch.lgamma(low))
