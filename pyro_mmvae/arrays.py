"""What users give as numbers, as tensors: arrays of NumPy, pandas and SciPy, lists, and what goes wrong with them."""

from __future__ import annotations

import math
from contextlib import suppress
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(name: str, value: Any) -> Tensor:
    """The value as a dense tensor of real numbers or of int64, without a copy where none is needed.

    NumPy arrays of any strides and byte order, masked arrays and tensors (masked = missing), pandas (NA = missing),
    sparse matrices of SciPy and torch, lists (None = missing) and columns of arrays, and whatever else NumPy makes an
    array of.
    """
    tensor = tensor_of(f"modality {name!r}", value)
    if tensor.dim() == 0:
        raise ValueError(f"modality {name!r} is a single number; give one entry a row, shape (row, *event)")
    if tensor.dtype == torch.bool:
        return tensor.to(torch.get_default_dtype())
    if tensor.is_floating_point():
        return tensor
    whole = tensor.long()
    if tensor.dtype == torch.uint64 and bool((whole < 0).any()):
        raise ValueError(f"modality {name!r} has numbers above {2**63 - 1}, the largest int64; give real numbers")
    return whole


def as_mask(name: str, value: Tensor, mask: Any) -> Tensor:
    """The mask of one modality as a bool tensor whose shape is a beginning of the value's."""
    mask = tensor_of(f"the mask of {name!r}", mask)
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask of {name!r} is of dtype {mask.dtype}; give bool, True where observed")
    check_mask_shape(name, tuple(mask.shape), tuple(value.shape))
    return mask.to(value.device)


def check_mask_shape(name: str, mask: tuple[int, ...], values: tuple[int, ...]) -> None:
    """Raises ValueError if the shape of the values does not begin with that of their mask."""
    if not mask or mask != values[: len(mask)]:
        raise ValueError(
            f"the mask of {name!r} has shape {mask} for values {values}; give ({values[0]},) for whole rows or"
            f" {values} for single entries"
        )


