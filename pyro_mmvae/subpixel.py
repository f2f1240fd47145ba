"""Transposed convolutions to few channels, computed by a convolution that gives a whole spot of pixels for each.

Where pictures grow by the stride, every pixel of the smaller one becomes a spot of stride x stride pixels, and all
spots take the same weights of the same neighbours. So a convolution with a channel for every number of a spot gives the
larger picture, spot by spot: the sub-pixel convolution of Shi et al. (2016, https://arxiv.org/abs/1609.05158), with the
weights of the transposed one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

FEW = 16
"""Numbers of a spot up to which this is faster: a processor computes with so many at once, needed or not."""


class SubPixel:
    """What a transposed convolution computes but for its bias: to three channels on a CPU, in less than half the time.

    Gradients are those of the transposed convolution, which are fast. Pictures have their channels first.

    Args:
        conv: one whose pictures grow by the stride, to spots of few numbers; `of` says whether it is.
    """

    def __init__(self, conv: nn.ConvTranspose2d):
        self.stride, self.padding, self.output_padding = _numbers(conv)
        size, none = conv.weight.shape[2:], conv.weight.numel()
        rows, above, self.first = _windows(size[0], self.stride[0], self.padding[0])
        columns, left = _window(size[1], self.stride[1], self.padding[1])
        weights = pad(torch.arange(none, device="cpu").view(conv.weight.shape), (0, 1, 0, 1), value=none)
        spots = weights[:, :, rows[:, None, :, None], columns[:, None, :]].permute(2, 3, 1, 4, 5, 0).flatten(0, 2)
        self.around, self.shape, self.order = (above, left), spots.shape, spots.flatten()

    @classmethod
    def of(cls, conv: nn.ConvTranspose2d) -> SubPixel | None:
        """None for a convolution that it is not for."""
        stride, padding, more = _numbers(conv)
        grows = all(k + m == s + 2 * p for k, s, p, m in zip(conv.weight.shape[2:], stride, padding, more, strict=True))
        plain = conv.groups == 1 and tuple(conv.dilation) == (1, 1) and max(stride) > 1
        few = stride[0] * stride[1] * conv.out_channels <= FEW
        return cls(conv) if grows and plain and few else None

    @staticmethod
    def takes(x: Tensor) -> bool:
        """Whether those are pictures on a CPU in single precision, or by autocast in bfloat16, and are to stay so."""
        wanted = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        return x.dim() == 4 and x.device.type == "cpu" and x.dtype == wanted != torch.float16

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (row, inner, height, width), weight (inner, outer, *size) -> (row, outer, *larger)."""
        result: Tensor = _SubPixel.apply(x, weight.to(x.dtype), self)  # type: ignore[no-untyped-call]
        return result

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        (rows, _, height, width), channels = x.shape, weight.shape[1]
        kernel = pad(weight.flatten(), (0, 1)).index_select(0, self.order).view(self.shape).permute(0, 3, 1, 2)
        spots = conv2d(x, kernel, padding=self.around).unflatten(1, (*self.stride, channels))
        larger = x.new_empty(rows, channels, height * self.stride[0], width * self.stride[1])
        places = larger.view(rows, channels, height, self.stride[0], width, self.stride[1])
        for r, first in enumerate(self.first):
            places[:, :, :, r] = spots[:, r, :, :, first : first + height].permute(0, 2, 3, 4, 1)
        return larger


class _SubPixel(torch.autograd.Function):
    """(x, weight, way) -> `way.compute(x, weight)`, differentiated as the transposed convolution that it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, way: SubPixel) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.way = way
        return way.compute(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight), way, wanted = ctx.saved_tensors, ctx.way, [*ctx.needs_input_grad[:2], False]
        shape = way.stride, way.padding, (1, 1), True, way.output_padding, 1
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(gradients[0], x, weight, None, *shape, wanted)
        return by_x, by_weight, None


def _numbers(conv: nn.ConvTranspose2d) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    return tuple(conv.stride), tuple(conv.padding), tuple(conv.output_padding)  # type: ignore[arg-type]


def _windows(size: int, stride: int, padding: int) -> tuple[Tensor, int, list[int]]:
    """Along the height, with a window for each place r in a spot, as short as can be: the weight (r, tap) there, what
    to pad, and where the first window lies."""
    taps, last = -(-size // stride), [(r + padding) // stride for r in range(stride)]
    around = max(taps - 1 - last[0], last[-1])
    starts = [reach - taps + 1 for reach in last]
    return _weights(size, stride, padding, starts, taps), around, [around + start for start in starts]


def _window(size: int, stride: int, padding: int) -> tuple[Tensor, int]:
    """Along the width, with one window for all places r in a spot, so that they lie side by side: the weight (r, tap)
    there, and what to pad."""
    around = (stride - 1 + padding) // stride
    return _weights(size, stride, padding, [-around] * stride, 2 * around + 1), around


def _weights(size: int, stride: int, padding: int, starts: list[int], taps: int) -> Tensor:
    """The weight with which place r takes the pixel that lies starts[r] + tap from its own; `size` where none does."""
    found = [[r + padding - stride * (start + tap) for tap in range(taps)] for r, start in enumerate(starts)]
    return torch.tensor([[k if 0 <= k < size else size for k in row] for row in found], device="cpu")
