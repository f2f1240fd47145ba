"""What was seen of a modality in a batch, in the layout of the programs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_mmvae.accelerator import moved
from pyro_mmvae.arrays import with_axes
from pyro_mmvae.data import Batch


class Seen:
    """One modality of a batch in the layout of the programs.

    Args:
        x: (row, repeat, *event), zero where hidden.
        entries: bool (row, repeat), where anything was observed.
        flat: which of the row * repeat entries these are, (entry,); None = all.
        rows: the rows with an observed entry, (observed,); None = every row.
        elements: bool (row, repeat, *event) or coarser; None if entries are observed as a whole.
        dense: whether hidden entries are computed with as well, so that `flat` and `rows` are None; or would be, if by
            chance there are none.
        known: `entries` on the CPU, to be looked at without waiting for their device; None = they are only there.

    Attributes:
        whole: whether every entry is known to be observed, in this batch and in others of the same data.
    """

    def __init__(
        self,
        x: Tensor,
        entries: Tensor,
        flat: Tensor | None,
        rows: Tensor | None,
        elements: Tensor | None,
        dense: bool = False,
        known: Tensor | None = None,
    ):
        self.known = entries if known is None else known
        self.x, self.entries, self.flat, self.rows, self.elements, self.dense = x, entries, flat, rows, elements, dense
        self.whole = flat is None and not dense
        self._values: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, name: str, repeated: bool) -> Seen:
        x, mask = batch[name], batch.mask[name]
        if repeated and x.dim() < 2:
            raise ValueError(f"modality {name!r} is repeated and has no axis of repeats; give (row, repeat, *event)")
        if not repeated:
            x, mask = x.unsqueeze(1), mask.unsqueeze(1)
        elif mask.dim() == 1:
            mask = mask.unsqueeze(1).expand(x.shape[:2])
        if name in batch.complete:
            entries = mask if mask.dim() == 2 else mask.new_ones(()).expand(x.shape[:2])
            return cls(x, entries, None, None, None)
        entries = mask.flatten(2).any(-1) if mask.dim() > 2 else mask
        elements = mask if mask.dim() > 2 else None
        if not repeated and name in (batch.filled or ()):
            return cls(x, entries, None, None, elements)
        if batch.dense:
            return cls(x, entries, None, None, elements, dense=True)
        known = batch.known.get(name)
        if known is not None:
            known = known.reshape(len(known), -1)
            known = known.expand(entries.shape) if repeated else known.any(-1, keepdim=True)
        return cls.at(x, entries, elements, known, part=batch.filled is not None)

    @classmethod
    def at(
        cls, x: Tensor, entries: Tensor, elements: Tensor | None, known: Tensor | None = None, part: bool = False
    ) -> Seen:
        """What was seen at those entries.

        Args:
            known: the entries on the CPU, if they are there.
            part: whether they are a part of data with holes in this modality; if none is among them, that is by chance,
                and no random number depends on it.
        """
        where = entries if known is None else known
        flat = places(where.flatten(), x.device)
        rows = flat if entries.shape[1] == 1 else places(where.any(-1), x.device)
        return cls(x, entries, flat, rows, elements, dense=part and flat is None, known=known)

    @property
    def mask(self) -> Tensor | None:
        """What a likelihood of the decoded rows has to mask, bool (row, repeat) or finer; None = nothing."""
        if self.elements is not None:
            return self.elements
        picked = self.rows is not None and self.entries.shape[1] == 1  # then no hidden entry is decoded
        return None if self.whole or picked else self.entries

    def values(self) -> Tensor:
        """The seen entries of x, (entry, *event)."""
        if self._values is None:  # the encoder looks at them, and the likelihood does
            x = self.x.flatten(0, 1)
            self._values = x if self.flat is None else x.index_select(0, self.flat)
        return self._values

    def scatter(self, value: Tensor) -> Tensor:
        """From (entry, ...) to (row, repeat, ...), with the first entry's value where nothing was seen."""
        if self.flat is not None:
            # A seen entry's parameters are valid ones whatever the family; no gradient passes through the copies.
            full = value[:1].detach().expand(self.entries.numel(), *value.shape[1:])
            value = full.index_copy(0, self.flat, value)
        return value.reshape(*self.entries.shape, *value.shape[1:])

    def placed(self, value: Tensor) -> Tensor:
        """From (entry, ...) to (row, repeat, ...), zero where nothing was seen."""
        if self.flat is not None:
            value = value.new_zeros(self.entries.numel(), *value.shape[1:]).index_copy(0, self.flat, value)
        elif not self.whole:
            value = torch.where(with_axes(self.entries.flatten(), value.dim()), value, 0)
        return value.reshape(*self.entries.shape, *value.shape[1:])

    def summed(self, value: Tensor) -> Tensor:
        """From (entry, ...) to (row, 1, ...): the sum over the seen repeats of a row, zero where nothing was seen."""
        value = self.placed(value)
        return value if value.shape[1] == 1 else value.sum(1, keepdim=True)


def seen_in(seen: Mapping[str, Seen], rows: Tensor | None) -> Mapping[str, Seen]:
    """What was seen in the rows (row,) that count, modality by modality; all of it if rows is None."""
    if rows is None:
        return seen
    parts = {}
    for name, s in seen.items():
        entries = s.entries & moved(rows, s.entries.device).unsqueeze(-1)
        known = rows.unsqueeze(-1).expand(entries.shape) if s.whole else s.known & rows.to(s.known.device).unsqueeze(-1)
        parts[name] = Seen.at(s.x, entries, s.elements, known)
    return {name: s for name, s in parts.items() if s.rows is None or len(s.rows)}


def places(seen: Tensor, device: torch.device | None) -> Tensor | None:
    """The places of True in (place,), on that device; None = everywhere."""
    found = seen.nonzero().squeeze(-1)
    return None if len(found) == len(seen) else moved(found, device)
