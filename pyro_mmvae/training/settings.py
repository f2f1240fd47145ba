"""Settings of all kinds as plain values, by which a run is told from another."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.data import Batch
from pyro_mmvae.titles import part_of, title_of

MOST = 2**20
"""Numbers of a modality, or of a frozen parameter, that enter its checksum, evenly spaced."""


def parts_of(modules: Iterable[nn.Module]) -> dict[str, str]:
    """Every module in them by its class, those of torch and ours with their numbers and switches: two models whose
    parameters have the same names and shapes may differ in these. One of the user's may count its calls."""
    named = [each for owner in modules for each in owner.named_modules()]
    return {f"part {name.replace('._orig_mod', '')!r}": part_of(module) for name, module in named}


def familiar(loss: Any) -> bool:
    """Whether a loss is Pyro's or ours. One of the user's may count its calls, or look at pictures as they lie."""
    return type(loss).__module__.partition(".")[0] in ("pyro", "pyro_mmvae")


def course_of(function: Callable[[float], float]) -> str:
    """A function of progress by its name and a few of its values."""
    return f"{title_of(function)} {[round(float(function(at)), 6) for at in (0.0, 0.1, 0.35, 0.8)]}"


def made_by(make: Callable[..., torch.optim.Optimizer], optim: torch.optim.Optimizer) -> dict[str, str]:
    """The optimiser by its maker's name, and its options."""
    options = ", ".join(f"{name} {value}" for name, value in optim.defaults.items())
    return {"optimizer": title_of(make), "options of the optimizer": options}


def checksums(data: Any, held_out: Any, modules: Iterable[nn.Module]) -> dict[str, int | None]:
    """Of the data in memory, of those held out, and of the parameters that take no gradients, which no file has."""
    every = [p for owner in modules for _, p in sorted(owner.named_parameters()) if not p.requires_grad]
    return {
        "checksum of the data": checksum(data),
        "checksum of the validation data": checksum(held_out),
        "checksum of what is frozen": _crc(every),
    }


def checksum(batch: Any) -> int | None:
    """Of data in memory, values and masks; None of others."""
    if not isinstance(batch, Batch):
        return None
    return _crc(value for name in batch for value in (batch[name], batch.mask[name]))


def _crc(values: Iterable[Tensor]) -> int:
    found = 0
    for value in values:
        some = value.detach().reshape(-1)[:: max(1, value.numel() // MOST)].cpu().contiguous()
        found = zlib.crc32(some.view(torch.uint8).numpy().tobytes(), found)
    return found
