"""Convolutions of pictures where they are fastest: between two of them the channels lie last in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d

from pyro_mmvae.images import Residual
from pyro_mmvae.subpixel import SubPixel

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d, Residual)
BETWEEN = (
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity),
    *(nn.BatchNorm2d, nn.GroupNorm, nn.Dropout2d, nn.AvgPool2d, nn.MaxPool2d, nn.Upsample),
)
"""Layers that take pictures as they lie, leave them so, and draw no numbers in the order in which they lie."""
KNOWN = "torch.nn.modules.", "pyro_mmvae.", "pyro.nn."


@contextmanager
def channels_last(owners: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, an `nn.Sequential` lays pictures out for its convolutions; afterwards all is as before.

    On a CPU a step then takes a tenth less time, in bfloat16 still less, and a question of many draws a third less.
    It is done only where all layers are torch's or ours, without hooks, and in no module of another class, as the
    user's code may look at how pictures, weights or gradients lie in memory. What comes in and goes out lies as ever,
    and so do weights.
    """
    ways = _ways(dict.fromkeys(module for owner in owners for module in owner.modules()))
    try:
        for module, way in ways.items():
            vars(module)["forward"] = way
        yield
    finally:
        for module in ways:
            vars(module).pop("forward", None)


class _Way:
    """What stands in for a module's `forward` meanwhile; a copy of the module has its own again."""

    def __init__(self, module: nn.Module):
        self.module: Any = module

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        return MethodType(type(self.module).forward, copy.deepcopy(self.module, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, "forward")


class _Laid(_Way):
    """An `nn.Sequential` with pictures laid out between its convolutions, as long as it has the same layers."""

    def __init__(self, module: nn.Sequential):
        super().__init__(module)
        self.layers = _flat(module)
        self.runs = list(_runs(self.layers))
        self.steps: list[Callable[[Any], Any]] = list(self.layers)
        for start, end in reversed(self.runs):
            self.steps[end:end] = [Tensor.contiguous]
            self.steps[start:start] = [_last]

    def __call__(self, x: Any) -> Any:
        if _flat(self.module) != self.layers:
            return nn.Sequential.forward(self.module, x)
        for step in self.steps:
            x = step(x)
        return x


class _Apart(_Way):
    """A transposed convolution, by `SubPixel` where that can be; else, where channels lie last, with its bias added
    apart: oneDNN takes as long for the gradient of the bias as for that of the weights there, in bfloat16 longer than
    for all the rest, and torch sums it in no time."""

    def __init__(self, module: nn.ConvTranspose2d, within: bool):
        super().__init__(module)
        self.quick, self.within = SubPixel.of(module), within

    def __call__(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        conv, quick = self.module, self.quick if self.quick is not None and self.quick.takes(x) else None
        if output_size is not None or x.device.type != "cpu" or (quick is None and not self.within):
            return nn.ConvTranspose2d.forward(conv, x, output_size)
        shape = conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation
        found = quick(x, conv.weight) if quick else conv_transpose2d(x, conv.weight, None, *shape)
        return found if conv.bias is None else found.add_(conv.bias.to(found.dtype).view(-1, 1, 1))


def _ways(modules: Collection[nn.Module]) -> dict[nn.Module, _Way]:
    """module -> what stands in for its `forward`, for those that gain by it and whose code is known."""
    if not any(type(module) in CONVOLUTIONS for module in modules):
        return {}
    foreign = (module for module in modules if not type(module).__module__.startswith(KNOWN) or _replaced(module))
    closed = {part for module in foreign for part in module.modules()}
    seen = closed | {module for module in modules if _watched(module)}
    free = [module for module in modules if module not in closed]
    stacks = [_Laid(m) for m in free if type(m) is nn.Sequential and seen.isdisjoint(list(m.modules())[1:])]
    laid = {way.module: way for way in stacks if way.runs}
    within = {layer for way in laid.values() for start, end in way.runs for layer in way.layers[start:end]}
    apart = {m: _Apart(m, m in within) for m in free if type(m) is nn.ConvTranspose2d and _as_usual(m)}
    return {**laid, **apart}


def _watched(module: nn.Module) -> bool:
    """Whether it or a parameter of its own has hooks."""
    hooks = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return any(getattr(module, name) for name in hooks) or any(p._backward_hooks for p in module.parameters(False))


def _replaced(module: nn.Module) -> bool:
    """Whether it has a `forward` of its own."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def _flat(sequential: nn.Sequential) -> list[nn.Module]:
    """Its layers, and those of other `nn.Sequential` in it."""
    return list(chain.from_iterable(_flat(m) if type(m) is nn.Sequential else [m] for m in sequential))


def _runs(layers: Sequence[nn.Module]) -> Iterator[tuple[int, int]]:
    """Where there are two convolutions or more with nothing but layers between them that take pictures as they lie."""
    start, end, count = 0, 0, 0
    for place, layer in enumerate([*layers, nn.Module()]):
        if type(layer) in CONVOLUTIONS and _as_usual(layer):
            start, end, count = place if count == 0 else start, place + 1, count + 1
        elif type(layer) not in BETWEEN:
            if count > 1:
                yield start, end
            count = 0


def _as_usual(module: nn.Module) -> bool:
    return all(p.is_contiguous() for p in module.parameters())


def _last(x: Tensor) -> Tensor:
    """Pictures with their channels last, where that is faster: kernels of another kind compute double precision."""
    lowered = torch.is_autocast_enabled(x.device.type)
    if x.dim() != 4 or not (lowered or (x.device.type == "cpu" and x.dtype == torch.float32)):
        return x
    if x.shape[1] == 1:  # which lie the same way, and say that they lie with their channels first
        return x.contiguous().as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
    return x.contiguous(memory_format=torch.channels_last)
