"""Gradients that go through a draw twice as weighed, and which guides they are right for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions import Delta, Distribution, TransformedDistribution
from torch import Tensor

from pyro_mmvae.distributions import Chain


class Doubled:
    """Multiplies the gradient of a draw by its normalised weight, known only after the forward pass.

    Of a code whose density counts b times, by 1 - b + b times that: the score of its density, which is what is left
    out, stands b times in the gradient.
    """

    weights: Tensor

    def __init__(self, particles: int, rows: int):
        self.shape = (particles, rows)

    def hook(self, axis: int | None, events: int, beta: float | Tensor) -> Callable[[Tensor], Tensor]:
        """What `register_hook` of a draw takes, with its rows at that axis, so many event axes, and its density beta
        times in the bound."""
        assert axis is not None
        right = -axis - 1 + events

        def multiply(gradient: Tensor) -> Tensor:
            middle = [1] * (gradient.dim() - 2 - right)
            weights = 1 - beta + beta * self.weights
            return gradient * weights.reshape(self.shape[0], *middle, self.shape[1], *[1] * right)

        return multiply


def check_doubles(sites: list[Any]) -> None:
    """Raises ValueError for codes of a guide whose doubled gradient would be another one, without a word.

    It takes densities without a gradient to their parameters, and draws that reach the bound on one way alone.
    """
    draws = {site["name"]: site["value"] for site in sites}
    for site in sites:
        others = [value for name, value in draws.items() if name != site["name"]]
        reasons = {
            "carry no gradient": not site["fn"].has_rsample,
            "have no density of their own": any(isinstance(part, Delta) for part in _parts(site["fn"])),
            "pass through transforms that learn": any(_learns(part, site["value"]) for part in _parts(site["fn"])),
            "hang on other draws": _comes_from(site["value"], others)
            or any(isinstance(part, Chain) for part in _parts(site["fn"])),
        }
        for reason, there in reasons.items():
            if there:
                raise ValueError(
                    f"draws of {site['name']!r} {reason}, and so the gradient of objectives.dreg would be wrong; give"
                    " objectives.iwae"
                )


def _parts(q: Distribution) -> Iterator[Distribution]:
    """A distribution and those that it is made of."""
    yield q
    for value in vars(q).values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, Distribution):
                yield from _parts(part)


def _learns(q: Distribution, like: Tensor) -> bool:
    """Whether draws pass through transforms with parameters that take gradients."""
    if not isinstance(q, TransformedDistribution) or q.arg_constraints:
        return False
    x = like.new_full(q.base_dist.batch_shape + q.base_dist.event_shape, 0.5)
    with torch.enable_grad():
        return any(transform(x).requires_grad for transform in q.transforms)


def _comes_from(value: Tensor, others: list[Tensor]) -> bool:
    """Whether gradients of a draw reach one of the others."""
    wanted = {other.grad_fn for other in others if other.grad_fn is not None}
    ahead, visited = [value.grad_fn], set[Any]()
    while ahead and wanted:
        node = ahead.pop()
        if node in wanted:
            return True
        if node is not None and node not in visited:
            visited.add(node)
            ahead += [before for before, _ in node.next_functions]
    return False
