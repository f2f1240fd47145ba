"""A fusion pushed through a normalizing flow."""

from __future__ import annotations

from collections.abc import Sequence

from pyro.distributions import Distribution
from torch.distributions import Transform

from pyro_mmvae.experts import Experts
from pyro_mmvae.flows import Transforms
from pyro_mmvae.fusion.base import Fusion


class Flow(Fusion):
    """Any fusion, and then transforms of its draws: a posterior that is no normal.

    The transforms are the same for every row. A row with nothing given gets the model's prior, untransformed.

    Args:
        fusion: what gives the base.
        transforms: applied in this order, see `Transforms`. Those without a closed inverse (planar, radial) can score
            nothing but their own last draw, so no tool that asks for the density elsewhere works with them.

    Reference:
        Rezende and Mohamed, 2015, Variational Inference with Normalizing Flows, https://arxiv.org/abs/1505.05770

    Example:
        >>> import pyro.distributions.transforms as T
        >>> import pyro_mmvae as mm
        >>> fusion = Flow(mm.PoE(), [T.affine_coupling(4, [32]), T.permute(4), T.affine_coupling(4, [32])])
    """

    def __init__(self, fusion: Fusion, transforms: Sequence[Transform]):
        super().__init__()
        self.fusion, self.transforms = fusion, Transforms(transforms)

    def fuse(self, experts: Experts) -> Distribution:
        return self.transforms(self.fusion.fuse(experts))
