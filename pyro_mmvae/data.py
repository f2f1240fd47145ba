"""Batches: tensors by modality name, with what is missing written in masks that are always there."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.accelerator import apart, moved
from pyro_mmvae.arrays import as_mask, as_tensor

Arrays = Mapping[str, Any]


class BadRow(ValueError):
    """What is wrong with one row.

    Args:
        found: the modality and what it has.
        row: its number in the batch.
        advice: what to do. Without it `found` is the whole message, as Pyro gives it when it adds to it.
    """

    def __init__(self, found: str, row: int = 0, advice: str = ""):
        super().__init__(f"{found} in row {row}, {advice}" if advice else found)
        self.found, self.row, self.advice = found, row, advice

    def __reduce__(self) -> Any:  # so that it comes back from another process
        return BadRow, (self.found, self.row, self.advice)

    def at(self, row: int) -> BadRow:
        """The same of a row that has another number in the whole set."""
        return BadRow(self.found, row, self.advice)


class Batch(Mapping[str, Tensor]):
    """Checked data: name -> Tensor (row, *event), hidden entries filled with zero, and a mask for every name.

    A `Batch` is itself a mapping from names to tensors, so that a model written by a user takes it for `x`. Making one
    from a `Batch` returns it as it is.

    Attributes:
        mask: name -> bool, True = observed; (row,), (row, repeat) or as fine as the tensor itself.
        rows: the number of rows.
        complete: the names of which everything is observed.
        covered: whether something is observed in every row; None = nobody has looked. False is said of rows drawn from
            a set with empty ones.
        dense: whether what is hidden is computed with as well, as zeros, and masked, so that no shape depends on it.
        known: name -> the mask on the CPU, (row,) or (row, first axis of the entries), for what is not complete: where
            it is looked at to lay out the batch, nobody waits for an accelerator. Empty if nobody has surveyed.

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
        self.dense = False
        self.known: dict[str, Tensor] = {}
        self.seen: tuple[Any, dict[str, Any]] | None = None  # a VAE keeps its own layout of the batch here, with itself
        self.checked = False  # and whether it has looked at the values
        self.encoded: dict[Any, dict[str, Any]] | None = None  # and what its encoders said, if they run once for a loss

    def __getitem__(self, name: str) -> Tensor:
        return self._x[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._x)

    def __len__(self) -> int:
        return len(self._x)

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
        _check_mapping("x", x)
        if not x:
            raise ValueError("no modality: x is empty; give at least one tensor, such as x = {'image': images}")
        _check_index(x)
        tensors = {name: as_tensor(name, value) for name, value in x.items()}
        rows = _common_rows(tensors)
        masks = {} if mask is None else mask
        _check_mapping("mask", masks)
        for name in masks:
            if name not in tensors:
                raise ValueError(f"mask names {name!r}, which x does not have (it has {', '.join(tensors)}); drop it")
        clean, seen, complete = {}, {}, set()
        for name, value in tensors.items():
            given = as_mask(name, value, masks[name]) if name in masks else None
            clean[name], seen[name], whole = _hide_nan(name, value, given)
            if whole:
                complete.add(name)
        return cls(clean, seen, rows, frozenset(complete))

    def survey(self) -> None:
        """Looks whether something is observed in every row, which spares all batches of its rows that look.

        Of data on an accelerator the masks are copied to the CPU besides.
        """
        if self.covered is None:
            seen = [mask.reshape(self.rows, -1).any(-1) for mask in self.mask.values()]
            self.covered = bool(torch.stack(seen).any(0).all())
        if apart(self.device) and not self.known:
            coarse = {k: v.flatten(2).any(-1) if v.dim() > 2 else v for k, v in self.mask.items()}
            self.known = {k: v.cpu() for k, v in coarse.items() if k not in self.complete}

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
        index = moved(index, self.device)
        x = {name: value.index_select(0, index) for name, value in self._x.items()}
        mask = {}
        for name, value in self.mask.items():  # where all is observed any rows of the mask will do
            whole = name in self.complete and len(index) <= self.rows
            mask[name] = value[: len(index)] if whole else value.index_select(0, index)
        new = self._derived(x, mask, len(index), self.complete)
        new.known = known
        return new

    def to(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Batch:
        """On another device; real-valued tensors in another precision.

        Raises:
            ValueError: a value that is too large for that precision.
        """
        kinds = {k: (dtype or v.dtype) if v.is_floating_point() else v.dtype for k, v in self._x.items()}
        if all(v.dtype == kinds[k] and device in (None, v.device) for k, v in self._x.items()):
            return self
        x = {k: v.to(device=device, dtype=kinds[k]) for k, v in self._x.items()}
        for name, value in x.items():
            if value.dtype != self._x[name].dtype and not _finite(value):
                found = f"modality {name!r} has a value too large for {dtype}"
                raise BadRow(found, _first_row(~value.isfinite()), "rescale the data, or use a model in float64")
        return self._derived(x, {k: v.to(device=device) for k, v in self.mask.items()}, self.rows, self.complete)

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
        new.encoded = self.encoded  # of what is kept the encoders see the same
        new.covered = True if new.complete else None
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
        new.checked, new.covered, new.dense = self.checked, self.covered, self.dense
        return new


def _check_mapping(what: str, value: object) -> None:
    if not isinstance(value, Mapping):
        advice = "mm.from_mudata makes one of it" if hasattr(value, "obs_names") else "such as {'image': images}"
        raise ValueError(f"{what} is a {type(value).__name__}; give a dictionary name -> array, {advice}")
    for name in value:
        if not isinstance(name, str):
            raise ValueError(f"{what} has the name {name!r}; name a modality by a string, such as 'image'")


def _check_index(x: Arrays) -> None:
    """Tables of pandas are put side by side row by row, so their rows must be the same ones in the same order."""
    tables = {name: value.index for name, value in x.items() if hasattr(value, "iloc")}
    first, *others = tables or [""]
    for name in others:
        if len(tables[name]) == len(tables[first]) and not tables[name].equals(tables[first]):
            raise ValueError(
                f"modality {name!r} has another index than {first!r}; reindex one like the other, or give .to_numpy()"
            )


def _common_rows(tensors: Mapping[str, Tensor]) -> int:
    first, *others = tensors
    rows = len(tensors[first])
    for name in others:
        if len(tensors[name]) != rows:
            raise ValueError(
                f"modality {name!r} has {len(tensors[name])} rows where {first!r} has {rows};"
                " give every modality all rows, NaN where it is missing"
            )
    if rows == 0:
        raise ValueError(f"modality {first!r} is empty: no rows; give at least one")
    return rows


def _hide_nan(name: str, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """A copy with zero under every hidden entry, the mask, and whether nothing is hidden.

    NaN is missing without a mask, an error under True.
    """
    finite = not value.is_floating_point() or _finite(value)
    if mask is None and finite:
        mask = torch.ones(len(value), dtype=torch.bool, device=value.device)
        return value.clone(memory_format=torch.contiguous_format), mask, True
    mask = _coarse(~value.isnan()) if mask is None else mask
    whole = bool(mask.all())
    if whole:
        value = value.clone(memory_format=torch.contiguous_format)
    else:
        value = torch.where(mask.reshape(*mask.shape, *[1] * (value.dim() - mask.dim())), value, 0).contiguous()
    if not finite and not _finite(value):
        row = _first_row(~value.isfinite())
        what = "NaN" if bool(value[row].isnan().any()) else "an infinity"
        raise BadRow(f"modality {name!r} has {what}", row, "which counts as observed; mask it, or mend the value")
    return value, mask, whole


def _finite(value: Tensor) -> bool:
    """Whether all of it is: the sum takes one pass where `isfinite` takes several, and settles it but for overflow."""
    return math.isfinite(float(value.detach().sum())) or bool(value.isfinite().all())


def refuse(batch: Batch, finite: Tensor, what: str) -> None:
    """Raises ValueError for the first row (row,) of which something computed is not finite."""
    if bool(finite.all()):
        return
    row = _first_row(~finite)
    sizes = {name: float(value[row].abs().max()) for name, value in batch.items() if value[row].numel()}
    largest = max(sizes, key=lambda name: sizes[name], default=None)
    whose = "" if largest is None else f"whose largest value is {sizes[largest]:g}, of modality {largest!r}; "
    raise BadRow(f"{what} is not finite", row, f"{whose}standardise the data, or use a model in float64")


def _first_row(bad: Tensor) -> int:
    return int(bad.reshape(len(bad), -1).any(-1).nonzero()[0])


def _coarse(mask: Tensor) -> Tensor:
    """One entry a row where no row is partly observed."""
    flat = mask.reshape(len(mask), -1)
    whole = flat.all(-1)
    return whole if bool((whole | ~flat.any(-1)).all()) else mask
