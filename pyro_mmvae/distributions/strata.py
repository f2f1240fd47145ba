"""Mixtures looked at component by component: one stratum at a time, or scored by the component that was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from pyro.distributions import Delta, Distribution, Independent, TransformedDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mmvae.distributions.base import Frozen, Mapped, Stacked, mapped
from pyro_mmvae.distributions.mixture import Mixture, _pick
from pyro_mmvae.distributions.products import ProductMixture, ProductSurrogate
from pyro_mmvae.distributions.rows import Switch


class Surrogate(Mixture):
    """A mixture whose draws are scored under the component that they came from, not under the whole.

    E log q(z) then is the mean of the components' negative entropies: the bound of MoPoE and mmJSD, which is no
    tighter than the mixture's own. It scores its own last draw only; `mapped` gives the plain mixture.
    """

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape])
        self.index = self._indices(shape)
        return self._ancestral(shape, self.index)

    def log_prob(self, value: Tensor) -> Tensor:
        parts = self.components.log_prob(value.unsqueeze(-1 - self._inner - len(self.event_shape)))
        return _pick(parts, self.index, self._inner, 0)


class Stratum(Frozen):
    """Draws from one component of a mixture, scored as draws of the whole mixture (of a `Surrogate`: of itself).

    Args:
        mixture: with components on its leading axis.
        index: which of them.
        size: how many from there on; of more than one each draw chooses its own, by their weights.

    Attributes:
        share: the weight, of the mixture's batch shape.
    """

    def __init__(self, mixture: Mixture, index: int, size: int = 1):
        self.mixture, self.index, self.size = mixture, index, size
        self._kind = Surrogate if isinstance(mixture, Surrogate) else Mixture
        self.share = mixture.weights[index] if size == 1 else mixture.weights[index : index + size].sum(0)
        super().__init__(self.share.shape, mixture.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.mixture.support

    @property
    def has_rsample(self) -> bool:
        return self.component.has_rsample

    def mapped(self, function: Mapped) -> Stratum:
        components, weights = self.mixture.spread()
        return Stratum(self._kind(mapped(components, function), function(weights, 0)), self.index, self.size)

    @cached_property
    def component(self) -> Distribution:
        """The component by itself, or the mixture of them; of no meaning where their share is zero."""
        if self.size == 1:
            return component(self.mixture.components, self.index)
        own = slice(self.index, self.index + self.size)
        weights = torch.where(self.share > 0, self.mixture.weights[own] / self.share, 1 / self.size)
        return self._kind(component(self.mixture.components, own), weights)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape[: len(self.batch_shape) - self.share.dim()]])
        return self.component(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        own = isinstance(self.mixture, (Surrogate, ProductSurrogate))
        return self.component.log_prob(value) if own else self.mixture.log_prob(value)


def component(components: Distribution, index: int | slice) -> Distribution:
    """One of the distributions on the leading axis, or some of them."""
    if isinstance(components, Stacked):
        return Stacked(components.parts[index]) if isinstance(index, slice) else components.parts[index]
    if isinstance(components, Independent):
        return component(components.base_dist, index).to_event(components.reinterpreted_batch_ndims)
    return mapped(components, lambda value, _: value[index])


def by_component(q: Distribution) -> Distribution:
    """The same mixture, scored by the component that was drawn; other distributions as they are."""
    if isinstance(q, Switch):
        return Switch(q.condition, by_component(q.yes), q.no)
    if isinstance(q, ProductMixture):
        return q.by_component()
    if isinstance(q, Mixture) and not isinstance(q, Surrogate):
        return Surrogate(q.components, q.weights)
    return q


def as_whole(q: Distribution) -> Distribution:
    """What `by_component` does, undone: the density of a mixture at any point."""
    if isinstance(q, Switch):
        return Switch(q.condition, as_whole(q.yes), q.no).expand(q.batch_shape)
    if isinstance(q, (Surrogate, ProductSurrogate)):
        return mapped(q, lambda value, _: value).expand(q.batch_shape)
    if isinstance(q, TransformedDistribution) and isinstance(q.base_dist, (Surrogate, ProductSurrogate)):
        return mapped(q, lambda value, _: value)
    return q


def stratum(q: Distribution, index: int, size: int = 1) -> tuple[Distribution, Tensor | float]:
    """Draws from one component of q, or from `size` of them, and their weight: (row, 1), or one number.

    Any other distribution counts as its own only component. A row that a `Switch` gives the prior has its weight in the
    first. Beyond the last component there is nothing, of weight zero: so for a modality that no encoder looks at.
    """
    first = float(index == 0)
    if isinstance(q, Switch):
        yes, share = stratum(q.yes, index, size)
        return Switch(q.condition, yes, q.no), torch.where(q.condition, share, first)
    if isinstance(q, Mixture) and index < components_of(q):
        part = Stratum(q, index, size)
        return part, part.share
    return q, 0.0 if isinstance(q, Mixture) else first


def is_mixture(q: Distribution) -> bool:
    """Whether it has components, in the rows that are given something."""
    return isinstance(q.yes if isinstance(q, Switch) else q, Mixture)


def components_of(q: Distribution) -> int:
    """How many components a mixture has; 1 for any other distribution."""
    q = q.yes if isinstance(q, Switch) else q
    return len(q.weights) if isinstance(q, Mixture) else 1


def detached(q: Distribution) -> Distribution:
    """The same density with no gradient to its parameters."""
    if isinstance(q, Switch):
        return Switch(q.condition, detached(q.yes), detached(q.no))
    if isinstance(q, Surrogate):
        new = Surrogate(mapped(q.components, _stop), q.weights.detach())
        new.index = q.index
        return new
    if isinstance(q, Stratum) and isinstance(q.component, Surrogate):
        part = q.mapped(_stop)
        part.component.index = q.component.index
        return part
    if isinstance(q, ProductSurrogate):
        return q.scoring(mapped(q.last, _stop))
    if hasattr(q, "detached"):
        return q.detached()
    return q if _is_made_of_noise(q) else mapped(q, _stop)


def _is_made_of_noise(q: Distribution) -> bool:
    """Whether all that a density says is the volume of a transform: the gradient of that is the only one it has."""
    while isinstance(q, Independent):
        q = q.base_dist
    return isinstance(q, Delta)


def _stop(value: Tensor, event_dims: int) -> Tensor:
    return value.detach()
