"""Importance weights of a guide, per row: what log-likelihoods, k-hat and every certificate are made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_mmvae.chance import undisturbed
from pyro_mmvae.contract import refuse_improper, refuse_peeking, refuse_unmasked
from pyro_mmvae.data import Batch
from pyro_mmvae.memory import keep_at_hand
from pyro_mmvae.programs import guide_on, library_of, silent
from pyro_mmvae.questions import devices, nesting
from pyro_mmvae.sites import (
    auxiliary,
    own_terms,
    per_row,
    row_axis,
    scored_at,
    value_of,
)

Handler = Callable[[Any], Any]
NUMBERS_AT_ONCE = 2**22
"""How many numbers one chunk of draws may take: 16 MB of float32. Smaller ones are slower, larger ones no faster."""
ROWS_AT_ONCE = 128
FEWEST_ROWS = 16
"""Rows of a part even if the weights of their draws alone take more than a chunk."""


class Draws(NamedTuple):
    """Draws of the latent sites from a guide, and how the model weighs them.

    Attributes:
        latents: site -> (draw, row, *plates, *event), see `value_of`.
        log_weights: log p(x, z) - log q(z | x), (draw, row), in nats.
        log_likelihood: name -> log p(x_m | z), (draw, row), in nats, zero where nothing was observed.
        model: the trace of the model, for whoever needs more.
    """

    latents: dict[str, Tensor]
    log_weights: Tensor
    log_likelihood: dict[str, Tensor]
    model: Trace


def traces_of(
    vae: Any, seen: Batch, explained: Batch, num_draws: int, depth: int, told: Handler | None = None
) -> tuple[Trace, Trace]:
    """The guide on what it sees, and the model on what it explains with the codes of that guide, all draws at once.

    Args:
        told: a handler of the model that knows some of the codes better.
    """
    with silent(), pyro.validation_enabled(False), pyro.plate("draws", num_draws, dim=-1 - depth):
        guide = guide_on(vae.guide, seen)
        model = poutine.replay(vae.model, guide)
        full = explained.after(seen)
        return guide, poutine.trace(model if told is None else told(model)).get_trace(full, full.mask)


def draw(
    vae: Any,
    batch: Batch,
    num_draws: int,
    *,
    given: Collection[str] | None = None,
    targets: Collection[str] | None = None,
    depth: int | None = None,
    told: Handler | None = None,
) -> Draws:
    """Draws from the guide, which sees `given`, weighted by the model, which explains `targets`.

    Sites outside the plate "data" (global ones of a user's model) are drawn, and not weighted: a row's weight is
    conditional on them.

    Args:
        batch: checked data.
        num_draws: how many draws a row, all at once.
        given, targets: modalities; None = all that are observed.
        depth: what `nesting` says, if the caller knows it.
        told: a handler of the model that knows some of the codes better; then the weights say nothing.
    """
    depth = nesting(vae, batch) if depth is None else depth
    guide, model = traces_of(vae, batch.only(given), batch.only(targets), num_draws, depth, told)
    shared = [name for name in model.stochastic_nodes if name in guide.nodes and row_axis(model.nodes[name])]
    places = {name: scored_at(model, name) for name in model.observation_nodes if row_axis(model.nodes[name])}
    inner = {place for name, place in places.items() if place != name}
    likelihood = {k: per_row(model.nodes[v], num_draws, batch.rows) for k, v in places.items() if k not in inner}
    if library_of(vae) is None:
        refuse_unmasked(likelihood, batch.only(targets))
        with silent(), undisturbed(devices(vae, batch)), torch.no_grad():
            refuse_peeking(vae, batch.only(targets))
    log_weights = sum(likelihood.values(), torch.zeros((), device=batch.device))  # of no axes, so of no precision
    noise = auxiliary(guide, model)
    for name in shared:
        refuse_improper(guide.nodes[name], model.nodes[name], bool(noise))
        log_weights = log_weights + per_row(model.nodes[name], num_draws, batch.rows)
        log_weights = log_weights - per_row(guide.nodes[name], num_draws, batch.rows)
    for site in [*noise, *own_terms(guide)]:
        log_weights = log_weights - per_row(site, num_draws, batch.rows)
    names = [n for t in (guide, model) for n in t.stochastic_nodes if row_axis(t.nodes[n])]
    latents = {name: value_of(model.nodes.get(name, guide.nodes.get(name)), num_draws, batch.rows) for name in names}
    return Draws(latents, log_weights.expand(num_draws, batch.rows), likelihood, model)


def draw_in_parts(
    vae: Any,
    batch: Batch,
    num_draws: int,
    *,
    given: Collection[str] | None = None,
    told: Callable[[Tensor, int], Handler] | None = None,
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """`draw` of all rows without its model, so few rows at a time that the networks' memory stays bounded.

    Args:
        told: makes the handler of `draw` from the rows (row,) of a part and the depth.
    """
    depth, found = nesting(vae, batch), []
    for rows in torch.arange(batch.rows, device="cpu").split(rows_at_once(batch, num_draws)):
        handler = None if told is None else told(rows, depth)
        found.append(draw(vae, batch.take(rows), num_draws, given=given, depth=depth, told=handler)[:3])
    weights = torch.cat([log_weights for _, log_weights, _ in found], 1)
    likelihood = {}
    for name in {name: None for _, _, one in found for name in one}:
        likelihood[name] = torch.cat([one.get(name, torch.zeros_like(w)) for _, w, one in found], 1)
    return joined([(w.shape[1], latents) for latents, w, _ in found]), weights, likelihood


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
    return 512 + sum(max(batch[name][0].numel(), batch.numbers.get(name, 0)) for name in seen)
