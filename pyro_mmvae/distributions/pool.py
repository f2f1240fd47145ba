"""Log-linear pools: densities to the powers of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import Distribution, Independent
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import kl_divergence, register_kl

from pyro_mmvae.distributions.base import Frozen, Mapped, mapped
from pyro_mmvae.distributions.natural import NaturalNormal, is_correlated, natural_form, product


class LogPool(Frozen):
    """prod_j r_j(z)^(b_j), which is no normalised density: a sum of KL divergences as one.

    For weights that sum to one, sum_j b_j KL(q || r_j) = E_q[log q(z) - log LogPool(z)]. `log_prob` leaves the constant
    out on purpose: it depends on the parameters of the r_j, and the methods that this stands for leave it out.

    Args:
        parts: the r_j, batch (row, 1), event (dim,).
        weights: the b_j, one for each part: zero or more, of the same batch shape. Zero leaves the part out.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> r = [dist.Normal(torch.full((1,), m), 1.0).to_event(1) for m in (-1.0, 3.0)]
        >>> LogPool(r, [torch.tensor(0.5), torch.tensor(0.5)]).normalized().mean
        tensor([1.])
    """

    def __init__(self, parts: Sequence[Distribution], weights: Sequence[Tensor]):
        self.parts, self.weights = list(parts), list(weights)
        shapes = [p.batch_shape for p in self.parts] + [w.shape for w in self.weights]
        super().__init__(torch.broadcast_shapes(*shapes), self.parts[0].event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.parts[0].support

    @property
    def has_rsample(self) -> bool:
        return all(natural_form(p) is not None for p in self.parts)

    def mapped(self, function: Mapped) -> LogPool:
        return LogPool([mapped(p, function) for p in self.parts], [function(w, 0) for w in self.weights])

    def log_prob(self, value: Tensor) -> Tensor:
        logs = [w * p.log_prob(value) for p, w in zip(self.parts, self.weights, strict=True)]
        return torch.stack(torch.broadcast_tensors(*logs)).sum(0)

    def normalized(self) -> Distribution:
        """The normal that is proportional to it.

        Raises:
            NotImplementedError: a part is no normal.
        """
        if not self.has_rsample:
            kinds = ", ".join(type(getattr(p, "base_dist", p)).__name__ for p in self.parts)
            raise NotImplementedError(
                f"a log-linear pool of {kinds} can be scored, not drawn; use normals, or draw with NUTS"
            )
        if any(map(is_correlated, self.parts)):
            forms = [natural_form(p) for p in self.parts]
            shifts = [w.unsqueeze(-1) * f[0] for f, w in zip(forms, self.weights, strict=True) if f]
            precisions = [w.unsqueeze(-1).unsqueeze(-1) * f[1] for f, w in zip(forms, self.weights, strict=True) if f]
            return NaturalNormal(sum(shifts[1:], shifts[0]), sum(precisions[1:], precisions[0]))
        powered = [w.unsqueeze(-1) / p.base_dist.scale**2 for p, w in zip(self.parts, self.weights, strict=True)]
        shifts = [w * p.base_dist.loc for p, w in zip(self.parts, powered, strict=True)]
        return product(sum(powered[1:], powered[0]), sum(shifts[1:], shifts[0]))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.normalized().expand(self.batch_shape).rsample(torch.Size(sample_shape))


@register_kl(Independent, LogPool)
def _kl_independent_pool(q: Independent, pool: LogPool) -> Tensor:
    """E_q[log q - sum_j b_j log r_j] = sum_j b_j KL(q || r_j) + (1 - sum_j b_j) E_q[log q]."""
    parts = [w * kl_divergence(q, p) for p, w in zip(pool.parts, pool.weights, strict=True)]
    total = torch.stack(torch.broadcast_tensors(*parts)).sum(0)
    return total - (1 - sum(pool.weights)) * q.entropy()
