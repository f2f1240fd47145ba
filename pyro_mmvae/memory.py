"""Memory: where numbers lie in it, and that what the C library is given back stays at hand."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

MOST = 2**25 - 2**16
"""Bytes: a little less than the largest block that glibc adapts itself to."""


@cache
def keep_freed_memory() -> None:
    """Lets glibc keep up to 64 MiB of freed memory, where it gives large blocks back to the system at once.

    A step of a model of pictures frees and asks for tens of megabytes. Each page that was given back costs a page fault
    when it is written to again: thousands a step, a twentieth to a quarter of its time. glibc takes its thresholds from
    the largest block that it has seen freed; this one is never written to, so it takes no memory itself. Elsewhere it
    does nothing.
    """
    torch.empty(MOST, dtype=torch.uint8, device="cpu")


def laid_like(value: Tensor, like: Tensor) -> Tensor:
    """The same numbers at the places in memory where `like` has its own: itself, or a copy.

    torch's fused optimisers go by places. Of two tensors that are laid out otherwise they mix up the numbers, without a
    word on a CPU: a parameter that is a slice of another tensor, or a gradient that nobody accumulated.
    """
    return value if value.stride() == like.stride() else torch.empty_like(like).copy_(value)
