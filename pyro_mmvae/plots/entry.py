"""One entry of a modality: a picture, bars, a number or text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae.arrays import tensor_of
from pyro_mmvae.plots.axes import BLUE, GREY, HOLE, WIDE, new_axes, plain

Show = Callable[[Tensor], "str | Mapping[str, Any] | Tensor"]
"""One entry (or its prediction) -> what to draw of it: text, a small table of names and values, or another tensor."""
MANY = 40
"""Bars that stand side by side; more have gaps of less than a pixel, some of which would be drawn."""


class Look(NamedTuple):
    """How the entries of one modality are drawn.

    Attributes:
        show: see `plot_entry`.
        span: the values that are black and full colour; None = by the values.
        chances: whether numbers may be probabilities of categories; None = by the values.
        reach: the lowest and highest value of bars and of grey pictures; None = by the values.
        repeated: whether the first axis is that of repeats, which are no channels.
    """

    show: Show | None = None
    span: tuple[float, float] | None = None
    chances: bool | None = None
    reach: tuple[float, float] | None = None
    repeated: bool = False


def plot_entry(value: Any, ax: Any = None, *, show: Show | None = None) -> Any:
    """One entry of a modality: a picture or spectrogram in grey or colour, numbers as bars, a category as text.

    Args:
        value: (*event); for a category its number, or its probabilities as `mm.predict` gives them. Three or four
            channels are colours, in 0..1 or 0..255 (others in the range that they have); of other channels each is a
            grey picture, side by side.
        show: what to draw instead: a function of the value that returns text (words of tokens, the name of a category),
            a mapping of names to values (a row of a table), or another tensor.

    Raises:
        ValueError: not numbers, or more than three axes.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = plot_entry(torch.rand(28, 28), Figure().subplots())
    """
    return draw_entry(tensor_of("value", value).detach(), new_axes(ax, (2.0, 2.0)), Look(show))


def draw_entry(value: Tensor, ax: Any, look: Look) -> Any:
    """`plot_entry` in the manner of its modality; what is NaN is empty, in a colour of its own."""
    ax.set(xticks=[], yticks=[])
    beside = look.repeated and value.dim() > 2
    drawn = look.show(value) if look.show else torch.cat(value.unbind(0), -1) if beside else value
    if isinstance(drawn, Mapping):
        drawn = "\n".join(f"{name} {_number(number)}" for name, number in drawn.items())
    if isinstance(drawn, str):
        return _words(drawn, ax)
    drawn = tensor_of("value", drawn).detach().cpu()
    drawn = drawn.float() if drawn.dtype == torch.bfloat16 else drawn  # which NumPy lacks
    if drawn.dim() == 0:
        _words(_number(drawn.item()), ax)
    elif drawn.dim() == 1:
        _bars(drawn, ax, look.chances, None if look.show else look.reach)
    elif drawn.dim() <= 3:  # probabilities of categories are no pictures in the range of their numbers
        _picture(drawn, ax, None if look.show else look.span, None if look.show or look.chances else look.reach)
    else:
        raise ValueError(f"value has shape {tuple(drawn.shape)}; give up to three axes, or show=a function to draw it")
    return ax


def span_of(value: Tensor, *others: Tensor) -> tuple[float, float]:
    """What is black and full colour: 0 and 1, 0 and 255, or the ends of the range of all, as the first one has it."""
    low, high = _ends(value)
    if low >= 0 and high <= 255:
        return 0.0, 1.0 if high < 2 and (value.is_floating_point() or high <= 1) else 255.0  # means may overshoot
    ends = [(low, high), *map(_ends, others)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def reach_of(*values: Tensor) -> tuple[float, float] | None:
    """The lowest and highest value of all of them; None if there are no two."""
    lows, highs = zip(*map(_ends, values))
    return (min(lows), max(highs)) if min(lows) < max(highs) else None


def _ends(value: Tensor) -> tuple[float, float]:
    finite = value[value.isfinite()]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def _words(text: str, ax: Any) -> Any:
    """In letters that leave a long line its room, or in more lines if they are larger so."""
    width, height = _inches(ax)
    given, most = text.split("\n"), max(WIDE, round(math.sqrt(2 * len(text))))
    broken = [part for line in given for part in wrap(line, most, break_long_words=False) or [""]]
    rooms = ((max(len(lines) / height, 0.45 * max(map(len, lines)) / width), lines) for lines in (given, broken))
    room, lines = min(rooms)
    text = plain("\n".join(lines))
    ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=min(14.0, 40 / room), transform=ax.transAxes)
    return ax


def _inches(ax: Any) -> tuple[float, float]:
    """Width and height to write in; an inch, as in a grid of ours, which is not laid out yet, unless they are less."""
    sides = ax.bbox.width / ax.figure.dpi, ax.bbox.height / ax.figure.dpi
    width, height = (side if side < 0.7 else 1.0 for side in sides)
    return width, height


def _picture(value: Tensor, ax: Any, span: tuple[float, float] | None, reach: tuple[float, float] | None) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    if value.dim() == 3:
        first, last = value.shape[0], value.shape[-1]
        there = last == 3 or (last in (1, 4) and first > 4)  # channels last, as matplotlib has them
        value = value if there else value.movedim(0, -1)
    if value.dim() == 3 and value.shape[-1] not in (3, 4):
        value = torch.cat(value.unbind(-1), -1)
    if value.dim() == 3:
        low, high = span_of(value) if span is None else span
        hole = torch.tensor([*to_rgb(HOLE), 1.0], dtype=torch.float64)[: value.shape[-1]]
        value = torch.where(value.isnan(), hole, (value.double() - low) / max(high - low, 1e-12)).clamp(0, 1)
    shades = colormaps["magma" if max(value.shape) > 16 else "gray_r"].with_extremes(bad=HOLE)
    least, most = reach or (None, None)  # of grey pictures
    ax.imshow(value.numpy(), cmap=shades, aspect="auto", vmin=least, vmax=most)


def _bars(values: Tensor, ax: Any, chances: bool | None, reach: tuple[float, float] | None) -> None:
    if len(values) > MANY:
        ax.stairs(values.double().numpy(), np.arange(len(values) + 1) - 0.5, fill=True, color=BLUE)
    else:
        ax.bar(range(len(values)), values.numpy(), color=BLUE)
    ax.set_xlim(-0.6, len(values) - 0.4)
    for hole in values.isnan().nonzero().flatten().tolist():
        ax.axvspan(hole - 0.4, hole + 0.4, color=HOLE, linewidth=0)
    chances = values.is_floating_point() if chances is None else chances
    if chances and len(values) and values.min() >= 0 and abs(float(values.sum()) - 1) < 1e-3:
        best = int(values.argmax())  # the most probable one is named by its number
        ax.set_ylim(0, 1.45)
        width, height = _inches(ax)
        half, size = 0.045 * len(str(best)) * len(values), min(9 * width, 20 * height)  # its number stays in the frame
        middle, top = min(max(best, half - 0.6), len(values) - 0.4 - half), float(values[best]) + 0.05
        ax.text(middle, top, str(best), ha="center", va="bottom", fontsize=size)
    else:
        ax.axhline(0.0, color=GREY, linewidth=0.6)
        if reach is not None:
            ax.set_ylim(1.05 * min(0.0, reach[0]), 1.05 * max(0.0, reach[1]))


def _number(value: Any) -> str:
    """A whole number, as of a category, with all its digits, any other with three or with those before the point."""
    if isinstance(value, str):
        return value
    number = float(value) + 0.0  # not -0
    if math.isnan(number):
        return ""
    if number.is_integer():
        return f"{number:.15g}"
    return f"{number:.0f}" if 1000 <= abs(number) < 1e6 else f"{number:.3g}"
