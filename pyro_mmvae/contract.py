"""The contract that a pair of programs keeps: what breaks it without an error of Pyro's is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mmvae.arrays import with_axes
from pyro_mmvae.checks import seen_rows
from pyro_mmvae.data import Batch
from pyro_mmvae.distributions import as_whole
from pyro_mmvae.programs import FAILURES, guide_on
from pyro_mmvae.sites import is_derived, per_row, row_axis

FEW = 4
"""Rows in which programs are tried out."""
CLOSE = 1e-3
"""How far sums of densities may be apart by rounding, as a share of their sizes."""


@contextmanager
def refusing_writes(batch: Batch) -> Iterator[None]:
    """Raises ValueError for programs that change a batch or its masks in place, which others are to see: also what is
    hidden, as it may be asked for next."""
    before, masks = ({name: value.clone() for name, value in of.items()} for of in (batch, batch.mask))
    yield
    for name, value in before.items():
        same = torch.equal(masks[name], batch.mask[name])
        if not (same and torch.equal(value, batch[name])):
            raise ValueError(
                f"the model or the guide writes into {'x' if same else 'the mask'} of {name!r}, and what comes after"
                " goes on with that; let it work on a copy, x.clone()"
            )


def refuse_unmasked(scores: Mapping[str, Tensor], batch: Batch) -> None:
    """Raises ValueError for a modality that the model scores in rows where it is hidden: whatever is there would count.

    Args:
        scores: name -> log p(x_m | z), (draw, row).
    """
    for name in scores.keys() & batch.keys() - batch.complete:
        if bool(torch.where(seen_rows(batch.mask[name]), 0, scores[name]).any()):
            raise ValueError(
                f"the model scores {name!r} in rows where its mask hides it, as missing or not asked for; give its"
                f" distribution .mask(mask[{name!r}]), in the shape of its batch"
            )


def refuse_apart(guide: Trace, model: Trace) -> None:
    """Raises ValueError for a code that the two programs have in other places, and data that the guide scores."""
    for name in model.stochastic_nodes:
        places = [_place(trace.nodes[name]) for trace in (guide, model) if name in trace]
        if len(set(places)) > 1:
            raise ValueError(
                f"the guide has {name!r} {places[0]} and the model {places[1]}; give both the same plate 'data' at the"
                " same dim"
            )
    for name in guide.observation_nodes:
        site = guide.nodes[name]
        if name in model and row_axis(site) is not None and model.nodes[name]["is_observed"] and not is_derived(site):
            raise ValueError(f"the guide observes {name!r}, as the model does, and would count it in q; leave it out")


def _place(site: Any) -> str:
    axis = row_axis(site)
    return "outside of the plate 'data'" if axis is None else f"in a plate 'data' at dim {axis}"


def refuse_improper(guide: Any, model: Any, made: bool) -> None:
    """Raises ValueError for a site of which the guide counts no density where the model does.

    Args:
        guide, model: the same site in both.
        made: whether the guide draws noise that it makes its codes of.
    """
    if _hides(guide) != _hides(model):
        whose, other = ("guide", "model") if _hides(guide) else ("model", "guide")
        raise ValueError(
            f"the {whose} masks {guide['name']!r} and the {other} does not, so that one density counts without the"
            " other; mask both, or neither"
        )
    point = _innermost(guide["fn"])
    if made or not isinstance(point, Delta) or isinstance(_innermost(model["fn"]), Delta):
        return
    with suppress(NotImplementedError):
        if not bool(torch.as_tensor(point.log_density).any()) and not model["fn"].support.is_discrete:
            raise ValueError(
                f"the guide has one point for {guide['name']!r}, which has no density to weigh draws by; give a"
                " distribution, or mark the noise that it is made of with infer={'is_auxiliary': True}"
            )


def _innermost(p: Any) -> Any:
    while hasattr(p, "base_dist") and not hasattr(p, "transforms"):
        p = p.base_dist
    return p


def _hides(site: Any) -> bool:
    """Whether the density of some rows is left out."""
    masks, p = [site["mask"]], site["fn"]
    while hasattr(p, "base_dist"):
        masks += [p._mask] if isinstance(p, MaskedDistribution) else []
        p = p.base_dist
    return any(mask is False or (isinstance(mask, Tensor) and not bool(mask.all())) for mask in masks)


def refuse_beside(vae: Any, batch: Batch) -> None:
    """Raises ValueError for programs in which the density of a row hangs on the rows beside it.

    All but the first come in reverse, then the last one alone. Programs that draw numbers of their own are let be, as
    are those that are made for so many rows.
    """
    if batch.rows == 1:
        return
    every, backwards = (torch.arange(*ends, device="cpu") for ends in ((batch.rows,), (batch.rows - 1, 0, -1)))
    alone = backwards[:1]
    try:
        guide = guide_on(vae.guide, batch)
        model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(batch, batch.mask)
        log_w, size = _weights(guide, model, batch.rows)
        again, *parts = (
            _weights(*_again(vae, guide, model, batch, rows), len(rows))[0] for rows in (every, backwards, alone)
        )
    except (*FAILURES, NotImplementedError):
        return
    apart = [(log_w[rows] - part).abs() > CLOSE * (1 + size[rows]) for rows, part in zip((backwards, alone), parts)]
    if torch.equal(log_w, again) and bool(torch.cat(apart).any()):
        raise ValueError(
            "log p(x, z) - log q(z | x) of a row is another one with other rows beside it: the model or the guide mixes"
            " rows, as by a mean over them, or asks whether all of them have something; let it take every row alone"
        )


def refuse_peeking(vae: Any, batch: Batch) -> None:
    """Raises ValueError for a model in which something hangs on single entries that its mask hides.

    There are other values in their place in a second run at the same codes: the largest that some row has there, or
    anywhere. Programs that draw numbers of their own are let be, as are those that are made for so many rows.
    """
    for name in batch.keys() - batch.complete:
        x, mask = batch[name], with_axes(batch.mask[name], batch[name].dim()).expand_as(batch[name])
        seen = mask.reshape(len(mask), -1)
        some = batch.take((seen.any(1) & ~seen.all(1)).nonzero().squeeze(1)[:FEW])
        if not some.rows:
            continue
        size = torch.where(mask, x.abs(), -1)
        largest = torch.where(mask.any(0), x.gather(0, size.argmax(0, keepdim=True)), x.flatten()[size.argmax()])
        other = torch.where(with_axes(some.mask[name], x.dim()), some[name], largest)
        try:
            apart = _apart(vae, some, Batch({**some, name: other}, some.mask, some.rows, some.complete))
        except (*FAILURES, NotImplementedError):
            continue
        if apart:
            raise ValueError(
                f"the model scores entries of {name!r} that its mask hides, or goes on with them; give its distribution"
                f" .mask(mask[{name!r}]) entry by entry, or obs_mask and go on with what pyro.sample returned"
            )


def _apart(vae: Any, batch: Batch, changed: Batch) -> bool:
    """Whether the model says something else of the same codes beside other data."""
    model = poutine.trace(poutine.replay(vae.model, guide_on(vae.guide, batch))).get_trace(batch, batch.mask)
    sites = {name: model.nodes[name] for name in model.stochastic_nodes}
    known = poutine.condition(vae.model, {k: v["value"] for k, v in sites.items() if not site_is_subsample(v)})
    traces = (poutine.trace(known).get_trace(part, part.mask) for part in (batch, batch, changed))
    (before, size), (again, _), (after, _) = (_weights(Trace(), trace, batch.rows) for trace in traces)
    return torch.equal(before, again) and bool(((before - after).abs() > CLOSE * (1 + size)).any())


def _again(vae: Any, guide: Trace, model: Trace, batch: Batch, index: Tensor) -> tuple[Trace, Trace]:
    """Both programs on those rows, at the codes that they had."""
    part, codes = batch.take(index), {}
    sites = {name: trace.nodes[name] for trace in (guide, model) for name in trace.stochastic_nodes}
    for name, site in sites.items():
        if not site_is_subsample(site):
            axis, value = row_axis(site), site["value"]
            place = 0 if axis is None else value.dim() - len(site["fn"].event_shape) + axis
            alike = axis is None or value.shape[place] == 1
            codes[name] = value if alike else value.index_select(place, index.to(value.device))
    known = poutine.condition(vae.model, codes)
    return guide_on(vae.guide, part, codes), poutine.trace(known).get_trace(part, part.mask)


def _weights(guide: Trace, model: Trace, rows: int) -> tuple[Tensor, Tensor]:
    """log p(x, z) - log q(z | x) of each row (row,), and how large its terms are."""
    total = size = torch.zeros(rows)
    for sign, trace in ((1, model), (-1, guide)):
        for site in trace.nodes.values():
            if row_axis(site) is not None and not site["infer"].get("_deterministic"):
                term = per_row({**site, "fn": as_whole(site["fn"])}, 1, rows)[0].detach().double().cpu()
                total, size = total + sign * term, size + term.abs()
    return total, size