def tensor_of(what: str, value: Any) -> Tensor:
    """The value as a dense tensor, of the kind of numbers that it has."""
    if isinstance(value, Tensor):
        return _dense(what, value)
    if value is None:
        raise ValueError(f"{what} is None; give an array, or leave the name out")
    try:
        array = _array(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        array = None
    if array is None or array.dtype.kind not in "biufc":
        rows = _stacked(what, value)
        if rows is None:
            raise ValueError(f"{what} {_no_numbers(what, value, array)}")
        return rows
    tensor = _dense(what, torch.from_numpy(array))
    named = hasattr(value, "dtype") or not tensor.is_floating_point()
    return tensor if named else tensor.to(torch.get_default_dtype())


def _dense(what: str, value: Tensor) -> Tensor:
    """A tensor that can be computed with."""
    if value.is_meta:
        raise ValueError(f"{what} is on the device 'meta', which holds no values; give a tensor on another one")
    if value.is_nested:
        raise ValueError(f"{what} is a nested tensor; pad it to one shape, NaN where missing")
    if value.is_complex() or value.is_quantized:
        raise ValueError(f"{what} is of dtype {value.dtype}; give real numbers, or integers for counts")
    if hasattr(value, "get_mask"):  # of torch.masked
        value = torch.where(value.get_mask(), value.get_data(), math.nan)  # type: ignore[attr-defined]
    value = value if value.layout == torch.strided else value.to_dense()
    short = value.is_floating_point() and value.element_size() == 1  # which torch stores and does not add
    return value.to(torch.get_default_dtype()) if short else value


def _stacked(what: str, value: Any) -> Tensor | None:
    """Rows that are arrays or tensors of one shape themselves, NaN where one is missing as a whole; None of others."""
    rows = value if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1 else ()
    try:
        found = [None if _is_hole(row) else tensor_of(what, row) for row in rows]
    except ValueError:
        return None
    there = [row for row in found if row is not None]
    if len({row.shape for row in there}) != 1:
        return None
    kind = there[0].dtype if there[0].is_floating_point() else torch.float64
    hole = torch.full_like(there[0], math.nan, dtype=kind)
    return torch.stack([hole if row is None else row for row in found])


def _is_hole(value: Any) -> bool:
    """Whether this is how a missing value is written among Python's objects."""
    nothing = value is None or type(value).__name__ in ("NAType", "NaTType")
    return nothing or (isinstance(value, float) and math.isnan(value))


def _no_numbers(what: str, value: Any, array: np.ndarray | None) -> str:
    """What is wrong with what is no array of numbers, and what to do."""
    if hasattr(value, "iloc") and hasattr(value, "columns"):
        for place, label in enumerate(value.columns):
            try:
                if tensor_of(what, value.iloc[:, place]).dim() > 1:
                    return f"has the column {label!r}, which holds arrays; make it a modality of its own"
            except ValueError as error:
                reason = str(error).removeprefix(what).lstrip()
                return f"has the column {label!r}, which {reason}; of such tables see mm.Table"
    rows = value if array is None and isinstance(value, (list, tuple)) else ()
    uneven = len({tuple(row.shape) for row in rows if hasattr(row, "shape")}) > 1
    if uneven or any(isinstance(row, (list, tuple)) for row in rows):
        return "has rows of different lengths, or names; pad them with NaN to one length, and give codes for categories"
    kind = getattr(value, "dtype", type(value).__name__) if array is None else array.dtype
    if str(kind) == "category":  # whose codes have -1 for missing
        return "is of dtype category; give its codes, NaN where missing: values.cat.codes.where(values.notna())"
    return f"is of dtype {kind}; give an array of numbers, NaN where missing, and codes for categories"


def _array(value: Any) -> np.ndarray:
    """A plain array that torch can take over: writable, in order, in the machine's own kinds of numbers."""
    if hasattr(value, "toarray"):  # a sparse matrix
        value = value.toarray()
    elif isinstance(value, (list, tuple)) and any(isinstance(row, np.ma.MaskedArray) for row in value):
        return _array(np.ma.stack(value))
    elif isinstance(value, np.ma.MaskedArray):
        real = np.ma.asarray(value, np.result_type(value.dtype, np.float32))
        value = real.filled(np.nan) if np.ma.is_masked(value) else value.data
    elif hasattr(value, "to_numpy"):
        value = value.to_numpy()
    array = np.asarray(value)
    if array.dtype == object:
        array = _of_objects(array)
    kind = {"g": "f8", "G": "c16"}.get(array.dtype.char, array.dtype.newbyteorder("="))
    array = np.asarray(array, dtype=kind)
    fine = array.flags.writeable and array.flags.aligned and min(array.strides, default=0) >= 0
    return array if fine else array.copy()


def _of_objects(array: np.ndarray) -> np.ndarray:
    """Numbers with holes, such as pandas makes of nullable columns, as floats with NaN; bools as bools."""
    flat = list(array.flat)
    if flat and all(isinstance(value, (bool, np.bool_)) for value in flat):
        return array.astype(bool)
    holes = [_is_hole(value) for value in flat]
    if not all(hole or isinstance(value, (Real, Decimal, np.bool_)) for value, hole in zip(flat, holes)):
        raise TypeError("not numbers")
    return np.array([math.nan if hole else float(value) for value, hole in zip(flat, holes)]).reshape(array.shape)


def with_axes(value: Tensor, axes: int) -> Tensor:
    """The same numbers with axes of size one added on the right up to `axes`: a mask of rows beside their entries."""
    return value.reshape(*value.shape, *[1] * (axes - value.dim()))


def shown(thing: object) -> str:
    """What Python writes for it if that is short, or what it is."""
    text = repr(thing)
    short = len(text) < 60 and "\n" not in text and not text.startswith("<")
    return text if short else f"an object of {type(thing).__module__.partition('.')[0]}.{type(thing).__qualname__}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and what it is of.

    Example:
        >>> counted(1, "row"), counted(0, "row"), counted(2, "entry", "entries")
        ('1 row', '0 rows', '2 entries')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def percent(share: float) -> str:
    """A share in whole percent; some is never none, and not all is never all.

    Example:
        >>> percent(0.123), percent(0.0), percent(0.001), percent(0.999)
        ('12%', '0%', '<1%', '>99%')
    """
    if 0 < share <= 0.005:  # which rounds to an even number, none
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def positive(what: str, value: Any, *, zero: bool = False) -> float:
    """The value as a number above 0, or from 0 on.

    Raises:
        ValueError: it is no such number.
    """
    fine = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or value < 0 or (value == 0 and not zero):
        raise ValueError(
            f"{what} is {shown(value)}; give a number {'from' if zero else 'above'} 0{' on' if zero else ''}"
        )
    return float(value)


def scale_of(value: Any) -> Tensor:
    """A number, or a tensor of numbers, above 0.

    Raises:
        ValueError: it is none.
    """
    found = None
    with suppress(TypeError, ValueError, RuntimeError):  # of what is no number at all
        found = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach()
    if found is None or not bool(((found > 0) & found.isfinite()).all()):
        raise ValueError(
            f"a scale, dispersion or df is {shown(value)}; give a number above 0, a tensor or a module of z"
        )
    return found


def whole(what: str, value: Any, least: int = 1) -> int:
    """The value as a whole number.

    Raises:
        ValueError: it is no whole number, or below the least that makes sense.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{what} is {shown(value)}; give a whole number from {least} on")
    return int(value)
