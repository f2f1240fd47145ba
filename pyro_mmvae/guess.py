"""Modalities for arrays that come without a description: a place to start from, and to change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.arrays import whole, with_axes
from pyro_mmvae.checks import STAND_INS, doubt_stand_in
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.heads import NormalHead
from pyro_mmvae.likelihoods import (
    BernoulliLikelihood,
    BinomialLikelihood,
    CategoricalLikelihood,
    LearnedScale,
    NegativeBinomialLikelihood,
    NormalLikelihood,
)
from pyro_mmvae.modality import Modality
from pyro_mmvae.networks import OneHot, SeesHoles, Standardize, encoder, mlp
from pyro_mmvae.warn import warn

GREY_LEVELS = 256  # whole numbers below this, in arrays of two or more axes a row, are taken for grey levels
CATEGORIES = 1000  # and below this, where there is one a row, for categories


class Unstandardize(nn.Module):
    """value * scale + loc: the last layer of a decoder of measurements."""

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor):
        super().__init__()
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    def forward(self, value: Tensor) -> Tensor:
        return value * self.scale + self.loc


class Log(nn.Module):
    """log(1 + x) as real numbers: the first layer of an encoder of counts."""

    one: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(()), persistent=False)  # of the dtype that the network is in

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.one.dtype).log1p()


class InScale(SeesHoles):
    """Values in a scale of their own, zero where hidden -> net; with the pattern of holes beside them if `told`."""

    def __init__(self, front: nn.Module, net: nn.Module, told: bool):
        super().__init__()
        self.front, self.net, self.told = front, net, told

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        value, mask = torch.where(mask, self.front(x), 0).unsqueeze(1).flatten(1), mask.unsqueeze(1).flatten(1)
        return self.net(torch.cat([value, mask.to(value.dtype)], -1) if self.told else value)


def guess_modalities(x: Arrays, dim: int, hidden: int = 128, head: type[nn.Module] = NormalHead) -> dict[str, Modality]:
    """A modality for every array, guessed from its values; multilayer perceptrons on both sides.

    One whole number below 1000 a row is a category; zeros and ones are Bernoulli; whole numbers below 256 in arrays
    such as pictures are binomial grey levels; other whole numbers from 0 on are negative binomial counts, unless all
    are so large that the default dtype has none but whole ones (8 million in float32); the rest is normal with one
    learnt scale a feature, in the units of the data. Where single entries are missing, the encoder is told which; of an
    array without holes it takes one that is hidden later for a typical value. Draws of measurements know no bounds:
    take logits of shares and logarithms of skewed positive numbers first; columns of different kinds are what `Table`
    is for. It warns of one whole number a row from -1 on, which pandas has for a missing category, of numbers such as
    -999 far from all others, and of measurements that differ by less than the default dtype can tell apart, such as
    seconds since 1970.

    Args:
        x: name -> array (row, *event), NaN = missing.
        dim: of z.
        hidden: width of the hidden layers.
        head: of the encoders, see `mm.encoder`.

    Raises:
        ValueError: bad input, an array of which nothing is observed, numbers so large or small that their squares are
            none, or sizes that are no whole numbers.

    Example:
        >>> import torch
        >>> parts = guess_modalities({"size": torch.randn(50, 3), "species": torch.randint(0, 3, (50,))}, dim=2)
        >>> [type(part.decoder).__name__ for part in parts.values()]
        ['NormalLikelihood', 'CategoricalLikelihood']
    """
    dim, hidden = whole("dim", dim), whole("hidden", hidden)
    batch = Batch.of(x).detached()
    for name in batch:
        if batch.lacks(name) or not batch[name].numel():  # as of a table without columns
            raise ValueError(f"modality {name!r} has no observed entry to guess from; say what it is by mm.Modality")
        _doubt(name, batch[name], batch.mask[name])
    return {name: _guess(name, batch[name], batch.mask[name], dim, hidden, head) for name in batch}


def _doubt(name: str, x: Tensor, mask: Tensor) -> None:
    """Warns of what is taken for measurements, and means that there is none."""
    if x.dim() == 1 and float(x.min()) == -1 and float(x.max()) < CATEGORIES and bool((x == x.round()).all()):
        warn(
            f"modality {name!r} has whole numbers from -1 on and is taken for measurements; if -1 means missing, as"
            " among pandas' codes of categories, put NaN there"
        )
    if x.dim() > 2:  # a pixel may well have such a value
        return
    shown = with_axes(mask, x.dim()).expand(x.shape).reshape(len(x), -1)
    columns = x.reshape(len(x), -1)
    lowest = columns.amin(0).double()
    for place in torch.isin(lowest, lowest.new_tensor(STAND_INS)).nonzero().flatten().tolist():
        what = f"column {place} of modality {name!r}" if x.dim() == 2 else f"modality {name!r}"
        doubt_stand_in(what, columns[:, place][shown[:, place]])


def _guess(name: str, x: Tensor, mask: Tensor, dim: int, hidden: int, head: type[nn.Module]) -> Modality:
    event, size = x.shape[1:], math.prod(x.shape[1:])
    shown = with_axes(mask, x.dim()).expand(x.shape)
    counted = bool((x >= 0).all()) and bool((x == x.round()).all())  # what is hidden is zero
    large = x >= 1 / torch.finfo(torch.get_default_dtype()).eps  # there all numbers are whole, and that says nothing
    counted = counted and not (bool(large.any()) and bool((large | (x == 0)).all()))
    top = int(x.max()) if counted else 0
    if counted and not event and top < CATEGORIES:
        look = nn.Sequential(OneHot(top + 1), encoder(top + 1, hidden, dim=dim, head=head))
        return Modality(CategoricalLikelihood(mlp(dim, hidden, top + 1)), look)
    layers = mlp(dim, hidden, size)
    net = nn.Sequential(layers, nn.Unflatten(-1, tuple(event)) if event else nn.Flatten(-2))
    if counted and top <= 1:
        decoder: nn.Module = BernoulliLikelihood(net)
        first: nn.Module = Standardize()
    elif counted and top < GREY_LEVELS and len(event) > 1:
        decoder, first = BinomialLikelihood(net, top), Standardize(top / 2, top / 2)
    elif counted:
        decoder, first = NegativeBinomialLikelihood(net, LearnedScale(*event)), _counts(x, shown, layers[-1])
    else:
        decoder, first = _measurements(name, x, shown, net)
    if mask.dim() > 1:
        trunk = InScale(first, nn.Sequential(mlp(2 * size, hidden), nn.ReLU()), told=True)
        return Modality(decoder, head(hidden, dim), trunk=trunk)
    return Modality(decoder, encoder(size, hidden, dim=dim, head=head), trunk=InScale(first, nn.Identity(), told=False))


def _counts(x: Tensor, shown: Tensor, last: Any) -> nn.Module:
    """What brings counts to a common scale; the decoder's last layer, of log rates, starts at their means."""
    kind = torch.get_default_dtype()
    (loc, scale), (mean, _) = (_spread(x, shown, front) for front in (lambda x: x.double().log1p(), Tensor.double))
    last.bias.data += (mean + 0.5 / len(x)).log().flatten().to(kind)  # half a count in all where there is none
    return nn.Sequential(Log(), Standardize(loc.to(kind), _or_one(scale).to(kind)))


