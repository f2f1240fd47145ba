"""Draws from p(z | x_S) that every row can vouch for: the guide's where they are good, else the next method that is."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection
from typing import Any, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_mmvae.arrays import positive, shown, whole
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.diagnostics.draws import Method, PosteriorDraws
from pyro_mmvae.diagnostics.refine import PARTICLES
from pyro_mmvae.diagnostics.rungs import Budget, Ladder
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.modes import tool
from pyro_mmvae.questions import nesting, opened
from pyro_mmvae.weights import joined, parts


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
            Rows for which "refined" is not good enough are served by "psis" where k-hat is good, as it costs nothing.
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
        ValueError: bad input, an unknown method, or a discrete code.

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
    budget = Budget(max_nuts_rows, time.monotonic() + seconds)
    with tqdm(total=batch.rows, disable=not progress, unit="row") as bar:
        for part in parts(batch, PARTICLES):
            ladder = Ladder(Target(vae, part, depth), method, num_draws, tolerance, budget)
            found.append(ladder.climb(bar.set_description))
            bar.update(part.rows)
            bar.set_postfix(Counter(m for one in found for m in one.method))
    columns = (torch.cat(column) for column in zip(*(one.diagnostics() for one in found)))
    latents = joined([(len(one.method), one.latents) for one in found])
    return PosteriorDraws(latents, [m for one in found for m in one.method], *columns)


def codes_by(method: Method, vae: Any, batch: Batch, num_draws: int) -> tuple[dict[str, Tensor] | None, float]:
    """Codes of all rows by a method, and the share of the rows that it certifies; None and NaN of the guide's own."""
    if method == "guide":
        return None, math.nan
    found = posterior_draws(vae, batch, method=method, num_draws=num_draws, progress=False)
    return found.latents, float(found.certified.double().mean())
