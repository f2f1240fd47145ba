"""The picture of the demonstration: every modality drawn from every other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.inference import predict


def cross_modal_figure(vae: Any, x: dict[str, Tensor], path: Path, columns: int = 10) -> None:
    """Writes a grid: a block for each given modality, its first row as observed, the others as predicted from it.

    Args:
        vae: a trained model.
        x: held-out rows, every modality observed where possible; one row of each category if there is a label.
        path: where to write a PNG.
        columns: how many rows of the data to show.
    """
    import matplotlib

    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(x)
    rows = _one_of_each(x, columns)
    shown = {name: value[rows] for name, value in x.items()}
    columns = len(rows)
    size = (1.0 * columns + 2.2, 1.05 * len(names) ** 2 + 0.4)
    figure, axes = plt.subplots(len(names) ** 2, columns, figsize=size, squeeze=False)
    for block, given in enumerate(names):
        torch.manual_seed(0)
        found = predict(vae, {given: shown[given]}, num_draws=1)
        for line, name in enumerate([given, *(n for n in names if n != given)]):
            values = shown[name] if name == given else found[name]
            row = axes[block * len(names) + line]
            title = f"{given}\n(given)" if name == given else f"{name}\nfrom {given}"
            row[0].text(
                -0.25,
                0.5,
                title,
                transform=row[0].transAxes,
                ha="right",
                va="center",
                fontsize=9,
                fontweight="bold" if name == given else "normal",
            )
            for ax, value in zip(row, values):
                _entry(ax, value)
                colour = "#c44e52" if name == given else "#bbbbbb"
                for spine in ax.spines.values():
                    spine.set_color(colour)
                    spine.set_linewidth(1.8 if name == given else 0.6)
    figure.suptitle("Held-out rows: what is given (red frame), and what the model predicts from it", fontsize=11)
    figure.tight_layout(rect=(0.06, 0, 1, 0.98), h_pad=0.3, w_pad=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    matplotlib.use(backend)


def _one_of_each(x: dict[str, Tensor], columns: int) -> list[int]:
    labels = next((v for v in x.values() if v.dim() == 1 and not v.isnan().any()), None)
    if labels is None:
        return list(range(min(columns, len(next(iter(x.values()))))))
    first = {float(label): position for position, label in reversed(list(enumerate(labels)))}
    return [first[label] for label in sorted(first)][:columns]


def _entry(ax: Any, value: Tensor) -> None:
    """A picture as a picture, a category as text, probabilities and other vectors as bars."""
    ax.set_xticks([])
    ax.set_yticks([])
    if value.dim() == 0:
        ax.text(0.5, 0.5, f"{value.item():g}", ha="center", va="center", fontsize=16, transform=ax.transAxes)
    elif value.dim() == 1:
        ax.bar(range(len(value)), value.numpy(), color="#4c72b0")
        if value.min() >= 0 and abs(float(value.sum()) - 1) < 1e-3:
            ax.set_ylim(0, 1.05)
            ax.text(
                int(value.argmax()),
                0.5,
                str(int(value.argmax())),
                ha="center",
                va="center",
                fontsize=9,
                color="white" if len(value) < 4 else "black",
            )
    else:
        picture = value if value.dim() == 2 else value.movedim(0, -1) if value.shape[0] in (1, 3) else value
        ax.imshow(
            picture.squeeze().numpy(),
            cmap="magma" if max(picture.shape) > 16 else "gray_r",
            origin="upper",
            aspect="auto",
        )
