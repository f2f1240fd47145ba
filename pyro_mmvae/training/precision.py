"""Networks in bfloat16, everything else in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.distributions import mapped
from pyro_mmvae.modality import Modality


@contextmanager
def lowered(modules: Sequence[nn.Module], dtype: torch.dtype | None, move: bool = False) -> Iterator[None]:
    """Inside, the networks of the modalities compute in `dtype`, and what they hand on is float32 again.

    Not `torch.autocast` around the whole loss: it would also take the products of a fusion and, by way of the
    parameters that networks give, the sums of a likelihood, in which 8 bits are lost.

    Args:
        move: whether the weights of convolutions are laid with their channels last meanwhile, which takes an eighth
            less time on a CPU; not under optimisers that go by places in memory, see `laid_like`.

    Raises:
        ValueError: another dtype than bfloat16, or a model that is not in float32.
    """
    if dtype is None:
        yield
        return
    networks = [net for module in modules for part in module.modules() for net in _networks(part)]
    _check(networks, dtype)
    with ExitStack() as stack:
        for net in {id(net): net for net in networks}.values():
            open_ones: list[torch.autocast] = []
            enter, leave = _hooks(open_ones, dtype)
            stack.callback(net.register_forward_pre_hook(enter).remove)
            stack.callback(net.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(_channels_last(networks if move else []))
        yield


@contextmanager
def _channels_last(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Moves the weights of convolutions of pictures, and back to where they were.

    Not those of other classes, which may look at their weights as they lie, nor what other processes share.
    """
    layers = [m for net in networks for m in net.modules() if type(m) in (nn.Conv2d, nn.ConvTranspose2d)]
    found = [m._parameters.get("weight") for m in layers]  # none if it is computed
    weights = {p: p.data for p in found if p is not None and not (p.device.type == "cpu" and p.is_shared())}
    for p, old in weights.items():
        p.data = old.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for p, old in weights.items():
            old.copy_(p.data)
            p.data = old


def _networks(part: nn.Module) -> list[nn.Module]:
    parts = (part.trunk, part.encoder, part.private, part.decoder) if isinstance(part, Modality) else ()
    return [net for net in parts if net is not None]


def _check(networks: Sequence[nn.Module], dtype: torch.dtype) -> None:
    if dtype != torch.bfloat16:
        raise ValueError(f"autocast is {dtype}; give torch.bfloat16, which has the range of float32")
    if not networks:
        raise ValueError("autocast is for the networks of modalities, and there are none; put it into your programs")
    found = {p.dtype for net in networks for p in net.parameters()} - {torch.float32}
    if found:
        raise ValueError(f"autocast is for a model in float32, this one has {found.pop()}; call vae.float()")


def _hooks(open_ones: list[torch.autocast], dtype: torch.dtype) -> tuple[Any, Any]:
    def enter(net: nn.Module, inputs: Any) -> None:
        device = next((value.device.type for value in inputs if isinstance(value, Tensor)), "cpu")
        open_ones.append(torch.autocast(device, dtype))
        open_ones[-1].__enter__()

    def leave(net: nn.Module, inputs: Any, output: Any) -> Any:
        open_ones.pop().__exit__(None, None, None)
        if isinstance(output, Distribution):
            return mapped(output, lambda value, _: _full(value))
        return _full(output) if isinstance(output, Tensor) else output

    return enter, leave


def _full(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.bfloat16 else value
