"""Rows drawn from a model, of which the true codes are known, and how model and guide score them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mmvae.arrays import with_axes
from pyro_mmvae.chance import undisturbed
from pyro_mmvae.checks import refuse_outside
from pyro_mmvae.data import Batch
from pyro_mmvae.diagnostics.patterns import rows_with
from pyro_mmvae.distributions import as_whole
from pyro_mmvae.generation import check_simulates, joint_draws
from pyro_mmvae.predictive import complete
from pyro_mmvae.programs import guide_on, library_of, silent
from pyro_mmvae.questions import devices, nesting
from pyro_mmvae.sites import as_drawn, drawn_in, own_terms, per_row, row_axis, scored_at, value_of


class Simulated(NamedTuple):
    """Rows drawn from a model, of which the truth is known.

    Attributes:
        truth: site -> the codes, (row, dim).
        batch: the data drawn from them.
        log_likelihood: name -> log p(x_m | codes), (row,), in nats.
    """

    truth: dict[str, Tensor]
    batch: Batch
    log_likelihood: dict[str, Tensor]


class WholeMixtures(Messenger):
    """Scores every mixture as a whole, also one that its loss scores by the component of each draw: only the density of
    the whole is known at codes that were not drawn from it."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = as_whole(msg["fn"])


def conditions(vae: Any, data: Collection[str], names: Iterable[str]) -> tuple[str, ...]:
    """Those that a model of ours looks at and does not explain: they can be taken from the data that have them."""
    modalities = getattr(library_of(vae), "modalities", {})
    return tuple(name for name in names if name in data and name in modalities and modalities[name].decoder is None)


def having(batch: Batch, looked: Sequence[str]) -> Batch:
    """The rows that have all of those conditions.

    Raises:
        ValueError: there are none.
    """
    if not looked:
        return batch
    there = rows_with(batch, looked)
    if not len(there):
        raise ValueError(f"no row has all of {', '.join(looked)}, which the model looks at; give rows that do")
    return batch.take(there)


@torch.no_grad()
def simulate(vae: Any, rows: int, like: Batch | None = None, looked: Sequence[str] = ()) -> Simulated:
    """Rows from the model, with holes like those of the data `like`; see `sbc`.

    Args:
        looked: conditions, which every simulated row has as a random row of `like` has them.
    """
    if like is None or not looked:
        return _with_likelihoods(vae, *joint_draws(vae, rows), rows, like)
    given = like.take(torch.randint(like.rows, (rows,), device=like.device)).only(looked)
    full = complete(vae, given).after(given)
    with silent(), pyro.validation_enabled(False), pyro.plate("draws", 1, dim=-1 - nesting(vae, like)):
        trace = poutine.trace(poutine.uncondition(vae.model)).get_trace(full, full.mask)
    drawn = {name: value[0] for name, value in drawn_in(trace, 1, rows).items()}
    x = {name: value for name, value in drawn.items() if name in full}
    truth = {name: value for name, value in drawn.items() if name not in full}
    return _with_likelihoods(vae, truth, x, rows, like, {name: (given[name], given.mask[name]) for name in looked})


def _with_likelihoods(
    vae: Any,
    truth: dict[str, Tensor],
    x: dict[str, Tensor],
    rows: int,
    like: Batch | None,
    looked: Mapping[str, tuple[Tensor, Tensor]] = MappingProxyType({}),
) -> Simulated:
    """The simulated rows with holes, and what they are looked at with; their likelihoods at the true codes."""
    masks = {name: torch.ones(rows, dtype=torch.bool, device=value.device) for name, value in x.items()}
    for name in _repeated(vae, x):
        times = like[name].shape[1] if like is not None and name in like else 1
        x[name] = x[name].unsqueeze(1).expand(-1, times, *x[name].shape[1:])
    full = Batch(x, masks, rows, frozenset(x))
    check_simulates(vae, full)
    if _repeated(vae, x):  # every repeat a draw of its own
        full = Batch({**x, **_drawn_again(vae, truth, full)}, masks, rows, frozenset(x))
    batch = full if like is None else _with_holes(full, like)
    if looked:
        x, masks = ({**dict(old), **{n: v[i] for n, v in looked.items()}} for i, old in enumerate((batch, batch.mask)))
        batch = Batch(x, masks, rows, batch.complete)
    trace = _trace_at(vae, vae.model, truth, batch)
    sites = [(name, trace.nodes[name]) for name in trace.stochastic_nodes]
    refuse_outside([name for name, site in sites if row_axis(site) is None and not site_is_subsample(site)])
    return Simulated(
        truth,
        batch,
        {name: per_row(trace.nodes[scored_at(trace, name)], 1, rows)[0] for name in batch if name in trace},
    )


