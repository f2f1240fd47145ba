"""Draws of rows from the model alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from pyro_mmvae.arrays import whole
from pyro_mmvae.chance import undisturbed
from pyro_mmvae.data import Batch
from pyro_mmvae.modes import tool
from pyro_mmvae.programs import FAILURES, library_of, silent
from pyro_mmvae.questions import devices
from pyro_mmvae.sites import drawn_in, plates_of, row_axis


@tool
def generate(vae: Any, num_draws: int = 1) -> dict[str, Tensor]:
    """New rows from the model's own prior.

    Args:
        num_draws: how many.

    Returns:
        name -> (draw, *event), one entry of every modality; as data of a repeated one it lacks the axis of repeats,
        which `value.unsqueeze(1)` adds. Of a `Pair` these are the sites that its model observes; a `pyro.factor` has
        no say in them.

    Raises:
        ValueError: num_draws is no number of draws, or the model's prior depends on data.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> {name: value.shape for name, value in generate(vae, 100).items()}
        {'a': torch.Size([100, 3]), 'b': torch.Size([100, 2])}
    """
    return joint_draws(vae, whole("num_draws", num_draws))[1]


@torch.no_grad()
def joint_draws(vae: Any, num_draws: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Codes and the data drawn from them, both name -> (draw, *event); otherwise as `generate`."""
    with silent(), pyro.validation_enabled(False):
        depth = _nesting(vae)
        with pyro.plate("draws", num_draws, dim=-1 - depth):
            trace = poutine.trace(poutine.uncondition(vae.model)).get_trace()
    drawn = {name: value.squeeze(1) for name, value in drawn_in(trace, num_draws, 1).items()}
    modalities = _modalities(vae, drawn)
    data = {name: value for name, value in drawn.items() if name in modalities}
    return {name: value for name, value in drawn.items() if name not in data}, data


def _modalities(vae: Any, drawn: Mapping[str, Tensor]) -> Collection[str]:
    """Which sites of a model that ran without data are modalities: of a user's model, those that it observes when it is
    given them; all but z and *.w if it cannot be run on what it drew."""
    known = getattr(library_of(vae), "modalities", None)
    if known is not None:
        return known
    likely = [name for name in drawn if name != "z" and not name.endswith(".w")]
    with suppress(*FAILURES), silent(), undisturbed(devices(vae, drawn)):
        batch = Batch.of({name: drawn[name][:1] for name in likely})
        seen = poutine.trace(vae.model).get_trace(batch, batch.mask).observation_nodes
        return [name for name in likely if name in seen] or likely
    return likely


def check_simulates(vae: Any, batch: Batch) -> None:
    """Raises ValueError for programs of the user's that more is known of than the data, by a factor or an observation
    of their own: then rows drawn from the prior, where nothing is known, are none of the model's.

    Args:
        batch: rows that were drawn from the model.
    """
    if library_of(vae) is not None:
        return
    with silent(), undisturbed(devices(vae, batch)), pyro.validation_enabled(False), torch.no_grad():
        alone = poutine.trace(vae.model).get_trace()
        known = [alone.nodes[name] for name in alone.observation_nodes]
        known = [site for site in known if row_axis(site) and not site["infer"].get("_deterministic")]
        nodes = poutine.trace(vae.model).get_trace(batch, batch.mask).nodes if known else {}
    for site in known:
        again, factor = nodes.get(site["name"], site)["value"], isinstance(site["fn"], Unit)
        if factor or bool((again == site["value"]).all()):
            raise ValueError(
                f"the model {'has the factor' if factor else 'observes, whatever the data,'} {site['name']!r}, which"
                " rows drawn from its prior know nothing of; ask mm.log_likelihood, mm.gaps or mm.posterior_draws,"
                " which draw none"
            )


def _nesting(vae: Any) -> int:
    """How many axes the model's plates take when it runs without data; raises ValueError if it cannot."""
    try:
        with silent(), undisturbed(devices(vae, {})):
            trace = poutine.trace(poutine.uncondition(vae.model)).get_trace()
    except (TypeError, LookupError, AttributeError) as error:  # which x = None gives in a program that looks at it
        raise ValueError(
            f"the model cannot be drawn from without data ({error}); give x and mask defaults, as in"
            " def model(x=None, mask=None), and let it draw one row then"
        ) from error
    return max((-frame.dim for frame in plates_of(trace)), default=0)
