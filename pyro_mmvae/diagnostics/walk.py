"""Hamiltonian Monte Carlo for many rows and chains side by side, on the way from a normal to the posterior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_mmvae.arrays import with_axes
from pyro_mmvae.diagnostics.target import Target

LEAPFROGS = 4
LONGEST = 0.5  # of a step: four of them take a standard normal as far as it goes, a quarter of its period
ACCEPTED = 0.8


class State(NamedTuple):
    """Where all chains stand.

    Attributes:
        y: (chain, row, size), in coordinates in which the base is N(0, I).
        base: log-density of the base, (chain, row), in nats.
        joint: log p(x, z) and the volume of the coordinates, (chain, row), in nats.
        slope: gradient of `joint` by y.
    """

    y: Tensor
    base: Tensor
    joint: Tensor
    slope: Tensor


class Path:
    """The densities base^(1 - beta) p(x, z)^beta, z = loc + L y, from a normal (beta 0) to the posterior (beta 1).

    Args:
        target: the posterior.
        base: batch (row,), event (size,).
        chains: how many; the sites outside the plate "data" are drawn once for each.
    """

    def __init__(self, target: Target, base: MultivariateNormal, chains: int):
        self.target, self.base, self.chains = target, base, chains
        self.shared = target.shared(chains)
        self.volume = base.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def at(self, y: Tensor) -> State:
        """All that is asked of y."""
        joint, slope = self.target.gradient(self.codes(y), self.shared)
        slope = (self.base.scale_tril.mT @ slope.unsqueeze(-1)).squeeze(-1)
        base = Normal(torch.zeros_like(y), 1.0, validate_args=False)  # of a trajectory that goes astray y may be NaN
        return State(y, base.log_prob(y).sum(-1), joint + self.volume, slope)

    def start(self) -> State:
        """A draw from the base for each chain and row."""
        loc = self.base.loc.expand(self.chains, *self.base.loc.shape)
        return self.at(torch.randn_like(loc))

    def codes(self, y: Tensor) -> Tensor:
        """y as real coordinates of the target."""
        return self.base.loc + (self.base.scale_tril @ y.unsqueeze(-1)).squeeze(-1)

    def whitened(self, z: Tensor) -> Tensor:
        """The inverse of `codes`."""
        away = (z - self.base.loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.base.scale_tril, away, upper=False).squeeze(-1)


def transition(path: Path, state: State, beta: float, step: Tensor) -> tuple[State, Tensor]:
    """One trajectory of every chain, accepted or not: leaves the density at beta as it is.

    Args:
        path: the densities.
        state: of all chains.
        beta: which density.
        step: (row,), length of a leapfrog step; each chain takes between 60 and 100 % of it.

    Returns:
        The new state, and the mean acceptance probability of each row, (row,).

    Reference:
        Neal, 2011, MCMC Using Hamiltonian Dynamics, https://arxiv.org/abs/1206.1901
    """
    momentum = torch.randn_like(state.y)
    length = (step * (0.6 + 0.4 * torch.rand_like(state.joint))).unsqueeze(-1)
    energy = _energy(state, beta, momentum)
    new, push = state, _force(state, beta)
    for _ in range(LEAPFROGS):
        momentum = momentum + 0.5 * length * push
        new = path.at(new.y + length * momentum)
        push = _force(new, beta)
        momentum = momentum + 0.5 * length * push
    accept = (energy - _energy(new, beta, momentum)).exp().clamp(max=1).nan_to_num(0.0)
    taken = torch.rand_like(accept) < accept
    merged = (torch.where(with_axes(taken, a.dim()), a, b) for a, b in zip(new, state))
    return State(*merged), accept.mean(0)


def tuned(step: Tensor, accept: Tensor, gain: float) -> Tensor:
    """A longer step where too much was accepted, a shorter one where too little."""
    return (step * (gain * (accept - ACCEPTED)).exp()).clamp(1e-4, LONGEST)


def _force(state: State, beta: float) -> Tensor:
    return beta * state.slope - (1 - beta) * state.y


def _energy(state: State, beta: float, momentum: Tensor) -> Tensor:
    return 0.5 * (momentum**2).sum(-1) - beta * state.joint - (1 - beta) * state.base
