"""The workloads, once as a `MultimodalVAE` and once in hand-written torch on the very same networks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

import pyro_mmvae as mm

BATCH = 128


class Workload(NamedTuple):
    """Event shapes by modality name (an int is a number of categories), width of the networks, size of z, rows."""

    events: dict[str, tuple[int, ...] | int]
    hidden: tuple[int, ...]
    dim: int
    rows: int


WORKLOADS = {
    "small": Workload({"a": (64,), "b": 10, "c": (20,)}, (128,), 16, 80 * BATCH),
    "medium": Workload({"a": (784,), "b": 10, "c": (784,)}, (512, 512), 64, 24 * BATCH),
    "conv": Workload({f"p{i}": (3, 28, 28) for i in range(5)}, (32, 64, 128), 64, 4 * BATCH),
}


def build(name: str, seed: int = 0, fusion: mm.Fusion | None = None) -> mm.MultimodalVAE:
    """Normal likelihoods of scale 1 for vectors and pictures, categorical ones for labels."""
    torch.manual_seed(seed)
    work, parts = WORKLOADS[name], {}
    for key, event in work.events.items():
        if isinstance(event, int):
            net = mm.mlp(work.dim, *work.hidden, event)
            look = nn.Sequential(mm.OneHot(event), mm.encoder(event, *work.hidden, dim=work.dim))
            parts[key] = mm.Modality(mm.CategoricalLikelihood(net), look)
        elif len(event) == 1:
            net = mm.mlp(work.dim, *work.hidden, event[0])
            look = mm.encoder(event[0], *work.hidden, dim=work.dim)
            parts[key] = mm.Modality(mm.NormalLikelihood(net, 1.0), look)
        else:
            net = mm.conv_decoder(work.dim, event, tuple(reversed(work.hidden)))
            parts[key] = mm.Modality(mm.NormalLikelihood(net, 1.0), mm.conv_encoder(event, work.hidden, dim=work.dim))
    return mm.MultimodalVAE(parts, mm.StandardNormal(work.dim), fusion or mm.PoE())


def data(name: str, missing: float, seed: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random values, and masks that hide that share of the modalities."""
    generator = torch.Generator().manual_seed(seed)
    work, x = WORKLOADS[name], {}
    for key, event in work.events.items():
        if isinstance(event, int):
            x[key] = torch.randint(0, event, (work.rows,), generator=generator)
        else:
            x[key] = torch.randn(work.rows, *event, generator=generator)
    return mm.hide(x, share=missing, keep_one=True) if missing else (x, {k: torch.ones(work.rows).bool() for k in x})


def order(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The rows of each batch of an epoch, where the data are."""
    some = next(iter(x.values()))
    return torch.randperm(len(some)).to(some.device).split(BATCH)


class Floor:
    """PoE by hand: the same networks and maths, masks instead of plates, one fused Adam, nothing else."""

    def __init__(self, vae: mm.MultimodalVAE, lr: float = 1e-3):
        self.parts = vae.modalities
        self.heads = {
            k: m.encoder[-1] if not isinstance(m.encoder[-1], nn.Sequential) else m.encoder[-1][-1]
            for k, m in self.parts.items()
        }
        self.optim = torch.optim.Adam(vae.parameters(), lr=lr, fused=True)

    def encode(self, key: str, value: Tensor) -> tuple[Tensor, Tensor]:
        layers = self.parts[key].encoder
        flat = [*layers[:-1], *layers[-1][:-1]] if isinstance(layers[-1], nn.Sequential) else list(layers[:-1])
        for layer in flat:
            value = layer(value)
        loc, raw = self.heads[key].linear(value).chunk(2, -1)
        return loc, softplus(raw) + 1e-5

    def loss(self, x: dict[str, Tensor], mask: dict[str, Tensor]) -> Tensor:
        precision, shift = 1.0, 0.0
        for key, value in x.items():
            loc, scale = self.encode(key, value)
            weight = mask[key].unsqueeze(-1) / scale**2
            precision, shift = precision + weight, shift + weight * loc
        scale = precision**-0.5
        loc = shift / precision
        z = loc + scale * torch.randn_like(loc)
        total = (-0.5 * z**2 + 0.5 * ((z - loc) / scale) ** 2 + scale.log()).sum()
        for key, value in x.items():
            out = self.parts[key].decoder.net(z)
            if value.dim() == 1:
                log_prob = -cross_entropy(out, value, reduction="none")
            else:
                log_prob = -0.5 * ((value - out) ** 2 + math.log(2 * math.pi)).flatten(1).sum(-1)
            total = total + (log_prob * mask[key]).sum()
        return -total

    def epochs(self, x: dict[str, Tensor], mask: dict[str, Tensor], epochs: int) -> None:
        for _ in range(epochs):
            for index in order(x):
                self.optim.zero_grad(set_to_none=True)
                loss = self.loss({k: v[index] for k, v in x.items()}, {k: v[index] for k, v in mask.items()})
                (loss / len(index)).backward()
                self.optim.step()
