"""What `fit` is given besides the data, and one line for what it cannot take."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from pyro.optim import PyroOptim

from pyro_mmvae.arrays import shown

OF_PROGRESS = "give a function of progress from 0 to 1, such as mm.constant, or lambda progress: 0.5"
LOOKED_AT = 0.0, 0.25, 0.5, 0.75, 0.99
BY_HAND = "give a function (parameters, lr) -> torch optimiser, such as torch.optim.AdamW"


def check_arguments(loss: Any, optimizer: Any, every: Any, **functions: Any) -> None:
    """Refuses what `fit` could only fail with.

    Raises:
        ValueError: a loss that is a class or no loss, an optimizer that was made already or makes none, a negative time
            between two records, or a setting that should be a function of progress and is none, or falls below zero.
    """
    if isinstance(loss, type):
        raise ValueError(f"loss is the class {loss.__name__}; give an object of it, such as {loss.__name__}()")
    if not any(hasattr(loss, name) for name in ("differentiable_loss", "loss_and_grads")):
        raise ValueError(f"loss is {shown(loss)}; give a Pyro ELBO, such as Trace_ELBO(), or an objective of ours")
    if isinstance(optimizer, (PyroOptim, torch.optim.Optimizer)) or not callable(optimizer):
        raise ValueError(f"optimizer is {shown(optimizer)}; {BY_HAND}")
    if isinstance(every, bool) or not isinstance(every, Real) or not float(every) >= 0:
        raise ValueError(f"every is {shown(every)}; give seconds between two records, from 0 on")
    for name, function in functions.items():
        _check_course(name, function)


def _check_course(name: str, function: Any) -> None:
    """Raises ValueError for what is no function of progress, or gives what is no factor: a negative rate climbs."""
    if not callable(function):
        raise ValueError(f"{name} is {shown(function)}; {OF_PROGRESS}")
    for progress in LOOKED_AT:
        try:
            found = float(function(progress))
        except TypeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{name} fails on the progress {progress}: {reason}; {OF_PROGRESS}") from error
        if not 0 <= found < math.inf:
            raise ValueError(f"{name} gives {found:g} for the progress {progress}; {OF_PROGRESS}")


def optimizer_of(make: Any, parameters: Iterable[torch.Tensor], lr: float) -> torch.optim.Optimizer:
    """The torch optimiser that `make` gives.

    Raises:
        ValueError: it takes other arguments, gives none, one whose step asks for the loss several times, or one of
            other parameters.
    """
    parameters = list(parameters)
    try:
        optim = make(parameters, lr=lr)
    except TypeError as error:
        raise ValueError(f"optimizer fails on (parameters, lr): {str(error).splitlines()[0]}; {BY_HAND}") from error
    if not isinstance(optim, torch.optim.Optimizer) or _asks(optim):
        raise ValueError(f"optimizer gives {shown(optim)}, not what takes a step by itself; {BY_HAND}")
    held = {id(p): p for group in optim.param_groups for p in group["params"]}
    if held.keys().isdisjoint(map(id, parameters)):  # of another model, and then nothing would be trained
        raise ValueError(f"optimizer gives one that holds none of the parameters that it was given; {BY_HAND}")
    for p in held.values():
        if not p.requires_grad:
            p.grad = None  # of before it was frozen, which would go on to move it
    return optim


def _asks(optim: torch.optim.Optimizer) -> bool:
    """Whether its step cannot do without a function that gives the loss, as that of LBFGS."""
    asked = inspect.signature(optim.step).parameters.get("closure")
    return asked is not None and asked.default is asked.empty
