"""Batches: tensors by modality name, with what is missing written in masks that are always there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.accelerator import moved, on_gpu
from pyro_mmvae.arrays import as_mask, as_tensor, counted, percent
from pyro_mmvae.checks import (
    BadRow,
    all_finite,
    check_index,
    check_mapping,
    common_rows,
    first_row,
    hide_nan,
    seen_rows,
)

Arrays = Mapping[str, Any]


class Batch(Mapping[str, Tensor]):
    """Checked data: name -> Tensor (row, *event), hidden entries filled with zero, and a mask for every name.

    A `Batch` is itself a mapping from names to tensors, so that a model written by a user takes it for `x`. Making one
    from a `Batch` returns it as it is.

    Attributes:
        mask: name -> bool, True = observed; (row,), (row, repeat) or as fine as the tensor itself.
        rows: the number of rows.
        complete: the names of which everything is observed.
        covered: whether something is observed in every row; None = nobody has looked. False also for rows that were
            drawn from a set with empty ones.
        filled: the names of which something is observed in every row of the data that these rows are from; None =
            nobody has looked.
        dense: whether what is hidden is computed with as well, as zeros, and masked, so that no shape depends on it.
        known: name -> the mask on the CPU, (row,) or (row, first axis of the entries), for what is not complete: it
            tells how to lay out the batch without waiting for an accelerator. Empty if nobody has looked.

    Example:
        >>> batch = Batch.of({"size": torch.tensor([[1.0, float("nan")], [2.0, 3.0]])})
        >>> batch.rows, batch["size"].tolist(), batch.mask["size"].tolist()
        (2, [[1.0, 0.0], [2.0, 3.0]], [[True, False], [True, True]])
    """

    def __init__(
        self, x: dict[str, Tensor], mask: dict[str, Tensor], rows: int, complete: frozenset[str] = frozenset()
    ):
        self._x, self.mask, self.rows, self.complete = x, mask, rows, complete
        self.covered: bool | None = True if complete else None
        self.filled: frozenset[str] | None = None
        self.dense = False
        self.known: dict[str, Tensor] = {}
        self._masks: dict[tuple[str, int], Tensor] = {}
        self.seen: tuple[Any, dict[str, Any]] | None = None  # a VAE keeps its own layout of the batch here, with itself
        self.checked: Any = None  # and itself, once it has looked at the values
        self.judges: list[Any] = []  # by these decoders of it
        self.numbers: dict[str, int] = {}  # and how many numbers its likelihoods of one row are made of
        self.encoded: dict[Any, dict[str, Any]] | None = None  # and what its encoders said, if they run once for a loss
        self.shown: Batch | None = None  # what priors that look at data see of these rows; None = these data
        self.veiled: frozenset[str] = frozenset()  # what `only` has hidden, whose values are still there

    def __getitem__(self, name: str) -> Tensor:
        return self._x[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._x)

    def __len__(self) -> int:
        return len(self._x)

    def __repr__(self) -> str:
        parts = [
            f"{k} {tuple(v.shape[1:])} {percent(float(self.mask[k].float().mean()))} observed"
            for k, v in self._x.items()
        ]
        return f"Batch({', '.join([counted(self.rows, 'row'), *parts])})"

    @classmethod
    def of(cls, x: Arrays | None = None, mask: Arrays | None = None) -> Batch:
        """Checks x and mask; where a name has no mask, NaN is missing.

        Args:
            x: name -> array or Tensor (row, *event), or None for one row with nothing observed.
            mask: name -> bool, of a shape that x of that name starts with.

        Raises:
            ValueError: one line that names the modality, what was found, and what to do.
        """
        if isinstance(x, Batch):
            if mask is not None and any(mask.get(name) is not old for name, old in x.mask.items()):
                raise ValueError("x is a Batch with a mask of its own, beside another; give dict(x) and the mask, or x")
            return x
        if x is None:
            return cls({}, {}, 1)
        check_mapping("x", x)
        if not x:
            raise ValueError("no modality: x is empty; give at least one tensor, such as x = {'image': images}")
        masks = {} if mask is None else mask
        check_mapping("mask", masks)
        check_index(x, masks)
        tensors = {name: as_tensor(name, value) for name, value in x.items()}
        rows = common_rows({name: len(value) for name, value in tensors.items()})
        for name in masks:
            if name not in tensors:
                raise ValueError(f"mask names {name!r}, which x does not have (it has {', '.join(tensors)}); drop it")
        clean, seen, complete = {}, {}, set()
        for name, value in tensors.items():
            given = as_mask(name, value, masks[name]) if name in masks else None
            clean[name], seen[name], whole = hide_nan(name, value, given)
            if whole:
                complete.add(name)
        return cls(clean, seen, rows, frozenset(complete))

    def survey(self) -> None:
        """Looks once where something is observed, which spares all batches of its rows that look.

        Of data on an accelerator it also copies the masks to the CPU.
        """
        if self.filled is not None:
            return
        rows = {name: seen_rows(mask) for name, mask in self._partly().items()}
        self.filled = self.complete.union(name for name, seen in rows.items() if bool(seen.all()))
        if self.covered is None:
            self.covered = _cover(list(rows.values()))
        if on_gpu(self.device):
            self.known = self._on_cpu()

    def _partly(self) -> dict[str, Tensor]:
        """The masks of what is not complete."""
        return {name: mask for name, mask in self.mask.items() if name not in self.complete}

    def _on_cpu(self) -> dict[str, Tensor]:
        """Those masks as `known` has them."""
        return {k: (v.flatten(2).any(-1) if v.dim() > 2 else v).cpu() for k, v in self._partly().items()}

    def lacks(self, name: str) -> bool:
        """Whether nothing of that modality is observed."""
        return name not in self.complete and not bool(self.known.get(name, self.mask[name]).any())

    @property
    def device(self) -> torch.device | None:
        """Where the data are; None if there are none."""
        return next((value.device for value in self._x.values()), None)

    def take(self, index: Tensor) -> Batch:
        """The rows that `index` (entry,) names, in that order."""
        known = {name: value.index_select(0, index.cpu()) for name, value in self.known.items()}
        index, rows = moved(index, self.device), len(index)
        x = {name: value.index_select(0, index) for name, value in self._x.items()}
        mask = {}
        for name, value in self.mask.items():
            alike = name in self.complete and rows <= self.rows
            mask[name] = self._alike(name, rows) if alike else value.index_select(0, index)
        new = self._derived(x, mask, rows, self.complete)
        new.known = known
        return new

    def split(self, size: int) -> Iterator[Batch]:
        """Its rows in their order, `size` at a time."""
        for index in torch.arange(self.rows, device="cpu").split(size):
            yield self.take(index)

    def _alike(self, name: str, rows: int) -> Tensor:
        """The mask of that many rows of a modality that is observed everywhere: one tensor for all such batches."""
        if (name, rows) not in self._masks:
            self._masks[name, rows] = self.mask[name][:rows]
        return self._masks[name, rows]

    def few(self, first: int = 0, partly: bool = False) -> Batch:
        """The first rows in which each modality was seen, and so many first ones: enough to look at shapes; on demand
        also those in which it was seen in part."""
        seen = [seen_rows(mask).to(torch.uint8).argmax() for mask in self.mask.values()]
        fine = [mask.flatten(1) for mask in self._partly().values() if partly and mask.dim() > 1]
        seen += [(mask.any(1) & ~mask.all(1)).to(torch.uint8).argmax() for mask in fine]
        more = torch.arange(min(first, self.rows), device=self.device)
        return self.take(torch.cat([torch.stack(seen), more]).unique()) if seen else self

    def as_if_seen(self) -> Batch:
        """The same rows as if all of them had been observed, hidden entries as the zeros that they are filled with."""
        every = {name: torch.ones_like(mask) for name, mask in self.mask.items()}
        return Batch(dict(self), every, self.rows, frozenset(self))

    def to(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Batch:
        """On another device; real-valued tensors in another precision.

        Raises:
            ValueError: a value that is too large for that precision.
        """
        kinds = {k: (dtype or v.dtype) if v.is_floating_point() else v.dtype for k, v in self._x.items()}
        if all(v.dtype == kinds[k] and device in (None, v.device) for k, v in self._x.items()):
            return self
        x = {k: moved(v.to(kinds[k]), device) for k, v in self._x.items()}
        for name, value in x.items():
            if value.dtype != self._x[name].dtype and not all_finite(value):
                found = f"modality {name!r} has a value too large for {dtype}"
                raise BadRow(found, first_row(~value.isfinite()), "rescale the data, or use a model in float64")
        new = self._derived(x, {k: moved(v, device) for k, v in self.mask.items()}, self.rows, self.complete)
        if on_gpu(new.device):
            new.known = self.known or self._on_cpu()
            if new.covered is None:
                new.covered = _cover([seen_rows(mask) for mask in new.known.values()])
        return new

    def detached(self) -> Batch:
        """The same data without the graph that they may come from."""
        if not any(value.requires_grad for value in self._x.values()):
            return self
        return self._derived({k: v.detach() for k, v in self._x.items()}, self.mask, self.rows, self.complete)

    def only(self, names: Collection[str] | None) -> Batch:
        """With every modality but the named ones hidden (None = none hidden); their tensors stay for their shape."""
        if names is None or all(name in names for name in self):
            return self
        keep = set(names)
        mask = {k: v if k in keep else torch.zeros_like(v) for k, v in self.mask.items()}
        new = self._derived(self._x, mask, self.rows, self.complete & keep)
        new.veiled = self.veiled.union(name for name in self if name not in keep)
        new.encoded = self.encoded  # of what is kept the encoders see the same
        new.covered = True if new.complete else None
        new.filled = None if self.filled is None else self.filled & keep
        return new

    def blank(self) -> Batch:
        """With zeros where `only` has hidden something, as where data are missing: what a guide that fills holes with
        zeros, and asks for no mask, is to see. A model keeps the values: zero may be off the support of a likelihood.
        """
        if not self.veiled:
            return self
        x = {name: torch.zeros_like(v) if name in self.veiled else v for name, v in self._x.items()}
        new = self._derived(x, self.mask, self.rows, self.complete)
        new.known, new.encoded, new.shown = self.known, self.encoded, self.shown
        return new

    def after(self, shown: Batch) -> Batch:
        """The same data, explained after the guide was shown other parts of these rows: a prior that looks at data must
        not see more of them."""
        if shown is self:
            return self
        new = self._derived(self._x, self.mask, self.rows, self.complete)
        new.known, new.seen, new.encoded, new.shown = self.known, self.seen, self.encoded, shown
        return new

    def remembering(self) -> Batch:
        """The same data, on which every encoder runs once: for one evaluation of a loss, and no longer than that."""
        if self.encoded is not None:
            return self
        new = self._derived(self._x, self.mask, self.rows, self.complete)
        new.known, new.seen, new.encoded = self.known, self.seen, {}
        return new

    def _derived(self, x: dict[str, Tensor], mask: dict[str, Tensor], rows: int, complete: frozenset[str]) -> Batch:
        new = Batch(x, mask, rows, complete)
        new.checked, new.covered, new.filled, new.dense = self.checked, self.covered, self.filled, self.dense
        new.judges, new.numbers, new.veiled = self.judges, self.numbers, self.veiled
        return new


def _cover(rows: list[Tensor]) -> bool:
    """Whether each row (row,) is among those of one of the modalities."""
    return bool(torch.stack(rows).any(0).all())
