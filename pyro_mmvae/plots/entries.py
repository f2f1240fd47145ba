"""Entries of modalities: one, reconstructions of a few rows, and every modality from every other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.checks import seen_rows
from pyro_mmvae.data import Arrays
from pyro_mmvae.inference import predict
from pyro_mmvae.modes import tool
from pyro_mmvae.plots.axes import BLUE, GREY, RED, cells, new_axes
from pyro_mmvae.weights import opened

Show = Callable[[Tensor], "str | Mapping[str, Any] | Tensor"]
"""One entry (or its prediction) -> what to draw of it: text, a small table of names and values, or another tensor."""


def plot_entry(value: Tensor, ax: Any = None, *, show: Show | None = None) -> Any:
    """One entry of a modality: a picture or spectrogram in grey or colour, numbers as bars, a category as text.

    Args:
        value: (*event); for a category its number, or its probabilities as `mm.predict` gives them.
        show: what to draw instead: a function of the value that returns text (words of tokens, the name of a category),
            a mapping of names to values (a row of a table), or another tensor.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = plot_entry(torch.rand(28, 28), Figure().subplots())
    """
    ax = new_axes(ax, (2.0, 2.0))
    ax.set(xticks=[], yticks=[])
    drawn = value if show is None else show(value)
    if isinstance(drawn, Mapping):
        drawn = "\n".join(f"{name} {_number(number)}" for name, number in drawn.items())
    if isinstance(drawn, str):
        lines = drawn.split("\n")
        size = min(14.0, 40 / max(len(lines), 0.45 * max(map(len, lines))))
        ax.text(0.5, 0.5, drawn, ha="center", va="center", fontsize=size, transform=ax.transAxes)
    elif drawn.dim() == 0:
        ax.text(0.5, 0.5, f"{drawn.item():g}", ha="center", va="center", fontsize=14, transform=ax.transAxes)
    elif drawn.dim() == 1:
        _bars(drawn, ax)
    else:
        picture = drawn if drawn.dim() == 2 or drawn.shape[-1] == 3 else drawn.movedim(0, -1)
        shades = "magma" if max(picture.shape) > 16 else "gray_r"
        ax.imshow(picture.squeeze().cpu().numpy(), cmap=shades, aspect="auto")
    return ax


@torch.no_grad()
@tool
def plot_reconstructions(
    vae: Any, x: Arrays, mask: Arrays | None = None, *, show: Mapping[str, Show] | None = None, ax: Any = None
) -> Any:
    """A few rows as observed (red frame), and below each modality what the model makes of all that is observed.

    Args:
        x, mask: a few rows; one column each. What is missing stays empty, and is predicted all the same.
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
    sides = {name: [batch[name], *([found[name]] if name in found else [])] for name in batch}  # some only looked at
    height = sum(map(len, sides.values()))
    ax = new_axes(ax, (batch.rows + 1.5, 1.05 * height))
    lines = iter(cells(ax, height, batch.rows))
    for name in batch:
        seen = seen_rows(batch.mask[name]).tolist()
        draw = None if show is None else show.get(name)
        for side, values in enumerate(sides[name]):
            line = next(lines)
            _label(line[0], name if side == 0 else "reconstructed")
            for cell, value, there in zip(line, values, seen):
                _frame(cell, side == 0 and there)
                if there or side == 1:
                    plot_entry(value, cell, show=draw)
                else:
                    cell.text(0.5, 0.5, "missing", ha="center", va="center", color=GREY, fontsize=8)
    return ax


@torch.no_grad()
@tool
def plot_cross_modal(vae: Any, x: Mapping[str, Any], ax: Any = None, *, show: Mapping[str, Show] | None = None) -> Any:
    """Every modality predicted from every other: a block for each given modality, as observed in its first line.

    Args:
        x: a few rows, every modality observed; one column each.
        show: name -> see `plot_entry`.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> from matplotlib.figure import Figure
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> few = {name: value[:4] for name, value in x.items()}
        >>> ax = plot_cross_modal(vae, few, Figure().subplots())
    """
    batch = opened(vae, x)
    columns = batch.rows
    predicted = {given: predict(vae, batch.only([given]), num_draws=1) for given in batch}
    height = len(batch) + sum(name in found and name != given for given, found in predicted.items() for name in batch)
    ax = new_axes(ax, (columns + 1.6, 1.05 * height + 0.3))
    lines = iter(cells(ax, height, columns))
    for given, found in predicted.items():
        for name in [given, *(other for other in batch if other != given and other in found)]:
            own, line = name == given, next(lines)
            _label(line[0], f"{given}\n(given)" if own else f"{name}\nfrom {given}")
            for cell, value in zip(line, batch[name] if own else found[name]):
                plot_entry(value, cell, show=None if show is None else show.get(name))
                _frame(cell, own)
    ax.set_title("Held-out rows: what is given (red frame), and what the model predicts from it", fontsize=11)
    return ax


def _bars(values: Tensor, ax: Any) -> None:
    ax.bar(range(len(values)), values.cpu().numpy(), color=BLUE)
    if values.min() >= 0 and abs(float(values.sum()) - 1) < 1e-3:  # probabilities: the best one by its number
        best = int(values.argmax())
        ax.set_ylim(0, 1.45)
        ax.text(best, float(values[best]) + 0.05, str(best), ha="center", va="bottom", fontsize=9)
    else:
        ax.axhline(0.0, color=GREY, linewidth=0.6)


def _label(ax: Any, text: str) -> None:
    ax.text(-0.15, 0.5, text, transform=ax.transAxes, ha="right", va="center", fontsize=9)


def _frame(ax: Any, strong: bool) -> None:
    for spine in ax.spines.values():
        spine.set(color=RED if strong else GREY, linewidth=1.8 if strong else 0.6)


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{float(value):.3g}"
