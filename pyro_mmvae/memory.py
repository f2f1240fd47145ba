"""Memory: where numbers lie in it, and that what will be needed again stays at hand."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

MOST = 2**25 - 2**16
"""Bytes: a little less than the largest block that glibc adapts itself to."""
KERNELS = "PRIMITIVE_CACHE_CAPACITY"
"""oneDNN's setting, after the prefix ONEDNN_ or, of old, DNNL_."""


@cache
def keep_at_hand() -> None:
    """What `fit` and the estimators start with: freed memory and compiled kernels are kept for the whole process."""
    keep_freed_memory()
    keep_kernels()


def keep_freed_memory() -> None:
    """Lets glibc keep up to 64 MiB of freed memory, where it gives large blocks back to the system at once.

    A step of a model of pictures frees and asks for tens of megabytes. Each page that was given back costs a page fault
    when it is written to again: thousands a step, a twentieth to a quarter of its time. glibc takes its thresholds from
    the largest block that it has seen freed; this one is never written to, so it takes no memory itself. Elsewhere it
    does nothing.
    """
    torch.empty(MOST, dtype=torch.uint8, device="cpu")


def keep_kernels() -> None:
    """Lets oneDNN, which runs torch's convolutions on a CPU, keep 8,192 compiled kernels, where it keeps 1,024.

    A kernel is compiled for one number of rows, some forty of them for an encoder and a decoder of three convolutions.
    With missing rows every batch has other numbers, about thirty in turn, and of 1,024 kernels each is forgotten before
    it is needed again: a tenth of a step. A kept kernel takes about 22 KB. oneDNN reads its setting when it first runs:
    here, or before, and then nothing changes. A setting of the user's own stays.
    """
    if torch.backends.mkldnn.is_available() and not any(f"{p}_{KERNELS}" in os.environ for p in ("ONEDNN", "DNNL")):
        os.environ[f"ONEDNN_{KERNELS}"] = "8192"
        with suppress(RuntimeError):
            torch.zeros(16, 16, dtype=torch.float32, device="cpu").to_mkldnn()
        del os.environ[f"ONEDNN_{KERNELS}"]


def laid_like(value: Tensor, like: Tensor) -> Tensor:
    """The same numbers at the places in memory where `like` has its own: itself, or a copy.

    torch's fused optimisers go by places. Of two tensors that are laid out otherwise they mix up the numbers, without a
    word on a CPU: a parameter that is a slice of another tensor, or a gradient that nobody accumulated.
    """
    return value if value.stride() == like.stride() else torch.empty_like(like).copy_(value)
