"""What stands at a sample site, row by row, however the plates of its program lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor


def row_axis(site: Any) -> int | None:
    """The axis of the plate "data" at a sample site, counted from the right of its batch; None outside of it."""
    if site["type"] != "sample" or site_is_subsample(site):
        return None
    return next((f.dim for f in site["cond_indep_stack"] if f.name == "data"), None)


def is_derived(site: Any) -> bool:
    """Whether a site draws nothing: `pyro.deterministic`, and `pyro.factor`."""
    return bool(site["infer"].get("_deterministic")) or isinstance(site["fn"], Unit)


def counts(site: Any) -> bool:
    """Whether a site has a share in the bound of every row; raises ValueError for one that only all rows together have.

    Subsamples and what is derived have none.
    """
    inside = row_axis(site) is not None
    if not inside and not (site_is_subsample(site) or site["infer"].get("_deterministic")):
        factor = isinstance(site["fn"], Unit)
        raise ValueError(
            f"the {'factor' if factor else 'site'} {site['name']!r} stands outside of the plate 'data', and no row's"
            f" bound would have it; put it inside, a number for every row, or"
            f" {'add the term to the loss, in a subclass of mm.Objective' if factor else 'train with Trace_ELBO()'}"
        )
    return inside


def per_row(site: Any, num_draws: int, rows: int) -> Tensor:
    """The site's log-probability (draw, row), in nats: masks count, weights and KL scales do not; see `check_axes`."""
    log_prob = site["fn"].log_prob(site["value"])
    mask = site["mask"]
    if isinstance(mask, Tensor):
        log_prob = torch.where(mask, log_prob, 0)
    elif mask is False:
        log_prob = torch.zeros_like(log_prob)
    check_axes(site, log_prob)
    log_prob = rows_first(site, log_prob, 0, num_draws, rows)
    return log_prob if log_prob.dim() == 2 else log_prob.flatten(2).sum(-1)


def check_axes(site: Any, log_prob: Tensor) -> None:
    """Raises ValueError if a site's log-probabilities have axes that no plate knows of: then rows, or draws, got mixed,
    and every number would count several times."""
    deepest = max((-frame.dim for frame in site["cond_indep_stack"] if frame.vectorized), default=0)
    _refuse_more("log-probabilities", site, log_prob, deepest)


def _refuse_more(what: str, site: Any, value: Tensor, axes: int) -> None:
    if value.shape[: max(0, value.dim() - axes)].numel() > 1:
        raise ValueError(
            f"the site {site['name']!r} has {what} {tuple(value.shape)}, more axes than its plates: the"
            " program mixes rows or draws; add .to_event(k), or count axes from the right, as draws stand to the left"
        )


def outside_codes(sites: Mapping[str, Any]) -> dict[str, Any]:
    """The latent sites outside of the plate "data", by name."""
    samples = {name: s for name, s in sites.items() if s["type"] == "sample" and not site_is_subsample(s)}
    return {name: s for name, s in samples.items() if not s["is_observed"] and row_axis(s) is None}


def refuse_mixed(sites: Mapping[str, Any], again: Mapping[str, Any]) -> None:
    """Raises ValueError for codes of all rows in one value, as of a Gaussian process over them.

    Args:
        sites, again: of the programs on some rows, and on one row more.
    """
    for name, site in outside_codes(sites).items():
        more = again.get(name, site)
        plates = [[frame.size for frame in s["cond_indep_stack"]] for s in (site, more)]
        if site["value"].shape != more["value"].shape and plates[0] == plates[1]:
            raise ValueError(
                f"the site {name!r} has all rows in one value, outside of the plate 'data': rows that hang together can"
                " neither come in batches nor be asked one by one; put it into the plate, or give mm.fit a batch_size"
                " of all rows and ask Pyro's Predictive"
            )


def refuse_unplated(model: Trace, names: Collection[str]) -> None:
    """Raises ValueError for a modality that the model observes outside of the plate "data"."""
    for name in model.observation_nodes:
        if name in names and row_axis(model.nodes[name]) is None and not is_derived(model.nodes[name]):
            raise ValueError(
                f"the modality {name!r} is observed outside of the plate 'data', and no row's log p(x) would have it;"
                " put it inside"
            )


