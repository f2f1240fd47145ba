"""Where data meet a likelihood: the plate of one modality, its mask and its weight."""

from __future__ import annotations

from contextlib import nullcontext

import pyro
import torch
from pyro.distributions import Distribution, Independent, MixtureSameFamily, TransformedDistribution
from torch import Tensor

from pyro_mmvae.arrays import with_axes
from pyro_mmvae.checks import distribution
from pyro_mmvae.distributions import Categorical, Rows, feasible, masked
from pyro_mmvae.modality import Modality, ask
from pyro_mmvae.plates import plate
from pyro_mmvae.programs import scaled
from pyro_mmvae.seen import Seen
from pyro_mmvae.support import check_event


def observe(name: str, modality: Modality, latent: Tensor, seen: Seen | None) -> None:
    """The likelihood plate of one modality: scores what was seen of it, or draws it if there is no data at all.

    Only the rows with an observed entry are decoded; their log-probabilities stand in the batch of all rows.

    Args:
        latent: (..., row, 1, dim), [z, w].
        seen: the data, or None to draw one entry a row.
    """
    if seen is None:
        with plate(f"{name}_plate", 1, dim=-1):
            _sample(name, decode(name, modality, latent), None)
        return
    rows, repeats = seen.entries.shape
    if seen.rows is not None:
        latent = latent.index_select(-3, seen.rows)
    p = decode(name, modality, latent)
    check_event(name, seen.x.shape[2:], p, modality.repeated)
    if repeats > 1:
        p = p.expand((*p.batch_shape[:-1], repeats))
    counts = isinstance(p, Categorical)  # not every other log_prob takes integers
    x = seen.x if counts or seen.x.is_floating_point() else seen.x.to(latent.dtype)
    mask, draws = seen.mask, p.batch_shape[:-2] if isinstance(p, TransformedDistribution) else ()
    if mask is not None:
        x = torch.where(with_axes(mask, x.dim()), x, _stand_in(name, p, x, seen.rows))
        p = _masked(name, p, mask if seen.rows is None else mask[seen.rows])
    if seen.rows is not None:
        known = (x, seen.values().unsqueeze(1)) if x is seen.x and repeats == 1 else None
        p = Rows(p, seen.rows, rows, known)
    if draws:  # networks of Pyro's conditional flows want their codes to have no more axes than the data
        x = x.expand(*draws, *x.shape[-seen.x.dim() :])
    weight = nullcontext() if modality.weight == 1 else scaled({name: modality.weight})
    with plate(f"{name}_plate", repeats, dim=-1), weight:
        _sample(name, p, x)


def _sample(name: str, p: Distribution, x: Tensor | None) -> None:
    try:
        pyro.sample(name, p, obs=x)
    except NotImplementedError as error:  # a density is asked for later
        p, reason = p.base_dist if isinstance(p, Independent) else p, (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"the likelihood of {name!r}, a {type(p).__name__}, can be scored, not drawn{reason and f' ({reason})'};"
            " give it a method sample, or use another"
        ) from None


def decode(name: str, modality: Modality, latent: Tensor) -> Distribution:
    """p(x_m | z, w_m) at the codes latent (..., row, 1, dim), checked."""
    decoder = modality.decoder
    assert decoder is not None, name
    p = distribution(f"the decoder of {name!r}", ask("decoder", name, decoder, latent))
    if p.batch_shape != latent.shape[:-1]:
        raise ValueError(
            f"the decoder of {name!r} has batch {tuple(p.batch_shape)} and event {tuple(p.event_shape)} for codes"
            f" {tuple(latent.shape)}; it must have batch {tuple(latent.shape[:-1])}: add .to_event(k), or wrap the"
            " network in mm.batched"
        )
    base = p.base_dist if isinstance(p, Independent) else p
    if isinstance(base, MixtureSameFamily) and base.mixture_distribution.batch_shape != base.batch_shape:
        p = p.expand(p.batch_shape)  # torch draws no components by weights that are the same for all
    return p


def _stand_in(name: str, p: Distribution, x: Tensor, rows: Tensor | None) -> Tensor:
    """What stands where x (row, repeat, *event) is hidden: a value on the support, of which the decoded rows alone may
    know the bounds."""
    try:
        value = feasible(p, x)
    except NotImplementedError:
        raise ValueError(
            f"modality {name!r} has hidden entries, and its likelihood {type(p).__name__} has neither a support nor"
            " draws to put there; give it a support"
        ) from None
    axis = -2 - len(p.event_shape)
    if rows is None or value.dim() < -axis or value.shape[axis] != len(rows):
        return value
    shape = list(value.shape)
    shape[axis] = len(x)
    return value.new_zeros(shape).index_copy(axis, rows, value)


def _masked(name: str, p: Distribution, mask: Tensor) -> Distribution:
    try:
        return masked(p, mask, mask.dim() - 2)
    except TypeError as error:
        if not _in_part(mask):
            return masked(p, mask.flatten(2).all(-1))
        raise ValueError(f"modality {name!r} has rows with single entries missing: {error}") from None


def _in_part(mask: Tensor) -> bool:
    """Whether some of an entry is hidden and some is not, mask (row, repeat, ...)."""
    mask = mask.flatten(2)
    return bool((mask.any(-1) != mask.all(-1)).any())


def check_parts(name: str, x: Tensor, mask: Tensor, p: Distribution) -> None:
    """Raises ValueError if single entries are hidden that hang on others beside the code: what the likelihood p draws
    there is not what they are given those that are seen.

    Args:
        x, mask: as in a batch.
    """
    lead = x.dim() - len(p.event_shape)
    if mask.dim() > lead:
        _masked(name, p, mask if lead > 1 else mask.unsqueeze(1))
