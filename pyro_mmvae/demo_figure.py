"""The picture of the demonstration: every modality drawn from every other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.plots import plot_cross_modal, plot_reconstructions

COLUMNS = 10
"""The most rows of the data that are shown."""


def cross_modal_figure(vae: Any, x: dict[str, Tensor], path: Path) -> None:
    """Writes `mm.plot_cross_modal` of a few rows that have all modalities as a PNG, one of each category if there is a
    label; `mm.plot_reconstructions` of the first rows if none has all.

    Args:
        vae: a trained model.
        x: held-out rows, NaN = missing.
        path: where to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seen = [~value.isnan().reshape(len(value), -1).all(1) for value in x.values()]
    whole = torch.stack(seen).all(0).nonzero().squeeze(1)
    draw, lines = (plot_cross_modal, len(x) ** 2) if len(whole) else (plot_reconstructions, 2 * len(x))
    x = {name: value[whole] for name, value in x.items()} if len(whole) else x
    chosen = _one_of_each(x)
    figure = Figure(figsize=(len(chosen) + 1.6, 1.05 * lines + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    torch.manual_seed(0)
    draw(vae, {name: value[chosen] for name, value in x.items()}, ax=figure.subplots())
    figure.savefig(path, dpi=110)


def _one_of_each(x: dict[str, Tensor]) -> list[int]:
    labels = next((v for v in x.values() if v.dim() == 1 and not v.isnan().any()), None)
    if labels is None:
        return list(range(min(COLUMNS, len(next(iter(x.values()))))))
    first = {float(label): position for position, label in reversed(list(enumerate(labels)))}
    return [first[label] for label in sorted(first)][:COLUMNS]
