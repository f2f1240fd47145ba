"""The states of torch's random generators, of the CPU and of those devices that a model is on."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def devices_of(tensors: Iterable[Tensor]) -> list[torch.device]:
    """The devices besides the CPU that have a random generator of their own, each once."""
    found = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    return sorted(found, key=str)


def generators(devices: Iterable[torch.device]) -> dict[str, Tensor]:
    """How the generators stand, to be given to `set_generators`."""
    return {"cpu": torch.get_rng_state(), **{str(device): _of(device).get_rng_state(device) for device in devices}}


def set_generators(states: Mapping[str, Tensor]) -> None:
    """Makes the generators stand as they did."""
    for name, state in states.items():
        if name == "cpu":
            torch.set_rng_state(state)
        else:
            _of(torch.device(name)).set_rng_state(state, torch.device(name))


def seed_generators(devices: Iterable[torch.device], seed: int) -> None:
    """Seeds the CPU's generator and those of the devices, and no other device's.

    Raises:
        ValueError: the seed is no whole number.
    """
    try:
        seed = operator.index(seed)
    except TypeError:
        raise ValueError(f"seed is {repr(seed).splitlines()[0]}; give a whole number") from None
    torch.default_generator.manual_seed(seed)
    for device in devices:
        with _of(device).device(device):
            _of(device).manual_seed(seed)


@contextmanager
def undisturbed(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Random numbers may be drawn inside; afterwards the generators stand as before."""
    before = generators(devices)
    try:
        yield
    finally:
        set_generators(before)


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """The same random numbers inside each time; afterwards the generators stand as before."""
    devices = list(devices)
    with undisturbed(devices):
        seed_generators(devices, seed)
        yield


def _of(device: torch.device) -> Any:
    return getattr(torch, device.type)  # torch.cuda, torch.xpu
