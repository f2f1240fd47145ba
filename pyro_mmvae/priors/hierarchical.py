"""A prior with a latent code of its own above z."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_mmvae.distributions.base import Frozen, Mapped, mapped
from pyro_mmvae.experts import Experts
from pyro_mmvae.modality import ask

Lazy = Callable[[Tensor], Distribution]
SITE = "prior.top.w"  # ends as the private codes do, so that every tool knows it for a latent one


class HierarchicalNormal(nn.Module):
    """A latent code above z: v ~ top, z | v ~ down(v), with its own guide r(v | z) = up(z).

    In the model it draws the site "prior.top.w" and returns p(z | v); the guide draws v after z. The marginal p(z) has
    no closed form: without experts, where a tool asks for p(z), it is an `Ancestral` distribution.

    Args:
        dim: of z.
        top: the prior of v, any prior that does not depend on data.
        down: v (..., size of v) -> normal with event (dim,).
        up: z (..., dim) -> distribution with the event of v.

    Reference:
        Ranganath, Tran and Blei, 2016, Hierarchical Variational Models, https://arxiv.org/abs/1511.02386

    Example:
        >>> import pyro_mmvae as mm
        >>> prior = HierarchicalNormal(16, mm.StandardNormal(4), mm.encoder(4, 32, dim=16), mm.encoder(16, 32, dim=4))
        >>> prior(None).event_shape
        torch.Size([16])
    """

    def __init__(self, dim: int, top: nn.Module, down: nn.Module, up: nn.Module):
        super().__init__()
        self.dim = dim
        self.top, self.down, self.up = top, down, up
        self._drawn: dict[str, Tensor] = {}

    def forward(self, experts: Experts | None = None) -> Distribution:
        if experts is None:
            return Ancestral(self.dim, self.top(None), self._down, self._up, self._drawn)
        v = pyro.sample(SITE, self.top(None).expand((experts.rows, 1)))
        return self._down(v)

    def guide(self, z: Tensor) -> None:
        """Draws v given z, inside the guide's plate; where z is a draw of p(z), v is the one that it was drawn with."""
        r, own = self._up(z), dict(self._drawn)
        self._drawn.clear()
        if own and own["z"].shape == z.shape:
            r = Behind(r, (own["z"] == z).all(-1), own["v"])
        pyro.sample(SITE, r)

    def _down(self, v: Tensor) -> Distribution:
        return ask("network down", "HierarchicalNormal", self.down, v)

    def _up(self, z: Tensor) -> Distribution:
        return ask("network up", "HierarchicalNormal", self.up, z)


class Ancestral(Frozen):
    """The marginal of z in p(v) p(z | v): draws are exact, the density is estimated.

    log_prob = log p(v) p(z | v) / r(v | z), v ~ r(v | z): a lower bound in expectation, that is exact where r is the
    posterior of v. At its own last draw v is the one behind that: with r(v | z) it makes the density of both, so that a
    row of which nothing was seen, whose guide this is, weighs one.

    Args:
        dim: of z.
        top: of v, batch (...).
        down: v -> p(z | v).
        up: z -> r(v | z).
        drawn: told of every draw, "z" and "v".
    """

    def __init__(self, dim: int, top: Distribution, down: Lazy, up: Lazy, drawn: dict[str, Tensor]):
        self.top, self.down, self.up, self._drawn = top, down, up, drawn
        self._own: tuple[Tensor, Tensor] | None = None
        super().__init__(top.batch_shape, torch.Size((dim,)), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return self.top.has_rsample

    def mapped(self, function: Mapped) -> Ancestral:
        top = mapped(self.top.expand(self.batch_shape), function)
        return Ancestral(self.event_shape[0], top, self.down, self.up, self._drawn)

    def detached(self) -> Ancestral:
        """Itself, as `Behind` is: where both know the code behind a draw, r cancels between them, and so does all else
        of a row of which nothing was seen; on average no gradient is lost or won by that."""
        return self

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        v = self.top.expand(self.batch_shape)(torch.Size(sample_shape))
        z = self.down(v).rsample()
        self._own = z.detach(), v.detach()
        self._drawn.update(z=self._own[0], v=self._own[1])
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        q = self.up(value)
        if self._own is not None and self._own[0].shape == value.shape:
            q = Behind(q, (self._own[0] == value).all(-1), self._own[1])
        v = q.rsample() if q.has_rsample else q.sample()
        return self.top.log_prob(v) + self.down(v).log_prob(value) - q.log_prob(v)


class Behind(Frozen):
    """r, whose draws are known where `own` (...) holds."""

    def __init__(self, r: Distribution, own: Tensor, v: Tensor):
        self.r, self.own, self.v = r, own.unsqueeze(-1), v
        super().__init__(own.shape, r.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.r.support

    @property
    def has_rsample(self) -> bool:
        return self.r.has_rsample

    def mapped(self, function: Mapped) -> Distribution:
        return mapped(self.r, function)

    def detached(self) -> Behind:
        """See `Ancestral`."""
        return self

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return torch.where(self.own, self.v, self.r(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.r.log_prob(value)
