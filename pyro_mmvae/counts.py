"""Networks for counts whose total is a thing of its own, such as sequencing reads."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pyro_mmvae.heads import as_exact


class LogRates(nn.Module):
    """log rates of counts = log total(z) + log softmax(net(z)): how many in all, and in which proportions.

    For `PoissonLikelihood` and `NegativeBinomialLikelihood`. The total ("library size", "sequencing depth") is decoded,
    so that rows can be drawn, filled in and scored without knowing it, holes included; it is never computed from the
    row that is being scored. To give it a latent variable of its own, make it the modality's private code (`private=`
    in `Modality`, of size one) and pass `Last(1)`.

    Args:
        net: (..., dim) -> (..., features), up to a constant.
        log_total: (..., dim) -> (..., 1).
        start: a typical total.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> decoder = mm.PoissonLikelihood(LogRates(mm.mlp(16, 64, 200), mm.mlp(16, 1), start=5000.0))
        >>> decoder(torch.zeros(3, 16)).event_shape
        torch.Size([200])
    """

    def __init__(self, net: nn.Module, log_total: nn.Module, *, start: float = 1.0):
        super().__init__()
        self.net, self.log_total, self.start = net, log_total, start

    def forward(self, z: Tensor) -> Tensor:
        total, shares = as_exact(self.log_total(z), z), as_exact(self.net(z), z)
        return math.log(self.start) + total + shares.log_softmax(-1)


class Last(nn.Module):
    """The last few coordinates of a code.

    Example:
        >>> import torch
        >>> Last(2)(torch.tensor([1.0, 2.0, 3.0]))
        tensor([2., 3.])
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, z: Tensor) -> Tensor:
        return z[..., -self.size :]
