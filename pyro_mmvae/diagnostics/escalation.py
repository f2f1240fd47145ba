"""Draws from p(z | x_S) that every row can vouch for: the guide's where they are good, else the next method that is."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from tqdm import tqdm

from pyro_mmvae.arrays import positive, shown, whole
from pyro_mmvae.data import Arrays
from pyro_mmvae.diagnostics.chains import hmc, mixing, nuts
from pyro_mmvae.diagnostics.climbs import witnesses
from pyro_mmvae.diagnostics.draws import Method, PosteriorDraws
from pyro_mmvae.diagnostics.refine import PARTICLES, fit_normal, marginal, normal, widened
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.diagnostics.walk import Path
from pyro_mmvae.diagnostics.witness import Witness, better, proposed
from pyro_mmvae.modes import tool
from pyro_mmvae.psis import MANY, Smoothed
from pyro_mmvae.weights import joined, nesting, opened, parts

Walk = Callable[[Path, Tensor, int, int, float], "Tensor | None"]
CHAINS, WARMUP, FEWEST = 8, 100, 250
TOGETHER = 16  # rows in one run of NUTS
MIXED, USABLE = 1.01, 1.1  # R-hat of chains that are certified, and of chains that beat a normal
APART = 1, 4, 16
"""Transitions between the draws of HMC: more where R-hat is large for want of draws alone, as of many coordinates one
always is. Of 16 half chains it is sqrt(1 + 16 / ESS) where all is well."""


@tool
def posterior_draws(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    given: Collection[str] | None = None,
    method: Method = "auto",
    num_draws: int = 1000,
    tolerance: float = 0.1,
    max_nuts_rows: int = 48,
    seconds: float = 600.0,
    progress: bool = True,
) -> PosteriorDraws:
    """Draws from the model's own p(z | x_S), by the cheapest method that is good enough for each row.

    Good enough means that no posterior mean is off by more than `tolerance` posterior standard deviations, as far as
    the certificate of the method can tell:

    - "guide": the guide's own draws. An expectation under q is off by at most sqrt(chi2(p, q)) standard deviations,
      and 1 + chi2 is draws / ESS of the importance weights: certified if k-hat is good and sqrt(draws / ESS - 1) is
      within the tolerance, unless draws of the prior have found more of p(x_S), or a hundredth of it where the guide
      draws next to nothing. A good k-hat alone says only that q is a usable proposal.
    - "refined": draws of a normal in real coordinates that was fitted to the posterior of this row; certified likewise,
      by draws of the guide and of the prior (true of all that follow).
    - "psis": draws of the guide, the prior or the refined normal, whichever proposes best, resampled by Pareto-smoothed
      weights; certified if k-hat is good and 1 / sqrt(ESS) is within the tolerance.
    - "hmc": chains for all rows side by side, in coordinates whitened by the refined normal, half of them started
      there and half at weighted draws of the guide or the prior; certified if R-hat is below 1.01 and 1 / sqrt(ESS) is
      within the tolerance. Where R-hat is below 1.1, chains go on 4 and then 16 times as long.
    - "nuts": Pyro's NUTS likewise, for the rows where those have not mixed.

    Rows beyond the budget, and rows where no chains mixed, keep the best of the earlier methods and are not certified.
    Draws of the prior are few where a row has much to see. So some climbs start at the likeliest of them, and where
    they end in several modes, draws of normals fitted to all of those stand for the prior; where they end in so many
    that there may be more, the row is not certified. No certificate sees a mode that neither guide, prior, climb nor
    chain has found; `mm.sandwich` from the prior may.

    Args:
        vae: a `MultimodalVAE`, or a `Pair` with continuous codes; sites outside the plate "data" are drawn from the
            guide, once for each draw or chain, and the draws are conditional on them.
        x, mask: as in `vae.model`.
        given: S; None = all that is observed.
        method: "auto" goes up the list row by row; a name serves every row by that method, as far as the budget goes.
        num_draws: draws a row.
        tolerance: the largest error of a posterior mean, in posterior standard deviations.
        max_nuts_rows: for how many rows NUTS may be run.
        seconds: after which no more chains are run.
        progress: whether to show a progress bar.

    Returns:
        `PosteriorDraws`; `print` shows how many rows each method serves. Its latents answer `mm.impute`, `mm.predict`,
        `mm.translate`, `mm.imputation_error` and `mm.to_arviz` in place of the guide's. They follow from the model,
        right or wrong; where it is wrong, a guide that was trained beside it may predict better, which
        `mm.imputation_error` tells, with them and without.

    Raises:
        ValueError: bad input, an unknown method, or a discrete code where more than the guide is asked for.

    Reference:
        Yao, Vehtari, Simpson and Gelman, 2018, Yes, but Did It Work?: Evaluating Variational Inference,
        https://arxiv.org/abs/1802.02538

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        >>> vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        >>> found = posterior_draws(vae, {"a": torch.zeros(5, 3)}, progress=False)
        >>> found.latents["z"].shape, bool(found.certified.all())
        (torch.Size([1000, 5, 2]), True)
    """
    if method not in get_args(Method):
        raise ValueError(f"unknown method {shown(method)}; choose one of {', '.join(get_args(Method))}")
    num_draws, tolerance = whole("num_draws", num_draws), positive("tolerance", tolerance)
    max_nuts_rows = whole("max_nuts_rows", max_nuts_rows, 0)
    seconds = seconds if seconds == math.inf else positive("seconds", seconds, zero=True)
    batch = opened(vae, x, mask, given)
    depth, found = nesting(vae, batch), []
    budget = _Budget(max_nuts_rows, time.monotonic() + seconds)
    with tqdm(total=batch.rows, disable=not progress, unit="row") as bar:
        for part in parts(batch, PARTICLES):
            ladder = _Ladder(Target(vae, part, depth), method, num_draws, tolerance, budget)
            found.append(ladder.climb(bar.set_description))
            bar.update(part.rows)
            bar.set_postfix(Counter(m for one in found for m in one.method))
    columns = (torch.cat(column) for column in zip(*(one.diagnostics() for one in found)))
    latents = joined([(len(one.method), one.latents) for one in found])
    return PosteriorDraws(latents, [m for one in found for m in one.method], *columns)


@dataclass
class _Budget:
    """What is left: rows for NUTS, and the time on the monotonic clock when chains end."""

    nuts_rows: int
    deadline: float


class _Ladder:
    """The methods for one chunk of rows, each for the rows that the ones before did not serve."""

    def __init__(self, target: Target, method: Method, num_draws: int, tolerance: float, budget: _Budget):
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
                some, ends = self.needing("hmc"), None
                for apart in APART:
                    some, ends = self._walked("hmc", partial(hmc, apart=apart), some, rows, q, columns, ends)
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
