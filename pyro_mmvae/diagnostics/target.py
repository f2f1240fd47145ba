"""The posterior of every row in real coordinates: what is refined, annealed and walked on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mmvae.data import Batch
from pyro_mmvae.diagnostics.coordinates import Coordinates, bounds_of, coordinates, support_of
from pyro_mmvae.distributions import LogPool
from pyro_mmvae.programs import silent
from pyro_mmvae.questions import nesting
from pyro_mmvae.sites import left_to_model, per_row, row_axis, value_of
from pyro_mmvae.weights import NUMBERS_AT_ONCE, draw, size_of, traces_of

PROBES = 16  # draws that tell whether a density hangs on a site


class Target:
    """log p(x_S, z) of every row as a function of its codes z in real coordinates, (draw, row, size).

    The codes are all latent sites inside the plate "data" of the model, one after the other, each mapped to the reals
    by the transform of its support, whose volume counts. A modality that x lacks, and the model then draws, is none
    unless something hangs on it. Sites outside the plate are drawn from the guide, and the target is conditional on
    them: see `shared`.

    Args:
        vae: a `MultimodalVAE`, or a `Pair`.
        batch: checked data, of S alone.
        depth: what `mm.questions.nesting` says, if the caller knows it.

    Raises:
        ValueError: a latent site is discrete, or its bounds hang on the row or on other codes.
    """

    def __init__(self, vae: Any, batch: Batch, depth: int | None = None):
        self.vae, self.batch = vae, batch
        self.depth = nesting(vae, batch) if depth is None else depth
        with torch.no_grad():
            guide, trace = traces_of(vae, batch, batch, 1, self.depth)
        latent = [name for name in trace.stochastic_nodes if not site_is_subsample(trace.nodes[name])]
        local = [name for name in latent if row_axis(trace.nodes[name]) is not None]
        self.outside = [name for name in latent if name not in local]
        self.missing = left_to_model(guide, trace)
        self.idle = self._idle(local, self.missing)
        local = [name for name in local if name not in self.idle]
        if any(bounds_of(support_of(trace.nodes[name])) for name in local):
            with torch.no_grad():
                trace = draw(vae, batch, 2, depth=self.depth).model  # two draws tell if they hang on other codes
        self.sites: dict[str, Coordinates] = {}
        self.size = 0
        for name in local:
            self.sites[name] = coordinates(name, trace.nodes[name], self.size, self.depth)
            self.size = self.sites[name].columns.stop

    @torch.no_grad()
    def _idle(self, local: Sequence[str], doubtful: Sequence[str]) -> set[str]:
        """Of the doubtful sites those on whose value no other site's density hangs; the rest need not know of them."""
        if not doubtful:
            return set()
        first = self._trace(self.shared(PROBES), PROBES).nodes
        values = {name: first[name]["value"] for name in [*local, *self.outside]}
        idle = set()
        for name in doubtful:
            again = self._trace({k: v for k, v in values.items() if k != name}, PROBES).nodes
            rest = [k for k, site in first.items() if k != name and row_axis(site) is not None]
            pairs = [[per_row(nodes[k], PROBES, self.batch.rows) for nodes in (first, again)] for k in rest]
            if all(torch.equal(*pair) for pair in pairs):
                idle.add(name)
        return idle

    def take(self, index: Tensor) -> tuple[Target, Tensor]:
        """The target of some rows, and which coordinates are theirs: private codes that none of them has are not."""
        part = Target(self.vae, self.batch.take(index), self.depth)
        return part, self.columns(part.sites)

    def columns(self, sites: Collection[str]) -> Tensor:
        """The positions of the coordinates of some sites, one site after the other."""
        every = torch.arange(self.size, device=self.batch.device)
        return torch.cat([every[self.sites[name].columns] for name in sites])

    @property
    def at_once(self) -> int:
        """How many draws of all rows fit in one chunk."""
        return max(1, NUMBERS_AT_ONCE // ((size_of(self.batch) + self.size) * self.batch.rows))

    @torch.no_grad()
    def guide(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draws of the guide in real coordinates (draw, row, size), and log p(x, z) - log q(z | x), (draw, row)."""
        found = []
        for k in self.split(num_draws):
            drawn = draw(self.vae, self.batch, k, depth=self.depth)
            found.append((self.coordinates(drawn.latents), drawn.log_weights))
        return torch.cat([z for z, _ in found]), torch.cat([weights for _, weights in found])

    @torch.no_grad()
    def prior(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draws of the model's codes as if nothing had been observed, in real coordinates (draw, row, size), and
        log p(x, z) less the log-density that they were drawn from, (draw, row): log p(x | z), and the constant that a
        `LogPool` leaves out.

        Raises:
            NotImplementedError: a prior that can be scored, not drawn.
        """
        found = []
        for k in self.split(num_draws):
            trace = self._trace(self.shared(k), k)
            values = {name: value_of(trace.nodes[name], k, self.batch.rows) for name in self.sites}
            z = self.coordinates(values)
            seen = [trace.nodes[name] for name in trace.observation_nodes if row_axis(trace.nodes[name]) is not None]
            total = sum((per_row(site, k, self.batch.rows) for site in seen), z.new_zeros(z.shape[:2]))
            for site in (trace.nodes[name] for name in self.sites):
                if isinstance(site["fn"], LogPool):
                    drawn = {**site, "fn": site["fn"].normalized()}
                    total = total + per_row(site, k, self.batch.rows) - per_row(drawn, k, self.batch.rows)
            found.append((z, torch.where(total.isnan(), -torch.inf, total)))
        return torch.cat([z for z, _ in found]), torch.cat([weights for _, weights in found])

    def shared(self, num_draws: int) -> dict[str, Tensor]:
        """One draw from the guide of the sites outside the plate "data" for each draw of the codes; mostly none."""
        if not self.outside:
            return {}
        with torch.no_grad():
            nodes = draw(self.vae, self.batch, num_draws, depth=self.depth).model.nodes
        return {name: nodes[name]["value"] for name in self.outside}

    def log_prob(self, z: Tensor, shared: dict[str, Tensor]) -> Tensor:
        """log p(x_S, z), (draw, row), in nats; -inf where it is not a number."""
        values, total = self._values(z)
        placed = {name: value.movedim(1, 1 + self.sites[name].left) for name, value in values.items()}
        for name, site in self._trace({**shared, **placed}, len(z)).nodes.items():
            if row_axis(site) is not None and name not in self.idle:
                site = {**site, "mask": None} if name in self.missing else site  # flat where observed, it has no bounds
                total = total + per_row(site, len(z), self.batch.rows)
        return torch.where(total.isnan(), -torch.inf, total)

    def _trace(self, values: dict[str, Tensor], num_draws: int) -> Any:
        """The model at those values of its sites, and at draws of the others."""
        model = poutine.condition(self.vae.model, values)
        with pyro.validation_enabled(False), silent(), pyro.plate("draws", num_draws, dim=-1 - self.depth):
            return poutine.trace(model).get_trace(self.batch, self.batch.mask)

    def gradient(self, z: Tensor, shared: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """log p(x_S, z), and its gradient by z, zero where it is not a number."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.log_prob(z, shared)
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)

    @torch.no_grad()
    def log_weights(self, z: Tensor, proposal: Any) -> Tensor:
        """log p(x_S, z) - log r(z) at draws z of a proposal r in real coordinates, (draw, ..., row), chunk by chunk."""
        found = [self.log_prob(part, self.shared(len(part))) for part in z.flatten(0, -3).split(self.at_once)]
        return torch.cat(found).view(z.shape[:-1]) - proposal.log_prob(z)

    def split(self, num_draws: int) -> list[int]:
        """How many draws to take in each chunk."""
        return [min(self.at_once, num_draws - start) for start in range(0, num_draws, self.at_once)]

    def coordinates(self, latents: dict[str, Tensor]) -> Tensor:
        """Codes by site, (draw, row, *event), as real coordinates (draw, row, size)."""
        found = []
        for name, site in self.sites.items():
            value = latents[name]
            value = value.reshape(len(value), self.batch.rows, *site.inner)
            found.append(site.transform.inv(value).reshape(len(value), self.batch.rows, -1))
        return torch.cat(found, -1)

    def latents(self, z: Tensor) -> dict[str, Tensor]:
        """Real coordinates as codes by site, (draw, row, *event), as `mm.importance` gives them."""
        values = self._values(z)[0]
        return {name: value.reshape(*z.shape[:2], *self.sites[name].shape) for name, value in values.items()}

    def _values(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The value of every site, (draw, row, *inner), and the log volume of all the transforms."""
        values, volume = {}, z.new_zeros(z.shape[:2])
        for name, site in self.sites.items():
            real = z[..., site.columns].reshape(*z.shape[:2], *site.real)
            values[name] = site.transform(real)
            log_volume = site.transform.log_abs_det_jacobian(real, values[name])
            volume = volume + log_volume.reshape(*z.shape[:2], -1).sum(-1)
        return values, volume
