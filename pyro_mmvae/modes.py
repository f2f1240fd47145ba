"""Training and eval mode of the modules behind a model and a guide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from pyro_mmvae.convolutions import channels_last
from pyro_mmvae.owners import owners_of
from pyro_mmvae.programs import alone

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def in_training(vae: Any) -> Iterator[list[nn.Module]]:
    """The modules of both programs in training mode, but for what is frozen; in eval mode afterwards, or, if something
    was refused, each in the mode that it had."""
    found = owners_of(vae)
    before, refused = _modes(found), False
    try:
        train(found)
        yield found
    except (ValueError, TypeError):
        refused = True
        raise
    finally:
        for owner in found:
            owner.eval()
        if refused:
            _put_back(before)


def train(owners: Sequence[nn.Module]) -> None:
    """Puts modules in training mode, and those of them that are frozen in eval mode."""
    for owner in owners:
        owner.train()
        for module in owner.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()


@contextmanager
def at_rest(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules in eval mode, which changes no buffer of theirs, and in their own modes afterwards."""
    modes = _modes(modules)
    try:
        for owner in modules:
            owner.eval()
        yield
    finally:
        _put_back(modes)


def _modes(owners: Sequence[nn.Module]) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for owner in owners for module in owner.modules()]


def _put_back(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    try:
        for module, mode in modes:
            module.training = mode
    except KeyboardInterrupt:  # nobody comes after this
        _put_back(modes)
        raise


def tool(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Makes a function whose first argument is a model one that finds its modules in eval mode, takes no gradients, and
    leaves no trace.

    In training mode, in which a model is until `fit` or its user says otherwise, dropout would act in every answer, and
    each question would move the statistics of batch normalisation.
    """

    @wraps(function)
    def ask(vae: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        owners = owners_of(vae)
        with torch.inference_mode(False), torch.no_grad(), alone(), at_rest(owners), channels_last(owners):
            return function(vae, *args, **kwargs)

    return ask
