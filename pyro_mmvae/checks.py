"""What is wrong with data: every refusal in one line that names the modality, what was found and what to do."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import Distribution
from torch import Tensor

from pyro_mmvae.arrays import shown, with_axes
from pyro_mmvae.warn import warn

STAND_INS = (-9, -99, -999, -9999, -99999)
"""What files have where a number is missing."""


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


def check_mapping(what: str, value: object) -> None:
    """Refuses what is no mapping from strings."""
    if not isinstance(value, Mapping):
        advice = "mm.from_mudata makes one of it" if hasattr(value, "obs_names") else "such as {'image': images}"
        advice = "or rows of it with their masks, as in (vae, *dataset[:1000])" if hasattr(value, "batches") else advice
        raise ValueError(f"{what} is a {type(value).__name__}; give a dictionary name -> array, {advice}")
    for name in value:
        if not isinstance(name, str):
            raise ValueError(f"{what} has the name {name!r}; name a modality by a string, such as 'image'")


def check_named(what: str, value: object, such: str) -> None:
    """Refuses what has no names, where a dictionary of other things than data is asked for."""
    if isinstance(value, type) or not hasattr(value, "items"):
        raise ValueError(f"{what} is {kind_of(value)}; give a dictionary, such as {such}")


def check_collection(names: object) -> None:
    """Refuses what is no collection of names."""
    if isinstance(names, str):
        raise ValueError(f"{names!r} stands where names are asked for; give a list, [{names!r}]")
    if isinstance(names, (type, Tensor)) or not isinstance(names, Collection):  # an iterator would be used up here
        raise ValueError(f"{kind_of(names)} stands where names are asked for; give a list")


def check_members(what: str, names: Collection[str], modalities: Collection[str]) -> None:
    """Refuses the name of no modality where a part of the model states some: it would never be looked at."""
    for name in names:
        if name not in modalities:
            raise ValueError(f"{what} names {name!r}, which is no modality; there is {', '.join(modalities)}: mend it")


def check_made_for(names: Collection[str], known: Collection[str], what: str) -> None:
    """Refuses a modality that a part of the model was not made for: it has no `what`."""
    for name in names:
        if name not in known:
            raise ValueError(f"modality {name!r} has no {what}")


def kind_of(value: object) -> str:
    """What something is, in words."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"a {type(value).__name__}"


def distribution(what: str, value: Any) -> Distribution:
    """What a part of the model returned; raises TypeError for what is no distribution."""
    if not isinstance(value, Distribution):
        whose = ", one of torch's own" if isinstance(value, torch.distributions.Distribution) else ""
        advice = ", as from pyro.distributions" if whose else ""
        raise TypeError(f"{what} returned {type(value).__name__}{whose}; it must return a Pyro distribution{advice}")
    return value


def refuse_made(parts: Mapping[str, Any]) -> None:
    """Refuses what is not to be called, a class, and a distribution, which gives a draw when it is called."""
    for name, part in parts.items():
        if isinstance(part, type):
            raise ValueError(f"{name} is the class {part.__name__}; give an object of it, such as {part.__name__}(...)")
        if isinstance(part, torch.distributions.Distribution):
            raise ValueError(f"{name} is a distribution, {part}; give a function that returns it, as in lambda: p")
        if part is not None and not callable(part):
            raise ValueError(f"{name} is {shown(part)}; give what returns a distribution, such as mm.StandardNormal(2)")


def check_index(x: Mapping[str, Any], mask: Mapping[str, Any], of: str = "mask") -> None:
    """Tables of pandas, and arrays of xarray, are put side by side row by row, so their rows must be the same ones in
    the same order; so must the columns of a table and of its mask."""
    values = {repr(name): value for name, value in x.items()}
    values |= {f"{name!r} in {of}": value for name, value in mask.items()}
    tables = {what: index for what, value in values.items() if (index := _index_of(value)) is not None}
    first, *others = tables or [""]
    for what in others:
        if len(tables[what]) == len(tables[first]) and not tables[what].equals(tables[first]):
            raise ValueError(
                f"modality {what} has another index than {first}; reindex one like the other, or give .to_numpy()"
            )
    for name in (name for name in mask if name in x):
        both = [value.columns for value in (x[name], mask[name]) if hasattr(value, "iloc") and value.ndim == 2]
        if len(both) == 2 and not both[0].equals(both[1]):
            raise ValueError(
                f"modality {name!r} in {of} has other columns than {name!r}, or another order of them; take"
                " those of the data, or give .to_numpy()"
            )


