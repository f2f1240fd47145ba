"""Columns of different kinds, which a table is made of: how each is decoded, and how it is shown to an encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_mmvae.arrays import positive, whole
from pyro_mmvae.checks import kind_of
from pyro_mmvae.distributions import Categorical, NegativeBinomial, Normal
from pyro_mmvae.heads import SMALLEST
from pyro_mmvae.warn import warn


def _above_zero(what: str, value: float | Tensor) -> None:
    positive(what, value.item() if isinstance(value, Tensor) and value.dim() == 0 else value)


class Column(Protocol):
    """One kind of column: how it is decoded, and how it is shown to an encoder. Any class with these is a column."""

    @property
    def outputs(self) -> int:
        """How many numbers a row the decoder's network gives for it."""

    @property
    def width(self) -> int:
        """How many features it is to the encoder."""

    def start(self) -> Tensor:
        """What it learns besides the network, the same for all rows, (numbers,); in steps as of a `LearnedScale`."""

    def distribution(self, out: Tensor, learnt: Tensor) -> Distribution:
        """From the network's (..., outputs) and what was learnt to the distribution of the entry, batch (...)."""

    def features(self, x: Tensor) -> Tensor:
        """From (row,), any value where hidden, to (row, width)."""


class OneNumber:
    """A column for which the network gives one number and an encoder sees one; another is learnt. Abstract."""

    outputs = width = 1

    def start(self) -> Tensor:
        return torch.zeros(1)


@dataclass(frozen=True)
class RealColumn(OneNumber):
    """Real numbers: normal with one learnt scale.

    Args:
        loc, scale: a typical value, and how far others are from it, in the units of the data.

    Example:
        >>> column = RealColumn(loc=40.0, scale=5.0)
        >>> column.distribution(torch.zeros(1), column.start()).mean
        tensor(40.)
    """

    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _above_zero("RealColumn: scale", self.scale)
        kind = torch.get_default_dtype()
        if self.scale < 16 * torch.finfo(kind).eps * abs(self.loc):  # numbers are rounded by a fiftieth of it, or more
            warn(
                f"RealColumn: loc is {self.loc:g} and scale {self.scale:g}, which {kind} hardly tells from nothing;"
                " subtract a typical value from the column first"
            )

    def distribution(self, out: Tensor, learnt: Tensor) -> Distribution:
        return Normal(self.loc + self.scale * out[..., 0], self.scale * (learnt[0].exp() + SMALLEST))

    def features(self, x: Tensor) -> Tensor:
        return ((x - self.loc) / self.scale).unsqueeze(-1)


@dataclass(frozen=True)
class PositiveColumn(OneNumber):
    """Positive real numbers: log-normal with one learnt scale.

    Args:
        median: a typical value, in the units of the data.

    Example:
        >>> column = PositiveColumn(median=4000.0)
        >>> column.features(torch.tensor([4000.0]))
        tensor([[0.]])
    """

    median: float = 1.0

    def __post_init__(self) -> None:
        _above_zero("PositiveColumn: median", self.median)

    def distribution(self, out: Tensor, learnt: Tensor) -> Distribution:
        return dist.LogNormal(math.log(self.median) + out[..., 0], learnt[0].exp() + SMALLEST)

    def features(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x / self.median, 1).log().unsqueeze(-1)


@dataclass(frozen=True)
class CountColumn(OneNumber):
    """Counts: negative binomial with one learnt dispersion.

    Args:
        mean: a typical value.

    Example:
        >>> column = CountColumn(mean=3.0)
        >>> round(float(column.distribution(torch.zeros(1), column.start()).mean), 3)
        3.0
    """

    mean: float = 1.0

    def __post_init__(self) -> None:
        _above_zero("CountColumn: mean", self.mean)

    def distribution(self, out: Tensor, learnt: Tensor) -> Distribution:
        return NegativeBinomial(learnt[0].exp(), logits=math.log(self.mean) + out[..., 0] - learnt[0])

    def features(self, x: Tensor) -> Tensor:
        return (x / self.mean).clamp(min=0).log1p().unsqueeze(-1)


@dataclass(frozen=True)
class OrdinalColumn(OneNumber):
    """Ordered levels 0 .. levels - 1: a cumulative logit with learnt thresholds.

    Example:
        >>> column = OrdinalColumn(levels=5)
        >>> column.distribution(torch.zeros(1), column.start()).probs.sum()
        tensor(1.)
    """

    levels: int

    def __post_init__(self) -> None:
        whole("OrdinalColumn: levels", self.levels, 2)

    def start(self) -> Tensor:
        return torch.cat([torch.tensor([(2 - self.levels) / 2]), torch.zeros(self.levels - 2)])

    def distribution(self, out: Tensor, learnt: Tensor) -> Distribution:
        thresholds = torch.cat([learnt[:1], learnt[1:].exp()]).cumsum(0)
        above = thresholds - out  # log P = log(sigmoid(b) - sigmoid(a)), without the difference
        first, last = logsigmoid(above[..., :1]), logsigmoid(-above[..., -1:])
        width = (thresholds[1:] - thresholds[:-1]).clamp(min=1e-12)
        between = logsigmoid(above[..., 1:]) + logsigmoid(-above[..., :-1]) + torch.log(-torch.expm1(-width))
        return dist.Categorical(logits=torch.cat([first, between, last], -1))

    def features(self, x: Tensor) -> Tensor:
        return (2 * x / (self.levels - 1) - 1).unsqueeze(-1)


@dataclass(frozen=True)
class CategoryColumn:
    """Categories 0 .. levels - 1 without an order.

    Example:
        >>> CategoryColumn(levels=3).features(torch.tensor([2.0]))
        tensor([[0., 0., 1.]])
    """

    levels: int

    def __post_init__(self) -> None:
        whole("CategoryColumn: levels", self.levels)

    @property
    def outputs(self) -> int:
        return self.levels

    width = outputs

    def start(self) -> Tensor:
        return torch.zeros(0)

    def distribution(self, out: Tensor, learnt: Tensor) -> Distribution:
        return Categorical(out)

    def features(self, x: Tensor) -> Tensor:
        levels = torch.arange(self.levels, device=x.device)  # torch's one_hot looks at the numbers first
        return (x.unsqueeze(-1) == levels).to(x.dtype)


def outputs_of(columns: Sequence[Column]) -> int:
    """How many numbers the network of a `TableLikelihood` gives.

    Raises:
        ValueError: what is no list of columns.

    Example:
        >>> outputs_of([RealColumn(), CategoryColumn(3)])
        4
    """
    if isinstance(columns, type) or not hasattr(columns, "__iter__"):
        raise ValueError(f"columns is {kind_of(columns)}; give a list, such as [mm.RealColumn()]")
    found = list(columns)
    for column in found:
        if isinstance(column, type) or not hasattr(column, "outputs"):
            raise ValueError(f"{kind_of(column)} stands where a column is asked for; give one, such as mm.RealColumn()")
    return sum(column.outputs for column in found)
