"""The posterior of every row in real coordinates: what is refined, annealed and walked on."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import SineBivariateVonMises, SineSkewed, TransformedDistribution, VonMises
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Transform, biject_to
from torch.distributions.constraints import Constraint, independent, interval

from pyro_mmvae.data import Batch
from pyro_mmvae.distributions import LogPool, plain_support
from pyro_mmvae.programs import silent
from pyro_mmvae.sites import around, besides, per_row, row_axis, value_of
from pyro_mmvae.weights import NUMBERS_AT_ONCE, draw, nesting, size_of, traces_of

PROBES = 16  # draws that tell whether a density hangs on a site
ANGLES = VonMises, SineBivariateVonMises, SineSkewed
WRAPPED = "base_dist", "component_distribution", "components"


class Coordinates(NamedTuple):
    """Where the codes of one site stand among the real coordinates of a row.

    Attributes:
        columns: of the coordinates.
        transform: reals -> the support of the site.
        real, inner: shape of one row's value in the reals and on the support, plates besides "data" first.
        left: plates on the left of the rows.
        shape: of one row's value as `mm.importance` gives it.
    """

    columns: slice
    transform: Transform
    real: torch.Size
    inner: torch.Size
    left: int
    shape: list[int]


class Target:
    """log p(x_S, z) of every row as a function of its codes z in real coordinates, (draw, row, size).

    The codes are all latent sites inside the plate "data" of the model, one after the other, each mapped to the reals
    by the transform of its support, whose volume counts. A modality that x lacks, and the model then draws, is none
    unless something hangs on it. Sites outside the plate are drawn from the guide, and the target is conditional on
    them: see `shared`.

    Args:
        vae: a `MultimodalVAE`, or a `Pair`.
        batch: checked data, of S alone.
        depth: what `mm.weights.nesting` says, if the caller knows it.

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
        self.idle = self._idle(local, [name for name in local if name not in guide])
        local = [name for name in local if name not in self.idle]
        if any(_bounds(_support(trace.nodes[name])) for name in local):  # two draws tell if they hang on other codes
            with torch.no_grad():
                trace = draw(vae, batch, 2, depth=self.depth).model
        self.sites: dict[str, Coordinates] = {}
        self.size = 0
        for name in local:
            self.sites[name] = _coordinates(name, trace.nodes[name], self.size, self.depth)
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


def _coordinates(name: str, site: Any, start: int, depth: int) -> Coordinates:
    support = _support(site)
    if support.is_discrete:
        raise ValueError(
            f"the site {name!r} is discrete; only continuous codes can be refined, sum it out in the model"
        )
    axis, event = row_axis(site), site["fn"].event_shape
    assert axis is not None
    support = _with_bounds_of_all(name, support, len(event))
    left, right = around(site["fn"].batch_shape, axis, depth)
    try:
        transform = biject_to(support)
    except NotImplementedError:
        kind = f"{type(site['fn']).__name__} has support {support}"
        raise ValueError(f"the site {name!r} cannot be refined: its {kind}, which torch has no transform to") from None
    real, inner = (torch.Size([*left, *right, *own]) for own in (transform.inverse_shape(event), event))
    columns = slice(start, start + real.numel())
    return Coordinates(columns, transform, real, inner, len(left), [*besides(left, right), *event])


def _support(site: Any) -> Constraint:
    """Where a site has its values; of angles the circle, cut open opposite to zero: along the line that torch names as
    their support their densities go round and round, and have no integral."""
    inner = site["fn"]
    while not isinstance(inner, (*ANGLES, TransformedDistribution)) and any(hasattr(inner, name) for name in WRAPPED):
        inner = next(getattr(inner, name) for name in WRAPPED if hasattr(inner, name))
    if isinstance(inner, ANGLES):
        return independent(interval(-math.pi, math.pi), len(site["fn"].event_shape))
    return plain_support(site["fn"].support)


def _bounds(support: Constraint) -> dict[str, Any]:
    """The bounds of a support, if it has some and they are tensors, by name."""
    while isinstance(support, independent):
        support = support.base_constraint
    bounds = {name: getattr(support, name) for name in ("lower_bound", "upper_bound") if hasattr(support, name)}
    return bounds if any(isinstance(bound, Tensor) for bound in bounds.values()) else {}


def _with_bounds_of_all(name: str, support: Constraint, events: int) -> Constraint:
    """The support with one set of bounds, of an event; raises ValueError if not all draws and rows have the same."""
    if isinstance(support, independent):
        inner = _with_bounds_of_all(name, support.base_constraint, events)
        return independent(inner, support.reinterpreted_batch_ndims)
    found = {}
    for bound, value in _bounds(support).items():
        value = torch.as_tensor(value)
        found[bound] = value[(0,) * (value.dim() - events)]
        if not bool((value == found[bound]).all()):
            raise ValueError(
                f"the site {name!r} cannot be refined: its bounds hang on the row, or on other codes; let the model"
                f" draw where it stands between them, dist.Uniform(0.0, 1.0), and compute {name!r} from that"
            )
    return type(support)(**found) if found else support
