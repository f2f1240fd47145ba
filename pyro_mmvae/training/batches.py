"""Where the batches of an epoch come from: data in memory, data on disk, or an iterable of the user's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch

from pyro_mmvae.checks import check_mapping
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.dataset import MultimodalDataset
from pyro_mmvae.questions import opened
from pyro_mmvae.warn import warn

AT_ONCE = 2**23
"""Bytes that are read from disk at once, where batches are smaller than that."""
FIRST = 64
"""Rows on disk among which each modality is looked for, to see what there is to train."""


class Batches(Protocol):
    """What `fit` walks once an epoch; a new kind of data needs these four and a line in `batches_of`.

    Attributes:
        steps: batches an epoch, 0 if that cannot be known beforehand.
        rows: rows an epoch, 0 if that cannot be known beforehand.
    """

    steps: int
    rows: int

    def walk(self, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, without the first `start` of them: there a run was interrupted and goes on.

        The order of an epoch is drawn from torch's global generator before its first batch, and from nothing else, so
        that whoever sets the generator back has the same order again.
        """

    def first(self) -> Batch:
        """A small batch, to find the parameters and the latent sites with."""


class InMemory:
    """Batches drawn by index from tensors, in a new order each epoch."""

    def __init__(self, data: Batch, batch_size: int):
        self.data, self.batch_size, self.rows = data, min(batch_size, data.rows), data.rows
        self.steps = -(-data.rows // self.batch_size)
        data.survey()
        _warn_of_unseen(data)

    def walk(self, start: int = 0) -> Iterator[Batch]:
        for index in torch.randperm(self.rows, device="cpu").split(self.batch_size)[start:]:
            yield self.data.take(index)

    def first(self) -> Batch:
        return self.data.few(partly=True)


class Loader:
    """Batches as the user's iterable gives them."""

    rows = 0

    def __init__(self, vae: Any, batches: Iterable[Any]):
        if not isinstance(batches, Iterable) or isinstance(batches, Iterator):
            raise ValueError(
                f"x is a {type(batches).__name__}, which cannot be walked once an epoch; give a dictionary name ->"
                " array, a list of batches or a DataLoader"
            )
        if isinstance(batches, list) and len(batches) == 2 and _masks(batches[1]):
            raise ValueError("x is a list of arrays and masks, which would be two batches; give them as (x, mask)")
        self.vae, self.batches, self.likelihoods = vae, batches, None
        self.steps = 0
        with suppress(TypeError):  # a DataLoader has a length, but not where its data have none
            self.steps = len(batches) if isinstance(batches, Sized) else 0

    def walk(self, start: int = 0) -> Iterator[Batch]:
        empty = start == 0
        for item in islice(self.batches, start, None):
            empty = False
            yield opened(self.vae, *pair(item), likelihoods=self.likelihoods)
        if empty:
            raise ValueError("the iterable of batches gave none; give one that can be walked again each epoch")

    def first(self) -> Batch:
        batch = next(self.walk())
        self.likelihoods = likelihoods_of(self.vae, batch)
        return batch


class OnDisk:
    """Batches of a `MultimodalDataset`, read by one thread while the ones before are computed with.

    That thread reads and checks, and nothing else: it draws no random numbers and runs no network.

    Attributes:
        at_once: batches that are read together, as many as `AT_ONCE` bytes hold.
        ahead: how many further such readings are under way while one is computed with.
    """

    def __init__(self, vae: Any, data: MultimodalDataset, batch_size: int):
        self.vae, self.data, self.batch_size, self.rows = vae, data, min(batch_size, len(data)), len(data)
        self.steps = -(-self.rows // self.batch_size)
        self.at_once = max(1, AT_ONCE // (max(1, data.row_bytes) * self.batch_size))
        self.ahead = 2 if self.at_once == 1 else 1
        self._check = partial(opened, vae, likelihoods=likelihoods_of(vae, self.first()))

    def walk(self, start: int = 0) -> Iterator[Batch]:
        coming: deque[Future[list[Batch]]] = deque()
        order = torch.randperm(self.rows, device="cpu").split(self.batch_size)[start:]
        with ThreadPoolExecutor(1, "mm.fit reads") as reader:
            for first in range(0, len(order), self.at_once):
                coming.append(reader.submit(self.data.batches, order[first : first + self.at_once], self._check))
                if len(coming) > self.ahead:
                    yield from coming.popleft().result()
            while coming:
                yield from coming.popleft().result()

    def first(self) -> Batch:
        return self.data.batch(range(min(FIRST, self.rows)), partial(opened, self.vae)).few(partly=True)


def batches_of(vae: Any, x: Any, mask: Arrays | None, batch_size: int) -> Batches:
    """The data that the user gave, as batches."""
    if isinstance(x, Mapping):
        return InMemory(opened(vae, x, mask), batch_size)
    if isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], Mapping):
        return InMemory(opened(vae, *x), batch_size)
    if any(hasattr(x, sign) for sign in ("dtype", "iloc", "obs_names")):  # data, which could be walked row by row
        check_mapping("x", x)
    if mask is not None:
        raise ValueError(f"a mask beside a {type(x).__name__}; give a dataset its masks, let a loader give (x, mask)")
    return OnDisk(vae, x, batch_size) if isinstance(x, MultimodalDataset) else Loader(vae, x)


def pair(item: Any) -> tuple[Any, Any]:
    """(x, mask) of what a loader gives: a pair, or x alone."""
    if not isinstance(item, (tuple, list)):
        return item, None
    if len(item) != 2:
        raise ValueError(
            f"a {type(item).__name__} of {len(item)} stands where x or (x, mask) is asked for; give a pair"
        )
    return item[0], item[1]


def _warn_of_unseen(data: Batch) -> None:
    """Warns of what no row has: it would be imputed from weights that no step has changed."""
    if all(data.lacks(name) for name in data):
        return  # of which `fit` warns when it is over
    for name in data.keys() - data.complete:
        seen = data.mask[name].any(0)
        if bool(seen.all()):
            continue
        what = f"modality {name!r} is observed in no row"
        if bool(seen.any()):
            where = (~seen).nonzero().tolist()
            what = (
                f"of modality {name!r} {len(where)} of {seen.numel()} entries are observed in no row, first {where[0]}"
            )
        warn(f"{what}; nothing of that is learnt, and what is said of it means nothing: leave it out")


def _masks(item: Any) -> bool:
    """Whether these are masks, and no data."""
    kinds = [getattr(v, "dtype", None) for v in item.values()] if isinstance(item, Mapping) else []
    return bool(kinds) and all(kind in (torch.bool, bool) for kind in kinds)


def likelihoods_of(vae: Any, batch: Batch) -> Any:
    """What later batches of the same data are checked against, so that no network runs for each of them."""
    return vae.likelihoods(batch) if hasattr(vae, "check") else None
