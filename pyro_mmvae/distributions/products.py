"""The mixture of the products of all subsets of normal experts, without a stack of 2^M components."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import Distribution
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from pyro_mmvae.distributions.base import Mapped, with_batch
from pyro_mmvae.distributions.mixture import Mixture
from pyro_mmvae.distributions.natural import product

NUMBERS_AT_ONCE = 2**17
"""How many numbers a chunk of subsets may take, 512 kB of float32: what the second cache of a core holds."""


class ProductMixture(Mixture):
    """Equal parts of the products of every non-empty subset of the given experts, which are diagonal normals.

    The same as a `Mixture` of the 2^M - 1 products. The precisions and shifts of the products are one matrix product of
    a (subset, expert) indicator with those of the experts; the density goes through them in chunks and through them
    again in the backward pass, so that what is kept grows with the experts, and with one number a subset and row.

    Args:
        loc, precision: of the experts, (expert, *batch, dim); precision zero where one is not given.
        given: bool (expert, *batch). Where none is given the distribution is a valid one, and of no meaning.
        always: loc and precision (*batch, dim) of an expert that stands in every product, such as the prior.
        whole: whether all experts are given everywhere, if the caller knows that they are.

    Example:
        >>> loc, precision = torch.tensor([[0.0], [4.0]]), torch.ones(2, 1)
        >>> ProductMixture(loc, precision, torch.tensor([True, True])).mean  # of N(0, 1), N(4, 1) and N(2, 1/2)
        tensor([2.])
    """

    def __init__(
        self,
        loc: Tensor,
        precision: Tensor,
        given: Tensor,
        always: tuple[Tensor, Tensor] | None = None,
        *,
        whole: bool = False,
    ):
        self.loc, self.precision, self.given, self.always, self.whole = loc, precision, given, always, whole
        self._inner = given.dim() - 1
        super(Mixture, self).__init__(given.shape[1:], loc.shape[-1:], validate_args=False)

    def mapped(self, function: Mapped) -> ProductMixture:
        always = None if self.always is None else (function(self.always[0], 1), function(self.always[1], 1))
        loc, precision, given = function(self.loc, 1), function(self.precision, 1), function(self.given, 0)
        return ProductMixture(loc, precision, given, always, whole=self.whole)

    def by_component(self) -> ProductSurrogate:
        """The same mixture, scored by the product that was drawn."""
        new = object.__new__(ProductSurrogate)
        new.__dict__.update(self.__dict__)
        return new

    @cached_property
    def components(self) -> Distribution:  # type: ignore[override]
        """All products side by side, for whoever looks at one component at a time."""
        members = _table(self.precision, False)
        return self._product(torch.tensordot(members, self.precision, 1), torch.tensordot(members, self._shift(), 1))

    @cached_property
    def weights(self) -> Tensor:  # type: ignore[override]
        there = self._there().double()
        return there / there.sum(0)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector  # without making the components, of which `Mixture` asks it

    has_rsample = True

    def _shift(self) -> Tensor:
        return self.precision * self.loc

    def _product(self, precision: Tensor, shift: Tensor) -> Distribution:
        if self.always is not None:
            precision, shift = precision + self.always[1], shift + self.always[0] * self.always[1]
        precision = torch.where(precision > 0, precision, 1)  # a subset that is not there
        return product(precision, shift)

    def _there(self) -> Tensor:
        """Which subsets are there, bool (subset, *batch); all of them where nothing was given."""
        given = torch.where(self.given.any(0), self.given, True)
        return torch.tensordot(_table(self.precision, False), (~given).to(self.precision), 1) == 0

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self._drawn(torch.Size([*sample_shape, *self.batch_shape])).rsample()

    def _drawn(self, shape: torch.Size) -> Distribution:
        """The product that each place of the shape draws from."""
        members = pick_members(self.given, shape).to(self.precision).unsqueeze(-1)
        axis = -2 - self._inner
        return self._product((members * self.precision).sum(axis), (members * self._shift()).sum(axis))

    def log_prob(self, value: Tensor) -> Tensor:
        axis, value = -2 - self._inner, with_batch(value, 1 + self._inner)
        precision, shift = self.precision, self.precision * (self.loc - value.unsqueeze(axis))
        if self.always is not None:
            loc, own = (part.expand(shift.shape[-1 - self._inner :]) for part in self.always)
            precision = torch.cat([precision, own.unsqueeze(0)])
            shift = torch.cat([shift, (own * (loc - value)).unsqueeze(axis)], axis)
        lead = shift.shape[:axis]
        shift = shift.reshape(-1, len(precision), precision[0].numel() // value.shape[-1], value.shape[-1])
        there = None if self.whole else self._there().flatten(1)
        precision = precision.reshape(shift.shape[1:])
        log_density = _AtOrigin.apply(precision, shift, there, self.always is not None)
        return log_density.reshape(*lead, *self.given.shape[1:])


class ProductSurrogate(ProductMixture):
    """A `ProductMixture` whose draws are scored under the product that they came from, see `Surrogate`.

    It scores its own last draw only; `mapped` gives the mixture.
    """

    last: Distribution

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        self.last = self._drawn(torch.Size([*sample_shape, *self.batch_shape]))
        return self.last.rsample()

    def log_prob(self, value: Tensor) -> Tensor:
        return self.last.log_prob(value)

    def scoring(self, last: Distribution) -> ProductSurrogate:
        """The same with another density of the last draw."""
        new = self.by_component()
        new.last = last
        return new


class _AtOrigin(torch.autograd.Function):
    """log sum_S w_S N(0; product of the experts in S), the experts moved so that the point is the origin.

    For each product -(d log 2 pi - log P + H^2 / P) / 2 with its precision P and shift H, sums over its members.

    Args:
        precision: (expert, row, dim); if `always`, that of the last one stands in every product.
        shift: (particle, expert, row, dim).
        there: bool (subset, row), None = all.
    """

    @staticmethod
    def forward(ctx: Any, precision: Tensor, shift: Tensor, there: Tensor | None, always: bool) -> Tensor:
        table = _table(precision, always)
        particles, _, rows, dim = shift.shape
        logs = shift.new_empty(particles, len(table), rows)
        for part in _chunks(table, shift):
            total, moved = _sums(table[part], precision, shift, there is None)
            logs[:, part] = total.log().sum(-1) - moved.square().div_(total).sum(-1)
        logs.mul_(0.5)
        count: Tensor | float = math.log(len(table))
        if there is not None:
            logs.masked_fill_(~there, -torch.inf)
            count = there.sum(0).to(logs).log()
        found = logs.logsumexp(1, keepdim=True)
        ctx.always, ctx.whole = always, there is None
        ctx.save_for_backward(precision, shift, logs.sub_(found).exp_())
        return found.squeeze(1) - count - 0.5 * dim * math.log(2 * math.pi)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        precision, shift, weights = ctx.saved_tensors
        table = _table(precision, ctx.always)
        weights = (weights * gradient.unsqueeze(1)).unsqueeze(-1)
        to_precision, to_shift = torch.zeros_like(precision), torch.zeros_like(shift)
        for part in _chunks(table, shift):
            total, moved = _sums(table[part], precision, shift, ctx.whole)
            mean, weight, members = moved.div_(total), weights[:, part], table[part].T
            slope = weight * mean
            to_shift -= (members @ slope.flatten(2)).view_as(to_shift)
            pull = slope.mul_(mean).sum(0).addcdiv_(weight.sum(0), total)
            to_precision += (members @ pull.flatten(1)).view_as(to_precision)
        return to_precision.mul_(0.5), to_shift, None, None


def _table(precision: Tensor, always: bool) -> Tensor:
    """Which expert is in which product, (subset, expert)."""
    table = indicator(len(precision) - int(always), precision.device).to(precision)
    return torch.cat([table, torch.ones_like(table[:, :1])], 1) if always else table


def _chunks(table: Tensor, shift: Tensor) -> Iterator[slice]:
    size = max(1, NUMBERS_AT_ONCE // shift[:, 0].numel())
    for start in range(0, len(table), size):
        yield slice(start, start + size)


def _sums(table: Tensor, precision: Tensor, shift: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """Precision (subset, row, dim) and shift (particle, subset, row, dim) of the products of a chunk."""
    total = (table @ precision.flatten(1)).unflatten(1, precision.shape[1:])
    if not whole:
        total = torch.where(total > 0, total, 1)  # a subset that is not there; its weight is zero
    return total, (table @ shift.flatten(2)).unflatten(2, shift.shape[2:])


def pick_members(given: Tensor, shape: torch.Size) -> Tensor:
    """A non-empty subset of the given experts for each place of `shape`, uniformly; bool (..., expert, *batch).

    Args:
        given: bool (expert, *batch); all count where none is.
        shape: (..., *batch).
    """
    given = torch.where(given.any(0), given, True)
    return members_of(pick_subsets(given, shape), given)


def pick_subsets(given: Tensor, shape: torch.Size) -> Tensor:
    """The number of a non-empty subset of what is given for each place of `shape`, uniformly, from 1 on."""
    count = 2 ** given.sum(0) - 1
    return (torch.rand(shape, dtype=torch.float64, device=given.device) * count).long() + 1


def members_of(subsets: Tensor, given: Tensor) -> Tensor:
    """The experts in subset k: the set bits of k, counted over those that are given; bool (..., expert, *batch).

    Args:
        subsets: k, (..., *batch).
        given: bool (expert, *batch).
    """
    position = (given.long().cumsum(0) - 1).clamp(min=0)
    return given & ((subsets.unsqueeze(-given.dim()) >> position) & 1).bool()


def indicator(modalities: int, device: torch.device | None = None) -> Tensor:
    """Which modality is in which non-empty subset, (2^M - 1, M), the smaller subsets first.

    Example:
        >>> indicator(2)
        tensor([[1., 0.],
                [0., 1.],
                [1., 1.]])
    """
    codes = torch.arange(2**modalities - 1, 0, -1, device=device)
    bits = (codes.unsqueeze(-1) >> torch.arange(modalities - 1, -1, -1, device=device)) & 1
    return bits[bits.sum(-1).argsort(stable=True)].float()
