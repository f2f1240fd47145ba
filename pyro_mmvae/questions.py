"""What every question does first: its data are checked, the names in it, and the two programs that it asks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Distribution
from pyro.infer.autoguide import AutoCallable, AutoGuide, AutoGuideList
from torch import Tensor

from pyro_mmvae.chance import devices_of, undisturbed
from pyro_mmvae.checks import check_collection
from pyro_mmvae.contract import FEW, refuse_apart, refuse_beside, refusing_writes
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.owners import owners_of
from pyro_mmvae.programs import Program, library_of, silent
from pyro_mmvae.sites import outside_codes, plates_of, refuse_mixed, refuse_unplated, row_axis, traced


def opened(
    vae: Any,
    x: Arrays | None,
    mask: Arrays | None = None,
    given: Collection[str] | None = None,
    likelihoods: Mapping[str, Distribution] | None = None,
) -> Batch:
    """The checked batch of a `MultimodalVAE`, or of any other pair, with only `given` in sight; None = all.

    Args:
        likelihoods: what the model's `likelihoods` said before, if it did, so that no network runs for this batch.
    """
    batch = vae.check(x, mask, likelihoods) if hasattr(vae, "check") else Batch.of(x, mask)
    known(vae, given)
    return batch.only(given)


def known(vae: Any, names: Collection[str] | None) -> None:
    """Raises ValueError for a name that is no modality of the model, as far as it can be asked."""
    if names is not None:
        check_collection(names)
        if (ours := library_of(vae)) is not None:
            ours.check_names(names)


def nesting(vae: Any, batch: Batch) -> int:
    """How many axes the plates of the two programs take; raises ValueError as `check_guide`, or if none is of rows, one
    site is of all of them, or a modality is of none."""
    few = batch.few()
    check_guide(vae, few)
    with silent(), undisturbed(devices(vae, batch)), torch.no_grad():
        with refusing_writes(few):
            guide, model = traced(vae, few)
        if outside_codes(model.nodes):
            more = torch.arange(few.rows + 1, device="cpu") % few.rows
            with suppress(RuntimeError, LookupError):  # of programs that are made for so many rows
                refuse_mixed(model.nodes, traced(vae, few.take(more))[1].nodes)
        if library_of(vae) is None or not isinstance(vae.guide, Program):
            refuse_apart(guide, model)
            refuse_beside(vae, batch.few(FEW))
    frames = plates_of(guide, model)
    if not any(frame.name == "data" for frame in frames):
        raise ValueError("neither the model nor the guide has a plate named 'data', over the rows; name it so")
    refuse_unplated(model, batch)
    return max(-frame.dim for frame in frames)


def check_guide(vae: Any, batch: Batch) -> None:
    """Raises ValueError for a guide of Pyro's that keeps parameters for the rows that it saw first."""
    for guide in _autoguides(vae.guide):
        with silent(), undisturbed(devices(vae, batch)), torch.no_grad():
            sites = poutine.trace(guide.model).get_trace(batch, batch.mask)
        for name, site in sites.iter_stochastic_nodes():
            if row_axis(site) is not None:
                raise ValueError(
                    f"the guide is an {type(guide).__name__}, which keeps parameters of {name!r} for the rows of one"
                    " batch; give a guide that looks at the rows, or use this one with Pyro's SVI and Predictive on all"
                    " of them"
                )


def _autoguides(guide: Any) -> list[AutoGuide]:
    """Pyro's own guides behind a guide, each of the sites that its model shows it."""
    if isinstance(guide, AutoGuideList):
        return [part for one in guide for part in _autoguides(one)]
    return [guide] if isinstance(guide, AutoGuide) and not isinstance(guide, AutoCallable) else []


def devices(vae: Any, batch: Mapping[str, Tensor]) -> list[torch.device]:
    """Those whose generators a question draws from: of the data, and of the modules behind the two programs."""
    parameters = [p for owner in owners_of(vae) for p in owner.parameters()]
    return devices_of([*batch.values(), *parameters])
