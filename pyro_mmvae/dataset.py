"""Data larger than memory: rows that stay on disk until a batch of them is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae.arrays import as_tensor, check_mask_shape, counted, tensor_of
from pyro_mmvae.checks import BadRow, check_index, common_rows
from pyro_mmvae.data import Arrays, Batch

Rows = tuple[dict[str, Tensor], dict[str, Tensor]]
GAP = 2**14
"""The most bytes between two wanted rows, on average, that are read along rather than skipped: asking HDF5 for a row by
its number takes as long."""
BLOCK = 2**22
"""Bytes of an array that are read in one slice."""


class MultimodalDataset:
    """Rows on disk, read a batch at a time: `mm.fit(vae, dataset)` trains on more data than memory holds.

    Rows are read by rising numbers, with one access to each array or, where they lie close together, in slices, and
    come in the order that was asked for: training sees the same batches as in memory. Where a batch happens to have no
    hole or no empty row its random numbers may be others, as in memory more is known of the whole set. `fit` reads
    ahead in one thread, several batches at once if they are small. A DataLoader takes a dataset as it is, with every
    sampler and in several processes; so do the tools, part by part: `mm.certify(vae, *dataset[:1000])`,
    `[mm.log_likelihood(vae, x, mask) for x, mask in DataLoader(dataset, 1000)]`.

    Limits: `fit(validation=...)` holds its rows in memory: give it `dataset[:1000]`. Rows are checked when they are
    read, not before; only the first one is read here. h5py files cannot be sent to worker processes of a DataLoader.
    zarr reads a chunk as a whole, however few of its rows are wanted: the slowest of the three for large rows.

    Args:
        arrays: name -> (row, *event), NaN = missing: whatever has `shape`, `dtype` and can be indexed by a rising array
            of row numbers, such as `numpy.load(path, mmap_mode="r")`, a dataset of h5py, a zarr array, a Tensor.
        masks: name -> bool, True = observed, of a shape that the array's begins with, on disk as well or not.
        rows: the row numbers that belong to this dataset, such as those to train on; None = all.

    Raises:
        ValueError: in one line, arrays that do not fit together, or a first row that cannot be data.

    Example:
        >>> import numpy, tempfile
        >>> path = tempfile.mkdtemp() + "/sizes.npy"
        >>> numpy.save(path, numpy.arange(12.0).reshape(6, 2))
        >>> dataset = MultimodalDataset({"size": numpy.load(path, mmap_mode="r")})
        >>> dataset
        MultimodalDataset(6 rows: size (2,))
        >>> x, mask = dataset[[4, 1]]
        >>> x["size"].tolist()
        [[8.0, 9.0], [2.0, 3.0]]
    """

    def __init__(self, arrays: Arrays, masks: Arrays | None = None, *, rows: Sequence[int] | None = None):
        check_index(arrays, masks or {})
        self.arrays = {name: _by_row(f"modality {name!r}", array) for name, array in arrays.items()}
        self.masks = {name: _by_row(f"the mask of {name!r}", mask) for name, mask in (masks or {}).items()}
        self._size = _common_rows(self.arrays)
        for name, mask in self.masks.items():
            _check_mask(name, mask, self.arrays)
        self._rows = None if rows is None else _numbers(rows, self._size)
        if self._rows is not None and not len(self._rows):
            raise ValueError("rows names no row; give at least one, or None for all")
        first = self.batch([0])
        self.row_bytes = sum(value.nbytes for value in first.values())  # of one row of all arrays, once it is read

    def __len__(self) -> int:
        return self._size if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        shapes = (f"{name} {tuple(array.shape[1:])}" for name, array in self.arrays.items())
        return f"MultimodalDataset({counted(len(self), 'row')}: {', '.join(shapes)})"

    def __getitem__(self, index: Any) -> Rows:
        """x and the masks that there are: of one row, without a row axis, for an int; else of the rows named."""
        if isinstance(index, (int, np.integer)):
            return self._read(_numbers([index], len(self)))(0)
        numbers = _numbers(index, len(self))
        return self._read(numbers)(slice(len(numbers)))

    def __getitems__(self, indices: Sequence[int]) -> list[Rows]:
        """The rows one by one, read at once: what a DataLoader asks for."""
        read = self._read(_numbers(indices, len(self)))
        return [read(position) for position in range(len(indices))]

    def batch(self, index: Sequence[int], check: Callable[[Arrays, Arrays], Batch] = Batch.of) -> Batch:
        """The named rows as a checked batch; see `batches`."""
        return self.batches([index], check)[0]

    def batches(
        self, indices: Sequence[Sequence[int]], check: Callable[[Arrays, Arrays], Batch] = Batch.of
    ) -> list[Batch]:
        """Checked batches of the named rows, read at once.

        Args:
            indices: each (row,), from 0.
            check: (x, mask) -> batch.

        Raises:
            ValueError: as of `check`; a row is named by the number that it has in the arrays.
        """
        numbers = [_numbers(index, len(self)) for index in indices]
        read, start, found = self._read(np.concatenate(numbers)), 0, []
        for rows in numbers:
            try:
                found.append(check(*read(slice(start, start + len(rows)))))
            except BadRow as error:
                row = int(rows[error.row])
                raise error.at(row if self._rows is None else int(self._rows[row])) from None
            start += len(rows)
        return found

    def _read(self, index: np.ndarray) -> Callable[[int | slice], Rows]:
        """Reads the rows of `index`, and gives them by their position in it."""
        numbers = index if self._rows is None else self._rows[index]
        rising, back = np.unique(numbers, return_inverse=True)
        order = None if np.array_equal(rising, numbers) else torch.as_tensor(back)
        x = {name: as_tensor(name, _at(array, rising)) for name, array in self.arrays.items()}
        masks = {name: tensor_of(f"the mask of {name!r}", _at(mask, rising)) for name, mask in self.masks.items()}

        def at(position: int | slice) -> Rows:
            place = position if order is None else order[position]
            return {k: v[place] for k, v in x.items()}, {k: v[place] for k, v in masks.items()}

        return at


def _at(array: Any, rising: np.ndarray) -> Any:
    """The rows of an array by rising numbers: in one access, or from slices where less lies between them than `GAP`."""
    plain = isinstance(array.dtype, np.dtype) and not isinstance(array, np.ma.MaskedArray)
    sparse = hasattr(array, "toarray") or hasattr(array, "to_memory")  # of SciPy, or of AnnData on disk
    if not plain or sparse or len(rising) < 2:
        return array[rising]
    size = array.dtype.itemsize * math.prod(array.shape[1:])
    start, stop = int(rising[0]), int(rising[-1]) + 1
    if (stop - start - len(rising)) * size > GAP * len(rising):
        return array[rising]
    found = np.empty((len(rising), *array.shape[1:]), array.dtype)
    step = max(1, BLOCK // max(1, size))
    for edge in range(start, stop, step):
        low, high = np.searchsorted(rising, [edge, edge + step])
        if low < high:
            found[low:high] = array[edge : min(edge + step, stop)][rising[low:high] - edge]
    return found


def _by_row(what: str, array: Any) -> Any:
    """What indexes rows by their numbers: pandas does so by labels, and a sparse matrix of coordinates not at all."""
    if isinstance(array, Tensor):  # sparse and nested ones do not either
        return tensor_of(what, array)
    if hasattr(array, "iloc"):
        return array.to_numpy()
    return array.tocsr() if hasattr(array, "tocsr") else array


def _numbers(index: Any, size: int) -> np.ndarray:
    """Row numbers from 0 of whatever indexes rows: a slice, integers, or bools."""
    if isinstance(index, slice):
        return np.arange(*index.indices(size))
    index = np.asarray(index)
    if index.dtype == bool and index.shape == (size,):
        return index.nonzero()[0]
    if index.ndim != 1 or (len(index) and not np.issubdtype(index.dtype, np.integer)):
        raise ValueError(f"rows are named by {index.dtype} of shape {index.shape}; give a slice, or integers (row,)")
    outside = (index < -size) | (index >= size)
    if outside.any():
        raise IndexError(f"there is no row {index[outside][0]}; there are {size}")
    return index.astype(np.int64) % size


def _common_rows(arrays: Mapping[str, Any]) -> int:
    if not arrays:
        raise ValueError("no modality: arrays is empty; give at least one, such as {'image': numpy.load(path, 'r')}")
    for name, array in arrays.items():
        if not all(hasattr(array, attribute) for attribute in ("shape", "dtype", "__getitem__")):
            raise ValueError(
                f"modality {name!r} is a {type(array).__name__}; give an array with shape, dtype and access by row"
                " numbers, such as numpy.load(path, mmap_mode='r')"
            )
    return common_rows({name: array.shape[0] if len(array.shape) else 0 for name, array in arrays.items()})


def _check_mask(name: str, mask: Any, arrays: Mapping[str, Any]) -> None:
    if name not in arrays:
        raise ValueError(f"masks names {name!r}, which arrays does not have (it has {', '.join(arrays)}); drop it")
    check_mask_shape(name, tuple(getattr(mask, "shape", ())), tuple(arrays[name].shape))
