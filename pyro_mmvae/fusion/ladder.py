"""Codes in levels: a prior that draws one level after the other, and the guide that follows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.arrays import whole
from pyro_mmvae.checks import check_made_for
from pyro_mmvae.distributions import Chain, Normal, product
from pyro_mmvae.experts import Experts
from pyro_mmvae.fusion.base import Fusion
from pyro_mmvae.fusion.learned import features_beside
from pyro_mmvae.networks import encoder


class Ladder(nn.Module):
    """p(z_1) p(z_2 | z_1) ...: a prior of several levels, each normal given those above it, the first N(0, I).

    z is all levels side by side; a decoder that is to see the last alone starts with `mm.Last(dims[-1])`.

    Args:
        dims: size of each level, from the top.
        hidden: size of the networks between them.

    Raises:
        ValueError: sizes that are no whole numbers, or none at all.

    Example:
        >>> prior = Ladder([4, 8], 32)
        >>> prior(None).event_shape
        torch.Size([12])
    """

    zero: Tensor

    def __init__(self, dims: Sequence[int], hidden: int):
        super().__init__()
        if not isinstance(dims, Sequence) or isinstance(dims, str) or not dims:
            raise ValueError(f"dims is {dims!r}; give the size of each level, such as [4, 8]")
        self.dims = [whole(f"dims[{level}]", size) for level, size in enumerate(dims)]
        self.levels = nn.ModuleList(
            encoder(sum(dims[:level]), hidden, dim=size) for level, size in enumerate(dims) if level
        )
        self.register_buffer("zero", torch.zeros(dims[0]))

    def forward(self, experts: Experts | None = None) -> Distribution:
        return Chain(self.top, [partial(_alone, level) for level in self.levels], self.dims, self.zero[:0])

    @property
    def top(self) -> Distribution:
        """N(0, I), of the first level."""
        return Normal(self.zero, torch.ones_like(self.zero)).to_event(1)


def _alone(level: nn.Module, above: Tensor, context: Tensor) -> Distribution:
    return level(above)


class LadderPoE(Fusion):
    """q(z_l | z_above, x_S) ~ p(z_l | z_above) prod_m N(loc_ml, scale_ml), (loc, scale) from h_m and the levels above.

    The unimodal encoders are not called; the trunks are.

    Args:
        prior: the model's own `Ladder`, whose levels are used here and owned there.
        sizes: name -> number of features that the trunk gives, or the data has where there is no trunk.
        hidden: size of the networks, one for each modality and level.

    Reference:
        Dorent, Haouchine, Kogl, Joutard, Juvekar, Torio, Golby, Ourselin, Frisken, Vercauteren, Kapur and Wells, 2023,
        Unified Brain MR-Ultrasound Synthesis using Multi-Modal Hierarchical Representations,
        https://arxiv.org/abs/2309.08747

    Example:
        >>> fusion = LadderPoE(Ladder([4, 8], 32), {"image": 128, "sound": 40}, 32)
    """

    def __init__(self, prior: Ladder, sizes: Mapping[str, int], hidden: int):
        super().__init__()
        self._prior, self.sizes = (prior,), dict(sizes)  # in a tuple, so that it is not registered a second time
        self.levels: Sequence[Mapping[str, nn.Module]] = nn.ModuleList(  # type: ignore[assignment]
            nn.ModuleDict({k: encoder(size + sum(prior.dims[:level]), hidden, dim=dim) for k, size in sizes.items()})
            for level, dim in enumerate(prior.dims)
        )

    def fuse(self, experts: Experts) -> Distribution:
        check_made_for(experts, self.sizes, "size in LadderPoE; add it to sizes")
        prior, names = self._prior[0], [name for name in self.sizes if name in experts]
        context = features_beside(experts, {name: self.sizes[name] for name in names}).unsqueeze(1)
        *columns, given = self._split(context, names)
        says = [
            experts.once((id(self), name), partial(self.levels[0][name], features))
            for name, features in zip(names, columns)
        ]
        steps = [partial(self._step, level, names) for level in range(1, len(prior.dims))]
        return Chain(_times(prior.top, says, given), steps, prior.dims, context)

    def _step(self, level: int, names: Sequence[str], above: Tensor, context: Tensor) -> Distribution:
        """The product of a level's prior with what every given modality says of it."""
        *columns, given = self._split(context, names)
        says = []
        for name, features in zip(names, columns):
            shape = torch.broadcast_shapes(features.shape[:-1], above.shape[:-1])
            both = torch.cat([features.expand(*shape, -1), above.expand(*shape, -1)], -1)
            says.append(self.levels[level][name](both))
        return _times(self._prior[0].levels[level - 1](above), says, given)

    def _split(self, context: Tensor, names: Sequence[str]) -> Sequence[Tensor]:
        """The features of each modality, and which of them are there."""
        return context.split([*(self.sizes[name] for name in names), len(names)], -1)


def _times(prior: Distribution, says: Sequence[Distribution], given: Tensor) -> Distribution:
    """The product of normals, each of `says` where `given` (..., modality) is one."""
    precision = prior.base_dist.scale**-2
    shift = precision * prior.base_dist.loc
    for position, q in enumerate(says):
        own = given[..., position : position + 1] * q.base_dist.scale**-2
        precision, shift = precision + own, shift + own * q.base_dist.loc
    return product(precision, shift)
