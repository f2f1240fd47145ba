"""Pareto-smoothed importance sampling, for many rows at once.

Reference:
    Vehtari, Simpson, Gelman, Yao and Gabry, 2024, Pareto Smoothed Importance Sampling,
    https://arxiv.org/abs/1507.02646
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MOST_ROUNDING = 0.1
"""The most that log weights may be rounded, in nats, for weights that look alike to count as alike."""
ROUNDING = 8
"""Of log weights of pictures (12,288 entries, eleven likelihoods): the errors were up to 7 units in the last place."""

TERMS = 100
"""Nats that log weights are differences of, small as they may be: log p(z) and log q(z) of many codes all but cancel.
Of twelve codes of a row with little seen, and weights of 3 nats, errors were up to 90 units in the last place."""

LARGEST = 0.7
"""The k-hat above which weights are not to be trusted, however many there are."""
UNTOLD = "k-hat cannot be told, as of fewer than 25 draws"
"""What a result says of itself where every k-hat is infinite."""
MANY = 10
"""Effective draws from which on weights tell where the mass is."""


class Smoothed(NamedTuple):
    """Log weights (draw, row) with a smoothed tail, each row normalised to sum to one, k-hat (row,), and of the weights
    before they were smoothed the logarithm of their mean (row,) and the effective number of draws (row,)."""

    log_weights: Tensor
    khat: Tensor
    log_mean: Tensor
    raw_ess: Tensor

    @property
    def ess(self) -> Tensor:
        """(row,), the effective number of draws, 1 / sum of squared weights."""
        return 1 / (2 * self.log_weights).exp().sum(0)

    @property
    def good(self) -> Tensor:
        """(row,), whether k-hat is below its limit."""
        return self.khat < khat_limit(len(self.log_weights))

    def of(self, rows: Tensor) -> Smoothed:
        """Those of some of the rows."""
        return Smoothed(*(column[..., rows] for column in self))

    def where(self, condition: Tensor, other: Smoothed) -> Smoothed:
        """These where the condition (row,) holds, the other's elsewhere."""
        return Smoothed(*(torch.where(condition, *pair) for pair in zip(self, other)))

    def misses(self, other: Smoothed, errors: float = 3.0) -> Tensor:
        """(row,), whether the other has found more of p(x), by so many standard errors: then there is a mode that this
        one lacks.

        Weights alone cannot tell: a proposal that fits one of two modes has equal ones. A few huge weights of the other
        do not tell either: one draw of a proposal that is too narrow can raise its mean by nats; smoothing hides that
        they are few. But means of weights are unbiased, so that they are seven nats too high once in e^7 rows at most.
        Nor does a spread of weights tell of what too few draws have not seen: one time in twenty the least weights are
        those of 3 / draws of them, and the mean of the rest is by so much too high.
        """
        counts = len(self.log_weights), len(other.log_weights)
        variance = 1 / self.ess + 1 / other.raw_ess - 1 / counts[0] - 1 / counts[1]
        further = other.log_mean - self.log_mean
        doubt = 0.01 + 3 / min(counts) + errors * variance.clamp(min=0).sqrt()
        doubt = torch.where(other.raw_ess >= MANY, doubt, 7.0)
        return further > doubt

    def beats(self, other: Smoothed, errors: float = 3.0) -> Tensor:
        """(row,), the better proposal: one that misses nothing, then a good k-hat, then the larger ESS."""
        better = torch.where(self.good == other.good, self.ess > other.ess, self.good)
        return (better | other.misses(self, errors)) & ~self.misses(other, errors)


def resampled(log_weights: Tensor, num_draws: int) -> Tensor:
    """Which draws to take so that they need no weights, (num_draws, row), with replacement and by strata.

    Args:
        log_weights: (draw, row), each row normalised.
    """
    edges = log_weights.exp().cumsum(0).T.contiguous()
    strata = torch.arange(num_draws, dtype=edges.dtype, device=edges.device)
    points = (strata + torch.rand(len(edges), num_draws, dtype=edges.dtype, device=edges.device)) / num_draws
    index = torch.searchsorted(edges, points * edges[:, -1:], right=True)
    return index.clamp(max=len(log_weights) - 1).T


