"""Mixtures whose draws are reparameterised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import Distribution, Independent
from torch import Tensor
from torch.distributions import constraints

from pyro_mmvae.distributions.base import Frozen, Mapped, mapped, plain, with_batch
from pyro_mmvae.distributions.normal import Normal, is_normal


class Mixture(Frozen):
    """A mixture whose draws are reparameterised: sum_c weights_c components_c.

    A draw chooses its component inside `rsample`, so every particle chooses its own, and is scored under the density of
    the whole mixture. Where no gradient is asked of the weights, a draw carries that of its component. Where one is,
    and the components are diagonal normals, it carries the implicit gradient of the whole mixture, weights included
    (one step a dimension). For other components with such weights there is no reparameterised draw: `has_rsample` is
    False, and Pyro falls back on the score function, unbiased and noisier.

    Args:
        components: batch (component, *batch), event (dim,).
        weights: non-negative, (component, *batch), summing to one over the components. A weight of zero means that the
            component is not there, whatever its parameters.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> parts = dist.Normal(torch.tensor([[-9.0], [9.0]]), torch.ones(2, 1)).to_event(1)
        >>> Mixture(parts, torch.tensor([0.0, 1.0])).mean
        tensor([9.])

    Reference:
        Figurnov, Mohamed and Mnih, 2018, Implicit Reparameterization Gradients, https://arxiv.org/abs/1805.08498
    """

    def __init__(self, components: Distribution, weights: Tensor):
        self.components, self.weights = components, weights
        self._inner = weights.dim() - 1
        super().__init__(weights.shape[1:], components.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.components.support

    @property
    def has_rsample(self) -> bool:
        return self.components.has_rsample and (not self.weights.requires_grad or is_normal(self.components))

    def mapped(self, function: Mapped) -> Mixture:
        components, weights = self.spread()
        return Mixture(mapped(components, function), function(weights, 0))

    def spread(self) -> tuple[Distribution, Tensor]:
        """Components and weights with the batch axes that `expand` gave the whole."""
        if self.weights.shape[1:] == self.batch_shape:
            return self.components, self.weights
        lead = [1] * (len(self.batch_shape) - self._inner)

        def wide(value: Tensor, event_dims: int) -> Tensor:
            end = value.dim() - event_dims
            start = end - self._inner
            front, own, event = value.shape[:start], value.shape[start:end], value.shape[end:]
            return value.reshape(*front, *lead, *own, *event).expand(*front, *self.batch_shape, *event)

        return mapped(self.components, wide), wide(self.weights, 0)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape])
        draw = self._ancestral(shape, self._indices(shape))
        if self.weights.requires_grad and torch.is_grad_enabled():
            return _implicit(draw.detach(), self.components, self._log_weights(), self._inner)
        return draw

    def _ancestral(self, shape: torch.Size, index: Tensor) -> Tensor:
        outer = shape[: len(shape) - self._inner]
        if not _rebuilt(self.components):
            return _pick(self.components(outer), index, self._inner, len(self.event_shape))

        def choose(value: Tensor, event_dims: int) -> Tensor:
            return _pick(value.expand(*outer, *value.shape), index, self._inner, event_dims)

        return mapped(self.components, choose)()

    def _indices(self, shape: torch.Size) -> Tensor:
        edges = self.weights.detach().cumsum(0).movedim(0, -1)
        total = edges[..., -1]
        points = torch.rand(shape, dtype=edges.dtype, device=edges.device) * total
        points = torch.minimum(points, torch.nextafter(total, torch.zeros_like(total)))  # never past the last component
        return torch.searchsorted(edges.expand(*shape, -1).contiguous(), points.unsqueeze(-1), right=True).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._shares(value).logsumexp(-1 - self._inner)

    def responsibilities(self, value: Tensor) -> Tensor:
        """p(component | value), (..., *batch, component): to which cluster a code belongs, and how surely.

        Example:
            >>> import torch, pyro_mmvae as mm
            >>> prior = mm.GaussianMixture(2, components=3)
            >>> prior().responsibilities(torch.randn(5, 2)).shape
            torch.Size([5, 3])
        """
        axis = -1 - self._inner
        return self._shares(value).softmax(axis).movedim(axis, -1)

    def _shares(self, value: Tensor) -> Tensor:
        """The logarithms of what each component adds to the density, (..., component, *batch)."""
        axes = self._inner + len(self.event_shape)
        parts = self.components.log_prob(with_batch(value, axes).unsqueeze(-1 - axes))
        return parts + self._log_weights().to(parts.dtype)

    def _log_weights(self) -> Tensor:
        there = self.weights > 0  # the logarithm of zero has no gradient that one could multiply by zero
        return torch.where(there, torch.where(there, self.weights, 1).log(), -torch.inf)

    def _weights(self, like: Tensor) -> Tensor:
        return self.weights.reshape(*self.weights.shape, *[1] * len(self.event_shape)).to(like.dtype)

    @property
    def mean(self) -> Tensor:
        mean = self.components.mean
        return (self._weights(mean) * mean).sum(0).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        mean = self.components.mean
        middle = (self._weights(mean) * mean).sum(0)
        around = self.components.variance + (mean - middle) ** 2
        return (self._weights(around) * around).sum(0).expand(self.batch_shape + self.event_shape)


def _pick(value: Tensor, index: Tensor, inner: int, event_dims: int) -> Tensor:
    """From (..., component, *inner, *event) the component that `index` (..., *inner) names, (..., *inner, *event)."""
    axis = value.dim() - 1 - inner - event_dims
    index = index.unsqueeze(axis)
    index = index.reshape(*index.shape, *[1] * event_dims)
    index = index.expand(*index.shape[: index.dim() - event_dims], *value.shape[value.dim() - event_dims :])
    return value.gather(axis, index).squeeze(axis)


def _rebuilt(components: Distribution) -> bool:
    """Can a draw pick its component's parameters first? Else all components are drawn, and one is picked."""
    while isinstance(components, Independent):
        components = components.base_dist
    return plain(components)


def _implicit(draw: Tensor, components: Distribution, log_weights: Tensor, inner: int) -> Tensor:
    """The same draw with the gradient that the parameters of a mixture of diagonal normals have on it.

    Dimension by dimension: z_d is a quantile of p(z_d | z_1, ..., z_(d-1)), whose distribution function F stays where
    it is when the parameters move, so dz_d = -dF / p(z_d | ...).

    Args:
        draw: (..., *inner, dim), detached.
        components: batch (component, *inner).
        log_weights: (component, *inner).
    """
    axis, moved = -1 - inner, []
    loc, scale = components.base_dist.loc.unbind(-1), components.base_dist.scale.unbind(-1)
    for d, point in enumerate(draw.unbind(-1)):
        point, part, share = point.unsqueeze(axis), Normal(loc[d], scale[d]), log_weights.softmax(axis)
        below = (share * part.cdf(point)).sum(axis)
        density = (share * part.log_prob(point).exp()).sum(axis).detach()
        moved.append(point.squeeze(axis) - (below - below.detach()) / density)
        log_weights = log_weights + part.log_prob(moved[-1].unsqueeze(axis))
    return torch.stack(moved, -1)
