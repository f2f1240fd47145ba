"""Where pictures are drawn, and in which colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_mmvae.checks import kind_of
from pyro_mmvae.diagnostics.patterns import titles

BLUE, RED, GREY = "#4c72b0", "#c44e52", "#bbbbbb"
UNTOLD = "#777777"
"""The colour of what is neither good nor bad, dark enough to be read."""
HOLE = "#d7e1ee"
"""The colour of single entries that are missing, which are neither a zero nor a shade of grey."""
MARKERS = "o^sDvPX"
"""Of groups, beside ten colours, of which not everybody tells green from red; both together are 70."""
LETTERS = 12
"""Of a text that fit into an inch."""
WIDE = 16
"""Letters of a line of text in an entry, and of a name beside it."""


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


def plain(text: str) -> str:
    """A name of the user's that matplotlib shows as it stands: what is between dollars is no formula, and a legend does
    not leave out what begins with an underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def named(subsets: Sequence[Sequence[str]], width: int = 28) -> list[str]:
    """`titles`, as they stand."""
    return [plain(text) for text in titles(subsets, width)]


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
