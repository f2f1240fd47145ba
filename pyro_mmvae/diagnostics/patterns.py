"""Which subsets of the modalities to look at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from pyro_mmvae.arrays import shown
from pyro_mmvae.checks import check_collection, seen_rows
from pyro_mmvae.data import Batch
from pyro_mmvae.view import subsets_of
from pyro_mmvae.warn import warn

Subsets = Sequence[Collection[str]] | int | Literal["all"] | None
"""Explicit subsets; a number of random ones; "all"; None = all for up to four modalities, else those of the data, the
most frequent ones."""

ALL_UP_TO = 4
MOST = 64
"""The most subsets of the data that are looked at unasked: some two minutes of a certificate."""


def chosen_subsets(batch: Batch, subsets: Subsets = None) -> list[tuple[str, ...]]:
    """The subsets to look at, each in the order of the data.

    Args:
        batch: the data.
        subsets: see `Subsets`.

    Raises:
        ValueError: a word other than "all", or that for more than sixteen modalities, a number below 1, what is no list
            of lists of names, or none at all.

    Example:
        >>> import torch
        >>> chosen_subsets(Batch.of({"a": torch.zeros(3), "b": torch.zeros(3)}), "all")
        [('a',), ('b',), ('a', 'b')]
    """
    names = list(batch)
    if subsets is None:
        return all_subsets(names) if len(names) <= ALL_UP_TO else observed_subsets(batch)
    if isinstance(subsets, int):
        return random_subsets(names, subsets)
    if isinstance(subsets, str):
        if subsets != "all":
            raise ValueError(f'subsets is {subsets!r}; give "all", a number, or a list such as [("image", "sound")]')
        return all_subsets(names)
    if isinstance(subsets, type) or not isinstance(subsets, Collection) or not len(subsets):
        found = shown(subsets) if not isinstance(subsets, Collection) else "empty"
        raise ValueError(f'subsets is {found}; give "all", a number, or a list such as [("image", "sound")]')
    for given in subsets:
        check_collection(given)
    return [tuple(given) for given in subsets]


def all_subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, the smaller ones first."""
    return subsets_of(names, what='too many; give subsets a number, or a list such as [("image", "sound")]')


def random_subsets(names: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """That many different subsets (all, if there are no more), sizes as likely as each other, the smaller ones first.

    Drawn from torch's generator.
    """
    if count < 1:
        raise ValueError(f"subsets is {count}; give 1 or more")
    if count >= 2 ** len(names) - 1:
        return all_subsets(names)
    found: set[tuple[int, ...]] = set()
    while len(found) < count:
        size = int(torch.randint(1, len(names) + 1, (), device="cpu"))
        found.add(tuple(sorted(torch.randperm(len(names), device="cpu")[:size].tolist())))
    return [tuple(names[i] for i in s) for s in sorted(found, key=lambda s: (len(s), s))]


def observed_subsets(batch: Batch) -> list[tuple[str, ...]]:
    """The subsets that the rows of the data have, the frequent ones first; `MOST` of them, with a warning if there are
    more."""
    seen = torch.stack([seen_rows(m) for m in batch.mask.values()], 1)
    patterns, counts = seen.unique(dim=0, return_counts=True)
    order = counts.masked_fill(~patterns.any(1), 0).argsort(descending=True)
    order = order[: int(patterns.any(1).sum())]
    if len(order) > MOST:
        share = float(counts[order[:MOST]].sum() / counts[order].sum())
        warn(
            f"the rows have {len(order):,} different subsets of the modalities; the {MOST} most frequent are looked at,"
            f" {share:.0%} of the rows; give subsets a number or a list for others"
        )
    return [tuple(n for n, there in zip(batch, row) if there) for row in patterns[order[:MOST]].tolist()]


def rows_with(batch: Batch, given: Collection[str]) -> Tensor:
    """The rows that have something of every modality of S, (found,)."""
    there = torch.ones(batch.rows, dtype=torch.bool, device="cpu")
    for name in given:
        there &= seen_rows(batch.mask[name]).cpu() if name in batch else False
    return there.nonzero().squeeze(-1)


def title(given: Sequence[str], width: int = 28) -> str:
    """The names of a subset, cut to a width.

    Example:
        >>> title(("image", "sound")), title([f"sensor{i}" for i in range(9)])
        ('image + sound', 'sensor0 + sensor1 + ... (9)')
    """
    whole = " + ".join(given) or "nothing"
    if len(whole) <= width:
        return whole
    if len(given) == 1:
        return whole[: width - 3] + "..."
    end, kept = f" + ... ({len(given)})", list(given)
    while len(kept) > 1 and len(" + ".join(kept) + end) > width:
        kept.pop()
    return " + ".join(kept)[: width - len(end)] + end


def titles(subsets: Sequence[Sequence[str]], width: int = 28) -> list[str]:
    """The names of subsets: cut to a width, unless two of them would read the same, or one would not say which of all
    the names it has; then long names lose their middle, and most of more than four, if all of them are among the
    subsets as well, are told by those they lack.

    Example:
        >>> titles([["front camera, left", "radar"], ["front camera, left", "lidar"]], 22)
        ['fron...left + radar', 'fron...left + lidar']
        >>> titles([["age", "sex", "dose"], ["age", "sex", "dose", "pulse"]], 14)
        ['age + sex + dose', 'age + sex + dose + pulse']
        >>> titles([["a1", "a2", "a3", "a4", "a5"], ["a1", "a2", "a3", "a4"], ["a1", "a2"]], 14)
        ['a1 + ... (5)', 'all 5 but a5', 'a1 + a2']
    """
    in_order = sorted(subsets, key=len, reverse=True)  # the largest has the names in the order of the data
    cut, names = [title(given, width) for given in subsets], dict.fromkeys(name for given in in_order for name in given)
    pairs = [(given, text) for given, text in zip(subsets, cut) if len(given) > 1]
    told = all(set(given) == names.keys() or text == " + ".join(given) for given, text in pairs)
    if told and len(set(cut)) == len(set(map(tuple, subsets))):
        return cut
    most = max(map(len, subsets))
    short = _shortened(names, max(4, (width // most - 6) // 2))
    whole = [" + ".join(short[name] for name in given) or "nothing" for given in subsets]
    if len(names) <= ALL_UP_TO or most < len(names):
        return whole
    return [min(has, _lacking(given, short) or text, key=len) for given, has, text in zip(subsets, whole, cut)]


def column(cells: Sequence[str], least: int) -> list[str]:
    """Numbers of a table, on the right of a column of that width, or wide enough for all of them.

    Example:
        >>> column(["gap", "0.1", "1234.5"], 4)
        ['   gap', '   0.1', '1234.5']
    """
    width = max([least, *map(len, cells)])
    return [f"{cell:>{width}}" for cell in cells]


def _lacking(given: Collection[str], short: Mapping[str, str]) -> str:
    """A subset by what it lacks of all names; nothing if it has all."""
    lacks = " + ".join(own for name, own in short.items() if name not in given)
    return f"all {len(short)} but {lacks}" if lacks else ""


def _shortened(names: Collection[str], least: int) -> dict[str, str]:
    """name -> its ends, of `least` letters or as long as it takes to tell it from the others."""
    tried = ({n: n if len(n) <= 2 * end + 3 else f"{n[:end]}...{n[-end:]}" for n in names} for end in count(least))
    return next(short for short in tried if len(set(short.values())) == len(names))
