"""How a distribution is rebuilt from its parameters, and how several stand side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import Distribution, Independent, TorchDistribution, TransformedDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mmvae.chance import devices_of, seeded

Mapped = Callable[[Tensor, int], Tensor]
DRAWS, PIECE = 1000, 20
"""Draws of which moments are taken, and how many of them are held at once."""


def parameters_of(distribution: Distribution) -> dict[str, tuple[Tensor, int]]:
    """The tensors that a plain distribution was built from, each with its number of event axes."""
    stored = vars(distribution)
    names = [name for name in distribution.arg_constraints if name in stored]
    if "scale_tril" in distribution.arg_constraints:  # of a matrix's forms the one that torch always has
        names = [name for name in distribution.arg_constraints if name not in ("covariance_matrix", "precision_matrix")]
    if {"probs", "logits"} <= set(names):  # likewise
        names.remove("probs" if stored["logits"] is stored.get("_param") else "logits")
    if not names:  # kept in a distribution inside, as those of Beta, HalfNormal and LogNormal
        return _within(distribution)
    return {name: (getattr(distribution, name), distribution.arg_constraints[name].event_dim) for name in names}


def _within(distribution: Distribution) -> dict[str, tuple[Tensor, int]]:
    values = {name: getattr(distribution, name, None) for name in distribution.arg_constraints if name != "probs"}
    axes = len(distribution.batch_shape)
    return {name: (value, value.dim() - axes) for name, value in values.items() if isinstance(value, Tensor)}


def _fixed(distribution: Distribution) -> dict[str, object]:
    """What else it was built from: the same for the whole batch."""
    names = {"total_count", "temperature"} - parameters_of(distribution).keys()
    return {name: getattr(distribution, name) for name in names if hasattr(distribution, name)}


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
    transformed = isinstance(distribution, torch.distributions.TransformedDistribution)
    if transformed and not distribution.arg_constraints:  # else its transforms hold parameters, as Gumbel's do
        return TransformedDistribution(mapped(distribution.base_dist, function, event_dims), distribution.transforms)
    if isinstance(distribution, torch.distributions.MixtureSameFamily):  # its components are one axis more
        parts = distribution.mixture_distribution, distribution.component_distribution
        return type(distribution)(mapped(parts[0], function, event_dims), mapped(parts[1], function, event_dims + 1))
    tensors, axes = parameters_of(distribution), len(distribution.batch_shape)
    if not tensors or any(value.dim() - own > axes for value, own in tensors.values()):
        raise TypeError(f"{type(distribution).__name__} cannot be rebuilt from its parameters; use a Normal expert")
    new = {name: function(value, event_dims + own) for name, (value, own) in tensors.items()}
    return type(distribution)(**new, **_fixed(distribution))


def plain_support(support: constraints.Constraint) -> constraints.Constraint:
    """The same values as a constraint that torch has a transform to: mixtures have that of their components."""
    inner = getattr(support, "base_constraint", None)
    if inner is None:
        return support
    if isinstance(support, constraints.independent):
        return constraints.independent(plain_support(inner), support.reinterpreted_batch_ndims)
    return plain_support(inner)


def with_batch(value: Tensor, axes: int) -> Tensor:
    """A value with the axes of one before it that it lacks of so many: one point for a whole batch."""
    return value if value.dim() >= axes else value.reshape(*[1] * (axes - value.dim()), *value.shape)


def log_prob_sum(distribution: Distribution, value: Tensor) -> Tensor:
    """The sum of the log-probabilities over the whole batch, (): in fewer steps if the distribution knows how."""
    if hasattr(distribution, "log_prob_sum"):
        return distribution.log_prob_sum(value)
    return distribution.log_prob(value).sum()


def moments_of(distribution: Distribution) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (*batch, *event) each.

    Where they have no closed form, as for flows, those of draws, which are the same each time.
    """
    try:
        mean, sd = distribution.mean, distribution.stddev
        if isinstance(mean, Tensor):
            return mean, sd
    except (NotImplementedError, AttributeError):
        pass
    with seeded(0, devices_of(_tensors(distribution))):
        pieces = [torch.var_mean(distribution.sample((PIECE,)), 0, correction=0) for _ in range(DRAWS // PIECE)]
    within, means = (torch.stack(column) for column in zip(*pieces))
    return means.mean(0), (within.mean(0) + means.var(0, correction=0)).sqrt()


def like(distribution: Distribution) -> Tensor:
    """A tensor of its dtype, on its device."""
    try:
        return distribution.mean
    except NotImplementedError:  # a flow
        return _tensors(distribution)[0]


def _tensors(distribution: Distribution) -> list[Tensor]:
    """All tensors that it was built from."""
    tensors: list[Tensor] = []
    mapped(distribution, lambda value, _: tensors.append(value) or value)  # type: ignore[func-returns-value]
    return tensors


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
    elif same and plain(first) and all(_events(d) == _events(first) for d in distributions):
        columns = [parameters_of(d) for d in distributions]
        return type(first)(**{k: torch.stack(torch.broadcast_tensors(*[c[k][0] for c in columns])) for k in columns[0]})
    return Stacked(distributions)


def _events(distribution: Distribution) -> list[torch.Size]:
    """The shapes of its parameters without their batch axes: factors of a lower rank must not broadcast."""
    return [value.shape[value.dim() - own :] for value, own in parameters_of(distribution).values()]


def plain(distribution: Distribution) -> bool:
    """Is it built from parameters of its batch alone, with no distribution inside?"""
    wrapped = isinstance(distribution, (Independent, TransformedDistribution)) or hasattr(distribution, "mapped")
    return not wrapped and bool(parameters_of(distribution)) and not _fixed(distribution)


class Frozen(TorchDistribution):
    """What our distributions share: no parameters of their own, an expansion that copies nothing, and draws that are
    real vectors unless they say otherwise."""

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch {tuple(self.batch_shape)}, event {tuple(self.event_shape)})"

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Frozen:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def entropy(self) -> Tensor:
        """Raises NotImplementedError, which says how to average it over draws."""
        raise NotImplementedError(
            f"the entropy of a {type(self).__name__} q has no formula; average it, in nats, by"
            " -q.log_prob(q.sample((1000,))).mean(0)"
        )


class Stacked(Frozen):
    """Distributions of different families under one leading component axis.

    Example:
        >>> import pyro.distributions as dist
        >>> parts = [dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Laplace(torch.zeros(2), 1.0).to_event(1)]
        >>> Stacked(parts).batch_shape
        torch.Size([2])
    """

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
        logs = [d.log_prob(v) for d, v in zip(self.parts, values, strict=True)]
        return torch.stack(torch.broadcast_tensors(*logs), -1 - self._inner)

    @property
    def mean(self) -> Tensor:
        return torch.stack([d.mean.expand(self.batch_shape[1:] + self.event_shape) for d in self.parts])

    @property
    def variance(self) -> Tensor:
        return torch.stack([d.variance.expand(self.batch_shape[1:] + self.event_shape) for d in self.parts])