def weight_at(vae: Any, truth: dict[str, Tensor], batch: Batch) -> Tensor | None:
    """log p(x_S, z) - log q(z | x_S) at true codes, (row,), in nats.

    None if the guide makes its codes from noise of its own, or knows no density but that of its own draws.
    """
    placed, rows = placed_in(vae, truth, batch), batch.rows
    with silent(), pyro.validation_enabled(False), undisturbed(devices(vae, batch)):
        model = _trace_at(vae, vae.model, truth, batch)
        guide = guide_on(vae.guide, batch, placed)
        if any(not site_is_subsample(guide.nodes[name]) for name in guide.stochastic_nodes):
            return None
        codes = [name for name in guide.observation_nodes if name in truth and name in model]
        own = [site for site in own_terms(guide) if site["name"] not in truth]
        seen = [name for name in model.observation_nodes if name in codes or name not in truth]
        seen = [name for name in seen if row_axis(model.nodes[name]) is not None]
        try:
            q = [per_row(site, 1, rows)[0] for site in [*map(guide.nodes.get, codes), *own]]
        except (NotImplementedError, KeyError):  # of flows that know the inverse of what they drew alone
            return None
        p = [per_row(model.nodes[name], 1, rows)[0] for name in seen]
    nothing = torch.zeros((), device=batch.device)  # of no precision of its own; a guide may leave all to the model
    return (sum(p, nothing) - sum(q, nothing)).expand(rows)


def placed_in(vae: Any, truth: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Codes (row, *plates, *event), laid out as the sites of the programs have them; those of no site are left out."""
    with silent(), pyro.validation_enabled(False), undisturbed(devices(vae, batch)), torch.no_grad():
        nodes = dict(poutine.trace(vae.guide).get_trace(batch, batch.mask).nodes)
        if not nodes.keys() >= truth.keys():  # the model may have codes that its guide leaves to the prior
            nodes = {**poutine.trace(vae.model).get_trace(batch, batch.mask).nodes, **nodes}
    placed = {}
    for name, value in truth.items():
        axis = row_axis(nodes[name]) if name in nodes else None
        if axis is not None:
            fn = nodes[name]["fn"]
            draw = value.unsqueeze(0), fn.batch_shape, axis, len(fn.batch_shape), fn.event_shape
            placed[name] = as_drawn(*draw).squeeze(0)
    return placed


def _trace_at(vae: Any, model: Any, truth: dict[str, Tensor], batch: Batch) -> poutine.Trace:
    """The trace of a batch by the model, or by what a handler makes of it, its latents held at their true values."""
    with silent(), pyro.validation_enabled(False):
        return poutine.trace(poutine.condition(model, placed_in(vae, truth, batch))).get_trace(batch, batch.mask)


def _with_holes(whole: Batch, like: Batch) -> Batch:
    """The same rows, each modality observed as in a random row of `like` that has it."""
    x, masks = dict(whole), dict(whole.mask)
    for name, mask in like.mask.items():
        if name in x and mask.dim() > 1 and name not in like.complete:
            there = mask[mask.flatten(1).any(-1)]
            if len(there):
                masks[name] = there[torch.randint(len(there), (whole.rows,), device=there.device)]
                x[name] = torch.where(with_axes(masks[name], x[name].dim()), x[name], 0)
    return Batch(x, masks, whole.rows, frozenset(name for name in x if bool(masks[name].all())))


def _repeated(vae: Any, names: Iterable[str]) -> list[str]:
    """The modalities that are measured several times a row."""
    modalities = getattr(library_of(vae), "modalities", {})
    return [name for name in names if name in modalities and modalities[name].repeated]


def _drawn_again(vae: Any, truth: dict[str, Tensor], whole: Batch) -> dict[str, Tensor]:
    """The repeated modalities, drawn at the true codes as often as the batch has room for."""
    trace = _trace_at(vae, poutine.uncondition(vae.model), truth, whole)
    return {
        name: value_of(trace.nodes[name], 1, whole.rows)[0].reshape(whole[name].shape) for name in _repeated(vae, whole)
    }
