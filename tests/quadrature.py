"""The second oracle: models whose z has one dimension, and no posterior that is normal; sums over a grid tell all.

    z ~ N(0, 1),   x_m | z ~ any likelihood of any curve of z

`Exact` is the fusion that returns these posteriors, or wrong ones that are known to be wrong in one way.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.arrays import with_axes

GRID = torch.linspace(-6.5, 6.5, 2601, dtype=torch.float64)
STEP = 0.005


class OnGrid(dist.TorchDistribution):
    """Of log densities (point, row): draws by the inverse of the distribution function, densities between points."""

    arg_constraints, support, has_rsample = {}, dist.constraints.real_vector, False

    def __init__(self, log_density: Tensor, batch: tuple[int, ...]):
        self.log_density = log_density
        super().__init__(torch.Size(batch), torch.Size([1]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return OnGrid(self.log_density, tuple(batch_shape))

    def mapped(self, function):
        return OnGrid(self.log_density, self.log_density.shape[1:])

    @property
    def mean(self):
        return (self.log_density.exp() * STEP * GRID.unsqueeze(1)).sum(0).reshape(*self.batch_shape[-2:], 1)

    def sample(self, sample_shape=()):
        shape, rows = torch.Size([*sample_shape, *self.batch_shape]), self.log_density.shape[1]
        below = self.log_density.exp().cumsum(0).T.contiguous()
        points = torch.rand(rows, shape.numel() // rows) * below[:, -1:]
        z = GRID[torch.searchsorted(below, points).clamp(max=len(GRID) - 1)]
        return (z + STEP * (torch.rand(z.shape) - 0.5)).T.reshape(*shape, 1)

    def log_prob(self, value):
        place = ((value.reshape(-1, self.log_density.shape[1]) - GRID[0]) / STEP).clamp(0, len(GRID) - 1.001)
        left, share = place.long(), place - place.long()
        found = (1 - share) * self.log_density.gather(0, left) + share * self.log_density.gather(0, left + 1)
        return found.reshape(value.shape[:-1])


class Exact(mm.Fusion):
    """p(z | x_S) to a power, moved: 1 and 0 are the truth; the decoders are the model's own."""

    def __init__(self, decoders, power: float = 1.0, moved: float = 0.0):
        super().__init__()
        with torch.no_grad():
            self.curves = {name: decoder(GRID.reshape(-1, 1, 1, 1)).base_dist for name, decoder in decoders.items()}
        self.power, self.moved = power, moved

    def joint(self, x, mask, rows: int) -> Tensor:
        """log p(z) p(x_S | z), (point, row); x has (row, repeat, *event)."""
        total = dist.Normal(0.0, 1.0).log_prob(GRID).unsqueeze(1).expand(-1, rows)
        for name, value in x.items():
            there = with_axes(mask[name], value.dim())
            logs = self.curves[name].log_prob(torch.where(there, value.double(), 1.0))
            total = total + torch.where(there, logs, 0).flatten(2).sum(-1)
        return total.detach()

    def forward(self, experts):
        seen = experts.seen
        mask = {name: s.entries if s.elements is None else s.elements for name, s in seen.items()}
        log = self.power * self.joint({name: s.x for name, s in seen.items()}, mask, experts.rows)
        log = log.roll(round(self.moved / STEP), 0)
        return OnGrid(log - log.logsumexp(0) - math.log(STEP), (experts.rows, 1))

    def log_prob(self, x, mask=None, given=None) -> Tensor:
        """log p(x_S) of each row, (row,), in nats."""
        return self._of(x, mask, given).logsumexp(0) + math.log(STEP)

    def posterior(self, x, mask=None, given=None) -> Tensor:
        """What each point of the grid holds of p(z | x_S), (point, row)."""
        return self._of(x, mask, given).softmax(0)

    def _of(self, x, mask, given):
        batch = mm.Batch.of(x, mask).only(given)
        data = ({name: value[name].unsqueeze(1) for name in batch} for value in (batch, batch.mask))
        return self.joint(*data, batch.rows)


class Curve(nn.Module):
    """A smooth function of z, fixed."""

    def __init__(self, features: int, seed: int, gain: float = 0.6, start: float = 0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(shape, generator=generator) for shape in ((1, 6), (6,), (6, features))]
        self.inner, self.shift, self.outer = (nn.Parameter(value.double()) for value in drawn)
        self.gain, self.start = gain, start

    def forward(self, z):
        return self.gain * torch.tanh(z @ self.inner + self.shift) @ self.outer + self.start


class Family(nn.Module):
    """A likelihood of the user's own: a distribution of what a curve gives."""

    def __init__(self, net, family):
        super().__init__()
        self.net, self.family = net, family

    def forward(self, z):
        return self.family(self.net(z)).to_event(1)


LIKELIHOODS = {
    "Bernoulli": lambda: mm.BernoulliLikelihood(Curve(2, 1, 1.5)),
    "Binomial": lambda: mm.BinomialLikelihood(Curve(2, 2), 16),
    "Normal": lambda: mm.NormalLikelihood(Curve(2, 3), 0.5),
    "Normal, sharp": lambda: mm.NormalLikelihood(Curve(2, 4), 0.08),
    "Laplace": lambda: mm.LaplaceLikelihood(Curve(2, 5), 0.5),
    "StudentT": lambda: mm.StudentTLikelihood(Curve(2, 6), 0.3, 2.5),
    "tokens": lambda: mm.CategoricalLikelihood(nn.Sequential(Curve(12, 7, 1.5), nn.Unflatten(-1, (3, 4)))),
    "Poisson": lambda: mm.PoissonLikelihood(Curve(2, 8, 0.5, 1.0)),
    "Poisson, large": lambda: mm.PoissonLikelihood(Curve(2, 9, 0.02, 8.0)),
    "NegativeBinomial": lambda: mm.NegativeBinomialLikelihood(Curve(2, 10, 0.5, 1.0), 2.0),
    "Gamma": lambda: Family(Curve(2, 11), lambda out: dist.Gamma(3.0, out.exp())),
    "LogNormal": lambda: Family(Curve(2, 12), lambda out: dist.LogNormal(out, 0.5)),
    "VonMises": lambda: Family(Curve(2, 13), lambda out: dist.VonMises(out, torch.full_like(out, 3.0))),
    "zero-inflated": lambda: Family(
        Curve(2, 14, 0.5, 1.0), lambda out: dist.ZeroInflatedPoisson(out.exp(), gate=torch.tensor(0.3))
    ),
}


def model(*names: str, power: float = 1.0, moved: float = 0.0) -> mm.MultimodalVAE:
    """A model of those likelihoods, its guide exact, or wrong in a known way."""
    parts = {name: mm.Modality(LIKELIHOODS[name](), nn.Identity()) for name in names}
    decoders = {name: part.decoder for name, part in parts.items()}
    return mm.MultimodalVAE(parts, mm.StandardNormal(1), Exact(decoders, power, moved))


def holes(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Single entries of the first, whole rows of the others; row 0 has nothing."""
    mask = {name: torch.rand(v.shape if n == 0 else v.shape[:1]) > 0.3 for n, (name, v) in enumerate(x.items())}
    for value in mask.values():
        value[0] = False
    return mask
