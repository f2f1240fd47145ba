"""Do the data fit their likelihoods, in shape and in value? What does not is named before anything is computed."""

from __future__ import annotations

import torch
from pyro.distributions import Distribution, Independent
from torch import Tensor
from torch.distributions import constraints

from pyro_mmvae.arrays import with_axes
from pyro_mmvae.checks import BadRow
from pyro_mmvae.data import Batch
from pyro_mmvae.distributions import Columnwise, feasible


def check_values(name: str, batch: Batch, p: Distribution, repeated: bool) -> None:
    """Raises ValueError if a modality's entries do not fit its likelihood p (batch (1, 1)) in shape or support."""
    x, mask = batch[name], batch.mask[name]
    if repeated and x.dim() > 1 and x.shape[1] == 0:
        raise ValueError(f"modality {name!r} is empty: no repeats; give at least one, NaN where there is none")
    if not repeated:  # the support's bounds have the batch axes (row, repeat) of a likelihood
        x, mask = x.unsqueeze(1), mask.unsqueeze(1)
    check_event(name, x.shape[2:], p, repeated)
    _check_density(name, x[:1, :1], p)
    _check_support(name, x, mask, p)


def check_event(name: str, event: torch.Size, p: Distribution, repeated: bool) -> None:
    """Raises ValueError if entries of that shape are not what the likelihood p of a modality is of."""
    if event != p.event_shape:
        raise ValueError(
            f"modality {name!r} has entries of shape {tuple(event)}, its decoder gives {tuple(p.event_shape)};"
            f" reshape the data{' to (row, repeat, *event)' * repeated}, or mend the decoder's last layer"
        )


def _check_density(name: str, x: Tensor, p: Distribution) -> None:
    """Raises ValueError for a distribution of the user's that does not give one number for one entry x (1, 1, *event):
    what belongs to all rows together would count in each of them."""
    base = p.base_dist if isinstance(p, Independent) else p
    if type(base).__module__.partition(".")[0] in ("pyro", "torch", "pyro_mmvae"):
        return
    try:
        found = p.log_prob(x if x.is_floating_point() else x.to(torch.get_default_dtype())).shape
    except (ValueError, RuntimeError, IndexError):  # of what is hidden, and zero here
        return
    if tuple(found) != tuple(p.batch_shape):
        raise ValueError(
            f"the likelihood of {name!r}, a {type(base).__name__}, has log-probabilities {tuple(found)} for one entry,"
            f" where its batch is {tuple(p.batch_shape)}; sum over the axes of its event, and over no other"
        )


def _check_support(name: str, x: Tensor, mask: Tensor, p: Distribution) -> None:
    try:
        support = p.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if support is constraints.real:  # a batch has nothing else
            return
        fits = support.check(x)
        if support.is_discrete and support.event_dim:  # of a multinomial, torch asks for their sum alone
            fits = fits & (x == x.round()).all(-1)
    except (ValueError, RuntimeError):  # a support that cannot be asked, or is not there
        return
    while mask.dim() > fits.dim():  # a support of whole vectors says nothing of a part of one
        mask = mask.all(-1)
    mask = with_axes(mask, fits.dim())
    _refuse(name, x, ~fits & mask, p, support)
    edge = _on_edge(x, support)
    edge = None if edge is None else edge & mask
    if edge is not None and bool(edge.any()):
        rows = edge.flatten(1).any(1).nonzero().squeeze(1)[:100]  # of pixels, all rows may have some
        wrong = edge[rows] & with_axes(_without_density(x[rows], mask[rows], p), edge.dim())
        _refuse(name, x, torch.zeros_like(edge).index_copy(0, rows, wrong), p, None)


def _without_density(x: Tensor, mask: Tensor, p: Distribution) -> Tensor:
    """Where p has an infinite density, or none, among what is observed: on its edge, at one code as at all others."""
    while isinstance(p, Independent):
        p = p.base_dist
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return ~p.log_prob(torch.where(with_axes(mask, x.dim()), x, feasible(p, x))).isfinite()


def _on_edge(x: Tensor, support: constraints.Constraint) -> Tensor | None:
    """Which values lie on the bounds of a closed interval or a simplex; None of another support."""
    if support.is_discrete:
        return None
    if support is constraints.simplex:
        return (x == 0).any(-1)
    bounds = [getattr(support, name) for name in ("lower_bound", "upper_bound") if hasattr(support, name)]
    return torch.stack([x == bound for bound in bounds]).any(0) if bounds else None


def _refuse(name: str, x: Tensor, wrong: Tensor, p: Distribution, support: constraints.Constraint | None) -> None:
    """Raises the error about the first of the wrong values, off the support, or on its edge if that is None."""
    if not bool(wrong.any()):
        return
    where = wrong.nonzero()[0].tolist()
    value, column = x[tuple(where)], ""
    p = p.base_dist if isinstance(p, Independent) else p
    if isinstance(p, Columnwise):
        p, column = p.parts[where[-1]], f" in column {where[-1]}"
        support = p.support
    advice = f"off the support of its likelihood {type(p).__name__} ({_at(support, wrong, where)}); mend or"
    if support is None:
        advice = f"where its likelihood {type(p).__name__} has an infinite density or none; move it off the edge,"
    raise BadRow(
        f"modality {name!r} has the value {f'{value.item():g}' if value.dim() == 0 else value.tolist()}{column}",
        where[0],
        f"{advice} mask it, or use another likelihood",
    )


def _at(support: constraints.Constraint | None, entries: Tensor, where: list[int]) -> str:
    """A support in one line; bounds that differ from entry to entry are those of the one at that place."""
    bounds = {name: getattr(support, name) for name in ("lower_bound", "upper_bound") if hasattr(support, name)}
    for name, bound in bounds.items():
        if isinstance(bound, Tensor):
            bounds[name] = f"{bound.expand(entries.shape)[tuple(where)].item():g}"
    found = ", ".join(f"{name}={bound}" for name, bound in bounds.items())
    return f"{type(support).__name__.strip('_')}({found})" if found else " ".join(str(support).split())
