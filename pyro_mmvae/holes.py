"""Missing modalities: read off from NaN, and made on purpose."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from pyro_mmvae.arrays import shown, whole, with_axes
from pyro_mmvae.checks import seen_rows
from pyro_mmvae.data import Arrays, Batch


def from_nan(x: Arrays) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Splits data with NaN into values and masks, once, at the door.

    Args:
        x: name -> array (row, *event); NaN = missing.

    Returns:
        x with zero where NaN was, and mask: bool, (row,) for a modality that is always there as a whole or not at all,
        else (row, *event).

    Raises:
        ValueError: bad input.

    Example:
        >>> import torch
        >>> x, mask = from_nan({"size": torch.tensor([[1.0, float("nan")], [2.0, 3.0]])})
        >>> mask["size"].tolist()
        [[True, False], [True, True]]
    """
    batch = Batch.of({} if x is None else x)  # which for None would be a row of nothing
    return dict(batch), batch.mask


def hide(
    x: Arrays, mask: Arrays | None = None, *, share: float, seed: int = 0, keep_one: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Hides whole modalities at random, each of each row with probability `share`.

    Args:
        x, mask: as everywhere; what is missing already stays so.
        share: of the observed (row, modality) pairs.
        keep_one: leaves every row one of the modalities that it had.

    Returns:
        x, with zero where it was missing before, and the new mask.

    Raises:
        ValueError: bad input, or a share outside of [0, 1].

    Example:
        >>> import torch
        >>> _, mask = hide({"a": torch.zeros(1000, 2), "b": torch.zeros(1000)}, share=0.5)
        >>> bool((mask["a"] | mask["b"]).all())
        True
    """
    if not isinstance(share, (Real, Tensor)) or not 0 <= share <= 1:
        raise ValueError(f"share is {shown(share)}; give the share of (row, modality) pairs to hide, from 0 to 1")
    batch = Batch.of({} if x is None else x, mask)  # likewise
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    seen = torch.stack([seen_rows(m).cpu() for m in batch.mask.values()], 1)
    order = torch.rand(seen.shape, generator=generator)
    kept = order >= share
    if keep_one:
        kept.scatter_(1, order.masked_fill(~seen, -1).argmax(1, keepdim=True), True)
    new = {}
    for column, (name, old) in enumerate(batch.mask.items()):
        new[name] = old & with_axes(kept[:, column].to(old.device), old.dim())
    return dict(batch), new
