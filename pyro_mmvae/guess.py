"""Modalities for arrays that come without a description: a place to start from, and to change."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_mmvae.arrays import whole, with_axes
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
    """Values in a scale of their own, zero where hidden, beside the pattern of holes: [front(x), mask] -> net."""

    def __init__(self, front: nn.Module, net: nn.Module):
        super().__init__()
        self.front, self.net = front, net

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        value, seen = self.front(x).flatten(1), mask.flatten(1)
        return self.net(torch.cat([torch.where(seen, value, 0), seen.to(value.dtype)], -1))


def guess_modalities(x: Arrays, dim: int, hidden: int = 128, head: type[nn.Module] = NormalHead) -> dict[str, Modality]:
    """A modality for every array, guessed from its values; multilayer perceptrons on both sides.

    One whole number below 1000 a row is a category; zeros and ones are Bernoulli; whole numbers below 256 in arrays
    such as pictures are binomial grey levels; other whole numbers from 0 on are negative binomial counts; the rest is
    normal with one learnt scale a feature, in the units of the data. Where single entries are missing, the encoder is
    told which. It warns of one whole number a row from -1 on, which pandas has for a missing category.

    Args:
        x: name -> array (row, *event), NaN = missing.
        dim: of z.
        hidden: width of the hidden layers.
        head: of the encoders, see `mm.encoder`.

    Raises:
        ValueError: bad input, or sizes that are no whole numbers.

    Example:
        >>> import torch
        >>> parts = guess_modalities({"size": torch.randn(50, 3), "species": torch.randint(0, 3, (50,))}, dim=2)
        >>> [type(part.decoder).__name__ for part in parts.values()]
        ['NormalLikelihood', 'CategoricalLikelihood']
    """
    dim, hidden = whole("dim", dim), whole("hidden", hidden)
    batch = Batch.of(x).detached()
    for name in batch:
        _doubt(name, batch[name])
    return {name: _guess(batch[name], batch.mask[name], dim, hidden, head) for name in batch}


def _doubt(name: str, x: Tensor) -> None:
    """Warns of codes that are taken for measurements."""
    if x.dim() == 1 and float(x.min()) == -1 and float(x.max()) < CATEGORIES and bool((x == x.round()).all()):
        warn(
            f"modality {name!r} has whole numbers from -1 on and is taken for measurements; if -1 means missing, as"
            " among pandas' codes of categories, put NaN there"
        )


def _guess(x: Tensor, mask: Tensor, dim: int, hidden: int, head: type[nn.Module]) -> Modality:
    event, size = x.shape[1:], max(1, math.prod(x.shape[1:]))
    shown = with_axes(mask, x.dim()).expand(x.shape)
    seen = x[shown]
    counted = bool((seen == seen.round()).all()) and bool((seen >= 0).all())
    top = int(seen.max()) if counted and len(seen) else 0
    if counted and not event and top < CATEGORIES:
        look = nn.Sequential(OneHot(top + 1), encoder(top + 1, hidden, dim=dim, head=head))
        return Modality(CategoricalLikelihood(mlp(dim, hidden, top + 1)), look)
    net: nn.Module = mlp(dim, hidden, size)
    net = nn.Sequential(net, nn.Unflatten(-1, tuple(event))) if event else nn.Sequential(net, nn.Flatten(-2))
    if counted and top <= 1:
        decoder: nn.Module = BernoulliLikelihood(net)
        first: nn.Module = Standardize()
    elif counted and top < GREY_LEVELS and len(event) > 1:
        decoder, first = BinomialLikelihood(net, top), Standardize(top / 2, top / 2)
    elif counted:
        decoder, first = NegativeBinomialLikelihood(net, LearnedScale(*event)), Log()
    else:
        decoder, first = _measurements(x, shown, net)
    if mask.dim() > 1:
        trunk = InScale(first, nn.Sequential(mlp(2 * size, hidden), nn.ReLU()))
        return Modality(decoder, head(hidden, dim), trunk=trunk)
    flat = nn.Flatten() if event else nn.Unflatten(0, (-1, 1))
    return Modality(decoder, nn.Sequential(first, flat, encoder(size, hidden, dim=dim, head=head)))


def _measurements(x: Tensor, shown: Tensor, net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The likelihood of real numbers in their own units, and what brings them to a common one."""
    kind = torch.get_default_dtype()
    count, x = shown.sum(0).clamp(min=1), x.double()  # sums of float16 overflow
    loc = (x * shown).sum(0) / count
    scale = ((((x - loc) * shown) ** 2).sum(0) / count).sqrt()
    constant = scale <= (torch.finfo(kind).eps + 1e-14) * loc.abs()  # which rounding hides in `scale > 0`
    loc, scale = loc.to(kind), torch.where(constant, 1.0, scale).to(kind)
    learnt = LearnedScale(*x.shape[1:])
    learnt.log.data = scale.log()
    return NormalLikelihood(nn.Sequential(net, Unstandardize(loc, scale)), learnt), Standardize(loc, scale)
