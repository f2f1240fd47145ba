"""Simulation-based calibration of a guide, for one pattern of missing modalities at a time.

Rows are simulated from the model, so the truth z* is known; among draws from the guide its rank is uniform if the guide
is the posterior. Ranked are every latent, log p(x_S | z) (a guide that ignores the data passes on z alone), and the
distance to a random point (TARP), which sees all dimensions at once.

Reference:
    Talts, Betancourt, Simpson, Vehtari and Gelman, 2018, Validating Bayesian Inference Algorithms with Simulation-Based
    Calibration, https://arxiv.org/abs/1804.06788; Modrak et al., 2023, Simulation-Based Calibration Checking for
    Bayesian Computation: The Choice of Test Quantities Shapes Sensitivity, https://arxiv.org/abs/2211.02383; Lemos,
    Coogan, Hezaveh and Perreault-Levasseur, 2023, Sampling-Based Accuracy Testing of Posterior Estimators for General
    Inference, https://arxiv.org/abs/2302.03026
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_mmvae.data import Batch
from pyro_mmvae.inference import joint_draws
from pyro_mmvae.programs import silent
from pyro_mmvae.weights import draw, nesting, parts, per_row, row_axis

BINS = 20


class Calibration(NamedTuple):
    """Where the truth stood among the guide's draws.

    Attributes:
        position: quantity -> (row,), uniform on (0, 1) for a calibrated guide; "z[0]", ..., "log p(x | z)", "tarp".
    """

    position: dict[str, Tensor]

    def tests(self) -> list[Check]:
        """Three tests of every quantity: of its mean, its spread, and its histogram."""
        return [test for name, u in self.position.items() for test in _tests(name, u)]

    def coverage(self, probability: float) -> float:
        """The share of truths inside the central interval, over all latents."""
        inside = [((u - 0.5).abs() < probability / 2).double().mean() for name, u in self.latents.items()]
        return float(torch.stack(inside).mean())

    @property
    def dispersion(self) -> float:
        """12 times the variance of the positions of the latents: 1 is calibrated, above is over-confident."""
        return float(torch.stack([12 * ((u - 0.5) ** 2).mean() for u in self.latents.values()]).mean())

    @property
    def latents(self) -> dict[str, Tensor]:
        """The positions of the latents alone."""
        return {name: u for name, u in self.position.items() if name.endswith("]")}


class Check(NamedTuple):
    """One test: of which quantity, of what ("mean", "spread" or "histogram"), its z (0 for histograms) and p-value."""

    quantity: str
    of: str
    z: float
    p: float


@torch.no_grad()
def sbc(vae: Any, given: Sequence[str], *, rows: int = 500, num_draws: int = 199) -> Calibration:
    """Where the truth stands among draws from q(z | x_S), over rows simulated from the model.

    Args:
        vae: a `MultimodalVAE`, or a `Pair` whose model can be drawn from without data.
        given: S; () for the prior.
        rows: simulated rows.
        num_draws: draws from the guide for each.

    Returns:
        `Calibration`.

    Raises:
        ValueError: the model cannot be drawn from without data.
    """
    truth, data = joint_draws(vae, rows)
    masks = {name: torch.full((rows,), name in given) for name in data}
    x = {name: value if name in given else torch.zeros_like(value) for name, value in data.items()}
    batch = Batch(x, masks, rows, frozenset(given))
    depth = nesting(vae, batch)
    drawn = [draw(vae, part, num_draws, depth=depth)[:3] for part in parts(batch, num_draws)]
    latents = {site: torch.cat([one[site] for one, _, _ in drawn], 1) for site in drawn[0][0]}
    position = {}
    for site, value in latents.items():
        if site in truth:
            for d in range(value.shape[-1]):
                position[f"{site}[{d}]"] = _position(value[..., d], truth[site][:, d])
    if given:
        scored = torch.cat([torch.stack([one[name] for name in given]).sum(0) for _, _, one in drawn], 1)
        position["log p(x | z)"] = _position(scored, _log_likelihood(vae, batch, truth, list(given)))
    z, star = latents["z"], truth["z"]
    reference = star[torch.randperm(rows)] + 0.5 * star.std(0) * torch.randn_like(star)
    position["tarp"] = _position((z - reference).norm(dim=-1), (star - reference).norm(dim=-1))
    return Calibration(position)


def _position(draws: Tensor, truth: Tensor) -> Tensor:
    """The randomised rank of the truth (row,) among draws (draw, row), on (0, 1)."""
    below = (draws < truth).sum(0) + torch.rand(truth.shape) * (draws == truth).sum(0)
    return (below + torch.rand(truth.shape)) / (len(draws) + 1)


def _log_likelihood(vae: Any, batch: Batch, truth: dict[str, Tensor], given: list[str]) -> Tensor:
    """log p(x_S | z*), (row,), in nats."""
    with silent(vae.model, vae.guide), pyro.validation_enabled(False), torch.random.fork_rng():
        trace = poutine.trace(vae.guide).get_trace(batch, batch.mask)
        placed = {}
        for site, value in truth.items():
            node = trace.nodes.get(site)
            axis = row_axis(node) if node is not None else -2
            placed[site] = value.reshape(len(value), *[1] * (-(axis or -2) - 1), *value.shape[1:])
        trace = poutine.trace(poutine.condition(vae.model, placed)).get_trace(batch, batch.mask)
    return sum((per_row(trace.nodes[name], 1, batch.rows)[0] for name in given), torch.zeros(batch.rows))


def _tests(name: str, u: Tensor) -> list[Check]:
    rows, u = len(u), u.double()
    mean = float((u.mean() - 0.5) * math.sqrt(12 * rows))
    spread = float((12 * ((u - 0.5) ** 2).mean() - 1) / math.sqrt(0.8 / rows))
    counts = torch.histc(u, BINS, 0, 1)
    chi2 = ((counts - rows / BINS) ** 2).sum() / (rows / BINS)
    tail = float(torch.special.gammaincc(torch.tensor((BINS - 1) / 2).double(), chi2 / 2))
    return [
        Check(name, "mean", mean, math.erfc(abs(mean) / math.sqrt(2))),
        Check(name, "spread", spread, math.erfc(abs(spread) / math.sqrt(2))),
        Check(name, "histogram", 0.0, tail),
    ]
