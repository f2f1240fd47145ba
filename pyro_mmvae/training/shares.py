"""What a site counts in the loss of a batch: what all rows share, such as the weights of a Bayesian network, by the
rows that are there; what the guide leaves to the model not at all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from pyro.distributions import Unit
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import nn

from pyro_mmvae.chance import undisturbed
from pyro_mmvae.contract import refuse_apart, refuse_peeking, refuse_unmasked
from pyro_mmvae.data import Batch
from pyro_mmvae.modes import at_rest
from pyro_mmvae.programs import FAILURES, library_of, scaled, silent
from pyro_mmvae.sites import (
    check_axes,
    left_to_model,
    outside_codes,
    per_row,
    plates_of,
    refuse_mixed,
    row_axis,
    scored_at,
    traced,
)


class Shares:
    """The weight of what all rows share in the loss of a batch, so that in an epoch it counts once.

    Codes that the guide has no site of are drawn from the model itself, as from a proposal: the densities of the two
    cancel in a bound. Pyro's losses count that of the model, which is no bound, and teaches likelihoods of missing
    values (`obs_mask`, `obs=x.get(name)`) to be too narrow.

    Args:
        sites: the names of what all rows share.
        rows: of an epoch; 0 if that is not known.
        left: the sites that the guide leaves to the model.

    Raises:
        ValueError: there are sites that all rows share, and no number of rows.
    """

    def __init__(self, sites: Collection[str], rows: int, left: Collection[str] = ()):
        self.sites, self.rows, self.left = sites, rows, left
        if sites and not rows:
            raise ValueError(
                f"all rows share the sites {', '.join(sites)}, and an iterable of batches without a length does not"
                " tell how many there are; give the data themselves, or a loader with a length"
            )

    def of(self, batch: Batch) -> AbstractContextManager[Any]:
        """A handler for the loss of a batch."""
        if not (self.sites or self.left):
            return nullcontext()
        return scaled(dict.fromkeys(self.sites, batch.rows / max(1, self.rows)) | dict.fromkeys(self.left, 0.0))


def special_sites(
    vae: Any, batch: Batch, devices: Sequence[torch.device], modules: Sequence[nn.Module], steps: int
) -> tuple[list[str], list[str]]:
    """The sites outside the plate "data" that are the same when there is one row more: not a factor of the rows' own;
    and the codes that the guide leaves to the model.

    Args:
        steps: how many batches the rows come in.

    Raises:
        ValueError: programs that mix rows, which Pyro's validation, off in here, would tell of; or that weigh a batch
            themselves.
    """
    more = torch.arange(batch.rows + 1, device="cpu") % batch.rows
    with torch.no_grad(), silent(), at_rest(modules):
        with undisturbed(devices):
            guide, model = traced(vae, batch)
        sites = again = _samples(guide, model)
        with undisturbed(devices), suppress(*FAILURES):  # of programs that are made for so many rows
            again = _samples(*traced(vae, batch.take(more)))  # with the same random numbers for what all rows share
    _refuse_subsampled(guide, model)
    refuse_apart(guide, model)
    if library_of(vae) is None:
        _refuse_unmasked(model, batch)
        with torch.no_grad(), silent(), at_rest(modules), undisturbed(devices):
            refuse_peeking(vae, batch)
    for site in again.values():
        if row_axis(site) is not None:
            with suppress(NotImplementedError, KeyError):  # of flows that know the inverse of what they drew alone
                check_axes(site, site["fn"].log_prob(site["value"]))
    if steps > 1:
        refuse_mixed(sites, again)
    outside = {name: site["value"].shape for name, site in sites.items() if row_axis(site) is None}
    drawn = [*left_to_model(guide, model), *(name for name in outside_codes(model.nodes) if name not in guide)]
    left = [name for name in drawn if not model.nodes[name]["infer"].get("enumerate")]  # which is summed out, not drawn
    if again is sites:
        return [name for name, shape in outside.items() if batch.rows not in shape], left
    return [name for name in outside if name in again and _alike(sites[name], again[name])], left


def _refuse_unmasked(model: Trace, batch: Batch) -> None:
    """Raises ValueError for a modality whose zeros under the holes are scored as data."""
    partly = [name for name in batch if name not in batch.complete and name in model and row_axis(model.nodes[name])]
    with suppress(NotImplementedError):
        refuse_unmasked({n: per_row(model.nodes[scored_at(model, n)], 1, batch.rows) for n in partly}, batch)


def _refuse_subsampled(guide: Trace, model: Trace) -> None:
    """Raises ValueError for a plate that scales the loss of a batch up to all rows: what all rows share, scaled down
    here, would count far too little beside it."""
    for frame in plates_of(guide, model):
        if frame.name == "data" and frame.full_size not in (None, frame.size):
            raise ValueError(
                f"the plate 'data' has {frame.full_size} rows and scales the loss of a batch up to them; mm.fit weighs"
                " batches itself: give the plate as many rows as the batch has, or train with Pyro's SVI"
            )


def _alike(site: Any, again: Any) -> bool:
    if isinstance(site["fn"], Unit):
        return torch.equal(site["fn"].log_factor, again["fn"].log_factor)
    return bool(site["value"].shape == again["value"].shape)


def _samples(guide: Trace, model: Trace) -> dict[str, Any]:
    """The sample sites of both."""
    sites = {**guide.nodes, **model.nodes}
    return {name: s for name, s in sites.items() if s["type"] == "sample" and not site_is_subsample(s)}
