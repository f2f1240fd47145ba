"""Are these positions uniform? Their ECDF with an exact simultaneous band, and three tests of them."""

from __future__ import annotations

import math
from functools import lru_cache
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mmvae.arrays import shown, tensor_of
from pyro_mmvae.checks import first_row

POINTS = 49
"""Where ECDF and diagonal are compared: 0.02, 0.04, ..., 0.98."""
FARTHEST = 8.0
"""Standard deviations beyond which probabilities are not told apart."""
ALIKE = 0.1
"""Nats up to which log weights count as alike: it hides no error that matters, and it does hide rounding."""


class RankECDF(NamedTuple):
    """How far an ECDF strays from that of the uniform distribution.

    Attributes:
        grid: (point,), between 0 and 1.
        difference: (point,), ECDF - grid.
        band: (point,), half the width of the simultaneous band around zero.
        p: how probable it is that an ECDF of uniform positions strays as far anywhere, each point measured in its own
            standard deviation.

    Example:
        >>> import torch
        >>> found = rank_ecdf(torch.linspace(0.005, 0.995, 100))  # more even than chance
        >>> bool((found.difference.abs() <= found.band).all())
        True
    """

    grid: Tensor
    difference: Tensor
    band: Tensor
    p: float

    def __repr__(self) -> str:
        far = int((self.difference / self.band).abs().argmax())
        return (
            f"ECDF - uniform is farthest from 0 at {float(self.grid[far]):.2f}: {float(self.difference[far]):+.3f},"
            f" band +- {float(self.band[far]):.3f}; p {shown_p(self.p).strip()}"
        )


class Check(NamedTuple):
    """One test: of which quantity, of what ("mean", "spread" or "ECDF"), its z (0 for the ECDF) and p-value."""

    quantity: str
    of: str
    z: float
    p: float


def corrected(tests: list[Check]) -> float:
    """The smallest p-value times the number of tests (Bonferroni), at most 1."""
    return min(1.0, len(tests) * min(test.p for test in tests))


def rank_ecdf(position: Any, level: float = 0.95) -> RankECDF:
    """ECDF of positions minus the uniform's, with a band that uniform positions leave nowhere with probability `level`.

    Band and p-value are exact, by recursion over the number of positions below each point of the grid; the p-value is
    that of a distance rounded down to 0.01 standard deviations.

    Args:
        position: (row,), between 0 and 1, as in `mm.Calibration.position`.
        level: simultaneous over the grid.

    Returns:
        `RankECDF`.

    Raises:
        ValueError: no positions, or some that are not between 0 and 1, or a level that is no probability.

    Reference:
        Säilynoja, Bürkner and Vehtari, 2022, Graphical Test for Discrete Uniformity and its Applications in Goodness of
        Fit Evaluation and Multiple Sample Comparison, https://arxiv.org/abs/2103.10522; the band here is a fixed number
        of standard deviations wide instead of a fixed quantile.

    Example:
        >>> import torch
        >>> found = rank_ecdf((torch.arange(100) + 0.5) / 100)
        >>> round(found.p, 2), bool((found.difference.abs() < found.band).all())
        (1.0, True)
    """
    if not isinstance(level, Real) or not 0 < level < 1:
        raise ValueError(f"level is {shown(level)}; give a probability, such as 0.95")
    position = tensor_of("position", position)
    if position.dim() != 1 or len(position) == 0:
        raise ValueError(f"position has shape {tuple(position.shape)}; give one number a row, at least one row")
    bad = ~((position >= 0) & (position <= 1))  # NaN as well
    if bool(bad.any()):
        row = first_row(bad)
        raise ValueError(f"position has {float(position[row]):g} in row {row}; give numbers between 0 and 1")
    rows, grid = len(position), _grid()
    ordered = position.detach().double().cpu().sort().values
    difference = torch.searchsorted(ordered, grid, right=True) / rows - grid
    sd = (grid * (1 - grid) / rows).sqrt()
    farthest = min(float((difference.abs() / sd).max()), FARTHEST)
    return RankECDF(grid, difference, _limit(rows, level) * sd, 1 - _within(rows, math.floor(100 * farthest) / 100))


