"""NumPy arrays into ArviZ, under its 0.x and its 1.x line alike. This file knows nothing of torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Variable = tuple[Sequence[str], np.ndarray]
"""The names of the axes, and the values."""


def build(groups: Mapping[str, Mapping[str, Variable]], coords: Mapping[str, Sequence[Any]]) -> Any:
    """An `arviz.InferenceData` (ArviZ 0.x) or an `xarray.DataTree` (1.x), which is what each line holds results in.

    Args:
        groups: group -> variable -> (axes, values); groups of draws have the axes chain and draw first. Empty groups
            are left out.
        coords: axis -> labels; axes without labels are numbered.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.x announces 1.x when it is imported
        import arviz
    import xarray

    labels = {axis: np.asarray(list(values)) for axis, values in coords.items()}
    datasets = {}
    for group, variables in groups.items():
        if variables:
            sizes = {axis: size for axes, values in variables.values() for axis, size in zip(axes, np.shape(values))}
            own = {axis: labels.get(axis, np.arange(size)) for axis, size in sizes.items()}
            datasets[group] = xarray.Dataset({k: (list(axes), values) for k, (axes, values) in variables.items()}, own)
    if arviz.__version__.startswith("0."):
        return arviz.InferenceData(**datasets)  # type: ignore[arg-type]
    return xarray.DataTree.from_dict(datasets)
