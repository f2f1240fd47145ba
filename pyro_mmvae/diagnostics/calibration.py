"""Simulation-based calibration of a guide, for one pattern of missing modalities at a time.

Rows are simulated from the model, so the truth z* is known; among draws from the guide its rank is uniform if the guide
is the posterior. Ranked are every latent, log p(x_S | z) (a guide that ignores the data passes on z alone), the
distance to a random point (TARP), which sees all dimensions at once, and the log weight log p(x_S, z) - log q(z | x_S):
where guide and posterior differ it is larger at the truth than at the draws, in every row, so that no errors cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mmvae.arrays import counted, whole
from pyro_mmvae.checks import check_collection
from pyro_mmvae.data import Arrays
from pyro_mmvae.diagnostics.ranks import Check, corrected, rank, rank_ecdf, rank_of_weight, shown_p, uniformity
from pyro_mmvae.diagnostics.simulated import Simulated, WholeMixtures, conditions, having, simulate, weight_at
from pyro_mmvae.modes import tool
from pyro_mmvae.questions import opened
from pyro_mmvae.weights import draw_in_parts

TARP, FIT, WEIGHT = "tarp", "log p(x | z)", "log weight"


class Calibration(NamedTuple):
    """Where the truth stood among the guide's draws.

    Attributes:
        position: quantity -> (row,), uniform on (0, 1) for a calibrated guide; "z[0]", ..., "log p(x | z)", "tarp", and
            "log weight", unless the guide can be scored at its own draws alone.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> sorted(mm.sbc(vae, ["a"], rows=20).position)
        ['log p(x | z)', 'log weight', 'tarp', 'z[0]', 'z[1]']
    """

    position: dict[str, Tensor]

    def __repr__(self) -> str:
        tests, rows = self.tests(), len(next(iter(self.position.values())))
        p, worst = shown_p(corrected(tests)).strip(), min(tests, key=lambda test: test.p)
        lines = [f"{counted(rows, 'simulated row')}, {counted(len(self.position), 'quantity', 'quantities')} ranked"]
        if self.latents:
            half, most = self.coverage(0.5), self.coverage(0.9)
            lines.append(
                f"  spread {self.dispersion:.2f}, 1 if calibrated, above 1 over-confident; {half:.0%} and {most:.0%} of"
                " the truths lie in central intervals of 50 % and 90 %"
            )
        lines.append(f"  p {p}, corrected for {len(tests)} tests; farthest off: {worst.of} of {worst.quantity}")
        return "\n".join(lines)

    def tests(self) -> list[Check]:
        """Three tests of every quantity: of its mean, its spread, and its ECDF."""
        return [test for name, u in self.position.items() for test in uniformity(name, u)]

    def coverage(self, probability: float) -> float:
        """The share of truths inside the central interval, over all latents."""
        inside = [((u - 0.5).abs() < probability / 2).double().mean() for u in self.latents.values()]
        return float(torch.stack(inside).mean())

    def deviation(self, *quantities: str) -> float:
        """The largest distance between ECDF and diagonal among the named quantities, between 0 and 1."""
        return max(float(rank_ecdf(self.position[name]).difference.abs().max()) for name in quantities)

    @property
    def dispersion(self) -> float:
        """12 times the variance of the positions of the latents: 1 is calibrated, above is over-confident."""
        return float(torch.stack([12 * ((u - 0.5) ** 2).mean() for u in self.latents.values()]).mean())

    @property
    def latents(self) -> dict[str, Tensor]:
        """The positions of the latents alone."""
        return {name: u for name, u in self.position.items() if name.endswith("]")}


@tool
def sbc(
    vae: Any, given: Sequence[str], like: Arrays | None = None, *, rows: int = 500, num_draws: int = 199
) -> Calibration:
    """Where the truth stands among draws from q(z | x_S), over rows simulated from the model.

    Args:
        vae: a `MultimodalVAE`, or a `Pair` whose model can be drawn from without data.
        given: S; () for the prior.
        like: data whose holes the simulated rows get: single hidden entries, and the number of repeats; with NaN, or
            `mm.Batch.of(x, mask)`. Each modality takes those of a random row that has it. What the model looks at and
            does not explain comes from here.
        rows: simulated rows, 2 or more.
        num_draws: draws from the guide for each.

    Returns:
        `Calibration`.

    Raises:
        ValueError: bad input, or the model cannot be drawn from without data, or has a factor.

    Reference:
        Talts, Betancourt, Simpson, Vehtari and Gelman, 2018, Validating Bayesian Inference Algorithms with
        Simulation-Based Calibration, https://arxiv.org/abs/1804.06788; Modrak et al., 2023, Simulation-Based
        Calibration Checking for Bayesian Computation: The Choice of Test Quantities Shapes Sensitivity,
        https://arxiv.org/abs/2211.02383; Lemos, Coogan, Hezaveh and Perreault-Levasseur, 2023, Sampling-Based Accuracy
        Testing of Posterior Estimators for General Inference, https://arxiv.org/abs/2302.03026

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> calibration = sbc(vae, ["a"], rows=200)
        >>> 0.0 <= calibration.coverage(0.9) <= 1.0
        True
    """
    rows, num_draws = whole("rows", rows, 2), whole("num_draws", num_draws)
    check_collection(given)
    batch = None if like is None else opened(vae, like)
    looked = () if batch is None else conditions(vae, batch, given)
    simulated = simulate(vae, rows, batch and having(batch, looked), looked)
    return calibrate(vae, simulated, given, num_draws)


@torch.no_grad()
def calibrate(vae: Any, simulated: Simulated, given: Sequence[str], num_draws: int) -> Calibration:
    """Where the truth of simulated rows stands among draws from q(z | x_S)."""
    for name in given:
        if name not in simulated.batch:
            raise ValueError(
                f"no rows of modality {name!r} can be simulated: the model has no likelihood of it; give subsets"
                " without it, or data in like to take it from"
            )
    truth = {site: value.unsqueeze(1).flatten(1) for site, value in simulated.truth.items()}
    batch = simulated.batch.only(given)
    with WholeMixtures():
        drawn, weights, likelihood = draw_in_parts(vae, batch, num_draws)
        weight = weight_at(vae, simulated.truth, batch)
    latents = {site: value.reshape(*value.shape[:2], -1) for site, value in drawn.items() if site in truth}
    position = {}
    for site, value in latents.items():
        for d in range(value.shape[-1]):
            if not bool((value[..., d] == truth[site][:, d]).all()):  # what is conditioned on has no rank
                position[f"{site}[{d}]"] = rank(value[..., d], truth[site][:, d])
    explained = [name for name in given if name in simulated.log_likelihood]
    if explained:
        scored = torch.stack([likelihood[name] for name in explained]).sum(0)
        at_truth = torch.stack([simulated.log_likelihood[name] for name in explained]).sum(0)
        position[FIT] = rank(scored, at_truth)
    codes, star = torch.cat(list(latents.values()), -1), torch.cat([truth[site] for site in latents], -1)
    codes, star = codes + 0.0, star + 0.0  # whole numbers as real ones
    reference = star.roll(1, 0) + 0.5 * star.std(0) * torch.randn_like(star)  # another row's truth, and noise
    position[TARP] = rank((codes - reference).norm(dim=-1), (star - reference).norm(dim=-1))
    if weight is not None:
        position[WEIGHT] = rank_of_weight(weights, weight)
    return Calibration(position)
