"""Likelihood heads: z (..., dim) -> p(x | z), batch (...), event as the network's output.

Each takes a network whose output has the shape of the data (`CategoricalLikelihood`: and one more axis of categories).
Log-probabilities are properly normalised and summed over all entries of the event, in nats.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_mmvae.arrays import scale_of, whole
from pyro_mmvae.distributions import Binomial, Categorical, NegativeBinomial, Normal, Poisson
from pyro_mmvae.heads import SMALLEST, as_exact, one_tensor

QUICK = 10.0
"""How many times as far as other parameters the logarithm of a learnt scale goes in a step of the optimiser."""


class LearnedScale(nn.Module):
    """A scale that is learnt and the same for every row: positive, of a shape that broadcasts with the data's.

    A step of Adam is as long as the learning rate, whatever the gradient: at 1e-3 the logarithm would take 3000 of them
    from 1 to 0.05, during which the data would hardly count. So a tenth of the logarithm is the parameter.

    Args:
        shape: () for one number, (features,) for one a feature.
        start: where it starts, a number or a tensor of that shape.

    Example:
        >>> import pyro_mmvae as mm
        >>> head = mm.NormalLikelihood(mm.mlp(2, 40), scale=LearnedScale(40, start=0.5))
        >>> head(torch.zeros(2)).stddev[:2]
        tensor([0.5000, 0.5000], grad_fn=<SliceBackward0>)
    """

    def __init__(self, *shape: int, start: float | Tensor = 1.0):
        super().__init__()
        log = scale_of(start).log()
        self.tenth = nn.Parameter((log / QUICK).expand(shape).clone())

    def forward(self, z: Tensor) -> Tensor:
        return (QUICK * self.tenth).exp()


class Positive(nn.Module):
    """A network made positive by softplus: a scale for each row and feature.

    Example:
        >>> import pyro_mmvae as mm
        >>> bool((Positive(mm.mlp(2, 40))(torch.randn(5, 2)) > 0).all())
        True
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        return softplus(as_exact(self.net(z), z)) + SMALLEST


class Fixed(nn.Module):
    """A positive number or tensor that stays as it is.

    Example:
        >>> Fixed(0.5)(torch.zeros(5, 2))
        tensor(0.5000)
    """

    value: Tensor

    def __init__(self, value: float | Tensor):
        super().__init__()
        value = scale_of(value)
        self.register_buffer("value", value.clone(memory_format=torch.contiguous_format))  # it may be an expanded one

    def forward(self, z: Tensor) -> Tensor:
        return self.value


