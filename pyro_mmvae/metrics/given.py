"""What a metric is given: numbers without holes, and whole numbers as labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_mmvae.arrays import tensor_of
from pyro_mmvae.checks import first_row


def finite(what: str, value: Any, least: int = 1) -> Tensor:
    """The value as a tensor (row, ...) without NaN and infinities, in which every mean would drown.

    Raises:
        ValueError: it has one, or fewer rows than `least`.
    """
    tensor = tensor_of(what, value).detach()
    if tensor.dim() == 0 or len(tensor) < least:
        raise ValueError(f"{what} has shape {tuple(tensor.shape)}; give one entry a row, {least} rows or more")
    bad = ~tensor.isfinite()
    if bool(bad.any()):
        found = "NaN" if bool(tensor.isnan().any()) else "an infinity"
        raise ValueError(f"{what} has {found} in row {first_row(bad)}; leave such rows out, or mend them")
    return tensor


def whole_labels(what: str, value: Any, rows: int) -> Tensor:
    """Labels (row,), whole numbers.

    Raises:
        ValueError: they are names, real numbers or NaN, or of another number than the rows.
    """
    try:
        labels = tensor_of(what, value)
    except ValueError as error:
        raise ValueError(f"{what} are no numbers; give one whole number a row, such as the codes of names") from error
    if labels.shape != (rows,):
        raise ValueError(
            f"{what} are {labels.dtype} {tuple(labels.shape)} for {rows} rows; give one whole number a row"
        )
    if not labels.is_floating_point():
        return labels.long()
    bad = ~labels.isfinite() | (labels != labels.round())
    if bool(bad.any()):
        row = first_row(bad)
        raise ValueError(f"{what} have {labels[row]:g} in row {row}; give whole numbers, and leave other rows out")
    return labels.long()
