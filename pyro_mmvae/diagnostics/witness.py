"""Draws that were fitted to no row's posterior, and so may have seen more of it than what was fitted to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.psis import MANY, Smoothed, smooth


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

    def elsewhere(self, loc: Tensor, factor: Tensor) -> Tensor:
        """(row,), whether much of the posterior's mass is where a normal has next to none.

        Args:
            loc, factor: of the normal, (row, size), and the Cholesky factor of its covariance.
        """
        away = torch.linalg.solve_triangular(factor, (self.z - loc).movedim(0, -1).nan_to_num(), upper=False)
        distances, weights = (away**2).sum(1).T, self.weights
        beyond = distances > (math.sqrt(self.z.shape[-1]) + 4) ** 2
        far = torch.where(beyond, weights.log_weights.exp(), 0).sum(0).clamp(max=1)
        return (weights.ess >= MANY) & (far > 0.02 + (far * (1 - far) / weights.ess).sqrt())


def witnesses(target: Target, num_draws: int) -> tuple[Witness, Witness]:
    """The guide, and for each row the better proposal of guide and prior."""
    guide, prior = Witness(*target.guide(num_draws)), Witness(*target.prior(num_draws))
    return guide, prior.where(prior.weights.beats(guide.weights), guide)
