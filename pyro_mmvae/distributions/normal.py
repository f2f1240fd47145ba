"""The normal of a likelihood: many entries, and often one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Normal(dist.Normal):
    """Pyro's normal, which squares and takes the logarithm of a scale in the shape that it was given.

    `torch.distributions` spreads the scale over all entries first: for pictures with one scale that is as much work as
    the density itself.

    Args:
        loc: (...).
        scale: positive, a number or a tensor that broadcasts to loc.

    Example:
        >>> Normal(torch.zeros(2, 3), torch.tensor(2.0)).log_prob(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None):
        self.narrow = torch.as_tensor(scale, dtype=loc.dtype, device=loc.device)
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Normal | None = None) -> Normal:
        new = self._get_checked_instance(Normal, _instance)
        new.narrow = self.narrow
        return super().expand(torch.Size(batch_shape), new)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value - self.loc).square() * (-0.5 * self.narrow**-2) - (self.narrow.log() + HALF_LOG_TWO_PI)
