"""The oracle: a linear-Gaussian model, whose every log p(x_S) and p(z | x_S) is known in closed form.

    z ~ N(0, I),   x_m | z ~ N(W_m z + b_m, noise_m^2 I)

With orthogonal columns of every W_m all posteriors are diagonal, and the product of experts is exact.
Beside it `known`, a model whose data are the parameters of its experts, and `Modes`, whose posteriors are mixtures.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.distributions import NaturalNormal


class LinearGaussian:
    """The truth, and a `MultimodalVAE` that holds it.

    Args:
        sizes: name -> number of features.
        dim: of z.
        orthogonal: whether the columns of each W_m are orthogonal, so that every posterior is diagonal.
        repeated: the names that are measured several times a row.
    """

    def __init__(
        self, sizes: dict[str, int] | None = None, dim: int = 2, orthogonal: bool = True, seed: int = 0, repeated=()
    ):
        generator = torch.Generator().manual_seed(seed)
        self.dim, self.names, self.repeated = dim, list(sizes or {"a": 4, "b": 3, "c": 5}), tuple(repeated)
        self.loading, self.offset, self.noise = {}, {}, {}
        for position, (name, size) in enumerate((sizes or {"a": 4, "b": 3, "c": 5}).items()):
            w = torch.randn(size, dim, generator=generator)
            if orthogonal:
                w = torch.linalg.qr(w)[0] * (0.8 + 0.5 * torch.rand(dim, generator=generator))
            self.loading[name] = w
            self.offset[name] = torch.randn(size, generator=generator)
            self.noise[name] = 0.7 + 0.2 * position

    def simulate(self, rows: int, seed: int = 1, repeats: int = 1) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(rows, self.dim, generator=generator)
        x = {}
        for name in self.names:
            loc = z @ self.loading[name].T + self.offset[name]
            if name in self.repeated:
                loc = loc.unsqueeze(1).expand(-1, repeats, -1)
            x[name] = loc + self.noise[name] * torch.randn(loc.shape, generator=generator)
        return x

    def _parts(self, x: dict[str, Tensor], mask: dict[str, Tensor], row: int, subset: Iterable[str]):
        """Loading, residual and noise of everything observed in one row, one after the other."""
        loadings, values, noises = [], [], []
        for name in subset:
            value, seen = x[name][row], mask[name][row]
            loading, offset = self.loading[name], self.offset[name]
            if name in self.repeated:
                seen = seen.reshape(*seen.shape, *[1] * (value.dim() - seen.dim())).expand(value.shape)
                for v, s in zip(value, seen):
                    loadings.append(loading[s]), values.append((v - offset)[s])
                    noises.append(torch.full((int(s.sum()),), self.noise[name]))
            else:
                seen = seen.expand(value.shape)
                loadings.append(loading[seen]), values.append((value - offset)[seen])
                noises.append(torch.full((int(seen.sum()),), self.noise[name]))
        if not loadings:
            return torch.zeros(0, self.dim), torch.zeros(0), torch.zeros(0)
        return torch.cat(loadings), torch.cat(values), torch.cat(noises)

    def masks(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.ones(len(value), dtype=torch.bool) for name, value in x.items()}

    def log_prob(self, x, mask=None, subset=None) -> Tensor:
        """log p(x_S) of each row, (row,), in nats; S = what is observed of `subset`."""
        mask, rows = {**self.masks(x), **(mask or {})}, len(next(iter(x.values())))
        found = torch.zeros(rows)
        for row in range(rows):
            loading, value, noise = self._parts(x, mask, row, subset or x)
            if len(value):
                covariance = loading @ loading.T + torch.diag(noise**2)
                found[row] = dist.MultivariateNormal(torch.zeros(len(value)), covariance).log_prob(value)
        return found

    def posterior(self, x, mask=None, subset=None) -> tuple[Tensor, Tensor]:
        """Mean (row, dim) and covariance (row, dim, dim) of p(z | x_S)."""
        mask, rows = {**self.masks(x), **(mask or {})}, len(next(iter(x.values())))
        means, covariances = [], []
        for row in range(rows):
            loading, value, noise = self._parts(x, mask, row, subset if subset is not None else x)
            precision = torch.eye(self.dim) + loading.T @ (loading / noise.unsqueeze(1) ** 2)
            covariances.append(torch.linalg.inv(precision))
            means.append(covariances[-1] @ (loading.T @ (value / noise**2)))
        return torch.stack(means), torch.stack(covariances)

    def vae(self, fusion=None, prior=None, expert: str = "factor") -> mm.MultimodalVAE:
        """A VAE whose decoders are the truth. Experts: "factor" ~ p(x_m | z), for a product with the prior;
        "posterior" = p(z | x_m), for a mixture; "full rank" ~ p(x_m | z) with covariances, whatever the loadings and
        whichever entries are missing."""
        modalities = {}
        for name in self.names:
            decoder = nn.Linear(self.dim, len(self.loading[name]))
            decoder.weight.data, decoder.bias.data = self.loading[name].clone(), self.offset[name].clone()
            full = expert == "full rank"
            modalities[name] = mm.Modality(
                mm.NormalLikelihood(decoder, scale=self.noise[name]),
                FullRankExpert(self, name) if full else ExactExpert(self, name, expert == "posterior"),
                trunk=mm.WithHoles(nn.Identity()) if full else None,
                repeated=name in self.repeated,
            )
        return mm.MultimodalVAE(modalities, prior or mm.StandardNormal(self.dim), fusion or mm.PoE())


class ExactExpert(nn.Module):
    """The likelihood of z as a normal, or the unimodal posterior; exact if the columns of W are orthogonal."""

    def __init__(self, truth: LinearGaussian, name: str, with_prior: bool):
        super().__init__()
        loading, noise = truth.loading[name], truth.noise[name]
        precision = (loading**2).sum(0) / noise**2 + float(with_prior)
        self.register_buffer("offset", truth.offset[name])
        self.register_buffer("gain", loading / noise**2 / precision)
        self.register_buffer("scale", precision.rsqrt())
        self.dummy = nn.Parameter(torch.zeros(truth.dim))

    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Normal((x - self.offset) @ self.gain + self.dummy, self.scale.expand(len(x), -1)).to_event(1)


class FullRankExpert(nn.Module):
    """The likelihood of z given [x, which entries were seen], with all covariances."""

    def __init__(self, truth: LinearGaussian, name: str):
        super().__init__()
        self.noise = truth.noise[name]
        self.register_buffer("loading", truth.loading[name])
        self.register_buffer("offset", truth.offset[name])
        self.dummy = nn.Parameter(torch.zeros(truth.dim))

    def forward(self, h: Tensor) -> NaturalNormal:
        x, seen = h.chunk(2, -1)
        shift = (seen * (x - self.offset)) @ self.loading / self.noise**2
        precision = torch.einsum("nf,fd,fe->nde", seen, self.loading, self.loading) / self.noise**2
        return NaturalNormal(shift + self.dummy, precision)


def maximum_likelihood(x, mask, start, iterations=3000, tolerance=1e-6):
    """Loadings and offsets of greatest likelihood for noise of one, by EM from `start`; rows with what they have."""
    values, seen = [v.double() for v in x.values()], [m.double() for m in mask.values()]
    rows, dim = len(values[0]), start[0].shape[1]
    found = [torch.cat([w.double(), torch.zeros(len(w), 1).double()], 1) for w in start]
    for _ in range(iterations):
        precision, shift = torch.eye(dim).double().expand(rows, dim, dim).clone(), torch.zeros(rows, dim).double()
        for a, value, there in zip(found, values, seen):
            precision += there[:, None, None] * (a[:, :dim].T @ a[:, :dim])
            shift += there[:, None] * ((value - a[:, dim]) @ a[:, :dim])
        covariance = torch.linalg.inv(precision)
        code = torch.cat([(covariance @ shift[..., None])[..., 0], torch.ones(rows, 1).double()], 1)
        second = code[:, :, None] * code[:, None]
        second[:, :dim, :dim] += covariance
        new = [
            torch.linalg.solve((there[:, None, None] * second).sum(0), (there[:, None] * code).T @ value).T
            for value, there in zip(values, seen)
        ]
        moved = max((a - b).abs().max().item() for a, b in zip(found, new))
        found = new
        if moved < tolerance:
            break
    return [a[:, :dim] for a in found], [a[:, dim] for a in found]


class Known(nn.Module):
    """An encoder that reads loc and log scale from the data."""

    def forward(self, x):
        loc, log_scale = x.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


def known(fusion, names="abc", dim=1, prior=None, repeated=()):
    """A model whose data are the parameters of its experts."""
    parts = {
        n: mm.Modality(mm.NormalLikelihood(mm.mlp(dim, 2 * dim), 1.0), Known(), repeated=n in repeated) for n in names
    }
    return mm.MultimodalVAE(parts, prior or mm.StandardNormal(dim), fusion)


def drawn(rows, names="abc", dim=1):
    return {name: torch.cat([2 * torch.randn(rows, dim), 0.4 * torch.randn(rows, dim)], -1) for name in names}


class Modes:
    """z ~ sum_k N(loc_k, I) / K, and x is z[:seen] with little noise: the posterior has a mode in each component.

    Draws of the prior that fit x are few; the guide is the posterior of the first component.
    """

    def __init__(self, components, dim, seen, noise, seed=0):
        generator = torch.Generator().manual_seed(components + dim + seed)
        self.seen, self.noise = seen, noise
        self.loc = 3 * torch.randn(components, dim, generator=generator)
        self.loc[:, :seen] = 0.3 * torch.randn(components, seen, generator=generator)
        self.prior = dist.MixtureSameFamily(
            dist.Categorical(torch.ones(components)), dist.Normal(self.loc, 1.0).to_event(1)
        )

    def simulate(self, rows=24):
        z = self.prior.sample((rows,))[:, : self.seen]
        return {"a": z + self.noise * torch.randn(z.shape)}

    def components(self, x):
        """Means (row, component, dim), standard deviations (dim,), and log p(x, component), (row, component)."""
        precision = torch.ones(self.loc.shape[-1])
        precision[: self.seen] += self.noise**-2
        shift = self.loc.repeat(len(x), 1, 1)
        shift[..., : self.seen] += x.unsqueeze(1) / self.noise**2
        density = dist.Normal(self.loc[:, : self.seen], (1 + self.noise**2) ** 0.5).to_event(1).log_prob(x.unsqueeze(1))
        return shift / precision, precision.rsqrt(), density - torch.tensor(float(len(self.loc))).log()

    def moments(self, x):
        loc, sd, log = self.components(x)
        share = log.softmax(-1).unsqueeze(-1)
        mean = (share * loc).sum(1)
        return mean, ((share * (loc**2 + sd**2)).sum(1) - mean**2).sqrt(), log.logsumexp(-1)

    def model(self, x, mask):
        with pyro.plate("data", len(x["a"]), dim=-2):
            z = pyro.sample("z", self.prior)
            with pyro.plate("a_plate", 1, dim=-1):
                pyro.sample("a", dist.Normal(z[..., : self.seen], self.noise).to_event(1), obs=x["a"].unsqueeze(1))

    def guide(self, x, mask):
        loc, sd, _ = self.components(x["a"])
        with pyro.plate("data", len(loc), dim=-2):
            pyro.sample("z", dist.Normal(loc[:, :1], sd).to_event(1))
