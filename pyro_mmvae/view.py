"""What the guide looks at, and what the model explains."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import combinations
from typing import NamedTuple

from torch import Tensor

MOST_SUBSETS = 2**16 - 1
"""All of sixteen modalities; more of them would be hours of work, or more names than memory holds."""


class View(NamedTuple):
    """One way of looking at a batch.

    Attributes:
        given: the modalities that the guide sees; None = all that were observed.
        targets: the modalities that the model explains; None = all that were observed.
        private: the modalities whose private codes are inferred from them; the others' come from the auxiliary prior,
            in model and guide alike. None = as given.
        stratum: which component of a mixture posterior to draw z from; None = as the mixture does.
        rows: bool (row,), the rows that count; the data of others are not decoded. None = all.
        strata: the modalities that strata belong to, one after the other, or how many strata there are: a mixture of
            more components is refused. None = that is not checked.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> view = View(given=["a"], targets=["b"])  # what "a" says of "b"
        >>> loss = mm.Objective([lambda names: [view]]).loss(vae.model, vae.guide, x)
    """

    given: Collection[str] | None = None
    targets: Collection[str] | None = None
    private: Collection[str] | None = None
    stratum: int | None = None
    rows: Tensor | None = None
    strata: Sequence[str] | int | None = None


EVERYTHING = View()


def subsets_of(names: Collection[str], largest: int | None = None, *, what: str) -> list[tuple[str, ...]]:
    """The non-empty subsets of up to `largest` names (None = all of them), the smaller ones first.

    Args:
        what: what they would be, and what to do instead, if they are too many.

    Raises:
        ValueError: there are more than `MOST_SUBSETS`.
    """
    sizes = range(1, len(names) + 1 if largest is None else min(largest, len(names)) + 1)
    count = sum(math.comb(len(names), size) for size in sizes)
    if count > MOST_SUBSETS:
        raise ValueError(f"{len(names)} modalities have {count:,} subsets to look at, which are {what}")
    return [subset for size in sizes for subset in combinations(names, size)]
