"""How the parameters of a model are announced to Pyro, and what a step of stock SVI does once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.nn.module import _Context
from pyro.params.param_store import param_with_module_name
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.lift_messenger import LiftMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.substitute_messenger import SubstituteMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn


@effectful(type="param")
def _parameter(value: Tensor, constraint: object = None) -> Tensor:
    return value


def once_a_step(owner: object, x: object, mask: object, make: Callable[[], Any]) -> Any:
    """What `make` gives; in a step of stock SVI made once, as its guide and its model get the same x and mask."""
    steps = _steps()
    if not steps or x is None:
        return make()
    kept = vars(steps[-1]).setdefault("made", {})
    key = id(owner), id(x), id(mask)
    if key not in kept:
        kept[key] = x, mask, make()  # with x and mask, so that no other object gets their ids meanwhile
    return kept[key][-1]


def _steps() -> list[Any]:
    """The traces in which steps of stock SVI that are under way look for parameters."""
    return [handler.trace for handler in _PYRO_STACK if getattr(handler, "param_only", False)]


_INDIFFERENT = (TraceMessenger, ReplayMessenger)
"""Handlers that leave a parameter as it is."""
_SETTING = (LiftMessenger, SubstituteMessenger)
"""Handlers that give a parameter another value; that of `render_model` marks it."""


class _Alias:
    """What stands in a trace for a parameter: SVI asks it for the tensor to train."""

    def __init__(self, parameter: Tensor):
        self.parameter = parameter

    def unconstrained(self) -> Tensor:
        return self.parameter


def named_parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    """`module.named_parameters()`, walked in one function, as it is every step: names in the same order, each tensor
    once."""
    found: dict[int, tuple[str, Tensor]] = {}
    visited = set()
    ahead = [("", module)]
    while ahead:
        prefix, part = ahead.pop()
        if part in visited:
            continue
        visited.add(part)
        for name, parameter in part._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (prefix + name, parameter))
        ahead += [(f"{prefix}{name}.", child) for name, child in reversed(part._modules.items()) if child is not None]
    return list(found.values())


def announce(module: nn.Module) -> None:
    """One "param" site for every parameter of the module that takes gradients.

    In a step of stock SVI, where no handler stands in between that could have a say, they are written down in the
    trace of the whole step and one is announced, which tells the loss that there is something to train.
    """
    steps = _steps()
    if len(steps) > 1:
        _refuse_tracing()
    told = [vars(trace).setdefault("announced", {}) for trace in steps]
    if told and all(id(module) in names for names in told):
        _announce(*told[-1][id(module)])
        return
    direct = bool(steps) and all(type(handler) in _INDIFFERENT for handler in _PYRO_STACK)
    named = named_parameters(module)
    free = [(name, p) for name, p in named if p.requires_grad]
    sites = [(f"vae{id(module):x}.{name}", p) for name, p in free]
    if steps and free:
        _name(module, named, "vae" if not told[-1] else f"vae{len(told[-1]) + 1}")
    for site, parameter in sites[:1] if direct else sites:
        _announce(site, parameter)
    for trace in steps if direct else ():
        for site, parameter in sites[1:]:
            trace.add_node(site, type="param", name=site, value=_Alias(parameter))
    for trace, names in zip(steps, told):
        if sites and sites[-1][0] in trace.nodes:  # a `block` may have kept them from it
            names[id(module)] = sites[0]


class _Own(_Context):
    """What PyroModules of a model have in place of Pyro's context, by which parameters go by names in the store."""

    def __init__(self) -> None:
        super().__init__()
        self.param_state: Any = {"params": {}, "constraints": {}}

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def take_from_store(module: nn.Module) -> None:
    """Makes every `PyroParam` a parameter of its module alone, as an `nn.Parameter` is.

    In Pyro's store it goes by a name, which begins anew below what is no `PyroModule`: the scales of two modalities, or
    of two models, would be one parameter. Modules with a `PyroSample` stay as they are: it is a site by such a name.
    """
    parts = [part for part in module.modules() if isinstance(part, PyroModule)]
    drawn = {id(part._pyro_context) for part in parts if part._pyro_samples}
    for part in parts:
        if id(part._pyro_context) not in drawn:
            part._pyro_context = _Own()


def _refuse_tracing() -> None:
    """Raises ValueError in a loss that torch.jit traces: it looks for parameters in Pyro's store, behind a block."""
    last = max(place for place, handler in enumerate(_PYRO_STACK) if getattr(handler, "param_only", False))
    if isinstance(_PYRO_STACK[last - 1], BlockMessenger):
        raise ValueError(
            "the loss is one of Pyro's JitTrace_ELBO and its like, which look for parameters in Pyro's store, where a"
            " MultimodalVAE keeps none; give Trace_ELBO(), or call mm.fit(compile='eager') for a traced step"
        )


_named: weakref.WeakKeyDictionary[nn.Module, tuple[list[tuple[str, int]], dict[Tensor, str]]]
_named = weakref.WeakKeyDictionary()
"""Of every model that was named: which parameters it had where, and what they were called."""


def _name(module: nn.Module, parameters: list[tuple[str, Tensor]], title: str) -> None:
    """Tells Pyro's optimisers the names of parameters, as `pyro.module(title, module)` would, for settings that go by
    name and for saving; forgotten with the module, or when they are no longer a part of it by that name."""
    names = pyro.get_param_store()._param_to_name
    places, (before, old) = [(name, id(p)) for name, p in parameters], _named.get(module, ([], {}))
    if places != before or parameters[0][1] not in names:
        own = {p: param_with_module_name(title, name) for name, p in parameters}
        _forget([p for p, name in old.items() if names.get(p) == name != own.get(p)])
        _named.update({other: ([], known) for other, (_, known) in _named.items()})  # they may share what was forgotten
        _named[module] = places, own
        names.update({p: name for p, name in own.items() if p not in names})
        weakref.finalize(module, _forget, list(own))


def _forget(parameters: list[Tensor]) -> None:
    for p in parameters:
        pyro.get_param_store()._param_to_name.pop(p, None)


def _announce(site: str, parameter: Tensor) -> None:
    try:
        alias = parameter.view_as(parameter)
    except ValueError:  # torch's of a layer that takes its sizes from the first batch
        name = site.partition(".")[2]
        raise ValueError(f"{name!r} has no shape yet; run mm.log_likelihood(vae, x) on a batch first") from None
    alias.unconstrained = _Alias(parameter).unconstrained  # type: ignore[attr-defined]
    found = _parameter(alias, constraint=torch.distributions.constraints.real, name=site)
    if found is not alias and any(isinstance(handler, _SETTING) for handler in _PYRO_STACK):
        raise ValueError(
            f"a handler, poutine.lift or poutine.substitute, gives {site.partition('.')[2]!r} another value, which its"
            " network would not take; load values into the model, and write priors of weights as sites of your own"
        )
