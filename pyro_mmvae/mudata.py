"""MuData and AnnData in and out, by their attributes alone: neither package is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.arrays import as_tensor
from pyro_mmvae.checks import check_members
from pyro_mmvae.distributions import drawn_part, moments_of
from pyro_mmvae.modes import tool
from pyro_mmvae.programs import with_posterior
from pyro_mmvae.questions import opened

ROWS_AT_ONCE = 4096


def from_mudata(data: Any, slots: Mapping[str, str] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The modalities of a MuData or an AnnData as x and mask, one row for each of `data.obs_names`, in their order.

    A cell that a modality lacks is missing there, and so is every NaN. Sparse matrices become dense, one at a time, so
    choose the variables first.

    Args:
        data: a MuData; or an AnnData, or one loaded in backed mode.
        slots: name -> where its values are: "X", or a key of `.layers` or `.obsm`. Of a MuData: for those of its
            modalities whose values are not in X. Of an AnnData: all the modalities to make; {"X": "X"} by default.

    Returns:
        x: name -> (row, *event), zero where missing; mask: name -> bool, (row,), or (row, *event) if there are NaN.

    Raises:
        ValueError: in one line, slots that are no dictionary, a slot that there is not, or cells without names of
            their own.

    Example:
        >>> from types import SimpleNamespace as Fake
        >>> rna = Fake(obs_names=["c", "a"], X=[[1.0, 2.0], [3.0, 4.0]], layers={}, obsm={})
        >>> atac = Fake(obs_names=["b", "c"], X=[[5.0], [6.0]], layers={}, obsm={})
        >>> x, mask = from_mudata(Fake(obs_names=["a", "b", "c"], mod={"rna": rna, "atac": atac}))
        >>> x["rna"].tolist(), mask["rna"].tolist()
        ([[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]], [True, False, True])
    """
    slots = slots or {}
    if not isinstance(slots, Mapping):
        raise ValueError(f"slots is {slots!r}; give a dictionary, such as {{'rna': 'X'}}")
    if hasattr(data, "mod"):
        check_members("slots", slots, data.mod)
        found = {name: _aligned(name, part, slots.get(name, "X"), data.obs_names) for name, part in data.mod.items()}
    elif hasattr(data, "obs_names"):
        found = {name: _aligned(name, data, slot, data.obs_names) for name, slot in (slots or {"X": "X"}).items()}
    else:
        raise ValueError(f"this is a {type(data).__name__}; give a MuData or an AnnData")
    return {name: x for name, (x, _) in found.items()}, {name: mask for name, (_, mask) in found.items()}


@tool
def to_mudata(vae: Any, data: Any, slots: Mapping[str, str] | None = None, *, key: str = "X_mmvae") -> None:
    """Writes the posterior of every cell into the data: its mean to `.obsm[key]`, its sd to `.obsm[key + "_sd"]`.

    Rows stand as in `data.obs_names`. A cell of which nothing was measured has the prior's. A posterior whose mean has
    no formula (a flow) is averaged over 1000 draws.

    Args:
        vae: a `MultimodalVAE` of the same modalities.
        data, slots: as in `from_mudata`.
        key: under which `.obsm` takes the mean, (row, dim).

    Raises:
        ValueError: bad input, before anything is written.

    Example:
        >>> import pyro_mmvae as mm
        >>> from types import SimpleNamespace as Fake
        >>> cells = Fake(obs_names=["a", "b"], X=[[1.0, 2.0], [3.0, 4.0]], layers={}, obsm={})
        >>> rna = mm.Modality(mm.NormalLikelihood(mm.mlp(3, 2)), mm.encoder(2, 8, dim=3))
        >>> to_mudata(mm.MultimodalVAE({"rna": rna}, mm.StandardNormal(3), mm.PoE()), cells, {"rna": "X"})
        >>> cells.obsm["X_mmvae"].shape, cells.obsm["X_mmvae_sd"].shape
        ((2, 3), (2, 3))
    """
    vae = with_posterior(vae)
    batch, means, sds = opened(vae, *from_mudata(data, slots)), [], []
    for part in batch.split(ROWS_AT_ONCE):
        mean, sd = moments_of(drawn_part(vae.posterior(part)))
        means.append(mean)
        sds.append(sd)
    data.obsm[key], data.obsm[f"{key}_sd"] = torch.cat(means).cpu().numpy(), torch.cat(sds).cpu().numpy()


def _aligned(name: str, part: Any, slot: str, rows: Sequence[str]) -> tuple[Tensor, Tensor]:
    """One modality in the rows of the whole data, zero where a row lacks it, and the mask."""
    value = as_tensor(name, _values(name, part, slot))
    where = torch.as_tensor(_places(name, list(part.obs_names), list(rows)), dtype=torch.long)
    mask = torch.zeros(len(rows), dtype=torch.bool).index_fill(0, where, True)
    if value.is_floating_point() and bool(value.isnan().any()):
        mask = torch.zeros(len(rows), *value.shape[1:], dtype=torch.bool).index_copy(0, where, ~value.isnan())
        value = value.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    return value.new_zeros(len(rows), *value.shape[1:]).index_copy_(0, where, value), mask


def _values(name: str, part: Any, slot: str) -> Any:
    holders = [holder for holder in (part.layers, part.obsm) if slot in holder]
    if len(holders) + (slot == "X") != 1:
        what = "stands in layers and in obsm; rename one" if holders else "is there neither in layers nor in obsm"
        there = ", ".join(["X", *part.layers, *part.obsm])
        raise ValueError(f"modality {name!r}: the slot {slot!r} {what}; there are {there}")
    value = part.X if slot == "X" else holders[0][slot]
    return value.to_memory() if hasattr(value, "to_memory") else value  # sparse and still on disk


def _places(name: str, own: list[str], rows: list[str]) -> list[int]:
    """In which of the rows each of a modality's own cells stands."""
    place = {row: number for number, row in enumerate(rows)}
    if len(place) != len(rows) or len(set(own)) != len(own):
        raise ValueError(f"modality {name!r}: two cells have one name in obs_names; call .obs_names_make_unique()")
    lost = next((cell for cell in own if cell not in place), None)
    if lost is not None:
        raise ValueError(f"modality {name!r} has the cell {lost!r}, which the MuData lacks; call its .update()")
    return [place[cell] for cell in own]
