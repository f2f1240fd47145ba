"""What the sites of a trace say of rows: codes and log-probabilities by draw and row."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor


def row_axis(site: Any) -> int | None:
    """The axis of the plate "data" at a sample site, counted from the right of its batch; None outside of it."""
    if site["type"] != "sample" or site_is_subsample(site):
        return None
    return next((f.dim for f in site["cond_indep_stack"] if f.name == "data"), None)


def per_row(site: Any, num_draws: int, rows: int) -> Tensor:
    """The site's log-probability (draw, row), in nats: masks count, weights and KL scales do not."""
    axis = row_axis(site)
    assert axis is not None
    log_prob = site["fn"].log_prob(site["value"])
    mask = site["mask"]
    if isinstance(mask, Tensor):
        log_prob = torch.where(mask, log_prob, 0)
    elif mask is False:
        log_prob = log_prob * 0.0
    right = -axis - 1
    if log_prob.dim() > right > 0:
        log_prob = log_prob.flatten(log_prob.dim() - right).sum(-1)
    while log_prob.dim() > 2:  # plates between the draws and the rows
        log_prob = log_prob.sum(1)
    return log_prob.expand(num_draws, rows)


def value_of(site: Any, num_draws: int, rows: int) -> Tensor:
    """The site's value, (draw, row, *event), without the axis of repeats where that is one."""
    axis, events = row_axis(site), len(site["fn"].event_shape)
    value = site["value"]
    assert axis is not None
    event = value.shape[value.dim() - events :]
    right = value.shape[value.dim() - events + axis + 1 : value.dim() - events]
    value = value.expand(num_draws, *([1] * max(0, value.dim() - 2 - len(right) - events)), rows, *right, *event)
    keep = [] if all(size == 1 for size in right) else list(right)
    return value.reshape(num_draws, rows, *keep, *event)


def plates_of(*traces: Trace) -> list[Any]:
    """The frames of the plates that take an axis, once for every site in them."""
    stacks = [site.get("cond_indep_stack", ()) for trace in traces for site in trace.nodes.values()]
    return [frame for stack in stacks for frame in stack if frame.vectorized]


def auxiliary(guide: Trace, model: Trace) -> list[Any]:
    """The guide's sites of noise from which it makes its codes, as Pyro marks them; their densities belong to q."""
    sites = [guide.nodes[name] for name in guide.stochastic_nodes if name not in model.nodes]
    return [site for site in sites if site["infer"].get("is_auxiliary") and row_axis(site) is not None]