def rank(draws: Tensor, truth: Tensor) -> Tensor:
    """The position of the truth (row, ...) among draws (draw, row, ...), on (0, 1), ties broken by chance."""
    place = torch.rand(truth.shape, device=truth.device) * ((draws == truth).sum(0) + 1)  # among its equals
    return ((draws < truth).sum(0) + place) / (len(draws) + 1)


def rank_of_weight(draws: Tensor, truth: Tensor) -> Tensor:
    """As `rank`, of log weights, which are all the same up to rounding if the guide is right: sorted into bins that are
    wider than that, at a random place in each row, and those of one bin are ties."""
    both = torch.cat([draws, truth.unsqueeze(0)]).double().nan_to_num(nan=-torch.inf).clamp(-1e30, 1e30)
    size = both.abs().where(both.abs() < 1e30, 0).amax(0).clamp(1, 1e6)
    width = (64 * torch.finfo(draws.dtype).eps * size).clamp(min=ALIKE)
    bins = ((both - both.median(0).values) / width + torch.rand_like(size)).floor()
    return rank(bins[:-1], bins[-1])


def uniformity(name: str, position: Tensor) -> list[Check]:
    """Three tests of one quantity: of its mean, its spread, and its ECDF."""
    rows, u = len(position), position.double()
    mean = float((u.mean() - 0.5) * math.sqrt(12 * rows))
    spread = float((12 * ((u - 0.5) ** 2).mean() - 1) / math.sqrt(0.8 / rows))
    return [
        Check(name, "mean", mean, two_sided(mean)),
        Check(name, "spread", spread, two_sided(spread)),
        Check(name, "ECDF", 0.0, rank_ecdf(u).p),
    ]


def two_sided(z: float) -> float:
    """The probability that a standard normal is as far from zero.

    Example:
        >>> round(two_sided(1.96), 3)
        0.05
    """
    return math.erfc(abs(z) / math.sqrt(2))


def shown_p(value: float) -> str:
    """A p-value in six characters.

    Example:
        >>> shown_p(0.0421), shown_p(1e-9)
        (' 0.042', '<0.001')
    """
    return "<0.001" if value < 0.001 else f"{value:6.3f}"


def _grid() -> Tensor:
    return torch.arange(1, POINTS + 1, dtype=torch.float64, device="cpu") / (POINTS + 1)


@lru_cache(maxsize=64)
def _limit(rows: int, level: float) -> float:
    """How many standard deviations wide the band is."""
    low, high = 0.0, FARTHEST
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(rows, middle) < level else (low, middle)
    return high


@lru_cache(maxsize=4096)
def _within(rows: int, limit: float) -> float:
    """The probability that at every point of the grid an ECDF of uniforms is within `limit` standard deviations."""
    # below: how many positions may be below the last point; at: that point
    below, at = torch.zeros(1, dtype=torch.float64, device="cpu"), 0.0
    probability = torch.ones(1, dtype=torch.float64, device="cpu")
    for point in _grid().tolist():
        half = limit * math.sqrt(rows * point * (1 - point))
        first, last = max(0, math.ceil(rows * point - half)), min(rows, math.floor(rows * point + half))
        if first > last:
            return 0.0
        now = torch.arange(first, last + 1, dtype=torch.float64, device="cpu")
        step = now - below.unsqueeze(1)
        left = (rows - below).unsqueeze(1)
        share = (point - at) / (1 - at)
        ways = torch.lgamma(left + 1) - torch.lgamma(step.clamp(min=0) + 1) - torch.lgamma((left - step).clamp(0) + 1)
        chance = (ways + step * math.log(share) + (left - step) * math.log1p(-share)).exp()
        probability = probability @ torch.where((step >= 0) & (step <= left), chance, 0.0)
        below, at = now, point
    return min(1.0, float(probability.sum()))
