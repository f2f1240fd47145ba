"""Tables with columns of different kinds as one modality."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.columns import Column
from pyro_mmvae.distributions import Columnwise
from pyro_mmvae.heads import as_exact
from pyro_mmvae.likelihoods import QUICK
from pyro_mmvae.networks import SeesHoles, mlp


class TableLikelihood(nn.Module):
    """A row of a table: z (..., dim) -> independent columns of different kinds, event (column,).

    The data of such a modality are real numbers (row, column); NaN, or a mask of the same shape, hides single entries.

    Args:
        net: (..., dim) -> (..., sum of the columns' outputs), see `outputs_of`.
        columns: what each column holds.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> columns = [mm.RealColumn(), mm.PositiveColumn(), mm.CountColumn(), mm.OrdinalColumn(5)]
        >>> part = mm.Modality(
        ...     TableLikelihood(mm.mlp(2, 16, mm.outputs_of(columns)), columns),
        ...     mm.NormalHead(16, 2),
        ...     trunk=TableTrunk(columns, 16),
        ... )
        >>> part.decoder(torch.zeros(4, 2)).event_shape
        torch.Size([4])
    """

    def __init__(self, net: nn.Module, columns: Sequence[Column]):
        super().__init__()
        self.net, self.columns = net, list(columns)
        self.words: dict[str, list[str]] = {}  # of a `Table`: what columns and codes stand for, for files to be told by
        starts = [c.start() for c in columns]
        self.tenth, self.sizes = nn.Parameter(torch.cat(starts) / QUICK), list(map(len, starts))  # as in `LearnedScale`

    def forward(self, z: Tensor) -> Distribution:
        outs = as_exact(self.net(z), z).split([c.outputs for c in self.columns], -1)
        learnt = (QUICK * self.tenth).split(self.sizes)
        parts = [c.distribution(o, s) for c, o, s in zip(self.columns, outs, learnt, strict=True)]
        return Columnwise(parts).to_event(1)


class TableTrunk(SeesHoles):
    """What an encoder sees of a row with holes: each column in a scale of its own, zero where hidden, and the pattern
    of what was observed; (row, column) -> (row, size).

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> trunk = TableTrunk([mm.RealColumn(), mm.CategoryColumn(3)], 16)
        >>> trunk(torch.zeros(5, 2), torch.ones(5, 2, dtype=torch.bool)).shape
        torch.Size([5, 16])
    """

    def __init__(self, columns: Sequence[Column], size: int):
        super().__init__()
        self.columns = list(columns)
        self.net = nn.Sequential(mlp(sum(c.width for c in columns) + len(columns), size, size), nn.ReLU())

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        seen = mask.unbind(-1)
        shown = [c.features(v) * s.unsqueeze(-1) for c, v, s in zip(self.columns, x.unbind(-1), seen, strict=True)]
        return self.net(torch.cat([*shown, mask.to(x.dtype)], -1))
