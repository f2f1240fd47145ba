"""Distributions that the two programs need beyond Pyro's own.

All of them leave the number of axes alone: batch axes are counted from the right, so that particles,
which stand on the left, come for free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import Distribution, Independent, TorchDistribution, TransformedDistribution
from torch import Tensor
from torch.distributions import constraints, transform_to

Mapped = Callable[[Tensor, int], Tensor]


def parameters_of(distribution: Distribution) -> dict[str, tuple[Tensor, int]]:
    """The tensors that a plain distribution was built from, each with its number of event axes."""
    stored = vars(distribution)
    names = [name for name in distribution.arg_constraints if name in stored]
    if {"scale_tril", "covariance_matrix"} <= set(names):  # torch caches the other forms of a matrix beside the first
        names = [name for name in names if name not in ("covariance_matrix", "precision_matrix")]
    return {name: (stored[name], distribution.arg_constraints[name].event_dim) for name in names}


def mapped(distribution: Distribution, function: Mapped, event_dims: int = 0) -> Distribution:
    """The same distribution with `function(parameter, event_dims)` in place of each parameter tensor.

    It looks through `Independent`, transforms, `Mixture` and `Switch`. `event_dims` counts the trailing axes of
    that parameter which are no batch axes.

    Raises:
        TypeError: a distribution whose parameters cannot be read back from it.
    """
    if hasattr(distribution, "mapped"):
        return distribution.mapped(function)
    if isinstance(distribution, Independent):
        ndims = distribution.reinterpreted_batch_ndims
        return mapped(distribution.base_dist, function, event_dims + ndims).to_event(ndims)
    if isinstance(distribution, TransformedDistribution):
        return TransformedDistribution(mapped(distribution.base_dist, function, event_dims), distribution.transforms)
    tensors = parameters_of(distribution)
    if not tensors:
        raise TypeError(f"{type(distribution).__name__} cannot be rebuilt from its parameters; use a Normal expert")
    new = {name: function(value, event_dims + own) for name, (value, own) in tensors.items()}
    fixed = {name: getattr(distribution, name) for name in ("total_count",) if name not in new and hasattr(distribution, name)}
    return type(distribution)(**new, **fixed)


def stacked(distributions: Sequence[Distribution]) -> Distribution:
    """One distribution with a leading component axis: rebuilt if all are of one family, else a `Stacked`."""
    first = distributions[0]
    same = all(type(d) is type(first) and d.event_shape == first.event_shape for d in distributions)
    if same and isinstance(first, Independent):
        ndims = first.reinterpreted_batch_ndims
        if all(d.reinterpreted_batch_ndims == ndims for d in distributions):
            inner = stacked([d.base_dist for d in distributions])
            if not isinstance(inner, Stacked):
                return inner.to_event(ndims)
    elif same and not isinstance(first, TransformedDistribution) and not hasattr(first, "mapped") and parameters_of(first):
        columns = [parameters_of(d) for d in distributions]
        return type(first)(**{k: torch.stack(torch.broadcast_tensors(*[c[k][0] for c in columns])) for k in columns[0]})
    return Stacked(distributions)


class _Frozen(TorchDistribution):
    """What the distributions below share: no parameters of their own, and expansion that copies nothing."""

    arg_constraints = {}

    def _like(self, batch_shape: torch.Size) -> _Frozen:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _Frozen:
        return self._like(torch.Size(batch_shape))

    @property
    def has_enumerate_support(self) -> bool:
        return False

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)


class Stacked(_Frozen):
    """Distributions of different families under one leading component axis."""

    def __init__(self, distributions: Sequence[Distribution]):
        self.parts = list(distributions)
        batch = torch.broadcast_shapes(*[d.batch_shape for d in self.parts])
        shape = torch.Size([len(self.parts), *batch])
        self._inner = len(batch)
        super().__init__(shape, self.parts[0].event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.parts[0].support

    @property
    def has_rsample(self) -> bool:
        return all(d.has_rsample for d in self.parts)

    def mapped(self, function: Mapped) -> Stacked:
        def one(value: Tensor, event_dims: int) -> Tensor:
            return function(value.unsqueeze(0), event_dims).squeeze(0)

        return Stacked([mapped(d, one) for d in self.parts])

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape[: -self._inner - 1]])
        inner = self.batch_shape[len(self.batch_shape) - self._inner :]
        draws = [d.expand(inner)(shape) for d in self.parts]
        return torch.stack(draws, -1 - self._inner - len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        axis = -1 - self._inner - len(self.event_shape)
        values = value.expand(*value.shape[:axis], len(self.parts), *value.shape[axis + 1 :]).unbind(axis)
        return torch.stack([d.log_prob(v) for d, v in zip(self.parts, values, strict=True)], -1 - self._inner)

    @property
    def mean(self) -> Tensor:
        return torch.stack([d.mean.expand(self.batch_shape[1:] + self.event_shape) for d in self.parts])

    @property
    def variance(self) -> Tensor:
        return torch.stack([d.variance.expand(self.batch_shape[1:] + self.event_shape) for d in self.parts])


class Mixture(_Frozen):
    """A mixture whose draws are reparameterised: sum_c weights_c components_c.

    A draw chooses its component inside `rsample`, so every particle chooses its own, and is scored under the density of
    the whole mixture. The gradient is unbiased as long as no parameter reaches the weights through a *draw*; the
    density may depend on the weights freely (a learnt mixture prior is scored, not drawn from).

    Args:
        components: batch (component, *batch), event (dim,).
        weights: non-negative, (component, *batch), summing to one over the components. A weight of zero means that the
            component is not there, whatever its parameters.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> parts = dist.Normal(torch.tensor([[-9.0], [9.0]]), torch.ones(2, 1)).to_event(1)
        >>> Mixture(parts, torch.tensor([0.0, 1.0])).mean
        tensor([9.])
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
        return self.components.has_rsample

    def mapped(self, function: Mapped) -> Mixture:
        return Mixture(mapped(self.components, function), function(self.weights, 0))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape])
        outer = shape[: len(shape) - self._inner]
        index = self._indices(shape)
        if isinstance(self.components, Stacked):
            return _pick(self.components.rsample(outer), index, self._inner, len(self.event_shape))

        def choose(value: Tensor, event_dims: int) -> Tensor:
            return _pick(value.expand(*outer, *value.shape), index, self._inner, event_dims)

        return mapped(self.components, choose).rsample()

    def _indices(self, shape: torch.Size) -> Tensor:
        edges = self.weights.detach().cumsum(0).movedim(0, -1)
        total = edges[..., -1]
        points = torch.rand(shape, dtype=edges.dtype, device=edges.device) * total
        points = torch.minimum(points, torch.nextafter(total, torch.zeros_like(total)))  # never past the last component
        return torch.searchsorted(edges.expand(*shape, -1).contiguous(), points.unsqueeze(-1), right=True).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.unsqueeze(-1 - self._inner - len(self.event_shape))
        parts = self.components.log_prob(value)
        parts = parts + self.weights.log().to(parts.dtype)
        return parts.logsumexp(-1 - self._inner)

    def _weights(self, like: Tensor) -> Tensor:
        return self.weights.reshape(*self.weights.shape, *[1] * len(self.event_shape)).to(like.dtype)

    @property
    def mean(self) -> Tensor:
        mean = self.components.mean
        return (self._weights(mean) * mean).sum(0).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        second = self.components.variance + self.components.mean**2
        return (self._weights(second) * second).sum(0).expand(self.batch_shape + self.event_shape) - self.mean**2


