"""Networks: plain torch modules for trunks, encoders and decoders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor, nn

from pyro_mmvae.arrays import shown, tensor_of, whole
from pyro_mmvae.heads import NormalHead


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A multilayer perceptron (..., sizes[0]) -> (..., sizes[-1]).

    Example:
        >>> mlp(16, 256, 784)
        Sequential(
          (0): Linear(in_features=16, out_features=256, bias=True)
          (1): ReLU()
          (2): Linear(in_features=256, out_features=784, bias=True)
        )
    """
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes):
        layers += [nn.Linear(inner, outer), activation()]
    return nn.Sequential(*layers[:-1])


class Standardize(nn.Module):
    """(x - loc) / scale as real numbers: the first layer of an encoder of grey levels, measurements or log(1 + counts).

    Example:
        >>> Standardize(loc=8, scale=8)(torch.tensor([0, 8, 16]))
        tensor([-1.,  0.,  1.])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: float | Tensor = 0.0, scale: float | Tensor = 1.0):
        super().__init__()
        for name, value in (("loc", loc), ("scale", scale)):
            value = value if isinstance(value, Real) else tensor_of(f"Standardize: {name}", value)
            value = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach()
            # A copy: loading a model writes into its buffers, and the next one may be made of the same array.
            self.register_buffer(name, value.clone(memory_format=torch.contiguous_format))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.scale.dtype) - self.loc) / self.scale


class OneHot(nn.Module):
    """Categories 0, 1, ... as one-hot vectors (..., categories): the first layer of an encoder of labels.

    Example:
        >>> OneHot(3)(torch.tensor([0, 2]))
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """

    eye: Tensor

    def __init__(self, categories: int):
        super().__init__()
        self.register_buffer("eye", torch.eye(categories))

    def forward(self, x: Tensor) -> Tensor:
        return self.eye[x.long()]


class SeesHoles(nn.Module):
    """A trunk that is also told which entries of its modality were observed. Abstract: forward(x, mask) -> h.

    x (entry, *event) is zero where hidden; mask (entry, *event) is bool, True = observed.

    Example:
        >>> class Share(SeesHoles):
        ...     def forward(self, x, mask):
        ...         return mask.float().mean(-1, keepdim=True)
        >>> Share()(torch.zeros(1, 4), torch.tensor([[True, False, True, True]]))
        tensor([[0.7500]])
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


class WithHoles(SeesHoles):
    """Passes [x, mask] to a network: for measurements with single entries missing.

    Args:
        net: (entry, 2 * features) -> h.

    Example:
        >>> trunk = WithHoles(mlp(2 * 40, 128))
        >>> trunk(torch.zeros(5, 40), torch.ones(5, 40, dtype=torch.bool)).shape
        torch.Size([5, 128])
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mask = mask.flatten(1)
        values = x.flatten(1)
        values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
        return self.net(torch.cat([values, mask.to(values.dtype)], -1))


class Batched(nn.Module):
    """A network that wants exactly one leading axis, applied under any number of them; see `batched`."""

    def __init__(self, net: nn.Module, event_dims: int):
        super().__init__()
        self.net, self.event_dims = net, event_dims

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[: x.dim() - self.event_dims]
        out = self.net(x.reshape(-1, *x.shape[x.dim() - self.event_dims :]))
        return out.reshape(*lead, *out.shape[1:])


def batched(net: nn.Module, event_dims: int = 1) -> Batched:
    """Wraps a network that wants one leading axis, such as a convolution, so that it takes (..., *event).

    Example:
        >>> decoder = batched(nn.Sequential(nn.Linear(2, 9), nn.Unflatten(1, (1, 3, 3)), nn.Conv2d(1, 1, 3)))
        >>> decoder(torch.zeros(5, 4, 2)).shape
        torch.Size([5, 4, 1, 1, 1])
    """
    return Batched(net, event_dims)


def encoder(*sizes: int, dim: int, head: type[nn.Module] = NormalHead) -> nn.Sequential:
    """An encoder of flat data: x (..., sizes[0]) -> q(z | x) with event (dim,).

    Args:
        head: `NormalHead`, `FullRankHead`, `LaplaceHead`, or any class (size, dim) -> module h -> distribution.

    Raises:
        ValueError: no sizes.

    Example:
        >>> encoder(784, 256, dim=16)(torch.zeros(5, 784)).event_shape
        torch.Size([16])
    """
    if not sizes:
        raise ValueError("an encoder has no sizes; give those of its layers, the data first, such as 784, 256")
    return nn.Sequential(Standardize(), mlp(*sizes), nn.ReLU(), head(sizes[-1], dim))


def conv_trunk(shape: Sequence[int], channels: Sequence[int] = (32, 64), size: int = 128) -> nn.Sequential:
    """A trunk for pictures (row, channel, height, width) of any size -> (row, size); each stage halves the picture.

    Raises:
        ValueError: a shape that is not (channel, height, width).

    Example:
        >>> conv_trunk((3, 28, 28))(torch.zeros(5, 3, 28, 28)).shape
        torch.Size([5, 128])
    """
    layers: list[nn.Module] = [Standardize()]
    inner, height, width = picture(shape)
    for outer in channels:
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.ReLU()]
        inner, height, width = outer, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inner * height * width, size), nn.ReLU())


def conv_encoder(
    shape: Sequence[int], channels: Sequence[int] = (32, 64), size: int = 128, *, dim: int
) -> nn.Sequential:
    """An encoder of pictures: x (row, *shape), shape = (channel, height, width) -> q(z | x) with event (dim,).

    Raises:
        ValueError: a shape that is not (channel, height, width).

    Example:
        >>> conv_encoder((3, 28, 28), dim=16)(torch.zeros(5, 3, 28, 28)).event_shape
        torch.Size([16])
    """
    return nn.Sequential(conv_trunk(shape, channels, size), NormalHead(size, dim))


def conv_decoder(dim: int, shape: Sequence[int], channels: Sequence[int] = (64, 32), size: int = 128) -> Batched:
    """A network z (..., dim) -> (..., channel, height, width) for a likelihood head; each stage doubles the picture.

    Raises:
        ValueError: a shape that is not (channel, height, width).

    Example:
        >>> conv_decoder(16, (3, 28, 28))(torch.zeros(5, 1, 16)).shape
        torch.Size([5, 1, 3, 28, 28])
    """
    outer, height, width = picture(shape)
    step = 2 ** len(channels)
    small = (channels[0], -(-height // step), -(-width // step))
    layers: list[nn.Module] = [nn.Linear(dim, size), nn.ReLU(), nn.Linear(size, small[0] * small[1] * small[2])]
    layers += [nn.ReLU(), nn.Unflatten(1, small)]
    widths = [*channels, outer]
    for inner, after in pairwise(widths):
        layers += [nn.ConvTranspose2d(inner, after, 4, stride=2, padding=1), nn.ReLU()]
    return batched(nn.Sequential(*layers[:-1], Crop(height, width)))


def picture(shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of pictures; raises ValueError for what are not those."""
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"shape is {shown(shape)}; give (channel, height, width), such as (3, 28, 28)")
    channels, height, width = (whole(f"shape[{place}]", size) for place, size in enumerate(shape))
    return channels, height, width


class Crop(nn.Module):
    """The upper left (..., height, width) of a picture."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.height, : self.width]