def value_of(site: Any, num_draws: int, rows: int) -> Tensor:
    """The site's value, (draw, row, *plates, *event), see `rows_first`."""
    return rows_first(site, site["value"], len(site["fn"].event_shape), num_draws, rows)


def drawn_in(trace: Trace, num_draws: int, rows: int) -> dict[str, Tensor]:
    """What was drawn at each site inside of the plate "data", name -> (draw, row, *plates, *event)."""
    sites = {name: s for name, s in trace.nodes.items() if row_axis(s) is not None and not is_derived(s)}
    return {name: value_of(site, num_draws, rows) for name, site in sites.items()}


def rows_first(site: Any, value: Tensor, events: int, num_draws: int, rows: int) -> Tensor:
    """A tensor that has the batch axes of a site and `events` more as (draw, row, *plates, *event): the plates besides
    "data", on whichever side of it they are, stand behind the rows; one entry of each takes no axis."""
    dims = {frame.name: frame.dim for frame in site["cond_indep_stack"]}
    depth = -dims.get("draws", min(dims["data"], events - value.dim()) - 1)  # of all batch axes, with one for draws
    shape = *[1] * (depth + events - value.dim()), *value.shape[-depth - events :]
    _refuse_more("values", site, value, depth + events)
    value = value.reshape(shape).movedim(depth + dims["data"], 1)
    plates, left = value.shape[2:depth], depth + dims["data"] - 1
    own = *besides(plates[:left], plates[left:]), *value.shape[depth:]
    return value.expand(num_draws, rows, *value.shape[2:]).reshape(num_draws, rows, *own)


def as_drawn(value: Tensor, batch: Sequence[int], axis: int, depth: int, event: Sequence[int]) -> Tensor:
    """The other way round: (draw, row, *plates, *event) as a draw at a site with that batch shape, whose rows are at
    `axis`, under plates of that depth and one of draws."""
    left, right = around(batch, axis, depth)
    return value.reshape(*value.shape[:2], *left, *right, *event).movedim(1, 1 + len(left))


def around(batch: Sequence[int], axis: int, depth: int) -> tuple[Sequence[int], Sequence[int]]:
    """The sizes of the plates on the left and on the right of the rows, of so many in all and one of draws."""
    batch, row = [*[1] * (depth + 1 - len(batch)), *batch], depth + 1 + axis
    return batch[1:row], batch[row + 1 :]


def besides(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """The axes that plates on the left and on the right of the rows keep."""
    return [size for size in left if size > 1] + ([] if all(size == 1 for size in right) else list(right))


def traced(vae: Any, batch: Any) -> tuple[Trace, Trace]:
    """The traces of guide and model on a batch, the model with the codes of the guide."""
    guide = poutine.trace(vae.guide).get_trace(batch, batch.mask)
    return guide, poutine.trace(poutine.replay(vae.model, guide)).get_trace(batch, batch.mask)


def plates_of(*traces: Trace) -> list[Any]:
    """The frames of the plates that take an axis, once for every site in them."""
    stacks = [site.get("cond_indep_stack", ()) for trace in traces for site in trace.nodes.values()]
    return [frame for stack in stacks for frame in stack if frame.vectorized]


def scored_at(trace: Trace, name: str) -> str:
    """The site that scores a modality: its own, or with Pyro's `obs_mask` the one of what was observed of it."""
    inner = f"{name}_observed"
    return inner if inner in trace and trace.nodes[name]["infer"].get("_deterministic") else name


def left_to_model(guide: Trace, model: Trace) -> list[str]:
    """The latent sites of the rows that the guide has none of, such as what is missing: the model draws them."""
    return [name for name in model.stochastic_nodes if name not in guide and row_axis(model.nodes[name]) is not None]


def own_terms(guide: Trace) -> list[Any]:
    """What the guide observes in the plate of the rows, such as the volume of a transform, a factor: of its density."""
    seen = map(guide.nodes.get, guide.observation_nodes)
    return [site for site in seen if row_axis(site) is not None and not site["infer"].get("_deterministic")]


def auxiliary(guide: Trace, model: Trace) -> list[Any]:
    """The guide's sites of noise from which it makes its codes, as Pyro marks them; their densities belong to q."""
    sites = [guide.nodes[name] for name in guide.stochastic_nodes if name not in model.nodes]
    return [site for site in sites if site["infer"].get("is_auxiliary") and row_axis(site) is not None]