def _pick(value: Tensor, index: Tensor, inner: int, event_dims: int) -> Tensor:
    """From (..., component, *inner, *event) the component that `index` (..., *inner) names, (..., *inner, *event)."""
    axis = value.dim() - 1 - inner - event_dims
    index = index.unsqueeze(axis)
    index = index.reshape(*index.shape, *[1] * event_dims)
    index = index.expand(*index.shape[: index.dim() - event_dims], *value.shape[value.dim() - event_dims :])
    return value.gather(axis, index).squeeze(axis)


class Switch(_Frozen):
    """One distribution where `condition` holds and another elsewhere, row by row.

    Args:
        condition: bool, of the batch shape (row, 1).
        yes, no: distributions that broadcast to that batch shape.
    """

    def __init__(self, condition: Tensor, yes: Distribution, no: Distribution):
        self.condition = condition
        self.yes, self.no = yes.expand(condition.shape), no.expand(condition.shape)
        super().__init__(condition.shape, yes.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.yes.support

    @property
    def has_rsample(self) -> bool:
        return self.yes.has_rsample and self.no.has_rsample

    def mapped(self, function: Mapped) -> Switch:
        return Switch(function(self.condition, 0), mapped(self.yes, function), mapped(self.no, function))

    def _choose(self, yes: Tensor, no: Tensor, event_dims: int) -> Tensor:
        return torch.where(self.condition.reshape(*self.condition.shape, *[1] * event_dims), yes, no)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape[: len(self.batch_shape) - self.condition.dim()]])
        return self._choose(self.yes(shape), self.no(shape), len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self._choose(self.yes.log_prob(value), self.no.log_prob(value), 0)

    @property
    def mean(self) -> Tensor:
        return self._choose(self.yes.mean, self.no.mean, len(self.event_shape))

    @property
    def variance(self) -> Tensor:
        return self._choose(self.yes.variance, self.no.variance, len(self.event_shape))


class Rows(_Frozen):
    """The likelihood of a few rows, scored in the batch of all of them: zero on the rows that were not observed.

    Args:
        base: batch (..., observed, repeat).
        index: which rows they are, (observed,).
        rows: the number of all rows.
    """

    def __init__(self, base: Distribution, index: Tensor, rows: int):
        self.base, self.index = base, index
        super().__init__((*base.batch_shape[:-2], rows, base.batch_shape[-1]), base.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.base.support

    has_rsample = False

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        raise NotImplementedError("a partly observed modality is scored, not drawn; draw it with mm.impute")

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.index_select(-2 - len(self.event_shape), self.index)
        seen = self.base.log_prob(value)
        return seen.new_zeros(*seen.shape[:-2], *self.batch_shape[-2:]).index_copy(-2, self.index, seen)


def masked(distribution: Distribution, mask: Tensor, event_dims: int = 0) -> Distribution:
    """The distribution with entries of its batch hidden, or of its event: `event_dims` axes of the mask belong to that.

    Raises:
        TypeError: the mask is finer than the entries that the distribution calls independent.
    """
    if event_dims == 0:
        return distribution.mask(mask)
    if not isinstance(distribution, Independent) or distribution.reinterpreted_batch_ndims < event_dims:
        raise TypeError(f"{type(distribution).__name__} has no independent entries to hide one by one; mask whole rows")
    whole = distribution.reinterpreted_batch_ndims
    mask = mask.reshape(*mask.shape, *[1] * (whole - event_dims))
    return distribution.base_dist.mask(mask).to_event(whole)


def feasible(distribution: Distribution) -> Tensor | float:
    """A value on the support, to stand where an observation is hidden."""
    support = distribution.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support.is_discrete:
        return float(getattr(support, "lower_bound", 0))
    return transform_to(support)(torch.zeros(()))
