"""Modes of a posterior that its guide knows nothing of: looked for by climbing from draws of the prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily, MultivariateNormal

from pyro_mmvae.diagnostics.refine import climbed, diagonal, fit_normal, widened
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.diagnostics.witness import Witness, better, far_from, of_prior, proposed

AMONG, REACH = 32, 10.0
"""The draws of a row's prior, the likeliest, from which climbs may start; and how far a step goes."""
QUICK = {"starts": 3, "steps": 40, "num_particles": 4}
GOOD = {"starts": 6, "steps": 60, "num_particles": 8}
"""A look at every row, and at the rows where that has found several modes."""
TRIED = 32
"""Draws of a normal that tell how much of a posterior it holds."""
LEAST = 7.0
"""Nats: modes with less than a thousandth of what has been found do not matter."""


def witnesses(target: Target, num_draws: int) -> tuple[Witness, Witness, Tensor]:
    """The guide, the prior or what was found from it, and whether the guide has missed what that has found (row,)."""
    guide = Witness(*target.guide(num_draws))
    prior = with_modes(target, guide, of_prior(target, num_draws))
    return guide, prior, guide.weights.misses(prior.weights) | guide.lacks(prior, guide.normal)


def covering(target: Target, num_draws: int = 1000) -> MultivariateNormal:
    """A normal fitted to each row; where guide or prior have found much that it lacks, that of their weighted draws."""
    q = fit_normal(target, full_rank=True)
    guide, prior, missed = witnesses(target, num_draws)
    fitted, seen = proposed(target, q, num_draws), better(guide, prior, missed)
    astray = fitted.lacks(guide, q) | fitted.lacks(prior, q) | fitted.weights.misses(seen.weights)
    wide, where = Witness(seen.resampled(num_draws), seen.raw).normal, astray[:, None]
    loc, factor = torch.where(where, wide.loc, q.loc), torch.where(where[..., None], wide.scale_tril, q.scale_tril)
    return MultivariateNormal(loc, scale_tril=factor, validate_args=False)


def with_modes(target: Target, guide: Witness, prior: Witness) -> Witness:
    """Draws of the prior; for rows with several modes, draws of normals fitted to all of them that were found.

    Of a row with much to see few draws of the prior are where the posterior is, and none may be near its second mode;
    but a climb from the likeliest of them ends there.
    """
    if len(prior.z) < AMONG:
        return prior
    _, mass = _climbs(target, guide, prior, **QUICK)
    rows = (mass.isfinite().sum(0) > 1).nonzero().squeeze(-1)
    if not len(rows):
        return prior
    part, columns = target.take(rows)
    own = prior.of(rows, columns)
    q, mass = _climbs(part, guide.of(rows, columns), own, **GOOD)
    several = mass.isfinite().sum(0) > 1
    mass[0] = torch.where(several, mass[0], 0.0)  # a valid mixture where there is no use for one
    modes = proposed(part, _mixture(q, mass), len(prior.z))
    return prior.put(rows, columns, modes.where(several & modes.weights.beats(own.weights), own))


def _climbs(
    target: Target, guide: Witness, prior: Witness, *, starts: int, steps: int, num_particles: int
) -> tuple[MultivariateNormal, Tensor]:
    """Normals (start, row) that have climbed from the guide and from draws of the prior, and the logarithms of what
    they hold of p(x_S), (start, row): -inf if that is next to nothing, or if another of the row is there and has more.
    """
    start = _starts(prior, guide.normal, starts)
    q = climbed(target, start, full_rank=True, steps=steps, num_particles=num_particles, reach=REACH)
    z = q.sample((TRIED,))
    mass = target.log_weights(z, q).logsumexp(0) - math.log(TRIED)
    apart = (q.loc - q.loc[:, None]) / torch.maximum(q.stddev, q.stddev[:, None])
    near = apart.square().sum(-1) <= far_from(z.shape[-1])
    there = (near & (mass[:, None] > mass)).any(0)
    floor = torch.maximum(guide.weights.log_mean, prior.weights.log_mean) - LEAST
    return q, mass.masked_fill(there | ~(mass > floor), -torch.inf)


def _starts(prior: Witness, around: MultivariateNormal, count: int) -> MultivariateNormal:
    """Normals to climb from, (start, row): that of the guide and, as wide, some at draws of the prior far from it, of
    the likeliest of those the likeliest and the most unlike it, each other and the guide's."""
    fit = torch.where(prior.far(around), prior.raw, -torch.inf)
    best = fit.topk(AMONG, 0).indices.unsqueeze(-1).expand(-1, -1, prior.z.shape[-1])
    z, scale = prior.z.gather(0, best).nan_to_num(), prior.normal.stddev
    chosen, unlike = [around.loc, z[0]], ((z - around.loc) / scale).square().sum(-1)
    while len(chosen) < count:
        unlike = torch.minimum(unlike, ((z - chosen[-1]) / scale).square().sum(-1))
        chosen.append(_at(z, unlike.argmax(0)))
    loc = torch.stack(chosen)
    return diagonal(loc, around.stddev.expand_as(loc))


def _at(values: Tensor, place: Tensor) -> Tensor:
    """Of values (place, row, ...) that of each row which `place` (row,) names."""
    return values[place, torch.arange(len(place), device=place.device)]


def _mixture(q: MultivariateNormal, mass: Tensor) -> MixtureSameFamily:
    """The normals (start, row) by what they hold of the posterior; those that hold none are left out."""
    held, best = mass.isfinite(), mass.argmax(0)
    loc = torch.where(held[..., None], q.loc, _at(q.loc, best))
    factor = torch.where(held[..., None, None], q.scale_tril, _at(q.scale_tril, best))
    both = MultivariateNormal(loc.transpose(0, 1), scale_tril=factor.transpose(0, 1), validate_args=False)
    shares = 0.7 * mass.softmax(0) + 0.3 * held / held.sum(0)  # a few draws of each say little of what they hold
    return widened(both, shares.T)
