"""What a model says of modalities, seen or not: draws, and means over draws of the codes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import (
    Categorical,
    Distribution,
    HalfCauchy,
    Independent,
    InverseGamma,
    MaskedDistribution,
    MixtureSameFamily,
    Pareto,
    SineBivariateVonMises,
    VonMises,
)
from torch import Tensor

from pyro_mmvae.chance import undisturbed
from pyro_mmvae.checks import refuse
from pyro_mmvae.data import Batch
from pyro_mmvae.distributions import Columnwise, numbers_of
from pyro_mmvae.programs import FAILURES, guide_on, library_of, silent
from pyro_mmvae.questions import devices, nesting
from pyro_mmvae.sites import left_to_model, row_axis, rows_first, value_of
from pyro_mmvae.told import Latents, Shown, Told, told
from pyro_mmvae.warn import warn
from pyro_mmvae.weights import rows_at_once, traces_of

HEAVY = (HalfCauchy, InverseGamma, Pareto)
"""Families whose mean may be infinite where nothing has overflowed."""


class NoMean(ValueError):
    """A likelihood knows no mean."""


def mean_of(site: Any, num_draws: int, rows: int) -> Tensor:
    """The mean over the draws, (1, row, *event)."""
    p: Distribution = site["fn"]
    base = innermost(p)
    try:
        sides = sides_of(base)
        value = sides[0] if sides else base.probs if isinstance(base, Categorical) else p.mean
        if bool(value.isnan().any()) and _is_fine(base):
            raise NotImplementedError("the mean is NaN, and no parameter is")
        if bool(value.isinf().any()) and isinstance(base, HEAVY):
            raise NotImplementedError("the mean is infinite")
    except NotImplementedError as error:
        raise NoMean(
            f"the likelihood of {site['name']!r}, a {type(base).__name__}, knows no mean; take a median of draws,"
            f" mm.translate(vae, x, to={site['name']!r}, num_draws=100).median(0).values"
        ) from error
    events = value.dim() - len(p.batch_shape)
    if sides:
        return _direction(site, sides, events, num_draws, rows)
    value = rows_first(site, value, events, num_draws, rows).mean(0, keepdim=True)
    if isinstance(base, Columnwise):
        _by_column(value, site, base, num_draws, rows)
    return value


def _by_column(value: Tensor, site: Any, base: Columnwise, num_draws: int, rows: int) -> None:
    """Puts what has no mean among numbers into the means of a table: the most probable category, a direction."""
    for column, categories in base.categories().items():
        probs = rows_first(site, categories, 1, num_draws, rows).mean(0, keepdim=True)
        value[..., column] = probs.argmax(-1)
    for column, part in enumerate(base.parts):
        if sides := sides_of(part.expand(base.batch_shape[:-1])):
            value[..., column] = _direction(site, sides, 0, num_draws, rows)


def innermost(p: Distribution) -> Distribution:
    """What is inside of events, and of masks as programs of the user's have them."""
    while isinstance(p, (Independent, MaskedDistribution)):
        p = p.base_dist
    return p


def _direction(site: Any, sides: tuple[Tensor, Tensor], events: int, num_draws: int, rows: int) -> Tensor:
    """An angle has no mean on the line, but (cos, sin) has, and that a direction."""
    every = (rows_first(site, side, events, num_draws, rows) for side in sides)
    return torch.atan2(*(side.mean(0, keepdim=True) for side in every))


def sides_of(base: Distribution) -> tuple[Tensor, Tensor] | None:
    """The means of sine and cosine of angles, also of mixtures of them, (*batch, *event); None of what is none.

    Raises:
        NotImplementedError: angles of which they have no closed form.
    """
    if isinstance(base, SineBivariateVonMises):
        raise NotImplementedError
    if isinstance(base, VonMises):
        length = 1 - base.variance
        return length * base.loc.sin(), length * base.loc.cos()
    if not isinstance(base, MixtureSameFamily):
        return None
    part = base.component_distribution
    sides, events = sides_of(getattr(part, "base_dist", part)), len(base.event_shape)
    probs = base.mixture_distribution.probs
    probs = probs.reshape(*probs.shape, *[1] * events)
    return sides and ((probs * sides[0]).sum(-1 - events), (probs * sides[1]).sum(-1 - events))


def _is_fine(base: Distribution) -> bool:
    """Whether the parameters are finite, so that a mean of NaN is the family's, as of a Cauchy or of df <= 1, or that
    of a part of it."""
    parameters = [value for name, value in vars(base).items() if name in base.arg_constraints]
    tensors = [value for value in parameters if isinstance(value, Tensor)]
    inside = [part for part in vars(base).values() if isinstance(part, torch.distributions.Distribution)]
    if not tensors:
        return bool(inside) and all(map(_is_fine, inside))
    return all(bool(value.isfinite().all()) for value in tensors)


