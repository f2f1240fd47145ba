"""Whether two ways to compute a step say the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

LOSS = 1e-3
SAME = 1e-3, 0.05
"""How far the graph's loss and gradients may lie from the step's, as a share of their norm; gradients without and with
holes. With holes the step runs networks on fewer rows, where libraries round in another way, and a unit near its kink
may turn over: that makes 0.002 in float32 and 0.016 in bfloat16. Without, both are the same operations."""
Found = tuple[Tensor, Sequence[Tensor | None]]
"""The loss of a batch summed over its rows, and the gradient of its mean by each parameter."""


def exact(device: torch.device) -> AbstractContextManager[None]:
    """Convolutions on a GPU in full float32: otherwise it rounds some of them, by their shapes, to eleven bits."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device.type == "cuda" else nullcontext()


def same(one: Found, other: Found, gradients: float) -> bool:
    """Do they agree? A gradient that is not there is zero."""
    pairs = zip(one[1], other[1], strict=True)
    return _distance(one[0], other[0]) < LOSS and all(_distance(a, b) < gradients for a, b in pairs)


def _distance(a: Tensor | None, b: Tensor | None) -> float:
    """The norm of the difference, as a share of the norm."""
    some = b if a is None else a
    if some is None:
        return 0.0
    a, b = (torch.zeros_like(some) if value is None else value for value in (a, b))
    return float((a - b).norm() / (b.norm() + 1e-5 * b.numel() ** 0.5))