class Likelihood(nn.Module):
    """What the heads share: a network, and which of its trailing axes are the event. Abstract."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Distribution:
        flat = z.reshape(-1, z.shape[-1])  # one leading axis: layers need not spread over several
        out = as_exact(one_tensor(self.net(flat), self), z)
        entries = self.entries(out.reshape(*z.shape[:-1], *out.shape[1:]), z)
        return entries.to_event(len(entries.batch_shape) - z.dim() + 1)

    def entries(self, out: Tensor, z: Tensor) -> Distribution:
        """The distribution of the single entries, batch (..., *event)."""
        raise NotImplementedError


def _scale(scale: float | Tensor | nn.Module | None) -> nn.Module:
    if scale is None:
        return LearnedScale()
    return scale if isinstance(scale, nn.Module) else Fixed(scale)


class BernoulliLikelihood(Likelihood):
    """Yes or no as 1 or 0; the network gives logits. Grey levels are counts: see `BinomialLikelihood`.

    Example:
        >>> import pyro_mmvae as mm
        >>> p = BernoulliLikelihood(mm.mlp(2, 32, 784))(torch.zeros(5, 1, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([5, 1]), torch.Size([784]))
    """

    def entries(self, out: Tensor, z: Tensor) -> Distribution:
        return dist.Bernoulli(logits=out)


class BinomialLikelihood(Likelihood):
    """Counts 0..total_count, such as grey levels; the network gives logits.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(-1, (8, 8)))
        >>> BinomialLikelihood(net, 16)(torch.zeros(5, 1, 2)).event_shape
        torch.Size([8, 8])
    """

    def __init__(self, net: nn.Module, total_count: int):
        super().__init__(net)
        self.total_count = whole("total_count", total_count, 0)

    def entries(self, out: Tensor, z: Tensor) -> Distribution:
        return Binomial(self.total_count, out)


class NormalLikelihood(Likelihood):
    """Real numbers; the network gives the means.

    Args:
        scale: a positive number or tensor (fixed), a module z -> scale, such as `LearnedScale(40)` (learnt, one a
            feature) or `Positive(mlp(16, 64, 40))` (one a row and feature); None is one learnt number.

    Example:
        >>> import pyro_mmvae as mm
        >>> NormalLikelihood(mm.mlp(2, 32, 40), scale=0.1)(torch.zeros(5, 1, 2)).event_shape
        torch.Size([40])
    """

    def __init__(self, net: nn.Module, scale: float | Tensor | nn.Module | None = None):
        super().__init__(net)
        self.scale = _scale(scale)

    def entries(self, out: Tensor, z: Tensor) -> Distribution:
        return Normal(out, self.scale(z))


class LaplaceLikelihood(NormalLikelihood):
    """Real numbers with exponential tails; scale as in `NormalLikelihood`.

    Example:
        >>> import pyro_mmvae as mm
        >>> LaplaceLikelihood(mm.mlp(2, 32, 40))(torch.zeros(5, 1, 2)).event_shape
        torch.Size([40])
    """

    def entries(self, out: Tensor, z: Tensor) -> Distribution:
        return dist.Laplace(out, self.scale(z))


class StudentTLikelihood(NormalLikelihood):
    """Real numbers with outliers; scale as in `NormalLikelihood`, `df` fixed or a module z -> df.

    Example:
        >>> import pyro_mmvae as mm
        >>> StudentTLikelihood(mm.mlp(2, 32, 40), df=3.0)(torch.zeros(5, 1, 2)).event_shape
        torch.Size([40])
    """

    def __init__(
        self, net: nn.Module, scale: float | Tensor | nn.Module | None = None, df: float | Tensor | nn.Module = 4.0
    ):
        super().__init__(net, scale)
        self.df = _scale(df)

    def entries(self, out: Tensor, z: Tensor) -> Distribution:
        return dist.StudentT(self.df(z), out, self.scale(z))


class CategoricalLikelihood(Likelihood):
    """Categories 0, 1, ...; the network gives logits (..., *event, categories). One label a row has event ().

    Example:
        >>> import pyro_mmvae as mm
        >>> p = CategoricalLikelihood(mm.mlp(2, 32, 10))(torch.zeros(5, 1, 2))
        >>> p.event_shape, p.log_prob(torch.zeros(5, 1)).shape
        (torch.Size([]), torch.Size([5, 1]))
    """

    def entries(self, out: Tensor, z: Tensor) -> Distribution:
        return Categorical(out)


class PoissonLikelihood(Likelihood):
    """Counts; the network gives log rates.

    Let the encoder see log(1 + x), as that of `guess_modalities` does. Raw counts put a row of 17 times the usual total
    so far out that it alone cost 1e7 nats, and so 1000 rows 13,000 on average in place of 157.

    Limits: count times log count cancels in the density, so that in float32 it errs by up to 0.2 nats at counts of 1e5
    and 2 at 1e6; where there are such, call `vae.double()`.

    Example:
        >>> import pyro_mmvae as mm
        >>> PoissonLikelihood(mm.mlp(2, 32, 765))(torch.zeros(5, 1, 2)).event_shape
        torch.Size([765])
    """

    def entries(self, out: Tensor, z: Tensor) -> Distribution:
        most = math.log(torch.finfo(out.dtype).max) - 1  # an infinite rate has no log-probability
        return Poisson(out.clamp(max=most))


class NegativeBinomialLikelihood(Likelihood):
    """Over-dispersed counts with mean mu and variance mu + mu^2 / dispersion; the network gives log mu.

    Args:
        dispersion: a positive number or tensor (fixed), or a module z -> dispersion; None is one learnt number.

    Limits: in float32 the density errs by up to 0.002 nats at counts of 1e3, 0.3 at 1e5 and 3 at 1e6, whatever the
    dispersion; where there are such, call `vae.double()`.

    Example:
        >>> import pyro_mmvae as mm
        >>> p = NegativeBinomialLikelihood(lambda z: z.exp(), dispersion=2.0)(torch.zeros(5, 1, 1))
        >>> mu = torch.tensor(1.0).exp()
        >>> bool(torch.allclose(p.mean, mu)), bool(torch.allclose(p.variance, mu + mu**2 / 2.0))
        (True, True)
    """

    def __init__(self, net: nn.Module, dispersion: float | Tensor | nn.Module | None = None):
        super().__init__(net)
        self.dispersion = _scale(dispersion)

    def entries(self, out: Tensor, z: Tensor) -> Distribution:
        dispersion = self.dispersion(z)
        return NegativeBinomial(dispersion, logits=out - dispersion.log())
