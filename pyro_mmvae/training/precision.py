"""Networks in bfloat16, everything else in float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.distributions import mapped
from pyro_mmvae.likelihoods import Likelihood
from pyro_mmvae.modality import Modality


@contextmanager
def lowered(modules: Sequence[nn.Module], dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, the networks of the modalities compute in `dtype`, and what they hand on is float32 again.

    Not `torch.autocast` around the whole loss: it would also take the products of a fusion and, by way of the
    parameters that networks give, the sums of a likelihood, in which 8 bits are lost.

    Raises:
        ValueError: another dtype than bfloat16, or a model that is not in float32.
    """
    if dtype is None:
        yield
        return
    networks = networks_of(modules)
    _check(networks, dtype)
    with ExitStack() as stack:
        for net in networks:
            enter, leave = _hooks(dtype)
            stack.callback(net.register_forward_pre_hook(enter).remove)
            stack.callback(net.register_forward_hook(leave, always_call=True).remove)
        yield


def networks_of(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The networks of the modalities; of a likelihood those in it: a scale of all entries stays one number."""
    owners = [part for module in modules for part in module.modules() if isinstance(part, Modality)]
    parts = [net for m in owners for net in (m.trunk, m.encoder, m.private, m.decoder) if net is not None]
    inner = [list(net.children()) if isinstance(net, Likelihood) else [net] for net in parts]
    return list(dict.fromkeys(chain.from_iterable(inner)))


def _check(networks: Sequence[nn.Module], dtype: torch.dtype) -> None:
    if dtype != torch.bfloat16:
        raise ValueError(f"autocast is {dtype}; give torch.bfloat16, which has the range of float32")
    if not networks:
        raise ValueError("autocast is for the networks of modalities, and there are none; put it into your programs")
    found = {p.dtype for net in networks for p in net.parameters()} - {torch.float32}
    if found:
        raise ValueError(f"autocast is for a model in float32, this one has {found.pop()}; call vae.float()")


def _hooks(dtype: torch.dtype) -> tuple[Any, Any]:
    """What to run before a network, and after it; its calls may nest."""
    open_ones: list[torch.autocast] = []

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