def _measurements(name: str, x: Tensor, shown: Tensor, net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The likelihood of real numbers in their own units, and what brings them to a common one."""
    kind = torch.get_default_dtype()
    loc, scale = _spread(x, shown, lambda x: x.to(kind).double())
    _refuse_squares(name, x, scale, kind)
    if kind != torch.float64 and x.dtype == torch.float64:
        _lost(name, x, shown, kind)
    loc, scale = loc.to(kind), _or_one(scale).to(kind)
    learnt = LearnedScale(*x.shape[1:], start=scale)
    return NormalLikelihood(nn.Sequential(net, Unstandardize(loc, scale)), learnt), Standardize(loc, scale)


def _refuse_squares(name: str, x: Tensor, scale: Tensor, kind: torch.dtype) -> None:
    """Raises ValueError for a feature so large or small that a normal has no density of it."""
    square = scale.to(kind).flatten() ** 2
    wrong = ~square.isfinite() | ((square < torch.finfo(kind).tiny) & (scale.flatten() > 0))
    for place in wrong.nonzero().flatten().tolist()[:1]:
        where, largest = (
            f" in column {place}" if x.dim() == 2 else "",
            float(x.reshape(len(x), -1)[:, place].abs().max()),
        )
        raise ValueError(
            f"modality {name!r} has{where} numbers up to {largest:g}, whose squares {kind} lacks; rescale it"
        )


def _lost(name: str, x: Tensor, shown: Tensor, kind: torch.dtype) -> None:
    """Warns of a feature that is rounded by a good part of its spread."""
    loc, scale = _spread(x, shown, Tensor.double)
    lost = torch.stack([(part - part.to(kind)).abs().amax(0) for part in _parts(x)]).amax(0)
    for place in ((lost > scale / 50) & (scale > 0)).flatten().nonzero().flatten().tolist()[:1]:
        around, differ, by = (float(value.flatten()[place]) for value in (loc, scale, lost))
        where = f" in column {place}" if x.dim() == 2 else ""
        warn(
            f"modality {name!r} has{where} numbers around {around:g} that differ by {differ:.2g}, and {kind} rounds"
            f" them by {by:.2g}; subtract a typical value first"
        )


def _spread(x: Tensor, shown: Tensor, front: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what is shown of each feature, through `front`."""
    count, parts = shown.sum(0).clamp(min=1), list(zip(_parts(x), _parts(shown), strict=True))
    loc = torch.stack([torch.where(seen, front(part), 0).sum(0) for part, seen in parts]).sum(0) / count
    squares = [(torch.where(seen, front(part) - loc, 0) ** 2).sum(0) for part, seen in parts]
    low, high = (torch.where(shown, x, end) for end in (math.inf, -math.inf))
    varied = high.amax(0) > low.amin(0)  # which rounding would hide
    return loc, torch.where(varied, (torch.stack(squares).sum(0) / count).sqrt(), 0)


def _or_one(scale: Tensor) -> Tensor:
    """What to divide by: of a constant feature one."""
    return torch.where(scale > 0, scale, 1)


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """The rows some at a time, so that no copy in another precision holds all of them."""
    return x.split(max(1, 2**20 // max(1, x[0].numel())))
