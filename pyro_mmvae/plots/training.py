"""How training went."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_mmvae.plots.axes import BLUE, GREY, RED, check_result, new_axes
from pyro_mmvae.training import History

PRESSED = 3.0
"""How many times as high as nearly all of the losses the axis may be; above that, what is higher is cut."""


def plot_history(history: History, ax: Any = None) -> Any:
    """Training and validation loss against the epoch, the best epoch marked.

    Args:
        history: what `mm.fit` returned.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> from matplotlib.figure import Figure
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> history = mm.fit(vae, x, epochs=3, progress=False)
        >>> ax = plot_history(history, Figure().subplots())
        >>> ax.get_xlabel()
        'epoch'
    """
    from matplotlib.ticker import MaxNLocator

    check_result("history", history, History, "mm.fit")
    ax = new_axes(ax)
    marker = "o" if len(history.loss) == 1 else ""  # a line of one epoch is not seen
    ax.plot(history.loss, color=BLUE, marker=marker, label="training")
    if history.validation:
        ax.plot(history.validation, color=RED, marker=marker, label="held out")
    if history.best_epoch is not None:
        ax.axvline(history.best_epoch, color=GREY, linestyle="--", label=f"best epoch, {history.best_epoch}")
    ax.set(xlabel="epoch", ylabel="loss, nats a row")
    values = np.asarray(history.loss + history.validation)
    if len(values) > 10:  # the first steps would press all the rest flat
        low, high = values.min(), np.quantile(values, 0.97, method="lower")
        if high > low and values.max() - low > PRESSED * (high - low):
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    if ax.get_xscale() == "linear":
        ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    ax.legend(frameon=False)
    return ax
