"""Entries of modalities side by side: reconstructions of a few rows, and every modality from every other."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import torch
from pyro.distributions import Categorical, OneHotCategorical
from torch import Tensor

from pyro_mmvae.arrays import with_axes
from pyro_mmvae.checks import check_named, first_row, seen_rows
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.inference import predict
from pyro_mmvae.modes import tool
from pyro_mmvae.plots.axes import GREY, LETTERS, RED, WIDE, cells, named, new_axes
from pyro_mmvae.plots.entry import Look, Show, draw_entry, reach_of, span_of
from pyro_mmvae.programs import library_of
from pyro_mmvae.questions import known, opened


@tool
def plot_reconstructions(
    vae: Any, x: Arrays, mask: Arrays | None = None, ax: Any = None, *, show: Mapping[str, Show] | None = None
) -> Any:
    """A few rows as observed (red frame), and below each modality what the model makes of all that is observed.

    Args:
        x, mask: a few rows; one column each, in which repeats of a picture stand side by side. What is missing stays
            empty (single entries pale blue), and is predicted all the same.
        show: name -> see `plot_entry`.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> from matplotlib.figure import Figure
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> few = {name: value[:4] for name, value in x.items()}
        >>> ax = plot_reconstructions(vae, few, ax=Figure().subplots())
    """
    batch = opened(vae, x, mask)
    found = predict(vae, batch, batch.mask)
    looks = _looks(vae, batch, show, [found])
    sides = {name: [_seen(batch, name, looks[name])] for name in batch}
    for name in found.keys() & sides.keys():
        sides[name].append(list(found[name]))
    height = sum(map(len, sides.values()))  # some are only looked at
    ax = new_axes(ax, (batch.rows + 1.5, 1.05 * height))
    lines, names = iter(cells(ax, height, batch.rows)), _names(batch)
    for name in batch:
        seen = seen_rows(batch.mask[name]).tolist()
        for side, values in enumerate(sides[name]):
            line = next(lines)
            _label(line[0], names[name] if side == 0 else "reconstructed")
            for cell, value, there in zip(line, values, seen):
                _frame(cell, side == 0 and there)
                if there or side == 1:
                    draw_entry(value, cell, looks[name])
                else:
                    cell.text(0.5, 0.5, "missing", ha="center", va="center", color=GREY, fontsize=8)
    return ax


@tool
def plot_cross_modal(
    vae: Any, x: Arrays, mask: Arrays | None = None, ax: Any = None, *, show: Mapping[str, Show] | None = None
) -> Any:
    """Every modality predicted from every other: a block for each given modality, as observed in its first line.

    Args:
        x, mask: as in `vae.model`, a few rows that have every modality; one column each. Single entries that are
            missing are pale blue.
        show: name -> see `plot_entry`.

    Raises:
        ValueError: bad input, or a row that lacks a modality.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> from matplotlib.figure import Figure
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> few = {name: value[:4] for name, value in x.items()}
        >>> ax = plot_cross_modal(vae, few, ax=Figure().subplots())
    """
    batch = opened(vae, x, mask)
    for name in batch:
        there = seen_rows(batch.mask[name])
        if not bool(there.all()):
            row = first_row(~there)
            raise ValueError(f"modality {name!r} is missing in row {row}; give rows that have all, which are shown")
    columns = batch.rows
    predicted = {given: predict(vae, batch.only([given]), num_draws=1) for given in batch}
    looks = _looks(vae, batch, show, list(predicted.values()))
    height = len(batch) + sum(name in found and name != given for given, found in predicted.items() for name in batch)
    ax = new_axes(ax, (columns + 1.6, 1.05 * height + 0.3))
    lines, names = iter(cells(ax, height, columns)), _names(batch)
    for given, found in predicted.items():
        for name in [given, *(other for other in batch if other != given and other in found)]:
            own, line = name == given, next(lines)
            _label(line[0], f"{names[given]}\n(given)" if own else f"{names[name]}\nfrom {names[given]}")
            for cell, value in zip(line, _seen(batch, name, looks[name]) if own else found[name]):
                draw_entry(value, cell, looks[name])
                _frame(cell, own)
    _title(ax, "What is given (red frame), and what the model predicts from it")
    return ax


def _looks(
    vae: Any, batch: Batch, show: Mapping[str, Show] | None, predicted: list[dict[str, Tensor]]
) -> dict[str, Look]:
    """How each modality is drawn: what is observed and what is predicted in the same colours and on one scale."""
    if show is not None:
        check_named("show", show, "{'label': str}")
        known(vae, show)
    ours = library_of(vae)
    likelihoods = {} if ours is None else ours.likelihoods(batch)
    looks = {}
    for name in batch:
        p = likelihoods.get(name)
        chances = None if p is None else isinstance(getattr(p, "base_dist", p), (Categorical, OneHotCategorical))
        values = [found[name] for found in predicted if name in found]
        seen = [batch[name][batch.mask[name]]] if bool(batch.mask[name].any()) else []
        repeated = p is not None and batch[name].dim() > 1 + len(p.event_shape)
        looks[name] = Look((show or {}).get(name), span_of(*seen, *values), chances, reach_of(*seen, *values), repeated)
    return looks


def _seen(batch: Batch, name: str, look: Look) -> list[Tensor]:
    """The rows as observed: NaN for single entries that are hidden; of categories, which have none, `show` gets those
    that are there.
    """
    value, mask = batch[name], batch.mask[name]
    if mask.dim() == 1:
        return list(value)
    if look.show is not None and look.chances and mask.shape == value.shape:
        return [row[there] for row, there in zip(value, mask)]
    real = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    return list(torch.where(with_axes(mask, value.dim()), real, torch.nan))


def _title(ax: Any, words: str) -> None:
    """In lines of one length that are no wider than the axes."""
    inches = ax.get_window_extent().width / ax.figure.dpi - 0.5  # the names of the lines take the rest
    letters = max(12, int(LETTERS * inches))
    lines = -(-len(words) // letters)
    ax.set_title(fill(words, min(letters, len(words) // lines + 8)), fontsize=10)


def _names(batch: Batch) -> dict[str, str]:
    """The modalities as they stand beside their entries: in lines that leave these their room."""
    return {name: fill(cut, WIDE) for name, cut in zip(batch, named([[name] for name in batch], 3 * WIDE))}


def _label(ax: Any, text: str) -> None:
    ax.text(
        -0.15, 0.5, text, transform=ax.transAxes, ha="right", va="center", fontsize=9 if text.count("\n") < 4 else 7
    )


def _frame(ax: Any, strong: bool) -> None:
    for spine in ax.spines.values():
        spine.set(color=RED if strong else GREY, linewidth=1.8 if strong else 0.6)
