"""Normal experts side by side in one tensor, for the fusions that compute with all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.modality import Seen


class Stack:
    """The normal experts of a batch side by side, one for each modality and repeat.

    Attributes:
        loc, scale: (expert, row, 1, dim), of no meaning where nothing was seen.
        modality: which modality each expert belongs to.
        whole: whether every expert is there in every row.
    """

    def __init__(self, normals: Mapping[str, dist.Normal], seen: Mapping[str, Seen]):
        self._seen = [seen[name] for name in normals]
        self.modality = [position for position, s in enumerate(self._seen) for _ in range(s.entries.shape[1])]
        self.whole = all(s.whole for s in self._seen)
        self.loc = self._beside([q.loc for q in normals.values()])
        self.scale = self._beside([q.scale for q in normals.values()])

    def _beside(self, values: Sequence[Tensor]) -> Tensor:
        if self.whole and len(self.modality) == len(values):
            return torch.stack(list(values)).unsqueeze(2)
        return torch.cat([s.scatter(value).transpose(0, 1) for value, s in zip(values, self._seen)]).unsqueeze(2)

    @property
    def given(self) -> Tensor:
        """Where the experts are, bool (expert, row, 1)."""
        return torch.cat([s.entries.transpose(0, 1) for s in self._seen]).unsqueeze(2)
