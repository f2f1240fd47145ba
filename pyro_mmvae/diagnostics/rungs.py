"""The methods of `posterior_draws`, one after the other: each for the rows that those before it did not serve."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_mmvae.diagnostics.chains import hmc, mixing, nuts
from pyro_mmvae.diagnostics.climbs import witnesses
from pyro_mmvae.diagnostics.draws import Method, PosteriorDraws
from pyro_mmvae.diagnostics.refine import fit_normal, marginal, normal, widened
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.diagnostics.walk import Path
from pyro_mmvae.diagnostics.witness import Witness, better, proposed
from pyro_mmvae.psis import MANY, Smoothed

Walk = Callable[[Path, Tensor, int, int, float], "Tensor | None"]
CHAINS, WARMUP, FEWEST = 8, 100, 250
TOGETHER = 16  # rows in one run of NUTS
MIXED, USABLE = 1.01, 1.1  # R-hat of chains that are certified, and of chains that beat a normal
GROWTH = 4
APART = 1, GROWTH, GROWTH**2
"""Transitions between the draws of HMC: more where R-hat is large for want of draws alone, as of many coordinates one
always is. Of 16 half chains it is sqrt(1 + 16 / ESS) where all is well."""


@dataclass
class Budget:
    """What is left: rows for NUTS, and the time on the monotonic clock when chains end."""

    nuts_rows: int
    deadline: float


class Ladder:
    """The methods for one chunk of rows, each for the rows that the ones before did not serve."""

    def __init__(self, target: Target, method: Method, num_draws: int, tolerance: float, budget: Budget):
        self.target, self.method, self.num_draws = target, method, num_draws
        self.tolerance, self.budget = tolerance, budget
        self.num_particles = max(1000, num_draws)
        self.guide, self.prior, self.missed, self.unsure = witnesses(target, self.num_particles)
        latents = target.latents(self.guide.z[:num_draws].clone())  # which are written over
        weights, names = self.guide.weights, ["guide"] * target.batch.rows
        close = self._close(weights) & ~self.missed
        nan = torch.full_like(weights.khat, torch.nan)
        self.served = PosteriorDraws(latents, names, weights.khat.clone(), weights.ess, nan, close)

    def climb(self, say: Callable[[str], None]) -> PosteriorDraws:
        """Up to the method asked for, or as far as each row needs."""
        rows = self.needing("refined") if self.method in ("auto", "refined") else torch.arange(self.target.batch.rows)
        if self.method != "guide" and len(rows):
            say("refining")
            target, columns = self.target.take(rows)
            q = fit_normal(target, full_rank=True)
            self._refined(rows, target, q, columns)
            if self.method in ("auto", "hmc"):
                say("walking, hmc")
                some, ends, spent = self.needing("hmc"), None, 0.0
                for apart in APART:
                    start = time.monotonic()
                    if start + GROWTH * spent > self.budget.deadline:  # chains that were cut off would be lost
                        break
                    some, ends = self._walked("hmc", partial(hmc, apart=apart), some, rows, q, columns, ends)
                    spent = time.monotonic() - start
            if self.method in ("auto", "nuts"):
                say("walking, nuts")
                for some in self.needing("nuts")[: self.budget.nuts_rows].split(TOGETHER):
                    self._walked("nuts", nuts, some, rows, q, columns)
        return self.served

    def needing(self, name: Method) -> Tensor:
        """The rows for a method: all if it was asked for by name, else those without a certificate so far."""
        return (~self.served.certified | (self.method == name)).nonzero().squeeze(-1)

    def _refined(self, rows: Tensor, target: Target, q: MultivariateNormal, columns: Tensor) -> None:
        """The methods that stand on weights: plain draws of the normal, and resampled ones of the best proposal."""
        guide, prior, forced = self.guide.of(rows, columns), self.prior.of(rows, columns), self.method
        best = better(guide, prior, self.missed[rows])
        for proposal in (q, widened(q)):
            new = proposed(target, proposal, self.num_particles)
            weights, astray = new.weights, new.lacks(guide, q) | new.lacks(prior, q)
            wins = weights.beats(best.weights) & ~astray
            if proposal is q:
                close = self._close(weights) & ~weights.misses(best.weights) & ~astray
                take = (close | wins) & ~self.served.certified[rows] | (forced == "refined")
                self._put(
                    rows, take, "refined", target.latents(new.z[: self.num_draws]), weights.khat, weights.ess, close
                )
            best = new.where(wins, best)
        weights = best.weights
        enough = weights.good & (weights.ess >= self.tolerance**-2)
        take = weights.good & (weights.ess >= MANY) & ~self.served.certified[rows] | (forced == "psis")
        self._put(rows, take, "psis", target.latents(best.resampled(self.num_draws)), weights.khat, weights.ess, enough)

    def _walked(
        self,
        name: str,
        walk: Walk,
        some: Tensor,
        rows: Tensor,
        q: MultivariateNormal,
        columns: Tensor,
        at: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Chains for some of the refined rows, from there on or else half of them started at the normal, half at the
        witness. The rows whose chains agree but for want of draws, and where all of those stand."""
        if not len(some) or time.monotonic() > self.budget.deadline:
            return some[:0], self.guide.z[:0]
        (target, own), place = self.target.take(some), torch.searchsorted(rows, some)
        q = marginal(normal(q.loc[place], q.scale_tril[place]), torch.searchsorted(columns, own))
        path = Path(target, q, CHAINS)
        guide, prior = self.guide.of(some, own), self.prior.of(some, own)
        if at is None:
            z = widened(path.base).sample((CHAINS // 2,))
            z = torch.cat([z, better(guide, prior, self.missed[some]).resampled(CHAINS - len(z))])
        else:
            z = at[..., own]
        y = walk(path, path.whitened(z), WARMUP, max(FEWEST, math.ceil(self.num_draws / CHAINS)), self.budget.deadline)
        if y is None:
            return some[:0], self.guide.z[:0]
        ends = self.guide.z.new_zeros(CHAINS, len(some), self.guide.z.shape[-1])
        ends[..., own] = path.codes(y[-1])
        self.budget.nuts_rows -= len(some) if name == "nuts" else 0
        rhat, ess = mixing(y)
        y = y.flatten(0, 1)
        found = torch.maximum(guide.weights.log_mean, prior.weights.log_mean)  # of p(x_S), of which chains know nothing
        walked = Witness(path.codes(y), found.expand(y.shape[:2]))
        astray = walked.lacks(guide, walked.normal) | walked.lacks(prior, walked.normal)
        mixed = (rhat < MIXED) & (ess >= self.tolerance**-2) & ~astray
        y = y[torch.linspace(0, len(y) - 1, self.num_draws).round().long()]
        latents, take = target.latents(path.codes(y)), (rhat < USABLE) | (self.method == name)
        self._put(some, take, name, latents, self.served.khat[some], ess, mixed, rhat)
        short = ~mixed & (rhat < USABLE) & ~astray & ~self.unsure[some]
        return some[short], ends[:, short]

    def _put(
        self,
        rows: Tensor,
        take: Tensor,
        name: str,
        latents: dict[str, Tensor],
        khat: Tensor,
        ess: Tensor,
        certified: Tensor,
        rhat: Tensor | None = None,
    ) -> None:
        """Serves those of the rows that `take` names by new draws."""
        to = rows[take]
        certified = certified & ~self.unsure[rows]
        for site, value in latents.items():
            self.served.latents[site][:, to] = value[:, take]
        for row in to.tolist():
            self.served.method[row] = name
        rhat = torch.full_like(khat, torch.nan) if rhat is None else rhat
        for old, new in zip(self.served.diagnostics(), (khat, ess, rhat, certified)):
            old[to] = new[take]

    def _close(self, weights: Smoothed) -> Tensor:
        """Whether plain draws of a proposal are within the tolerance, by its weights."""
        return weights.good & (len(weights.log_weights) / weights.ess - 1 <= self.tolerance**2)
