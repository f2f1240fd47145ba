"""Settings of all kinds as plain values, by which a run is told from another."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from pyro_mmvae.data import Batch

PYROS = {"max_plate_nesting", "ignore_jit_warnings", "strict_enumeration_warning", "retain_graph"}
"""Attributes of a loss that tell no runs apart: Pyro finds them out by itself, or they change no number."""
MOST = 2**20
"""Numbers of a modality that enter its checksum, evenly spaced."""


def title_of(thing: Any) -> str:
    """A function or class by its name; an object by its class, its numbers and switches, and what it is made of."""
    if hasattr(thing, "__qualname__"):
        return str(thing.__qualname__)
    if isinstance(thing, (list, tuple)):
        return f"{type(thing).__qualname__}({', '.join(map(title_of, thing))})"
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return repr(thing)
    simple = (bool, int, float, str, list, tuple)
    inside = getattr(thing, "__dict__", {}).items()
    parts = {k: v for k, v in inside if isinstance(v, simple) and k not in PYROS}
    return f"{type(thing).__qualname__}({', '.join(f'{k}={title_of(v)}' for k, v in sorted(parts.items()))})"


def parts_of(modules: Iterable[nn.Module]) -> dict[str, str]:
    """Every module in them by its class, those of torch and ours with their numbers and switches: two models whose
    parameters have the same names and shapes may differ in these. One of the user's may count its calls."""
    named = [each for owner in modules for each in owner.named_modules()]
    return {f"part {name.replace('._orig_mod', '')!r}": _part(module) for name, module in named}


def _part(module: nn.Module) -> str:
    kind, known = type(module), type(module).__module__.startswith(("torch.nn.", "pyro_mmvae."))
    parts = {k: v for k, v in vars(module).items() if known and k[0] != "_" and k != "training"}
    told = [f"{k}={v!r}" for k, v in sorted(parts.items()) if isinstance(v, (bool, int, float, str))]
    return f"{kind.__qualname__}({', '.join(told)})"


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


def checksums(data: Any, held_out: Any) -> dict[str, int | None]:
    """Of the data in memory and of those held out."""
    return {"checksum of the data": checksum(data), "checksum of the validation data": checksum(held_out)}


def checksum(batch: Any) -> int | None:
    """Of data in memory, values and masks; None of others."""
    if not isinstance(batch, Batch):
        return None
    found = 0
    for name in batch:
        for value in (batch[name], batch.mask[name]):
            some = value.detach().reshape(-1)[:: max(1, value.numel() // MOST)].cpu().contiguous()
            found = zlib.crc32(some.view(torch.uint8).numpy().tobytes(), found)
    return found
