"""Residual convolutional networks for pictures of any size; a spectrogram is a picture (1, frequency, time)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import silu

from pyro_mmvae.heads import NormalHead
from pyro_mmvae.networks import Batched, Crop, Standardize, batched, picture


class Residual(nn.Module):
    """x + two convolutions of x, (row, inner, height, width) -> (row, outer, height, width).

    Normalised in groups of four channels, never over rows: what a network says of a row depends on that row alone.

    Reference:
        He, Zhang, Ren and Sun, 2016, Identity Mappings in Deep Residual Networks, https://arxiv.org/abs/1603.05027
    """

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(n // 4 if n % 4 == 0 else 1, n) for n in (inner, outer)])
        self.convolutions = nn.ModuleList([nn.Conv2d(n, outer, 3, padding=1) for n in (inner, outer)])
        self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(silu(norm(h)))
        return self.skip(x) + h


def residual_trunk(shape: Sequence[int], channels: Sequence[int] = (32, 64, 128), size: int = 256) -> nn.Sequential:
    """A trunk for pictures (row, channel, height, width) -> (row, size); each stage halves the picture.

    Raises:
        ValueError: a shape that is not (channel, height, width).

    Example:
        >>> import torch
        >>> residual_trunk((3, 33, 50), channels=(8, 16), size=20)(torch.zeros(2, 3, 33, 50)).shape
        torch.Size([2, 20])
    """
    inner, height, width = picture(shape)
    layers: list[nn.Module] = [Standardize(), nn.Conv2d(inner, channels[0], 3, padding=1)]
    inner = channels[0]
    for outer in channels:
        layers += [Residual(inner, outer), nn.AvgPool2d(2, ceil_mode=True)]
        inner, height, width = outer, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(*layers, nn.SiLU(), nn.Flatten(), nn.Linear(inner * height * width, size), nn.SiLU())


def residual_encoder(
    shape: Sequence[int], channels: Sequence[int] = (32, 64, 128), size: int = 256, *, dim: int
) -> nn.Sequential:
    """An encoder of pictures: x (row, *shape), shape = (channel, height, width) -> q(z | x) with event (dim,).

    Raises:
        ValueError: a shape that is not (channel, height, width).

    Example:
        >>> import torch
        >>> residual_encoder((1, 32, 20), channels=(8, 16), dim=4)(torch.zeros(5, 1, 32, 20)).event_shape
        torch.Size([4])
    """
    return nn.Sequential(residual_trunk(shape, channels, size), NormalHead(size, dim))


def residual_decoder(
    dim: int, shape: Sequence[int], channels: Sequence[int] = (128, 64, 32), size: int = 256
) -> Batched:
    """A network z (..., dim) -> (..., channel, height, width) for a likelihood head; each stage doubles the picture.

    Raises:
        ValueError: a shape that is not (channel, height, width).

    Example:
        >>> import torch
        >>> residual_decoder(16, (3, 33, 50), channels=(16, 8), size=20)(torch.zeros(5, 1, 16)).shape
        torch.Size([5, 1, 3, 33, 50])
    """
    outer, height, width = picture(shape)
    step = 2 ** len(channels)
    small = (channels[0], -(-height // step), -(-width // step))
    layers: list[nn.Module] = [nn.Linear(dim, size), nn.SiLU(), nn.Linear(size, small[0] * small[1] * small[2])]
    layers.append(nn.Unflatten(1, small))
    inner = channels[0]
    for after in channels:
        layers += [nn.Upsample(scale_factor=2), Residual(inner, after)]
        inner = after
    return batched(nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1), Crop(height, width)))
