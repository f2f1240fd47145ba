"""What all rows share, such as the weights of a Bayesian network: a batch counts it by the rows that are there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import nn

from pyro_mmvae.chance import undisturbed
from pyro_mmvae.data import Batch
from pyro_mmvae.modes import at_rest
from pyro_mmvae.programs import scaled, silent
from pyro_mmvae.sites import row_axis


class Shares:
    """The weight of what all rows share in the loss of a batch, so that in an epoch it counts once.

    Args:
        sites: their names.
        rows: of an epoch; 0 if that is not known.

    Raises:
        ValueError: there are such sites, and no number of rows.
    """

    def __init__(self, sites: Collection[str], rows: int = 0):
        self.sites, self.rows = sites, rows
        if sites and not rows:
            raise ValueError(
                f"all rows share the sites {', '.join(sites)}, and an iterable of batches without a length does not"
                " tell how many there are; give the data themselves, or a loader with a length"
            )

    def of(self, batch: Batch) -> AbstractContextManager[Any]:
        """A handler for the loss of a batch."""
        if not self.sites:
            return nullcontext()
        return scaled(dict.fromkeys(self.sites, batch.rows / self.rows))


def shared_sites(vae: Any, batch: Batch, devices: Sequence[torch.device], modules: Sequence[nn.Module]) -> list[str]:
    """The sites outside the plate "data" that are the same however many rows there are."""
    found = []
    with torch.no_grad(), silent(), at_rest(modules), undisturbed(devices):
        for rows in (2, 3):
            part = batch.take(torch.zeros(rows, dtype=torch.long, device="cpu"))
            guide = poutine.trace(vae.guide).get_trace(part, part.mask)
            model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(part, part.mask)
            sites = {**guide.nodes, **model.nodes}
            samples = {k: s for k, s in sites.items() if s["type"] == "sample" and not site_is_subsample(s)}
            if all(row_axis(site) is not None for site in samples.values()):
                return []
            found.append({k: s["value"].shape for k, s in samples.items() if row_axis(s) is None})
    return [name for name, shape in found[0].items() if found[1].get(name) == shape]
