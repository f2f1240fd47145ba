"""Annealed importance sampling: log p(x_S) by a walk from a normal to the posterior, and from above by the way back."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_mmvae.arrays import counted, whole
from pyro_mmvae.checks import refuse_outside
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.diagnostics.climbs import covering
from pyro_mmvae.diagnostics.refine import moments
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.diagnostics.walk import LONGEST, Path, State, transition, tuned
from pyro_mmvae.errors import standard_error
from pyro_mmvae.evidence import LogLikelihood, estimate
from pyro_mmvae.generation import check_simulates, joint_draws
from pyro_mmvae.modes import tool
from pyro_mmvae.questions import nesting, opened
from pyro_mmvae.weights import parts


@tool
def annealed_log_likelihood(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    given: Collection[str] | None = None,
    chains: int = 32,
    temperatures: int = 100,
    from_prior: bool = False,
) -> LogLikelihood:
    """log p(x_S) by annealed importance sampling: the strong check of `mm.log_likelihood`.

    Every chain starts in a normal fitted to the posterior of its row, or in a wider one where draws of guide or prior
    have found modes that this one lacks, and goes through densities that become the posterior step by step, moved by
    Hamiltonian Monte Carlo. What it loses on the way is its weight. Trial chains find the length of the steps first, so
    that the weights are unbiased for p(x_S).

    Args:
        vae: a `MultimodalVAE`, or a `Pair` with continuous codes.
        x, mask: as in `vae.model`.
        given: S; None = all that is observed.
        chains: for each row.
        temperatures: densities on the way; the bound tightens as they grow.
        from_prior: start in the normal with the moments of the prior, which knows nothing of the guide, and may find
            modes that neither a fitted normal nor draws have seen; it takes more temperatures.

    Returns:
        `LogLikelihood`: a lower bound in expectation, as that of importance sampling, and a tighter one; k-hat is that
        of the chains' weights.

    Raises:
        ValueError: bad input, a discrete code, or `from_prior` of a prior that can be scored, not drawn.

    Reference:
        Neal, 2001, Annealed Importance Sampling, https://arxiv.org/abs/physics/9803008; Wu, Burda, Salakhutdinov and
        Grosse, 2017, On the Quantitative Analysis of Decoder-Based Generative Models, https://arxiv.org/abs/1611.04273

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> annealed_log_likelihood(vae, x, chains=4, temperatures=5).value.shape
        torch.Size([20])
    """
    chains, temperatures = whole("chains", chains), whole("temperatures", temperatures)
    batch = opened(vae, x, mask, given)
    depth, found = nesting(vae, batch), []
    for part in parts(batch, chains):
        way = _Way(Target(vae, part, depth), chains, temperatures, from_prior)
        found.append(estimate(way.forward()))
    return LogLikelihood(*(torch.cat(column) for column in zip(*found)))


@dataclass(frozen=True, repr=False)
class Sandwich:
    """log p(x_S) of simulated rows between two bounds, each a bound in expectation, in nats.

    Attributes:
        lower, lower_se: (row,), by annealing towards the posterior, and its Monte-Carlo standard error.
        upper, upper_se: (row,), by annealing back from the code that the row was drawn from. All chains of a row share
            that code: the error does not count how another would have done, that of the mean over rows does.
        x, mask: the rows.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = mm.sandwich(vae, given=["a"], rows=5, chains=4, temperatures=5)
        >>> found.lower.shape, found.upper.shape
        (torch.Size([5]), torch.Size([5]))
    """

    lower: Tensor
    lower_se: Tensor
    upper: Tensor
    upper_se: Tensor
    x: dict[str, Tensor]
    mask: dict[str, Tensor]

    @property
    def width(self) -> tuple[float, float]:
        """Mean of upper - lower, nats a row, and its standard error over rows."""
        gap = self.upper - self.lower
        return float(gap.mean()), float(standard_error(gap))

    def __repr__(self) -> str:
        (width, se), rows = self.width, counted(len(self.lower), "simulated row")
        lower, upper = float(self.lower.mean()), float(self.upper.mean())  # which may change places by chance
        return (
            f"log p(x_S) of {rows}: lower bound {lower:z.3f}, upper bound {upper:z.3f} nats a row, width {width:z.3f}"
            f" +- {se:.3f}"
        )


@tool
def sandwich(
    vae: Any,
    *,
    given: Sequence[str],
    rows: int = 100,
    chains: int = 16,
    temperatures: int = 100,
    from_prior: bool = False,
) -> Sandwich:
    """Lower and upper bound of log p(x_S) on rows simulated from the model: how far off can a log-likelihood be?

    The code that a simulated row was drawn from is an exact draw from its posterior. Annealed backwards from there, the
    weights are unbiased for 1 / p(x_S), which bounds log p(x_S) from above. Where the two bounds meet, both are right,
    and so is the annealed log-likelihood of real rows like these.

    Args:
        vae: a `MultimodalVAE`, or a `Pair` whose model can be drawn from without data, its codes named z or *.w.
        given: S.
        rows: how many to simulate.
        chains, temperatures, from_prior: as in `mm.annealed_log_likelihood`.

    Returns:
        `Sandwich`.

    Raises:
        ValueError: the model cannot be drawn from without data, or has a site outside the plate "data".

    Reference:
        Grosse, Ghahramani and Adams, 2015, Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo,
        https://arxiv.org/abs/1511.02543

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = sandwich(vae, given=["a", "b"], rows=5, chains=4, temperatures=5)
        >>> found.upper.shape
        torch.Size([5])
    """
    rows, chains, temperatures = whole("rows", rows), whole("chains", chains), whole("temperatures", temperatures)
    truth, batch = _simulated(vae, rows, given)
    depth, found = nesting(vae, batch), []
    for index in torch.arange(rows, device=batch.device).split(next(parts(batch, chains)).rows):
        target = Target(vae, batch.take(index), depth)
        refuse_outside(target.outside)
        way = _Way(target, chains, temperatures, from_prior)
        forward = way.forward()
        back = way.back(target.coordinates({name: truth[name][index].unsqueeze(0) for name in target.sites}))
        lower, upper = forward.logsumexp(0) - math.log(chains), math.log(chains) - (-back).logsumexp(0)
        lower_se, upper_se = (standard_error(logs.exp()) for logs in (forward - lower, upper - back))
        found.append((lower, lower_se, upper, upper_se))
    lower, lower_se, upper, upper_se = (torch.cat(column) for column in zip(*found))
    return Sandwich(lower, lower_se, upper, upper_se, dict(batch), batch.mask)


class _Way:
    """The densities between a normal and the posterior, and the steps that trial chains found for each."""

    def __init__(self, target: Target, chains: int, temperatures: int, from_prior: bool):
        base = _normal_of_prior(target) if from_prior else covering(target)
        self.path = Path(target, base, chains)
        grid = torch.linspace(-4, 4, temperatures + 1, device="cpu").sigmoid()
        self.betas: list[float] = ((grid - grid[0]) / (grid[-1] - grid[0])).tolist()
        step = torch.full_like(base.loc[:, 0], LONGEST / 2)
        self.steps = [step]
        state = self.path.start()
        for beta in self.betas[1:]:
            state, accept = transition(self.path, state, beta, self.steps[-1])
            self.steps.append(tuned(self.steps[-1], accept, 0.5))
        # what weights are summed up from, so that no step of large numbers is rounded
        self.level = state.joint.amax(0).nan_to_num(neginf=0.0)

    def forward(self) -> Tensor:
        """Log weights (chain, row) of chains from the normal to the posterior."""
        state = self.path.start()
        weights = torch.zeros_like(state.joint)
        for position in range(1, len(self.betas)):
            weights = weights + self._rise(state, position)
            state, _ = transition(self.path, state, self.betas[position], self.steps[position])
        return weights + self.level

    def back(self, z: Tensor) -> Tensor:
        """Log weights (chain, row) of chains from z (1, row, size), a draw from the posterior, to the normal."""
        y = self.path.whitened(z)
        state = self.path.at(y.expand(self.path.chains, *y.shape[1:]))
        weights = torch.zeros_like(state.joint)
        for position in range(len(self.betas) - 1, 0, -1):
            state, _ = transition(self.path, state, self.betas[position], self.steps[position])
            weights = weights + self._rise(state, position)
        return weights + self.level

    def _rise(self, state: State, position: int) -> Tensor:
        return (self.betas[position] - self.betas[position - 1]) * (state.joint - self.level - state.base)


def _normal_of_prior(target: Target) -> MultivariateNormal:
    """The normal with the moments of the prior; raises ValueError if that can be scored, not drawn."""
    try:
        return moments(target.prior(1000)[0], full_rank=True)
    except NotImplementedError as error:
        why = str(error).splitlines()[0]  # Pyro adds the shapes of the trace
        raise ValueError(f"no start from the prior: {why}; leave from_prior=False") from error


def _simulated(vae: Any, rows: int, given: Sequence[str]) -> tuple[dict[str, Tensor], Batch]:
    """Codes of rows drawn from the model, and those rows with all but S hidden."""
    truth, data = joint_draws(vae, rows)
    for name in given:
        if name not in data:
            raise ValueError(f"unknown modality {name!r}; this model has {', '.join(data)}")
        if hasattr(vae, "modalities") and vae.modalities[name].repeated:
            data[name] = data[name].unsqueeze(1)
    mask = {name: torch.ones(rows, dtype=torch.bool, device=data[name].device) for name in given}
    check_simulates(vae, Batch.of(data))
    return truth, Batch({name: data[name] for name in given}, mask, rows, frozenset(given))
