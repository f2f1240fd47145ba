"""Transposed convolutions to few channels give the numbers and gradients that torch's give."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import conv_transpose2d

from pyro_mmvae.subpixel import SubPixel

# kernel, stride, padding, output padding of one axis, all of those with pictures that grow by the stride
AXES = [
    (k, s, p, s + 2 * p - k)
    for k, s, p in product(range(1, 7), range(1, 5), range(4))
    if 0 <= s + 2 * p - k < s and p <= k - 1  # torch wants no more to be padded than to be strided over
]
AXES.append((7, 3, 2, 0))  # whose first window lies further out than its last


def conv_of(rows, columns, outer=1):
    size, stride, padding, more = zip(rows, columns)
    return nn.ConvTranspose2d(2, outer, size, stride, padding, more)


def test_there_are_shapes_of_all_kinds():
    assert len(AXES) > 20
    assert {(4, 2, 1, 0), (3, 2, 1, 1), (5, 2, 2, 1), (2, 2, 0, 0), (1, 2, 0, 1), (5, 3, 1, 0)} <= set(AXES)


@pytest.mark.parametrize("rows", AXES, ids=str)
def test_every_shape_gives_the_numbers_that_torch_gives(rows):
    for columns, outer, size in product(AXES, (1, 3), ((5, 4), (1, 1))):
        conv, x = conv_of(rows, columns, outer), torch.randn(3, 2, *size)
        want = conv_transpose2d(x, conv.weight, None, conv.stride, conv.padding, conv.output_padding)
        torch.testing.assert_close(SubPixel(conv)(x, conv.weight), want)


def test_what_it_is_for():
    assert SubPixel.of(nn.ConvTranspose2d(32, 3, 4, 2, 1))
    assert SubPixel.of(nn.ConvTranspose2d(32, 4, 3, 2, 1, output_padding=1))
    assert SubPixel.of(nn.ConvTranspose2d(32, 8, (4, 3), (2, 1), 1))
    assert not SubPixel.of(nn.ConvTranspose2d(32, 5, 4, 2, 1))  # 20 numbers a spot
    assert not SubPixel.of(nn.ConvTranspose2d(32, 3, (2, 4), (2, 4)))  # 24
    assert not SubPixel.of(nn.ConvTranspose2d(32, 3, 3, 1, 1))  # spots of one pixel
    assert not SubPixel.of(nn.ConvTranspose2d(32, 3, 4, 2))  # a picture that grows by more
    assert not SubPixel.of(nn.ConvTranspose2d(32, 3, 3, 2, 1))  # by less
    assert not SubPixel.of(nn.ConvTranspose2d(32, 3, (4, 3), 2, 1))  # by less along one axis
    assert not SubPixel.of(nn.ConvTranspose2d(32, 3, 4, 2, 1, dilation=2))
    assert not SubPixel.of(nn.ConvTranspose2d(32, 2, 4, 2, 1, groups=2))


@pytest.mark.filterwarnings("ignore:Please use `torch.vmap`")  # the gradient check of older torch does not
@pytest.mark.parametrize("channels_last", [False, True])
def test_first_and_second_derivatives(channels_last):
    conv = conv_of((4, 2, 1, 0), (3, 2, 1, 1), outer=2)
    x, weight = torch.randn(2, 2, 3, 2), conv.weight.detach()
    if channels_last:
        x, weight = (value.contiguous(memory_format=torch.channels_last) for value in (x, weight))
    both, way = (x.requires_grad_(), weight.requires_grad_()), SubPixel(conv)
    assert gradcheck(way, both, check_batched_grad=True)
    assert gradgradcheck(way, both)
    x.requires_grad_(False)
    assert gradcheck(lambda w: way(x, w), weight)


def test_in_bfloat16_it_gives_what_torch_gives_by_autocast():
    """Sums are of other orders, so that numbers differ by roundings to 8 bits, and gradients of float32 are float32."""
    conv, x = nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False).float(), torch.randn(6, 8, 5, 4).bfloat16()
    found = []
    for way in (conv, lambda x: SubPixel(conv)(x, conv.weight)):
        with torch.autocast("cpu", torch.bfloat16):
            assert SubPixel.takes(x) and not SubPixel.takes(x.float()) and not SubPixel.takes(x.half())
            out = way(x.requires_grad_())
        found.append((out, *torch.autograd.grad(out.float().square().sum(), (x, conv.weight))))
    for torch_s, ours in zip(*found, strict=True):
        assert ours.dtype == torch_s.dtype
        largest = torch_s.detach().abs().max().item()
        torch.testing.assert_close(ours, torch_s, rtol=2**-6, atol=largest * 2**-7)
    assert not SubPixel.takes(x)  # a network in bfloat16 by itself
    with torch.autocast("cpu", torch.float16):
        assert not SubPixel.takes(x.half())
