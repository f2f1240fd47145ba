"""What every fusion is, and the natural parameters that most of them work on."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.distributions import is_normal
from pyro_mmvae.experts import Experts, otherwise, unit_normal
from pyro_mmvae.stack import Stack


class Fusion(nn.Module):
    """Abstract: how the experts of a row are combined. A row with nothing given gets the model's own prior.

    Example:
        >>> import pyro_mmvae as mm
        >>> class First(mm.Fusion):
        ...     def fuse(self, experts):
        ...         return next(q for _, q, _ in experts.apart())
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), First())
        >>> bool((vae.posterior(x).mean == vae.posterior(x, given=["a"]).mean).all())
        True
    """

    def forward(self, experts: Experts | None) -> Distribution:
        if experts is None:
            raise ValueError(
                f"{type(self).__name__}() as a prior depends on the data and cannot be drawn from without; give x, or"
                f" use mm.DynamicPrior(mm.{type(self).__name__}(), otherwise=mm.StandardNormal(dim))"
            )
        if not experts.given:
            return experts.prior
        fused = self.fuse(experts)
        return fused if experts.everywhere() else otherwise(experts.any(), fused, experts.prior)

    def fuse(self, experts: Experts) -> Distribution:
        """The posterior of the rows with something given; what it returns for the others is not used.

        Args:
            experts: at least one; batch (row, repeat), event (dim,).

        Returns:
            A distribution with batch (row, 1), event (dim,), valid on every row.
        """
        raise NotImplementedError


class WithPriorExpert(Fusion):
    """Abstract: a fusion in which the prior may stand as one of the experts."""

    def __init__(self, prior_expert: bool = False):
        super().__init__()
        self.prior_expert = prior_expert


def natural(experts: Experts) -> tuple[Tensor, Tensor, Stack]:
    """Precision and precision-weighted mean of the experts, (expert, row, 1, dim), zero where not given, and the
    experts that they are of."""
    stack = experts.stack()
    if stack.gathered:
        loc, scale = stack.entries()
        precision = scale**-2
        return stack.laid_out(precision), stack.laid_out(precision * loc), stack
    precision = stack.scale**-2
    if not stack.whole:
        precision = torch.where(stack.given.unsqueeze(-1), precision, 0)
    return precision, precision * stack.loc, stack


def prior_normal(experts: Experts) -> dist.Normal:
    """The prior as a factor of a product, of a batch that broadcasts to (row, 1): the model's if it is a diagonal
    normal, else N(0, I)."""
    prior = experts.plain_prior
    return (prior if is_normal(prior) else unit_normal(experts)).base_dist


def with_prior(experts: Experts, precision: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Precisions and shifts (expert, row, 1, dim) with those of the prior in front."""
    prior = prior_normal(experts).expand(precision.shape[1:])
    own = prior.scale**-2
    return torch.cat([own.unsqueeze(0), precision]), torch.cat([(own * prior.loc).unsqueeze(0), shift])


def times_prior(experts: Experts, precision: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and shift (..., row, 1, dim) of a product with the prior as one more factor."""
    prior = prior_normal(experts)
    own = prior.scale**-2
    return precision + own, shift + own * prior.loc


def product_of(experts: Experts, prior_expert: bool) -> tuple[Tensor, Tensor, Stack]:
    """Precision and precision-weighted mean of the product of what is given and, if it is an expert, of the prior,
    (row, 1, dim), and the experts that they are of. Without the prior the precision is one where nothing is given."""
    factors, shifts, stack = natural(experts)
    precision, shift = factors.sum(0), shifts.sum(0)
    if prior_expert:
        return *times_prior(experts, precision, shift), stack
    return filled(precision, stack.given), shift, stack


def even(given: Tensor) -> Tensor:
    """Equal weights for the components that are given, (component, row, 1); for all of them where none is."""
    there = torch.where(given.any(0), given, True).double()
    return there / there.sum(0)


def filled(precision: Tensor, given: Tensor) -> Tensor:
    """Precision one on rows without any expert: the prior replaces them, and until then nothing may divide by zero."""
    return torch.where(given.any(0).unsqueeze(-1), precision, 1)
