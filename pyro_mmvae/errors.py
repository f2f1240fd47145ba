"""Errors of means, as far as their terms tell them."""

from __future__ import annotations

import torch
from torch import Tensor


def variance(values: Tensor) -> Tensor:
    """Over terms (term, ...); NaN of a single one, without the warning that torch gives.

    Example:
        >>> float(variance(torch.tensor([1.0, 3.0])))
        2.0
    """
    return values.var(0) if len(values) > 1 else torch.full_like(values[0], torch.nan)


def standard_error(values: Tensor) -> Tensor:
    """Of the mean of terms (term, ...) that do not hang together; NaN of a single one.

    Example:
        >>> float(standard_error(torch.tensor([1.0, 3.0])))
        1.0
    """
    return (variance(values) / len(values)).sqrt()


def error_of_mean(errors: Tensor) -> float:
    """The standard error of the mean over rows of numbers that have those errors (row,), one apart from another.

    Example:
        >>> error_of_mean(torch.tensor([3.0, 4.0]))
        2.5
    """
    return float((errors**2).sum().sqrt()) / len(errors)
