"""Does one modality drown the others, is the code used at all? What a batch says of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_mmvae.data import Batch
from pyro_mmvae.programs import FAILURES
from pyro_mmvae.sites import row_axis, scored_at, traced
from pyro_mmvae.warn import warn

DROWNS = 300.0
"""How many times as hard one modality must pull as another for a warning.

Two tables of the same law, one of them in units that make its numbers `scale` times as large, and a learnt scale each:
the pulls differ by about `scale`, and of the variance of the other table the trained model explains .87 at 1, .80 at
100, .77 at 300, .55 at 1000 and nothing at 10,000. A picture of 1,000 grey levels beside a label stays at 100.
"""
ROWS = 32
"""How many rows are looked at."""
NOTHING, DRAWS = 0.01, 8
"""Nats a row, of all codes together, below which they say nothing of the rows; and draws that tell."""


def pulls(model: Any, batch: Batch) -> dict[str, float]:
    """How hard each modality pulls at the codes that it shares with others, in nats for one unit of the code.

    The mean over the rows where it was observed of |d log p(x_m | z) / dz|, its weight counted in, at a draw of z from
    the prior: a guide that is drowned already would draw z from where all modalities pull hard.
    """
    batch = batch.take(torch.arange(min(batch.rows, ROWS), device="cpu"))
    with torch.no_grad():
        drawn = poutine.trace(model).get_trace(batch, batch.mask)
    codes, axes = [], []
    for name in drawn.stochastic_nodes:
        site = drawn.nodes[name]
        if site["value"].is_floating_point():  # of a plate it is not
            site["value"] = site["value"].detach().requires_grad_()
            codes.append(site["value"])
            axes.append(site["fn"].event_dim)
    scored = poutine.trace(poutine.replay(model, drawn)).get_trace(batch, batch.mask)
    places = {name: scored_at(scored, name) for name in scored.observation_nodes if name in batch}
    scored.compute_log_prob(lambda name, _: name in places.values())
    sums = {name: scored.nodes[place]["log_prob_sum"] for name, place in places.items()}
    sums = {name: value for name, value in sums.items() if value.requires_grad}
    slopes = {k: torch.autograd.grad(v, codes, retain_graph=True, allow_unused=True) for k, v in sums.items()}
    shared = [i for i in range(len(codes)) if sum(found[i] is not None for found in slopes.values()) > 1]
    return {name: sum(_size(found[i], axes[i]) for i in shared) for name, found in slopes.items()}


def _size(slope: Tensor | None, event_dims: int) -> float:
    if slope is None:
        return 0.0
    size = slope.unsqueeze(-1).flatten(-1 - event_dims).norm(dim=-1)
    return float(size.sum() / (size > 0).sum().clamp(min=1))


def warn_of_drowning(model: Any, batch: Batch) -> None:
    """Warns if one modality pulls so hard at the shared codes that another will not be heard.

    Reference:
        Javaloy, Meghdadi and Valera, 2022, Mitigating Modality Collapse in Multimodal VAEs via Impartial Optimization,
        https://arxiv.org/abs/2206.04496
    """
    try:
        found = {name: pull for name, pull in pulls(model, batch).items() if 0 < pull < math.inf}
    except FAILURES:  # of a prior that can be scored and not drawn from, or of programs for so many rows
        return
    if len(found) < 2:
        return
    loud, quiet = max(found, key=found.__getitem__), min(found, key=found.__getitem__)
    if found[loud] > DROWNS * found[quiet]:
        warn(
            f"modality {loud!r} pulls at the shared code {found[loud] / found[quiet]:,.0f} times as hard as {quiet!r},"
            f" which will hardly be learnt; measure {loud!r} in units of its own spread, or give it a smaller"
            " mm.Modality(weight=...)"
        )


@torch.no_grad()
def warn_of_collapse(vae: Any, batch: Batch) -> None:
    """Warns if the guide says of every row what the prior says of none.

    Reference:
        Bowman, Vilnis, Vinyals, Dai, Jozefowicz and Bengio, 2016, Generating Sentences from a Continuous Space,
        https://arxiv.org/abs/1511.06349
    """
    kl, codes = 0.0, set[str]()
    for _ in range(DRAWS):  # one at a time, as in training: not every program takes several
        q, p = traced(vae, batch)
        codes = {name for name in p.stochastic_nodes if name in q and row_axis(p.nodes[name]) is not None}
        for trace, sign in ((q, 1), (p, -1)):
            trace.compute_log_prob(lambda name, _: name in codes)  # noqa: B023
            kl += sign * sum(float(trace.nodes[name]["log_prob_sum"]) for name in codes) / (DRAWS * batch.rows)
    if codes and abs(kl) < NOTHING:
        warn(
            "the codes say nothing that the prior does not, the posterior has collapsed: KL from guide to prior is"
            f" {max(kl, 0.0):.3f} nats a row; try fit(warmup=...), which lets the KL count little at first"
        )
