"""What `fit` does with convolutions of pictures meanwhile: their channels lie last, and biases come after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d

from pyro_mmvae.training.subpixel import SubPixel

KINDS = (nn.Conv2d, nn.ConvTranspose2d)


@contextmanager
def channels_last(networks: Iterable[nn.Module], gpu: bool) -> Iterator[None]:
    """Inside, the float32 weights of convolutions of pictures lie with their channels last; afterwards as before.

    On a CPU a step takes a twentieth less time then, and in bfloat16 an eighth. Not those that a module of another
    class has as well, which may look at its weights as they lie, nor what other processes share, nor what
    `torch.compile` has made for weights as they are.

    Args:
        gpu: whether to move what lies on another device than the CPU.
    """
    movable = {module: p for module, p in _own_weights(networks).items() if _may_move(p, gpu)}
    weights = {p: p.data for p in movable.values()}
    transposed = [m for m, p in movable.items() if type(m) is nn.ConvTranspose2d and p.device.type == "cpu"]
    for p, old in weights.items():
        p.data = old.contiguous(memory_format=torch.channels_last)
    try:
        with _in_parts(transposed):
            yield
    finally:
        for p, old in weights.items():
            old.copy_(p.data)
            p.data = old


def _own_weights(networks: Iterable[nn.Module]) -> dict[nn.Module, nn.Parameter]:
    """Of convolutions whose weight is a parameter, and of no module of another class."""
    parts = {module for net in networks for module in net.modules()}
    compiled = {part for module in parts if "_orig_mod" in module._modules for part in module.modules()}
    found = {module for module in parts - compiled if type(module) in KINDS}
    others = {p for module in parts - found for p in module._parameters.values()}
    weights = ((module, module._parameters.get("weight")) for module in found)
    return {module: p for module, p in weights if p is not None and p not in others}


def _may_move(weight: Tensor, gpu: bool) -> bool:
    return weight.dtype == torch.float32 and (not weight.is_shared() if weight.device.type == "cpu" else gpu)


@contextmanager
def _in_parts(convolutions: Iterable[nn.ConvTranspose2d]) -> Iterator[None]:
    """Inside, these add their biases to what they have computed without them, where they can as `SubPixel`.

    The gradient of a bias takes oneDNN as long as that of the weights if channels lie last, and in bfloat16 longer than
    all the rest; torch sums it in no time. Numbers differ by their rounding. What has a `forward` of its own keeps it.
    """
    changed = [conv for conv in convolutions if "forward" not in vars(conv)]
    try:
        for conv in changed:
            vars(conv)["forward"] = partial(_forward, conv, SubPixel(conv) if SubPixel.fits(conv) else None)
        yield
    finally:
        for conv in changed:
            vars(conv).pop("forward", None)


def _forward(conv: Any, quick: SubPixel | None, x: Tensor, output_size: list[int] | None = None) -> Tensor:
    if output_size is not None:
        return nn.ConvTranspose2d.forward(conv, x, output_size)
    if quick is not None and quick.takes(x):
        found = quick(x, conv.weight)
    else:
        shape = conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation
        found = conv_transpose2d(x, conv.weight, None, *shape)
    return found if conv.bias is None else found.add_(conv.bias.view(-1, 1, 1))
