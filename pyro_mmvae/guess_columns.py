"""What a column of a table of pandas holds, guessed from its values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae.arrays import as_tensor, counted
from pyro_mmvae.checks import doubt_stand_in
from pyro_mmvae.columns import CategoryColumn, Column, CountColumn, OrdinalColumn, PositiveColumn, RealColumn

NAMES = 20
"""Words of which there are more than these, and more than half as many as rows, are names and no categories."""
NEARLY = 0.7
"""Share of their mean that is the least variance of counts; that of a Poisson is all of it, but for chance."""
CLEARLY = 0.1
"""Nats an entry by which logarithms have to be the better normal for a column to be log-normal."""


def column_of(label: Any, series: Any, own: Column | None) -> tuple[Column, list[Any] | None]:
    """What a column holds, and what its codes stand for if it has categories."""
    seen = series.dropna()
    if not len(seen):
        raise ValueError(f"column {label!r} has no value; leave it out")
    numbers = None if _has_words(seen) else numbers_in(label, seen)
    if own is None:
        return (
            (_measured(label, numbers), None)
            if numbers is not None and not _is_code(numbers)
            else _guessed(label, seen)
        )
    size = getattr(own, "levels", None)
    if size is None and numbers is None:
        raise ValueError(f"column {label!r} has words and is said to be a {own}; give it a category or an order")
    if size is None or (numbers is not None and bool(torch.isin(numbers, torch.arange(size)).all())):
        return own, None
    levels = _levels(label, seen)
    if numbers is None and isinstance(own, OrdinalColumn) and not _is_ordered(seen):
        raise ValueError(f"column {label!r} has words of no order; make it pandas.Categorical(..., ordered=True)")
    if len(levels) != size:
        found = counted(len(levels), "different value")
        raise ValueError(f"column {label!r} has {found} and is said to be a {own}; give it as many levels")
    return own, levels


def _guessed(label: Any, seen: Any) -> tuple[Column, list[Any]]:
    levels = _levels(label, seen)
    if len(levels) > max(NAMES, len(seen) / 2):
        raise ValueError(f"column {label!r} has {len(levels)} words in {len(seen)} rows, as names have; leave it out")
    ordered = _is_ordered(seen) and len(levels) > 1
    return OrdinalColumn(len(levels)) if ordered else CategoryColumn(len(levels)), levels


def _is_ordered(seen: Any) -> bool:
    return bool(getattr(seen.dtype, "ordered", False))


def _has_words(seen: Any) -> bool:
    """Whether these are no numbers."""
    if str(seen.dtype) in ("category", "bool", "boolean"):
        return True
    return any(isinstance(value, (str, bytes, bool, np.bool_)) for value in seen)


def _is_code(numbers: Tensor) -> bool:
    """Whether there are two whole numbers, one after the other."""
    low, high = (float(value) for value in torch.aminmax(numbers))
    return high - low == 1 and bool(((numbers == low) | (numbers == high)).all()) and low == round(low)


def _levels(label: Any, seen: Any) -> list[Any]:
    """The categories: as pandas has them, or in the order of their values."""
    if str(seen.dtype) == "category":
        return list(seen.dtype.categories)
    try:
        return sorted(seen.unique().tolist(), key=lambda value: (type(value).__name__, value))
    except TypeError:
        raise ValueError(f"column {label!r} has words beside other things; make words of all of them") from None


def _measured(label: Any, numbers: Tensor) -> Column:
    """What kind of numbers these are."""
    doubt_stand_in(f"column {label!r}", numbers)
    mean, variance = float(numbers.mean()), float(numbers.var(correction=0))
    if not math.isfinite(variance) or (variance == 0 and bool((numbers != numbers[0]).any())):
        largest = float(numbers.abs().max())
        raise ValueError(f"column {label!r} has numbers up to {largest:g}, whose squares are no numbers; rescale it")
    if float(numbers.min()) == 0 and bool((numbers == numbers.round()).all()) and variance >= NEARLY * mean > 0:
        return CountColumn(_short(mean, mean))
    if variance > 0 and bool((numbers > 0).all()):
        logs, median = numbers.log(), float(numbers.median())
        of_logs = max(float(logs.var(correction=0)), torch.finfo(logs.dtype).tiny)
        if 0.5 * math.log(variance / of_logs) - float(logs.mean()) > CLEARLY:
            return PositiveColumn(_short(median, median))
    sd = math.sqrt(variance) or 1.0
    return RealColumn(_short(mean, sd), _short(sd, sd))


def _short(value: float, scale: float) -> float:
    """To a hundredth of a scale or finer: a typical value, and good to read."""
    return round(value, 3 - math.ceil(math.log10(scale)))


def numbers_in(label: Any, series: Any) -> Tensor:
    """(row,) in double precision, NaN where missing."""
    try:
        found = as_tensor(str(label), series).double()
    except ValueError as error:
        what = str(error).partition(" is of ")[2].partition(";")[0] or "something else"
        raise ValueError(f"column {label!r} is of {what}; give numbers, such as days since a date, or words") from None
    if found.dim() > 1:
        raise ValueError(f"column {label!r} holds arrays; leave it out, and make it a modality of its own")
    if bool(found.isinf().any()):
        raise ValueError(f"column {label!r} has an infinity; mend it, or make it NaN, which is missing")
    return found
