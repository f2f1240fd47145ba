"""Importance weights of a guide, per row: what log-likelihoods, k-hat and every certificate are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Distribution
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mmvae.chance import devices_of, undisturbed
from pyro_mmvae.checks import check_collection
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.memory import keep_at_hand
from pyro_mmvae.programs import library_of, owners_of, silent

NUMBERS_AT_ONCE = 2**22
"""How many numbers one chunk of draws may take: 16 MB of float32. Smaller ones are slower, larger ones no faster."""
ROWS_AT_ONCE = 128
FEWEST_ROWS = 16
"""Rows of a part even if the weights of their draws alone take more than a chunk."""


class Draws(NamedTuple):
    """Draws of the latent sites from a guide, and how the model weighs them.

    Attributes:
        latents: site -> (draw, row, *event), the axis of repeats taken out.
        log_weights: log p(x, z) - log q(z | x), (draw, row), in nats.
        log_likelihood: name -> log p(x_m | z), (draw, row), in nats, zero where nothing was observed.
        model: the trace of the model, for whoever needs more.
    """

    latents: dict[str, Tensor]
    log_weights: Tensor
    log_likelihood: dict[str, Tensor]
    model: Trace


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
    """How many axes the plates of the two programs take."""
    few = batch.few()
    with silent(), undisturbed(devices(vae, batch)), torch.no_grad():
        guide = poutine.trace(vae.guide).get_trace(few, few.mask)
        model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(few, few.mask)
    frames = plates_of(guide, model)
    if not any(frame.name == "data" for frame in frames):
        raise ValueError("neither the model nor the guide has a plate named 'data', over the rows; name it so")
    return max(-frame.dim for frame in frames)


def plates_of(*traces: Trace) -> list[Any]:
    """The frames of the plates that take an axis, once for every site in them."""
    stacks = [site.get("cond_indep_stack", ()) for trace in traces for site in trace.nodes.values()]
    return [frame for stack in stacks for frame in stack if frame.vectorized]


def traces_of(vae: Any, seen: Batch, explained: Batch, num_draws: int, depth: int) -> tuple[Trace, Trace]:
    """The guide on what it sees, and the model on what it explains with the codes of that guide, all draws at once."""
    with silent(), pyro.validation_enabled(False), pyro.plate("draws", num_draws, dim=-1 - depth):
        guide = poutine.trace(vae.guide).get_trace(seen, seen.mask)
        return guide, poutine.trace(poutine.replay(vae.model, guide)).get_trace(explained, explained.mask)


def devices(vae: Any, batch: Mapping[str, Tensor]) -> list[torch.device]:
    """Those whose generators a question draws from: of the data, and of the modules behind the two programs."""
    parameters = [p for owner in owners_of(vae) for p in owner.parameters()]
    return devices_of([*batch.values(), *parameters])


def draw(
    vae: Any,
    batch: Batch,
    num_draws: int,
    *,
    given: Collection[str] | None = None,
    targets: Collection[str] | None = None,
    depth: int | None = None,
) -> Draws:
    """Draws from the guide, which sees `given`, weighted by the model, which explains `targets`.

    Sites outside the plate "data" (global ones of a user's model) are drawn, and not weighted: a row's weight is
    conditional on them.

    Args:
        batch: checked data.
        num_draws: how many draws a row, all at once.
        given, targets: modalities; None = all that are observed.
        depth: what `nesting` says, if the caller knows it.
    """
    depth = nesting(vae, batch) if depth is None else depth
    guide, model = traces_of(vae, batch.only(given), batch.only(targets), num_draws, depth)
    shared = [name for name in model.stochastic_nodes if name in guide.nodes and row_axis(model.nodes[name])]
    observed = [name for name in model.observation_nodes if row_axis(model.nodes[name])]
    likelihood = {name: per_row(model.nodes[name], num_draws, batch.rows) for name in observed}
    log_weights = sum(likelihood.values(), torch.zeros(num_draws, batch.rows, device=batch.device))
    for name in shared:
        log_weights = log_weights + per_row(model.nodes[name], num_draws, batch.rows)
        log_weights = log_weights - per_row(guide.nodes[name], num_draws, batch.rows)
    for site in auxiliary(guide, model):
        log_weights = log_weights - per_row(site, num_draws, batch.rows)
    names = [n for t in (guide, model) for n in t.stochastic_nodes if row_axis(t.nodes[n])]
    latents = {name: value_of(model.nodes.get(name, guide.nodes.get(name)), num_draws, batch.rows) for name in names}
    return Draws(latents, log_weights, likelihood, model)


def auxiliary(guide: Trace, model: Trace) -> list[Any]:
    """The guide's sites of noise from which it makes its codes, as Pyro marks them; their densities belong to q."""
    sites = [guide.nodes[name] for name in guide.stochastic_nodes if name not in model.nodes]
    return [site for site in sites if site["infer"].get("is_auxiliary") and row_axis(site) is not None]


def draw_in_parts(
    vae: Any, batch: Batch, num_draws: int, *, given: Collection[str] | None = None
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """`draw` of all rows without its model, so few rows at a time that the networks' memory stays bounded."""
    depth = nesting(vae, batch)
    found = [draw(vae, part, num_draws, given=given, depth=depth)[:3] for part in parts(batch, num_draws)]
    weights = torch.cat([log_weights for _, log_weights, _ in found], 1)
    likelihood = {}
    for name in {name: None for _, _, one in found for name in one}:
        likelihood[name] = torch.cat([one.get(name, torch.zeros_like(w)) for _, w, one in found], 1)
    return joined([(w.shape[1], latents) for latents, w, _ in found]), weights, likelihood


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


def joined(found: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """The codes (draw, row, *event) of chunks of so many rows as those of all rows.

    A modality that no row of a chunk has gives no private code there: NaN.
    """
    like = {name: value for _, part in found for name, value in part.items()}

    def column(name: str, rows: int, part: Mapping[str, Tensor]) -> Tensor:
        value = like[name]
        return part[name] if name in part else value.new_full((len(value), rows, *value.shape[2:]), torch.nan)

    return {name: torch.cat([column(name, rows, part) for rows, part in found], 1) for name in like}


def chunks(batch: Batch, num_draws: int) -> Iterator[tuple[Batch, list[int]]]:
    """Parts of the rows, each with the numbers of draws to take at once, so that a chunk stays within bounds.

    A part has up to `ROWS_AT_ONCE` rows, or more if all of their draws fit into one chunk: the weights of a part are
    smoothed together. Its encoders run once for all of its draws.
    """
    keep_at_hand()
    most = max(1, NUMBERS_AT_ONCE // size_of(batch))
    together = min(ROWS_AT_ONCE, max(FEWEST_ROWS, NUMBERS_AT_ONCE // num_draws))
    rows = min(batch.rows, max(most // num_draws, min(together, most)))
    most = max(1, most // rows)
    sizes = [min(most, num_draws - start) for start in range(0, num_draws, most)]
    for part in batch.split(rows):
        yield part.remembering(), sizes


def parts(batch: Batch, num_draws: int) -> Iterator[Batch]:
    """Parts of the rows so small that all draws of theirs fit in one chunk, if those of one row do."""
    keep_at_hand()
    return batch.split(rows_at_once(batch, num_draws))


def rows_at_once(batch: Batch, num_draws: int) -> int:
    """Of how many rows all draws fit in one chunk; 1 if not even those of one row do."""
    return max(1, NUMBERS_AT_ONCE // (size_of(batch) * num_draws))


def size_of(batch: Batch) -> int:
    """How many numbers one draw of one row takes, about: what was not observed is not decoded."""
    seen = (name for name in batch if name in batch.complete or bool(batch.mask[name].any()))
    return 512 + sum(batch[name][0].numel() for name in seen)
