"""Plain functions as priors."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from pyro.distributions import Distribution
from torch import nn

from pyro_mmvae.checks import distribution
from pyro_mmvae.experts import Experts


class Function(nn.Module):
    """A plain function as a module: a prior that takes the experts, or nothing."""

    def __init__(self, function: Callable[..., Distribution]):
        super().__init__()
        self.function = function
        self.bare = not inspect.signature(function).parameters

    def forward(self, experts: Experts | None = None) -> Distribution:
        return distribution("the prior", self.function() if self.bare else self.function(experts))


def of_experts(prior: Callable[..., Distribution]) -> nn.Module:
    """The prior as a module that is called with the experts, or with None."""
    return prior if isinstance(prior, nn.Module) else Function(prior)
