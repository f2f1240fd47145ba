"""The modules behind a model and a guide, in whatever form the two are given."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from pyro_mmvae.programs import Program, check_model

_FUNCTIONS = FunctionType, MethodType, partial


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


def refuse_hidden(owners: Iterable[nn.Module], trained: Collection[int]) -> None:
    """Refuses a plain function as a part of a model if parameters behind it take gradients and nobody trains them, and
    a part that borrows from another model, whose parameters nobody would keep either.

    Args:
        trained: the ids of those that are.
    """
    owners = list(owners)
    every = {id(p) for owner in owners for p in owner.parameters()}
    for owner in owners:
        own = {id(p) for p in owner.parameters()}
        for prefix, part in owner.named_modules():
            ours = type(part).__module__.startswith("pyro_mmvae.")  # of a class of the user's it is the user's business
            for name, value in vars(part).items() if ours else ():
                if isinstance(value, _FUNCTIONS) and not _behind(value) <= own | set(trained):
                    where = f"{prefix}.{name}".strip(".").removesuffix(".function")
                    raise ValueError(
                        f"{where!r} is a function of a network whose parameters nobody would train; give an nn.Module"
                        " that holds the network, or freeze it by requires_grad_(False)"
                    )
            for lent in getattr(part, "borrowed", ()) if ours else ():
                if not {id(p) for p in lent.parameters()} <= every:
                    raise ValueError(
                        f"{prefix!r} looks through networks that are not the model's own, or no longer, and nobody"
                        " would train or save; make it anew, from vae.modalities and vae.fusion"
                    )


def _behind(function: Any) -> set[int]:
    """The ids of the parameters behind a function that take gradients."""
    found, visited, ahead = set(), set(), [function]
    while ahead:
        thing = ahead.pop()
        if isinstance(thing, nn.Module):
            found |= {id(p) for p in thing.parameters() if p.requires_grad}
        elif isinstance(thing, nn.Parameter) and thing.requires_grad:
            found.add(id(thing))
        elif isinstance(thing, _FUNCTIONS) and id(thing) not in visited:
            visited.add(id(thing))
            ahead += _named_by(thing)
    return found


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