def khat_limit(draws: int) -> float:
    """The largest k-hat at which so many draws are to be trusted: min(1 - 1 / log10 draws, 0.7).

    Example:
        >>> round(khat_limit(1000), 3)
        0.667
    """
    return min(1 - 1 / math.log10(draws), LARGEST) if draws > 1 else -math.inf


def share_good(khat: Tensor, draws: int) -> float:
    """The share of rows whose k-hat (row,) is below the limit of so many draws."""
    return float((khat < khat_limit(draws)).double().mean())


def smooth(log_weights: Tensor) -> Smoothed:
    """Pareto-smooths the largest weights of each row.

    Args:
        log_weights: (draw, row), in nats, up to a constant of each row.

    Returns:
        `Smoothed`; k-hat is infinite where it cannot be estimated (fewer than 25 draws, or log weights so large that
        rounding may hide their differences: beyond 100,000 nats in float32), and -inf where the weights are all the
        same up to rounding, as they are for an exact guide.
    """
    draws = len(log_weights)
    size = log_weights.masked_fill(log_weights == -torch.inf, 0).abs().amax(0).clamp(TERMS, 1e6)
    rounding = ROUNDING * torch.finfo(log_weights.dtype).eps * size
    found = log_weights - log_weights.amax(0)
    tail = min(draws // 5, math.isqrt(9 * draws))  # at most 3 sqrt(draws)
    khat = found.new_full(found.shape[1:], math.inf)
    if tail >= 5:
        largest, order = (part.flip(0) for part in found.topk(tail + 1, 0))
        cutoff, largest = largest[0], largest[1:]
        excess = largest.exp() - cutoff.exp()
        unsure = rounding > MOST_ROUNDING
        flat = excess[-1] <= (8 * rounding).clamp(max=MOST_ROUNDING)  # no more than rounding, with room, is above it
        k, sigma = gpdfit(excess)
        ranks = (torch.arange(tail, dtype=excess.dtype, device=excess.device) + 0.5) / tail
        quantiles = sigma * torch.expm1(-k * torch.log1p(-ranks).unsqueeze(1)) / k
        smoothed = (quantiles + cutoff.exp()).log().clamp(max=0)
        keep = flat | ~k.isfinite()
        found = found.scatter(0, order[1:], torch.where(keep, largest, smoothed))
        khat = torch.where(k.isnan(), math.inf, k)
        khat = khat.masked_fill(flat, -math.inf).masked_fill(flat & unsure, math.inf)
    log_mean = log_weights.logsumexp(0) - math.log(draws)
    raw_ess = (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()
    return Smoothed(found - found.logsumexp(0), khat, log_mean, raw_ess)


def gpdfit(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape k and scale sigma (row,) of a generalised Pareto distribution fitted to sorted excesses (tail, row).

    Reference:
        Zhang and Stephens, 2009, A New and Efficient Estimation Method for the Generalized Pareto Distribution,
        Technometrics 51(3); with the weak prior of Vehtari et al. that pulls k towards 0.5.
    """
    tail = len(excess)
    count = 30 + int(math.sqrt(tail))
    grid = torch.arange(1, count + 1, dtype=excess.dtype, device=excess.device).unsqueeze(1)
    quartile = excess[int(tail / 4 + 0.5) - 1]
    theta = (1 - (count / (grid - 0.5)).sqrt()) / (3 * quartile) + 1 / excess[-1]
    # a loop, so that no (grid, tail, row) is kept
    k = torch.stack([torch.log1p(-row * excess).mean(0) for row in theta])
    profile = tail * ((-theta / k).log() - k - 1)
    weights = profile.softmax(0)
    best = (theta * weights).sum(0)
    k = torch.log1p(-best * excess).mean(0)
    sigma = -k / best
    return (k * tail + 5) / (tail + 10), sigma