def _index_of(value: Any) -> Any:
    """What the rows are called, of a table of pandas or an array of xarray; None if they have no names."""
    if hasattr(value, "iloc"):
        return value.index
    return value.indexes.get(value.dims[0]) if getattr(value, "dims", ()) and hasattr(value, "indexes") else None


def common_rows(sizes: Mapping[str, int]) -> int:
    """How many rows all of them have, by name how many each has."""
    first, *others = sizes
    rows = sizes[first]
    for name in others:
        if sizes[name] != rows:
            raise ValueError(
                f"modality {name!r} has {sizes[name]} rows where {first!r} has {rows};"
                " give every modality all rows, NaN or a mask where it is missing"
            )
    if rows == 0:
        raise ValueError(f"modality {first!r} is empty: no rows; give at least one")
    return rows


def hide_nan(name: str, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """A copy with zero under every hidden entry, the mask, and whether nothing is hidden.

    NaN is missing without a mask, an error under True.
    """
    finite = not value.is_floating_point() or all_finite(value)
    if mask is None and finite:
        mask = torch.ones(len(value), dtype=torch.bool, device=value.device)
        return value.clone(memory_format=torch.contiguous_format), mask, True
    mask = _coarse(~value.isnan()) if mask is None else mask
    whole = bool(mask.all())
    if whole:
        value = value.clone(memory_format=torch.contiguous_format)
    else:
        value = torch.where(with_axes(mask, value.dim()), value, 0).contiguous()
    if not finite and not all_finite(value):
        row = first_row(~value.isfinite())
        what = "NaN" if bool(value[row].isnan().any()) else "an infinity"
        column = f" in column {int((~value[row].isfinite()).nonzero()[0])}" if value.dim() == 2 else ""
        raise BadRow(
            f"modality {name!r} has {what}{column}", row, "which counts as observed; mask it, or mend the value"
        )
    return value, mask, whole


def doubt_stand_in(what: str, numbers: Tensor) -> None:
    """Warns of a number such as -999 that comes more than once in (number,) and lies far below all others."""
    least = float(numbers.min())
    rest = numbers[numbers != least]
    if least not in STAND_INS or not 1 < len(rest) < len(numbers) - 1:
        return
    low, high = float(rest.min()), float(rest.max())
    if 0 < high - low < low - least:
        warn(
            f"{what} has the number {least:g} in {len(numbers) - len(rest)} rows, far from all others; if it means"
            " missing, put NaN there"
        )


def refuse(batch: Mapping[str, Tensor], finite: Tensor, what: str) -> None:
    """Raises ValueError for the first row (row,) of which something computed is not finite."""
    if bool(finite.all()):
        return
    row = first_row(~finite)
    sizes = {name: float(value[row].abs().max()) for name, value in batch.items() if value[row].numel()}
    largest = max(sizes, key=lambda name: sizes[name], default=None)
    whose = "" if largest is None else f"whose largest value is {sizes[largest]:g}, of modality {largest!r}; "
    raise BadRow(f"{what} is not finite", row, f"{whose}standardise the data, or use a model in float64")


def refuse_outside(sites: Sequence[str]) -> None:
    """Refuses sites that all rows share, where rows are simulated one by one."""
    for name in sites:
        raise ValueError(
            f"site {name!r} stands outside the plate 'data', so that rows are not drawn alone;"
            " condition the model on it"
        )


def seen_rows(mask: Tensor) -> Tensor:
    """The rows of a mask (row, ...) in which anything is observed, bool (row,)."""
    return mask.reshape(len(mask), -1).any(-1)


def first_row(bad: Tensor) -> int:
    """The first row of (row, ...) in which something is bad."""
    return int(bad.reshape(len(bad), -1).any(-1).nonzero()[0])


def all_finite(value: Tensor) -> bool:
    """Whether all of it is: the sum takes one pass where `isfinite` takes several, and settles it but for overflow."""
    return math.isfinite(float(value.detach().sum())) or bool(value.isfinite().all())


def _coarse(mask: Tensor) -> Tensor:
    """One entry a row where no row is partly observed."""
    flat = mask.reshape(len(mask), -1)
    whole = flat.all(-1)
    return whole if bool((whole | ~flat.any(-1)).all()) else mask


def state_of(x: Tensor) -> int:
    """A number that changes whenever the tensor, or what it is a view of, is written to."""
    return -1 if x.is_inference() else x._version


def check_untouched(what: str, name: str, x: Tensor, state: int) -> None:
    """Refuses a network that wrote into what it was given: the data themselves, or codes that others are yet to see."""
    if state_of(x) != state:
        raise ValueError(
            f"the {what} of {name!r} writes into its input; give its first layer inplace=False, or x.clone()"
        )
