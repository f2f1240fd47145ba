"""Modes of a posterior that its guide knows nothing of: looked for by climbing from draws of the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily, MultivariateNormal

from pyro_mmvae.diagnostics.refine import (
    PARTICLES,
    chosen,
    climbed,
    diagonal,
    fit_normal,
    normal,
    settled,
    widened,
)
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.diagnostics.witness import Witness, better, of_prior, proposed

AMONG, REACH = 32, 10.0
"""The draws of a row's prior, the likeliest, from which climbs may start; and how far a step goes."""
FEW = 50.0
"""Effective draws: a prior that has more of them for a row has seen its modes."""
QUICK = {"starts": 3, "steps": 40, "num_particles": 4}
GOOD = {"starts": 6, "steps": 60, "num_particles": 8}
"""Climbs of every row, and of rows where those have found several modes; with more steps for many coordinates."""
TRIED = 32
"""Draws of a normal that tell how much of a posterior it holds."""
LEAST = 7.0
"""Nats: modes with less than a thousandth of what has been found do not matter."""


def witnesses(target: Target, num_draws: int) -> tuple[Witness, Witness, Tensor, Tensor]:
    """The guide; the prior, or what was found from it; and by row whether the guide has missed what that has found, and
    whether even that may have missed something."""
    guide = Witness(*target.guide(num_draws))
    prior, unsure = with_modes(target, guide, of_prior(target, num_draws))
    return guide, prior, guide.weights.misses(prior.weights) | guide.lacks(prior, guide.normal) | unsure, unsure


def covering(target: Target, num_draws: int = 1000) -> MultivariateNormal:
    """A normal fitted to each row; where guide or prior have found much that it lacks, that of their weighted draws."""
    q = fit_normal(target, full_rank=True)
    guide, prior, missed, _ = witnesses(target, num_draws)
    fitted, seen = proposed(target, q, num_draws), better(guide, prior, missed)
    astray = fitted.lacks(guide, q) | fitted.lacks(prior, q) | fitted.weights.misses(seen.weights)
    return chosen(astray, Witness(seen.resampled(num_draws), seen.raw).normal, q)


def with_modes(target: Target, guide: Witness, prior: Witness) -> tuple[Witness, Tensor]:
    """Draws of the prior; for rows with several modes, draws of normals fitted to all of them that were found.

    Of a row with much to see few draws of the prior are where the posterior is, and none may be near its second mode;
    but a climb from the likeliest of them ends there. Where climbs end alone in their modes there may be others: by
    Good and Turing, with the probability of their share among the climbs.

    Returns:
        The draws, and whether there may be other modes, (row,).
    """
    unsure, few = torch.zeros_like(prior.raw[0], dtype=torch.bool), prior.weights.ess < FEW
    if len(prior.z) < AMONG or not bool(few.any()):
        return prior, unsure
    found = _climbs(target, guide, prior, **QUICK)
    rows = (found.several & few).nonzero().squeeze(-1)
    if not len(rows):
        return prior, unsure
    part, columns = target.take(rows)
    own = prior.of(rows, columns)
    found = _climbs(part, guide.of(rows, columns), own, **GOOD)
    unsure[rows] = found.alone > 1
    modes = proposed(part, found.mixture(), len(prior.z))
    return prior.put(rows, columns, modes.where(found.several & modes.weights.beats(own.weights), own)), unsure


@dataclass(frozen=True)
class Climbs:
    """Where climbs ended.

    Attributes:
        q: normals there, batch (start, row).
        mass: the logarithms of what they hold of p(x_S), (start, row): -inf if that is next to nothing, or if another
            of the row is there and has more.
        alone: in how many modes no more than one climb ended, (row,).
    """

    q: MultivariateNormal
    mass: Tensor
    alone: Tensor

    @property
    def several(self) -> Tensor:
        """(row,), whether more than one of them holds something."""
        return self.mass.isfinite().sum(0) > 1

    def mixture(self) -> MixtureSameFamily:
        """The normals that hold something, by what they hold of the posterior; any where none does."""
        held, best = self.mass.isfinite(), self.mass.argmax(0)
        loc = torch.where(held[..., None], self.q.loc, _at(self.q.loc, best))
        factor = torch.where(held[..., None, None], self.q.scale_tril, _at(self.q.scale_tril, best))
        both = normal(loc.transpose(0, 1), factor.transpose(0, 1))
        even = held.to(self.mass.dtype) / held.sum(0)  # a few draws of each say little of what they hold
        shares = (0.7 * self.mass.softmax(0) + 0.3 * even).nan_to_num(1 / len(held))
        return widened(both, shares.T)


def _climbs(target: Target, guide: Witness, prior: Witness, starts: int, steps: int, num_particles: int) -> Climbs:
    start, fits, steps = _starts(prior, guide.normal, starts), [], settled(steps, target.size)
    for part in torch.arange(starts).split(PARTICLES // num_particles):  # with the memory of a refinement's steps
        some = diagonal(start.loc[part], start.stddev[part])
        fits.append(climbed(target, some, full_rank=True, steps=steps, num_particles=num_particles, reach=REACH))
    q = normal(torch.cat([q.loc for q in fits]), torch.cat([q.scale_tril for q in fits]))
    z = q.sample((TRIED,))
    mass = target.log_weights(z, q).logsumexp(0) - math.log(TRIED)
    apart = (q.loc - q.loc[:, None]) / torch.maximum(q.stddev, q.stddev[:, None])
    near = apart.square().sum(-1).sqrt() < 2 + math.sqrt(z.shape[-1]) / 4  # the steps are noisy
    floor = torch.maximum(guide.weights.log_mean, prior.weights.log_mean) - LEAST
    kept = (mass > floor) & ~(near & (mass[:, None] > mass)).any(0)
    return Climbs(q, mass.masked_fill(~kept, -torch.inf), (kept & (near.sum(0) == 1)).sum(0))


def _starts(prior: Witness, around: MultivariateNormal, count: int) -> MultivariateNormal:
    """Normals to climb from, (start, row): that of the guide and, as wide, some at draws of the prior, of the likeliest
    those that are the most unlike the guide and each other."""
    best = prior.raw.topk(AMONG, 0).indices.unsqueeze(-1).expand(-1, -1, prior.z.shape[-1])
    z, scale = prior.z.gather(0, best).nan_to_num(), prior.normal.stddev
    chosen, unlike = [around.loc], torch.full_like(z[..., 0], torch.inf)
    while len(chosen) < count:
        unlike = torch.minimum(unlike, ((z - chosen[-1]) / scale).square().sum(-1))
        chosen.append(_at(z, unlike.argmax(0)))
    loc = torch.stack(chosen)
    return diagonal(loc, around.stddev.expand_as(loc))


def _at(values: Tensor, place: Tensor) -> Tensor:
    """Of values (place, row, ...) that of each row which `place` (row,) names."""
    return values[place, torch.arange(len(place), device=place.device)]
