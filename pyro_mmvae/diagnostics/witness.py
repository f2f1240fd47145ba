"""Draws that were fitted to no row's posterior, and so may have seen more of it than what was fitted to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_mmvae.diagnostics.refine import moments
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.psis import MANY, Smoothed, resampled, smooth


@dataclass(frozen=True)
class Witness:
    """Draws of the guide, or of the prior, for rows whose posterior is approximated by something else.

    The guide knows where the posterior of a row with much to see may lie; the prior reaches all of that of a row with
    little to see, such as a label alone, where guides and normals are at their worst.

    Attributes:
        z: in real coordinates, (draw, row, size).
        raw: log p(x_S, z) less the log-density that z was drawn from, (draw, row), in nats.
    """

    z: Tensor
    raw: Tensor

    @cached_property
    def weights(self) -> Smoothed:
        return smooth(self.raw)

    def of(self, rows: Tensor, columns: Tensor) -> Witness:
        """Some of the rows, with those coordinates that are theirs."""
        return Witness(self.z[:, rows][..., columns], self.raw[:, rows])

    def where(self, condition: Tensor, other: Witness) -> Witness:
        """This one where the condition (row,) holds, the other elsewhere."""
        return Witness(
            torch.where(condition.unsqueeze(-1), self.z, other.z), torch.where(condition, self.raw, other.raw)
        )

    def put(self, rows: Tensor, columns: Tensor, other: Witness) -> Witness:
        """This one with the draws of another for some of the rows, whose coordinates those are."""
        z, raw = self.z.clone(), self.raw.clone()
        z[:, rows.unsqueeze(-1), columns], raw[:, rows] = other.z, other.raw
        return Witness(z, raw)

    def resampled(self, num_draws: int) -> Tensor:
        """Draws that need no weights, (num_draws, row, size)."""
        index = resampled(self.weights.log_weights, num_draws).unsqueeze(-1)
        return self.z.gather(0, index.expand(-1, -1, self.z.shape[-1]))

    @property
    def normal(self) -> MultivariateNormal:
        """The moments of the draws, weights aside; no covariances if the draws are too few for them."""
        z = self.z.nan_to_num(posinf=0.0, neginf=0.0)
        return moments(z, full_rank=len(z) >= 10 * z.shape[-1])

    def far(self, q: MultivariateNormal) -> Tensor:
        """(draw, row), whether a normal has next to no mass so far out."""
        away = torch.linalg.solve_triangular(q.scale_tril, (self.z - q.loc).movedim(0, -1).nan_to_num(), upper=False)
        return (math.sqrt(self.z.shape[-1]) + 3) ** 2 < (away**2).sum(1).T

    def beyond(self, q: MultivariateNormal) -> Tensor:
        """(row,), the share of the posterior's mass that is far from a normal, by the weights."""
        return torch.where(self.far(q), self.weights.log_weights.exp(), 0).sum(0).clamp(max=1)

    def lacks(self, other: Witness, q: MultivariateNormal) -> Tensor:
        """(row,), whether the other has found much of the posterior's mass away from these draws of about a normal q,
        where they themselves have found less; of the mass that these draws have found in all."""
        more = (other.weights.log_mean - self.weights.log_mean).clamp(max=10).exp()
        there, here = (other.beyond(q) * more).clamp(max=1), self.beyond(q)
        variance = there * (1 - there) / other.weights.ess + here * (1 - here) / self.weights.ess
        return (other.weights.ess >= MANY) & (there - here > 0.01 + variance.sqrt())

    def completed(self, other: Witness, q: MultivariateNormal, condition: Tensor) -> Tensor:
        """Weights (draw, row) whose mean is p(x_S) as well: where the condition (row,) holds, that of these draws near
        a normal q, and that of the other's far from it."""
        near, rest = (w.raw.masked_fill(out, -torch.inf) for w, out in ((self, self.far(q)), (other, ~other.far(q))))
        return torch.where(condition, torch.logaddexp(near, rest), self.raw)


def proposed(target: Target, proposal: Any, num_draws: int) -> Witness:
    """Draws of a distribution in real coordinates."""
    z = proposal.sample((num_draws,))
    return Witness(z, target.log_weights(z, proposal))


def of_prior(target: Target, num_draws: int) -> Witness:
    """Draws of the prior, or of the guide where the prior can be scored alone."""
    try:
        return Witness(*target.prior(num_draws))
    except NotImplementedError:
        return Witness(*target.guide(num_draws))


def better(guide: Witness, prior: Witness, missed: Tensor) -> Witness:
    """For each row the better proposal of the two."""
    return prior.where(prior.weights.beats(guide.weights) | missed, guide)
