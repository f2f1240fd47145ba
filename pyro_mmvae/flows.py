"""Normalizing flows: distributions pushed through invertible transforms, Pyro's or zuko's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution, TransformedDistribution
from torch import Tensor, nn
from torch.distributions import Transform, constraints


class Transforms(nn.Module):
    """A row of transforms, whose parameters are found if they have any; shared by `Flow` and `FlowPrior`.

    Args:
        transforms: applied in this order, each with event (dim,): Pyro's, such as
            `pyro.distributions.transforms.spline_autoregressive(dim)`, torch's, or a `ZukoTransform`.
    """

    def __init__(self, transforms: Sequence[Transform]):
        super().__init__()
        self.transforms = list(transforms)
        self.learnt = nn.ModuleList([t for t in transforms if isinstance(t, nn.Module)])

    def forward(self, base: Distribution) -> Distribution:
        """The distribution of what the transforms make of a draw from `base`."""
        pushed = TransformedDistribution(base, self.transforms)
        pushed.clear_cache()  # Pyro's transforms remember the last inverse, also across a step of the optimiser
        return pushed


class ZukoTransform(dist.TransformModule):
    """A flow of the optional package zuko as a Pyro transform, from the flow's base to its data side.

    Drawing uses the flow's inverse and scoring its forward direction; prefer coupling flows (`passes=2`), which are fast
    both ways.

    Args:
        build: takes the module zuko and returns an unconditional flow: zuko is imported in here, because its import
            turns off the validation of all distributions, which is put back.

    Raises:
        ImportError: zuko is not installed.

    Reference:
        Rozet et al., 2022, Zuko: Normalizing flows in PyTorch, https://github.com/probabilists/zuko

    Example:
        A neural spline flow as a prior:

        >>> prior = mm.FlowPrior(16, [mm.ZukoTransform(lambda zuko: zuko.flows.NSF(16, passes=2))])  # doctest: +SKIP
    """

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, build: Callable[[ModuleType], Any]):
        super().__init__()
        validate = torch.distributions.Distribution._validate_args
        try:
            import zuko
        except ImportError:
            raise ImportError("ZukoTransform needs the package zuko; install pyro_mmvae[zuko]") from None
        finally:
            torch.distributions.Distribution.set_default_validate_args(validate)
        self.lazy = build(zuko).transform

    def _call(self, x: Tensor) -> Tensor:
        return self.lazy().inv(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.lazy()(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.lazy().log_abs_det_jacobian(y, x)
