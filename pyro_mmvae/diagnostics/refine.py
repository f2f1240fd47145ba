"""The best normal posterior of each row on its own: what an amortised guide would be if its encoder knew no limits."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_mmvae.diagnostics.target import Target

STEPS, PARTICLES = 60, 16
DOUBT = 4.0  # standard errors: of two, an exact fit would lose to a start that is a little off in one row of eighty
EACH = 3  # steps for each coordinate, if that is more: so many does a covariance take to settle


@torch.no_grad()
def fit_normal(target: Target, *, full_rank: bool, steps: int | None = None) -> MultivariateNormal:
    """The normal in real coordinates with the highest ELBO of each row, started at the moments of the guide.

    All rows take natural-gradient steps side by side. In the coordinates in which q is N(0, I) now, with z = loc + L e,
    the gradient of the ELBO is the mean of u = L' grad log p(x, z) + e for loc and that of u e' for L: all zero, draw
    by draw, where q is the posterior. Steps are clipped, and the covariances wait until the scales have settled.

    Args:
        target: the posterior.
        full_rank: a covariance of its own for each row, or scales alone.
        steps: how many; 0 gives the moments of the guide. 60 by default, or what covariances of many coordinates need.

    Returns:
        A normal with batch (row,), event (size,). A row whose ELBO got worse keeps its start.

    Reference:
        Kucukelbir, Tran, Ranganath, Gelman and Blei, 2017, Automatic Differentiation Variational Inference,
        https://arxiv.org/abs/1603.00788; Roeder, Wu and Duvenaud, 2017, Sticking the Landing,
        https://arxiv.org/abs/1703.09194
    """
    start = moments(target.guide(200)[0], full_rank)
    if steps == 0:
        return start
    if steps is None:
        steps = settled(STEPS, target.size) if full_rank else STEPS
    return _better(target, start, climbed(target, start, full_rank=full_rank, steps=steps))


@torch.no_grad()
def climbed(
    target: Target,
    start: MultivariateNormal,
    *,
    full_rank: bool,
    steps: int,
    num_particles: int = PARTICLES,
    reach: float = 2.0,
) -> MultivariateNormal:
    """The normal that the steps of `fit_normal` lead to from any start, which may be a worse one.

    Args:
        start: batch (row,), or (..., row) to climb from several places.
        num_particles: draws a row and step, even: each with its mirror image.
        reach: how far a step may go, in twice the standard deviations of the moment.
    """
    loc, factor = start.loc, torch.diag_embed(start.stddev)
    shared = target.shared(num_particles * math.prod(start.batch_shape[:-1]))
    for step in range(steps):
        noise = torch.randn(num_particles // 2, *loc.shape, dtype=loc.dtype, device=loc.device)
        noise = torch.cat([noise, -noise])
        _, slope = target.gradient((loc + _times(factor, noise)).flatten(0, -3), shared)
        white = _times(factor.mT, slope.view_as(noise)) + noise
        rate = 0.5 * min(1.0, 2.02 - 2 * step / steps)
        tilt = torch.einsum("d...k,d...l->...kl", white, noise) / num_particles
        loc = loc + rate * _times(factor, white.mean(0).clamp(-reach, reach))
        factor = factor @ _turn(rate, tilt, full_rank and step >= 0.3 * steps)
    return normal(loc, factor)


def settled(steps: int, size: int) -> int:
    """At least so many steps, and as many as the covariance of `size` coordinates takes to settle."""
    return max(steps, EACH * size)


def moments(z: Tensor, full_rank: bool) -> MultivariateNormal:
    """The normal with the mean and covariance, or standard deviations alone, of draws (draw, row, size)."""
    loc = z.mean(0)
    apart = z - loc
    scale = (apart.square().sum(0) / (len(z) - 1)).sqrt().clamp(min=1e-6)  # far off, the rounding of loc is part of it
    if not full_rank:
        return diagonal(loc, scale)
    white = apart / scale
    correlation = torch.einsum("drk,drl->rkl", white, white) / len(z)
    correlation = correlation + 1e-3 * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    return normal(loc, scale.unsqueeze(-1) * torch.linalg.cholesky(correlation))


def marginal(q: MultivariateNormal, columns: Tensor) -> MultivariateNormal:
    """The marginal of some of the coordinates."""
    if len(columns) == q.loc.shape[-1]:
        return q
    covariance = q.covariance_matrix[:, columns][..., columns]
    return MultivariateNormal(q.loc[:, columns], covariance, validate_args=False)


def diagonal(loc: Tensor, scale: Tensor) -> MultivariateNormal:
    """The normal of independent coordinates, batch (row,)."""
    return normal(loc, torch.diag_embed(scale))


def normal(loc: Tensor, factor: Tensor) -> MultivariateNormal:
    """The normal with that mean (..., size) and lower Cholesky factor of the covariance (..., size, size)."""
    return MultivariateNormal(loc, scale_tril=factor, validate_args=False)


def chosen(condition: Tensor, q: MultivariateNormal, other: MultivariateNormal) -> MultivariateNormal:
    """q in the rows where the condition (row,) holds, the other elsewhere."""
    loc = torch.where(condition[:, None], q.loc, other.loc)
    return normal(loc, torch.where(condition[:, None, None], q.scale_tril, other.scale_tril))


def widened(q: MultivariateNormal, shares: Tensor | None = None) -> MixtureSameFamily:
    """The normal, and one draw in ten from one twice as wide: a proposal for posteriors with heavier tails than q.

    Args:
        q: batch (row,), or (row, component) if there are several for each row.
        shares: of those, (row, component).

    Reference:
        Hesterberg, 1995, Weighted Average Importance Sampling and Defensive Mixture Distributions, Technometrics 37(2).
    """
    if shares is None:
        loc, factor, shares = q.loc.unsqueeze(1), q.scale_tril.unsqueeze(1), q.loc.new_ones(len(q.loc), 1)
    else:
        loc, factor = q.loc, q.scale_tril
    both = normal(torch.cat([loc, loc], 1), torch.cat([factor, 2 * factor], 1))
    shares = torch.cat([0.9 * shares, 0.1 * shares], 1)
    return MixtureSameFamily(Categorical(shares, validate_args=False), both, validate_args=False)


def _times(factor: Tensor, vectors: Tensor) -> Tensor:
    """(row, size, size) times (..., row, size)."""
    return (factor @ vectors.unsqueeze(-1)).squeeze(-1)


def _turn(rate: float, tilt: Tensor, covariances: bool) -> Tensor:
    """What the factor is multiplied by: scales move by their logarithms, Newton's half; the rest at most by `rate`."""
    grown = torch.diag_embed((0.5 * rate * tilt.diagonal(dim1=-2, dim2=-1).clamp(-2, 2)).exp())
    if not covariances:
        return grown
    below = tilt.tril(-1)
    return grown + rate * below / below.norm(dim=(-2, -1), keepdim=True).clamp(min=1)


def _better(target: Target, old: MultivariateNormal, new: MultivariateNormal) -> MultivariateNormal:
    """The new one, but for rows whose ELBO it made worse beyond doubt."""
    noise = torch.randn(64, *old.loc.shape, dtype=old.loc.dtype, device=old.loc.device)
    noise = torch.cat([noise, -noise])
    first, second = (target.log_weights(q.loc + _times(q.scale_tril, noise), q) for q in (old, new))
    gain = (second - first).unflatten(0, (2, -1)).mean(0)
    return chosen(gain.mean(0) > -DOUBT * gain.std(0) / len(gain) ** 0.5, new, old)
