"""Codes of a model: what private ones are inferred from, several side by side, and one to try a decoder with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_mmvae.distributions import like
from pyro_mmvae.experts import Experts
from pyro_mmvae.fusion import Fusion
from pyro_mmvae.view import View


def own_of(experts: Experts, view: View) -> Experts:
    """The unimodal posteriors of the private codes, beside those of z."""
    return experts.private(view.given if view.private is None else view.private)


def beside(codes: Sequence[Tensor]) -> Tensor:
    """The codes side by side, each (..., row, 1, its own size)."""
    if len(codes) == 1:
        return codes[0]
    shape = torch.broadcast_shapes(*[code.shape[:-1] for code in codes])
    return torch.cat([code.expand(*shape, code.shape[-1]) for code in codes], -1)


def one_code(prior: nn.Module, experts: Experts | None) -> Tensor:
    """A code for one row, (1, 1, dim); for a prior that cannot do without data a zero, of the size of the experts."""
    if not isinstance(prior, Fusion):
        p = prior(None)
        if not p.event_shape:
            raise ValueError(
                f"the prior has batch {tuple(p.batch_shape)} and event (); it must have event (dim,): add .to_event(1)"
            )
        return p.expand((1, 1)).sample()
    if experts is None or not experts.given:
        return prior(None).sample()  # which says why not
    q = experts.entries(next(iter(experts)))
    return like(q).new_zeros(1, 1, *q.event_shape)
