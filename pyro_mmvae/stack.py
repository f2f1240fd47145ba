"""Normal experts side by side in one tensor, for the fusions that compute with all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.seen import Seen


class Stack:
    """The normal experts of a batch side by side, one for each modality and repeat.

    Attributes:
        loc, scale: (expert, row, 1, dim), of no meaning where nothing was seen.
        modality: which modality each expert belongs to.
        whole: whether every expert is there in every row.
        gathered: whether the experts were asked for some rows only, so that there are fewer entries than rows.
    """

    def __init__(self, normals: Mapping[str, dist.Normal], seen: Mapping[str, Seen]):
        self._normals, self._seen = list(normals.values()), [seen[name] for name in normals]
        self.modality = [position for position, s in enumerate(self._seen) for _ in range(s.entries.shape[1])]
        self.whole = all(s.whole for s in self._seen)
        self.gathered = any(s.flat is not None for s in self._seen)

    @cached_property
    def loc(self) -> Tensor:
        return self._beside([q.loc for q in self._normals])

    @cached_property
    def scale(self) -> Tensor:
        return self._beside([q.scale for q in self._normals])

    def _beside(self, values: Sequence[Tensor]) -> Tensor:
        if self.whole and len(self.modality) == len(values):
            return torch.stack(list(values)).unsqueeze(2)
        return torch.cat([s.scatter(value).transpose(0, 1) for value, s in zip(values, self._seen)]).unsqueeze(2)

    @property
    def given(self) -> Tensor:
        """Where the experts are, bool (expert, row, 1)."""
        return torch.cat([s.entries.transpose(0, 1) for s in self._seen]).unsqueeze(2)

    def entries(self) -> tuple[Tensor, Tensor]:
        """loc and scale of the seen entries alone, those of one modality after another, (entry, dim)."""
        return torch.cat([q.loc for q in self._normals]), torch.cat([q.scale for q in self._normals])

    def laid_out(self, value: Tensor) -> Tensor:
        """From the order of `entries`, (entry, dim), to (expert, row, 1, dim), zero where nothing was seen."""
        rows, dim = len(self._seen[0].entries), value.shape[-1]
        full = value.new_zeros(len(self.modality) * rows, dim)
        return full.index_copy(0, self._places, value).view(len(self.modality), rows, 1, dim)

    @cached_property
    def _places(self) -> Tensor:
        """The place of each entry among (expert, row), flat."""
        found, experts = [], 0
        for s in self._seen:
            rows, repeats = s.entries.shape
            entry = torch.arange(rows * repeats, device=s.x.device) if s.flat is None else s.flat
            place = entry if repeats == 1 else entry % repeats * rows + entry // repeats
            found.append(place + experts * rows if experts else place)
            experts += repeats
        return torch.cat(found)
