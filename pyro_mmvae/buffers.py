"""Buffers of modules, by where they stand: a network may write to one in place, or put another tensor there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Place = tuple[nn.Module, str]
"""A module, and what the buffer is called in it."""


def places(modules: Iterable[nn.Module]) -> Iterator[tuple[str, Place]]:
    """The names that `named_buffers` gives, with the places; of empty ones too, which a network may fill."""
    for owner in modules:
        for prefix, module in owner.named_modules():
            for name in module._buffers.keys():  # noqa: SIM118, those of torch.jit's modules are no dictionary
                yield f"{prefix}.{name}" if prefix else name, (module, name)


def standing(owner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers at every place that has one: by one name a place, though its module may stand at several,
    and by several names where modules have a tensor in common."""
    for prefix, module in owner.named_modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                yield f"{prefix}.{name}" if prefix else name, value


def apart(modules: Iterable[nn.Module]) -> None:
    """Gives buffers whose entries lie on top of each other, as after `expand`, memory that can be written to."""
    for _, (module, name) in places(modules):
        value = getattr(module, name)
        if value is not None and not is_lazy(value) and _overlaps(value):
            setattr(module, name, value.clone(memory_format=torch.contiguous_format))


def _overlaps(value: Tensor) -> bool:
    dense = value.layout == torch.strided
    return dense and any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape))


@contextmanager
def in_place(owner: nn.Module) -> Iterator[None]:
    """Raises ValueError if a network puts another tensor in the place of a buffer, which a graph would not do."""
    before = {name: getattr(module, key) for name, (module, key) in places([owner])}
    yield
    for name, (module, key) in places([owner]):
        if getattr(module, key) is not before.get(name):
            name = name.removeprefix("parts.").partition(".")[2]
            raise ValueError(
                f"compile: a step puts another tensor in the place of the buffer {name!r}, which its graph would not"
                f" do; write to it in place, as in self.{key}.copy_(value), or leave compile out"
            )
