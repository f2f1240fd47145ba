"""The modules behind a model and a guide, in whatever form the two are given."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from pyro_mmvae.programs import Program, check_model


def owners_of(vae: Any) -> list[nn.Module]:
    """The modules behind an object with `model` and `guide`, however it holds them; each once, none inside another.

    A program may be a module, a method of one, or a function, or any of them under handlers of Pyro's; behind a
    function are the modules that it names, and those behind the functions beside it that it names.
    """
    check_model(vae)
    found, visited, ahead = [], set(), [vae, vae.model, vae.guide]
    while ahead:
        thing = ahead.pop(0)
        if id(thing) not in visited:
            visited.add(id(thing))
            if isinstance(thing, nn.Module) and not isinstance(thing, Program):
                found.append(thing)
            else:
                ahead += _named_by(thing)
    inside = {id(m) for owner in found for m in owner.modules() if m is not owner}
    return [owner for owner in found if id(owner) not in inside]


def _named_by(thing: Any) -> list[Any]:
    """What may be, or lead to, a module behind something that is none."""
    if isinstance(thing, Program):
        return [thing.vae]
    if isinstance(thing, partial):  # as handlers make of a program
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        own = thing.__self__
        return [thing.__func__, own, *(() if isinstance(own, nn.Module) else getattr(own, "__dict__", {}).values())]
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if cell != CellType()]
        near = thing.__globals__
        named = [near[name] for name in _names(thing.__code__) if name in near]
        named = [value for value in named if getattr(value, "__globals__", near) is near]  # no function of a library
        return [part for value in [*cells, *named] for part in (value, *_held(value))]
    return []


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function, and those defined in it, look up."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _held(value: Any) -> list[Any]:
    """The modules in a dictionary or a sequence."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [part for part in values if isinstance(part, nn.Module)]
