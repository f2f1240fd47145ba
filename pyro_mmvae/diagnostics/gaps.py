"""Where the distance between ELBO and log-likelihood comes from: the family of the posterior, or the encoder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.arrays import counted, percent, whole
from pyro_mmvae.data import Arrays
from pyro_mmvae.diagnostics.climbs import witnesses
from pyro_mmvae.diagnostics.patterns import column
from pyro_mmvae.diagnostics.refine import PARTICLES, fit_normal, widened
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.diagnostics.witness import proposed
from pyro_mmvae.errors import error_of_mean, standard_error
from pyro_mmvae.modes import tool
from pyro_mmvae.psis import share_good, smooth
from pyro_mmvae.questions import nesting, opened
from pyro_mmvae.weights import parts

SURE = 4.5
"""Standard errors by which a proposal must find more of p(x_S) than a better one to be believed all the same: of three,
which are enough to look further, one row in a thousand would get a value half a nat too high."""


@dataclass(frozen=True, repr=False)
class Gaps:
    """ELBO = log p(x_S) - approximation gap - amortisation gap, for every row, in nats.

    Attributes:
        log_likelihood: log p(x_S), (row,), by importance sampling from the refined normal, from that with wider tails,
            from the guide, from the prior or from normals fitted to several modes, whichever is the best proposal of
            the row; what the others alone have found far from it is added.
        refined: (row,), the ELBO of the best normal in real coordinates.
        elbo: (row,), the ELBO of the guide.
        approximation, approximation_se: (row,), log_likelihood - refined, the distance that no encoder can close as
            long as the guide is normal, and its Monte-Carlo standard error, on the small side: the draws that choose a
            proposal are those that it is judged by. Of rows whose truth is known one in ten lay beyond two of them.
        amortisation, amortisation_se: (row,), refined - elbo: what the encoder loses; below zero where the guide's
            family is richer than the normal, as a mixture may be.
        khat: (row,), of log_likelihood; where it is not good that is a lower bound in expectation, and so is the
            approximation gap. Infinite where climbs from draws of the prior say that there may be modes besides those
            that were found.
        num_draws: draws a row from each proposal.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = mm.gaps(vae, x, num_draws=100, steps=5)
        >>> found.amortisation.shape
        torch.Size([20])
    """

    log_likelihood: Tensor
    refined: Tensor
    elbo: Tensor
    approximation: Tensor
    approximation_se: Tensor
    amortisation: Tensor
    amortisation_se: Tensor
    khat: Tensor
    num_draws: int

    def __repr__(self) -> str:
        lines = ["nats a row, +- Monte-Carlo standard error of the mean"]
        errors = {name: error_of_mean(getattr(self, f"{name}_se")) for name in ("approximation", "amortisation")}
        means = column([f"{float(getattr(self, name).mean()):z.3f}" for name in ("log_likelihood", *errors, "elbo")], 9)
        ends = ["", *(f" +- {error:.3f}" for error in errors.values()), ""]
        for name, mean, end in zip(("log p(x_S)", "approximation gap", "amortisation gap", "ELBO"), means, ends):
            lines.append(f"  {name:17}  {mean}{end}")
        good, rows = percent(share_good(self.khat, self.num_draws)), counted(len(self.khat), "row")
        lines.append(f"k-hat is good for {good} of {rows}; elsewhere log p(x_S) is a lower bound")
        return "\n".join(lines)


@tool
def gaps(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    given: Collection[str] | None = None,
    full_rank: bool = False,
    num_draws: int = 1000,
    steps: int | None = None,
) -> Gaps:
    """How much of log p(x_S) - ELBO the family of the posterior costs, and how much the encoder.

    The best posterior of each row is found for that row alone: a normal in real coordinates, started at the moments of
    the guide, `full_rank` or diagonal. Where that is the best proposal as well, log p(x_S) and its ELBO are of the same
    draws, so that the approximation gap has a smaller error than either.

    Limits: where the prior looks at the data log p(x_S) is no likelihood; see `mm.log_likelihood`.

    Args:
        vae: a `MultimodalVAE`, or a `Pair` of any model and guide with continuous codes.
        x, mask: as in `vae.model`.
        given: S; None = all that is observed.
        full_rank: whether the best posterior has a covariance. The difference of the two approximation gaps is what
            independence costs.
        num_draws: draws a row from each proposal.
        steps: of refinement; by default 60, or with `full_rank` three for each coordinate where that is more.

    Returns:
        `Gaps`.

    Raises:
        ValueError: bad input, or a discrete code.

    Reference:
        Cremer, Li and Duvenaud, 2018, Inference Suboptimality in Variational Autoencoders,
        https://arxiv.org/abs/1801.03558

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        >>> vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        >>> found = gaps(vae, {"a": torch.zeros(5, 3)}, num_draws=100)
        >>> total = found.approximation + found.amortisation
        >>> bool(torch.allclose(found.log_likelihood - found.elbo, total, atol=1e-4))
        True
    """
    num_draws, steps = whole("num_draws", num_draws), None if steps is None else whole("steps", steps, 0)
    batch = opened(vae, x, mask, given)
    depth = nesting(vae, batch)
    columns = []
    for part in parts(batch, PARTICLES):
        target = Target(vae, part, depth)
        q = fit_normal(target, full_rank=full_rank, steps=steps)
        refined, wide = proposed(target, q, num_draws), proposed(target, widened(q), num_draws)
        guide, prior, missed, unsure = witnesses(target, num_draws)
        astray = wide.lacks(guide, q), wide.lacks(prior, q)
        rest, far = prior.where(missed | ~astray[0], guide), astray[0] | astray[1]
        completed = refined.completed(rest, q, far), wide.completed(rest, q, far)
        proposals = *completed, guide.completed(prior, guide.normal, missed), prior.raw
        *found, khat = _split(guide.raw, refined.raw, proposals)
        columns.append((*found, khat.masked_fill(unsure, torch.inf)))
    fields: list[Any] = [*(torch.cat(column) for column in zip(*columns)), num_draws]
    return Gaps(*fields)


def _split(guide: Tensor, refined: Tensor, proposals: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The fields of `Gaps` from the log weights (draw, row) of the guide, of the refined normal, and of the proposals
    for log p.

    Errors come from influence functions: of a mean its terms, of log p the weights divided by their mean.
    """
    chosen, best_so_far = proposals[0], smooth(proposals[0])
    for weights in proposals[1:]:
        smoothed = smooth(weights)
        better = smoothed.beats(best_so_far, SURE)
        chosen = torch.where(better, weights, chosen)
        best_so_far = smoothed.where(better, best_so_far)
    value, best, elbo = best_so_far.log_mean, refined.mean(0), guide.mean(0)
    terms = (chosen - value).exp() - refined, refined - guide
    approximation_se, amortisation_se = map(standard_error, terms)
    return value, best, elbo, value - best, approximation_se, best - elbo, amortisation_se, best_so_far.khat
