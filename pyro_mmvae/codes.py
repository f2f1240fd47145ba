"""Codes of a model: the posteriors that they are drawn from, several side by side, and one to try a decoder with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.checks import distribution
from pyro_mmvae.distributions import components_of, is_mixture, like, stratum
from pyro_mmvae.experts import Experts, check_size
from pyro_mmvae.fusion import Fusion
from pyro_mmvae.view import View


def fused(fusion: Callable[[Experts], Distribution], experts: Experts) -> Distribution:
    """q(z | x_S); raises TypeError for what is no distribution, and ValueError for one without the axes of rows."""
    q = distribution("the fusion", fusion(experts))
    if len(q.event_shape) != 1 or (len(q.batch_shape) != 2 and q.batch_shape.numel() != 1):  # one serves all rows
        raise ValueError(
            f"the fusion returned batch {tuple(q.batch_shape)} and event {tuple(q.event_shape)}; for these rows it must"
            f" have batch ({experts.rows}, 1) and event (dim,): keep the axis of repeats, and add .to_event(1)"
        )
    return q


def posterior_of(
    fusion: Callable[[Experts], Distribution], experts: Experts, view: View
) -> tuple[Distribution, dict[str, Any]]:
    """q(z | x_S), or the part of it that is the view's stratum; and what its site tells the objective, the weight of
    that part as `share`, (row, 1) or one number.

    Where nothing was seen that is the prior, whose components, if it has any, are no strata.

    Raises:
        ValueError: more components than strata, so that some would be left out of the loss, or none for several strata.
    """
    q = fused(fusion, experts)
    if view.stratum is None:
        return q, {}
    if not experts:
        return q, {"share": float(view.stratum == 0)}
    part, share = stratum(q, *_places(experts, view.stratum, view.strata, components_of(q), is_mixture(q)))
    return part, {"share": share}


def _places(
    experts: Experts, place: int, strata: Sequence[str] | int | None, count: int, mixed: bool
) -> tuple[int, int]:
    """The first component of a stratum, and how many it has, of `count` in all; `mixed`: whether of a mixture.

    A modality has one for each repeat, or one for all of them; one that no encoder looks at has none.
    """
    if strata is None or isinstance(strata, int):
        sizes = [1] * (count if strata is None else strata)
    else:
        sizes = [experts.given[name].shape[1] if name in experts else 0 for name in strata]
        sizes = sizes if sum(sizes) <= count else [min(size, 1) for size in sizes]
    if not mixed and sum(sizes) > 1:
        raise ValueError(
            f"the posterior is no mixture and the loss has {sum(sizes)} strata, the components of one; give a loss"
            " without strata, such as mm.Objective()"
        )
    if count > sum(sizes):
        raise ValueError(
            f"the posterior is a mixture of {count} components and the loss has {sum(sizes)} strata; a prior expert is"
            " one that it would leave out: give a loss without strata, such as mm.Objective()"
        )
    return (sum(sizes[:place]), sizes[place]) if place < len(sizes) and sizes[place] else (count, 1)


def sampled(prior: Distribution) -> Tensor:
    """z in the model; raises ValueError if the guide's has another size."""
    z = pyro.sample("z", prior)
    if prior.event_shape:
        check_size("the guide gives", z.shape[-1:], prior)
    return z  # type: ignore[no-any-return]


def own_of(experts: Experts, view: View) -> Experts:
    """The unimodal posteriors of the private codes, beside those of z."""
    return experts.private(view.given if view.private is None else view.private)


def beside(codes: Sequence[Tensor]) -> Tensor:
    """The codes side by side, each (..., row, 1, its own size)."""
    if len(codes) == 1:
        return codes[0]
    shape = torch.broadcast_shapes(*[code.shape[:-1] for code in codes])
    return torch.cat([code.expand(*shape, code.shape[-1]) for code in codes], -1)


def one_code(prior: nn.Module, experts: Experts | None) -> Tensor:
    """A code for one row, (1, 1, dim); for a prior that cannot do without data a zero, of the size of the experts."""
    if not isinstance(prior, Fusion):
        p = prior(None)
        if len(p.event_shape) != 1 or p.batch_shape.numel() != 1:  # one for all rows
            raise ValueError(
                f"the prior has batch {tuple(p.batch_shape)} and event {tuple(p.event_shape)}; it must have event"
                " (dim,), and no batch of rows: add .to_event(1), or let it be the same for every row"
            )
        return p.expand((1, 1)).sample()
    if experts is None or not experts.given:
        return prior(None).sample()  # which says why not
    q = experts.entries(next(iter(experts)))
    return like(q).new_zeros(1, 1, *q.event_shape)
