"""Where pictures are drawn, and in which colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_mmvae.checks import kind_of

BLUE, RED, GREY = "#4c72b0", "#c44e52", "#bbbbbb"
HOLE = "#d7e1ee"
"""The colour of single entries that are missing, which are neither a zero nor a shade of grey."""
MARKERS = "o^sDvP*X"
"""One for each ten groups, as there are ten colours."""
LETTERS = 12
"""Of a text that fit into an inch."""


def check_result(what: str, value: object, kind: type, maker: str) -> None:
    """Refuses what is not the result that a picture shows."""
    if not isinstance(value, kind):
        raise ValueError(f"{what} is {kind_of(value)}; give a {kind.__name__}, from {maker}")


def new_axes(ax: Any, size: tuple[float, float] = (6.0, 3.6)) -> Any:
    """The Axes that were given, or those of a new figure (width, height in inches)."""
    if ax is not None:
        if isinstance(ax, type) or not hasattr(ax, "set_axis_off"):
            raise ValueError(f"ax is {kind_of(ax)}; give one Axes of matplotlib, or leave it out")
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def beside(labels: Sequence[str]) -> float:
    """The inches that labels take on the left of the axes."""
    return max(map(len, labels), default=0) / LETTERS


def cells(ax: Any, lines: int, columns: int) -> list[list[Any]]:
    """A grid of small axes without ticks inside of one that is not seen itself."""
    ax.set_axis_off()

    def cell(line: int, column: int) -> Any:
        bounds = (column / columns, 1 - (line + 1) / lines, 0.94 / columns, 0.9 / lines)
        return ax.inset_axes(bounds, xticks=[], yticks=[])

    return [[cell(line, column) for column in range(columns)] for line in range(lines)]