@torch.no_grad()
def predictive(
    vae: Any,
    batch: Batch,
    *,
    num_draws: int,
    given: Collection[str] | None = None,
    latents: Latents | None = None,
    only: Collection[str] | None = None,
    read: Callable[[Any, int, int], Tensor] = value_of,
) -> dict[str, Tensor]:
    """p(x_m | x_S) of every entry, observed ones as well, z known or drawn from the guide, in chunks of rows.

    Args:
        only: the modalities that are asked; a mean that one of them lacks is an error, that of another is left out.
        read: what is asked of a likelihood site: `value_of`, for draws, or `mean_of`.

    Returns:
        name -> (draw, row, *event), or (1, row, *event) for means.
    """
    depth, wanted = nesting(vae, batch), complete(vae, batch, only)
    found: dict[str, Tensor] = {}
    unknown: dict[str, NoMean] = {}
    with silent(), pyro.validation_enabled(True):  # what a network says of odd rows may be NaN
        for rows in torch.arange(batch.rows, device="cpu").split(rows_at_once(wanted, num_draws)):
            seen, full = batch.take(rows).only(given), wanted.take(rows)
            knowing = told(latents or {}, rows, depth, but=full)
            for name, site in _sites(
                vae, seen, full.after(seen), num_draws, depth, knowing, read is not value_of
            ).items():
                if only is not None and name not in only:
                    continue
                try:
                    value = _with_axes_of(batch, read(site, num_draws, len(rows)), site)
                except NoMean as error:
                    unknown[name] = error
                    continue
                if name not in found:  # at once for all rows: pieces of it would lie scattered among what is freed
                    found[name] = value.new_empty(len(value), batch.rows, *value.shape[2:])
                found[name][:, rows] = value
    found = _without(found, unknown, asked=only is not None)
    for name, value in found.items():
        refuse(batch, value.isfinite().transpose(0, 1).reshape(batch.rows, -1).all(1), f"what is drawn of {name!r}")
    return found


def _sites(
    vae: Any, seen: Batch, full: Batch, num_draws: int, depth: int, knowing: Told, means: bool
) -> dict[str, Any]:
    """The likelihood sites of the modalities, z from a guide that was shown `seen`; for their means, or for draws."""
    if library_of(vae) is None:
        model = Shown(seen, depth)(vae.model)
    else:  # in which nothing hangs on what is drawn of x
        model = vae.model if means else poutine.uncondition(vae.model)
    with pyro.plate("draws", num_draws, dim=-1 - depth):
        guide = guide_on(vae.guide, seen)
        trace = poutine.trace(knowing(poutine.replay(model, guide))).get_trace(full, full.mask)
    return {name: site for name in full if (site := trace.nodes.get(name)) and row_axis(site) is not None}


def _without(found: dict[str, Tensor], unknown: dict[str, NoMean], asked: bool) -> dict[str, Tensor]:
    """Those that have a mean in every row, with a warning of the others; an error if these were asked for, or all."""
    left = {name: value for name, value in found.items() if name not in unknown}
    for error in unknown.values():
        if asked or not left:
            raise error
        warn(f"{error}; it is left out here")
    return left


def _with_axes_of(batch: Batch, value: Tensor, site: Any) -> Tensor:
    """(draw, row, ...) with the axes of repeats that the data have, where those are 1 and so were taken out."""
    name = site["name"]
    repeats = batch[name].shape[1 : batch[name].dim() - len(site["fn"].event_shape)] if name in batch else ()
    return value.reshape(*value.shape[:2], *repeats, *value.shape[2:]) if set(repeats) == {1} else value


def complete(vae: Any, batch: Batch, only: Collection[str] | None = None) -> Batch:
    """A batch of the same rows in which everything counts as observed, so that the model can be made to draw it."""
    ours = library_of(vae)
    x = {name: batch[name] for name in batch if ours is None or only is None or name in only}  # others may need all
    if ours is None:
        x.update(lacking(vae, batch))
    likelihoods = {} if ours is None else ours.likelihoods(batch)
    for name, p in likelihoods.items():
        if name not in x and (only is None or name in only):
            repeat = [1] if ours is not None and ours.modalities[name].repeated else []
            x[name] = torch.zeros((), device=batch.device).expand(batch.rows, *repeat, *p.event_shape)
    mask = {name: torch.ones(batch.rows, dtype=torch.bool, device=value.device) for name, value in x.items()}
    if ours is None:  # programs of the user's keep the axes of their masks
        mask.update({name: torch.ones_like(old) for name, old in batch.mask.items()})
    whole = Batch(x, mask, batch.rows, frozenset(x))
    whole.numbers = {name: numbers_of(p) for name, p in likelihoods.items()}
    return whole


def lacking(vae: Any, batch: Batch) -> dict[str, Tensor]:
    """Entries, of any values, of the modalities that x lacks and programs of the user's draw for want of them: what the
    guide has no site of, and the model observes once it is there."""
    few = batch.few()
    with suppress(*FAILURES), undisturbed(devices(vae, batch)):
        guide, model = traces_of(vae, few, few, 1, nesting(vae, few))
        drawn = [name for name in left_to_model(guide, model) if name not in batch]
        values = {name: value_of(model.nodes[name], 1, few.rows)[0] for name in drawn}
        if values:
            every = {
                name: torch.ones(few.rows, dtype=torch.bool, device=value.device) for name, value in values.items()
            }
            more = Batch({**few, **values}, {**few.mask, **every}, few.rows, few.complete | values.keys())
            seen = traces_of(vae, few, more, 1, nesting(vae, few))[1].observation_nodes
            return {name: v[:1].expand(batch.rows, *v.shape[1:]) for name, v in values.items() if name in seen}
    return {}
