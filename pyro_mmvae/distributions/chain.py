"""Codes made of parts: drawn one after the other, or with a fixed part beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import Distribution
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to
from torch.distributions.transforms import ComposeTransform

from pyro_mmvae.distributions.base import Frozen, Mapped, mapped

Step = Callable[[Tensor, Tensor], Distribution]


class Chain(Frozen):
    """A code whose parts are drawn in turn, each given those before: p(a) p(b | a, c) p(d | a, b, c) ...

    Args:
        first: of the first part, batch (...), event (size,).
        steps: (parts so far (..., sizes), context (..., k)) -> distribution of the next part, event (size,).
        sizes: of the parts, the first included.
        context: (..., k), what every step may look at too; its leading axes broadcast with the batch.
    """

    def __init__(self, first: Distribution, steps: Sequence[Step], sizes: Sequence[int], context: Tensor):
        self.first, self.steps, self.sizes, self.context = first, list(steps), list(sizes), context
        self._drawn: tuple[Tensor, list[Distribution]] | None = None
        super().__init__(first.batch_shape, torch.Size((sum(sizes),)), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return self.first.has_rsample

    def mapped(self, function: Mapped) -> Chain:
        context = function(self.context, 1) if self.context.dim() > 1 else self.context
        return Chain(mapped(self.first.expand(self.batch_shape), function), self.steps, self.sizes, context)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        value, parts = self.first.expand(self.batch_shape)(torch.Size(sample_shape)), []
        for step in self.steps:
            parts.append(step(value, self.context))
            value = torch.cat([value, parts[-1].rsample()], -1)
        if torch.is_grad_enabled():  # what was made without gradients must not score with them
            self._drawn = value, parts
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        start = self.sizes[0]
        total = self.first.log_prob(value[..., :start])
        known = self._drawn[1] if self._drawn is not None and self._drawn[0] is value else None
        for position, (step, size) in enumerate(zip(self.steps, self.sizes[1:])):
            q = step(value[..., :start], self.context) if known is None else known[position]
            total = total + q.log_prob(value[..., start : start + size])
            start += size
        return total

    @property
    def mean(self) -> Tensor:
        """Every part at the mean of the one before, which is the mean only where the steps are linear."""
        value = self.first.mean.expand(self.batch_shape + self.first.event_shape)
        for step in self.steps:
            value = torch.cat([value, step(value, self.context).mean], -1)
        return value


class Append(Transform):
    """Fixed numbers after the last coordinate: (..., dim) -> (..., dim + k), without volume.

    Args:
        fixed: (..., k), of leading axes that broadcast with those of what it is put beside.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, fixed: Tensor):
        super().__init__()
        self.fixed, self.more = fixed, fixed.shape[-1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Append) and other.fixed is self.fixed

    def _call(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.fixed.expand(*x.shape[:-1], -1)], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., : y.shape[-1] - self.more]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size([*shape[:-1], shape[-1] + self.more])

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size([*shape[:-1], shape[-1] - self.more])


class FixedBeside(constraints.Constraint):
    """The support of [z, c]: that of z, and c as it is, so that who moves on it (NUTS, autoguides) moves z alone."""

    event_dim = 1

    def __init__(self, support: constraints.Constraint, fixed: Tensor):
        self.support, self.append = support, Append(fixed)

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return bool(self.support.is_discrete)

    def check(self, value: Tensor) -> Tensor:
        return self.support.check(self.append.inv(value))


@biject_to.register(FixedBeside)
def _bijection(constraint: FixedBeside) -> Transform:
    return ComposeTransform([biject_to(constraint.support), constraint.append])


@transform_to.register(FixedBeside)
def _transform(constraint: FixedBeside) -> Transform:
    return ComposeTransform([transform_to(constraint.support), constraint.append])


class Beside(Frozen):
    """[z, c]: draws of z with fixed numbers beside them, which are there for a decoder and cost nothing.

    Args:
        base: of z, batch (row, 1) or one that broadcasts to it, event (dim,).
        fixed: c, (row, 1, k).
    """

    def __init__(self, base: Distribution, fixed: Tensor):
        self.fixed, self.base = fixed, base.expand(fixed.shape[:-1])
        event = torch.Size((base.event_shape[0] + fixed.shape[-1],))
        super().__init__(fixed.shape[:-1], event, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return FixedBeside(self.base.support, self.fixed)

    @property
    def has_rsample(self) -> bool:
        return self.base.has_rsample

    def mapped(self, function: Mapped) -> Beside:
        return Beside(mapped(self.base, function), function(self.fixed, 1))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        missing = len(self.batch_shape) - (self.fixed.dim() - 1)
        return self._with(self.base(torch.Size([*sample_shape, *self.batch_shape[:missing]])))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value[..., : self.base.event_shape[0]])

    def beside(self, value: Tensor) -> Tensor:
        """The z of values [z, c], and this one's own c."""
        return self._with(value[..., : self.base.event_shape[0]])

    def _with(self, value: Tensor) -> Tensor:
        return Append(self.fixed)(value)

    @property
    def mean(self) -> Tensor:
        return self._with(self.base.mean)

    @property
    def variance(self) -> Tensor:
        own = self.base.variance
        return torch.cat([own, torch.zeros_like(self.fixed.expand(*own.shape[:-1], -1))], -1)


def drawn_part(q: Distribution) -> Distribution:
    """Of [z, c] the distribution of z; any other as it is."""
    return q.base if isinstance(q, Beside) else q
