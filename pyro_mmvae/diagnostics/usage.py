"""What the code is used for: how much a row takes of it, which dimensions are in use, and where all rows lie."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Distribution, Independent
from torch import Tensor

from pyro_mmvae.arrays import counted, whole
from pyro_mmvae.data import Arrays
from pyro_mmvae.distributions import Mixture, Switch, drawn_part, mapped, moments_of
from pyro_mmvae.distributions.base import plain
from pyro_mmvae.errors import standard_error, variance
from pyro_mmvae.modes import tool
from pyro_mmvae.programs import with_posterior
from pyro_mmvae.questions import opened
from pyro_mmvae.weights import NUMBERS_AT_ONCE

ACTIVE = 0.01  # variance of the posterior means above which a dimension counts as active


@dataclass(frozen=True, repr=False)
class Usage:
    """The KL term of the ELBO, taken apart; all in nats, means over the rows that were scored.

    kl = information + marginal, exactly: all are measured on the same draws.

    Attributes:
        kl, kl_se: E KL(q(z | x_S), p(z)) and its standard error over rows.
        information: I(row, z), what the code tells of which row it is; it cannot exceed log(rows).
        marginal: KL(q(z), p(z)), how far the codes of all rows together lie from the prior: what `mm.generate` suffers
            from, and another prior cures.
        kl_of: (dim,), KL of each dimension's marginal; NaN where the posterior or the prior is neither a product over
            dimensions nor a mixture of such.
        spread: (dim,), variance over all rows of the posterior means.
        active: (dim,), bool, whether that is above 0.01.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> mm.usage(vae, x).kl_of.shape
        torch.Size([2])
    """

    kl: float
    kl_se: float
    information: float
    marginal: float
    kl_of: Tensor
    spread: Tensor
    active: Tensor

    def __repr__(self) -> str:
        active, dims = int(self.active.sum()), counted(len(self.active), "dimension")
        unknown = bool(self.spread.isnan().all())
        return (
            f"KL to the prior {self.kl:z.2f} +- {self.kl_se:.2f} nats a row = {self.information:z.2f} of information"
            f" + {self.marginal:z.2f} from the prior to all codes together;"
            f" {'one row does not tell which' if unknown else active} of {dims} {'are ' if unknown else ''}active"
        )


@tool
def usage(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    given: Collection[str] | None = None,
    rows: int = 500,
    num_draws: int = 20,
) -> Usage:
    """How the guide uses the code z: the KL of the ELBO by dimension, and by what it says of a row and of all of them.

    Args:
        vae: a `MultimodalVAE` with a z.
        x, mask: as in `vae.model`; a few hundred rows or more.
        given: S; None = all that is observed.
        rows: how many rows, at random, have their draws scored under every row's posterior; all, if there are fewer.
        num_draws: draws a row.

    Returns:
        `Usage`.

    Raises:
        ValueError: bad input, or a model without a z.

    Reference:
        Hoffman and Johnson, 2016, ELBO Surgery: Yet Another Way to Carve Up the Variational Evidence Lower Bound,
        http://approximateinference.org/accepted/HoffmanJohnson2016.pdf; Burda, Grosse and Salakhutdinov, 2016,
        https://arxiv.org/abs/1509.00519 (active units)

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = usage(vae, x)
        >>> abs(found.kl - found.information - found.marginal) < 1e-4
        True
    """
    vae, rows, num_draws = with_posterior(vae), whole("rows", rows), whole("num_draws", num_draws)
    batch = opened(vae, x, mask, given)
    levels = hasattr(vae.prior, "guide")  # with the experts it is p(z | a draw from above)
    q, prior = vae.posterior(batch), vae.prior(None if levels else vae.experts(batch))
    q, prior = drawn_part(q), drawn_part(prior)  # what stands beside z is no code
    z = q.sample((num_draws,))
    some: Any = slice(None)
    if batch.rows > rows:
        some = torch.randperm(batch.rows, device="cpu")[:rows].to(z.device)
    own, at_prior = q.log_prob(z)[:, some], _of_rows(prior).log_prob(z)[:, some]
    together = _among_all(q, z[:, some]) - math.log(batch.rows)
    kl = (own - at_prior).mean(0)
    spread = variance(moments_of(q)[0])
    return Usage(
        float(kl.mean()),
        float(standard_error(kl)),
        float((own - together).mean()),
        float((together - at_prior).mean()),
        _by_dimension(q, _of_rows(prior), z, some),
        spread,
        spread > ACTIVE,
    )


def _among_all(q: Distribution, z: Tensor) -> Tensor:
    """The log of the sum of every row's density at the codes z (draw, row, dim), (draw, row), some codes at a time."""
    densities = getattr(q, "components", q).batch_shape.numel() * z.shape[-1]
    some = z.flatten(0, 1).split(max(1, NUMBERS_AT_ONCE // densities))
    return torch.cat([q.log_prob(codes.unsqueeze(1)).logsumexp(-1) for codes in some]).unflatten(0, z.shape[:2])


def _of_rows(prior: Distribution) -> Distribution:
    """A prior with batch () or (row, 1) as one with batch () or (row,)."""
    if not prior.batch_shape:
        return prior
    return mapped(prior, lambda value, event_dims: value.squeeze(-1 - event_dims))


def _by_dimension(q: Distribution, prior: Distribution, z: Tensor, some: Any) -> Tensor:
    if not (_separable(q) and _separable(prior)):
        return torch.full(z.shape[-1:], torch.nan)
    columns = [(d, z[..., d : d + 1]) for d in range(z.shape[-1])]
    return torch.stack([(_only(q, d).log_prob(v) - _only(prior, d).log_prob(v))[:, some].mean() for d, v in columns])


def _only(q: Distribution, d: int) -> Distribution:
    """The marginal of one dimension."""
    return mapped(q, lambda value, event_dims: value[..., d : d + 1] if event_dims else value)


def _separable(q: Distribution) -> bool:
    """Is it a product over the dimensions of z, or a mixture of such?"""
    if isinstance(q, Switch):
        return _separable(q.yes) and _separable(q.no)
    if isinstance(q, Mixture):
        return _separable(q.components)
    return isinstance(q, Independent) and plain(q.base_dist) and not q.base_dist.event_shape
