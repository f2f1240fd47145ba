"""What is there, and where it lies in the space of codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyro_mmvae.arrays import counted, percent, tensor_of
from pyro_mmvae.checks import seen_rows
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.distributions import drawn_part, moments_of
from pyro_mmvae.modes import tool
from pyro_mmvae.plots.axes import MARKERS, beside, named, new_axes
from pyro_mmvae.programs import with_posterior

MOST = 30
"""The most patterns that are drawn."""
LETTERS = 12
"""Of a name that stands level below its column, and the most such columns; others stand upright."""
HIGH = 20
"""The most labels in one column of a legend."""
UNKNOWN = ("nan", "None", "<NA>")
"""What labels are as text where there is none."""


def plot_missingness(x: Arrays, mask: Arrays | None = None, ax: Any = None) -> Any:
    """Which modalities the rows have: one line a pattern, dark = observed, with the share of the rows.

    Only the most frequent patterns are drawn, 30 at most; how many are left out stands below.

    Example:
        >>> from matplotlib.figure import Figure
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> ax = plot_missingness(x, {"b": torch.arange(20) < 5}, Figure().subplots())
        >>> [text.get_text() for text in ax.get_yticklabels()]
        ['75%', '25%']
    """
    batch = Batch.of({} if x is None else x, mask)  # which for None would be a row of nothing
    seen = torch.stack([seen_rows(m) for m in batch.mask.values()], 1)
    patterns, counts = seen.unique(dim=0, return_counts=True)
    order = counts.argsort(descending=True)
    patterns, shares = patterns[order][:MOST], (counts[order].double() / batch.rows).tolist()
    names = named([[name] for name in batch], 30)
    upright, own = max(map(len, names)) > LETTERS or len(names) > LETTERS, ax is None
    high = 0.35 * max(len(patterns), 4 * upright) + 1.2 + 1.8 * upright  # with room for the name of the axis
    ax = new_axes(ax, (max(4.2, (0.35 if upright else 1.2) * len(names) + 2.5), high))
    upright |= not own and beside(names) * len(names) > ax.get_window_extent().width / ax.figure.dpi
    ax.imshow(patterns.cpu().numpy(), cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    shown = zip(names, map(percent, seen.double().mean(0).tolist()))
    ax.set_xticks(range(len(names)), [("  " if upright else "\n").join(label) for label in shown])
    ax.tick_params(axis="x", labelrotation=90 if upright else 0)
    ax.set_yticks(range(len(patterns)), [percent(share) for share in shares[:MOST]])
    ax.set(ylabel="share of rows", title="Observed (dark) in each pattern")
    if rarer := len(shares[MOST:]):
        ax.set_xlabel(f"{counted(rarer, 'rarer pattern')}, {percent(sum(shares[MOST:]))} of the rows, left out")
    return ax


@tool
def plot_latent(vae: Any, x: Arrays, mask: Arrays | None = None, labels: Any = None, ax: Any = None) -> Any:
    """Posterior means less their mean, in the plane of their two leading principal axes (or of z, if it has two).

    Args:
        labels: (row,) whole numbers or names, for the colours; rows without one (NaN, None) are grey.

    Raises:
        ValueError: bad input, a model without a z, or labels of another number than the rows.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> from matplotlib.figure import Figure
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> ax = plot_latent(vae, x, labels=x["a"][:, 0] > 0, ax=Figure().subplots())
    """
    mean, _ = moments_of(drawn_part(with_posterior(vae).posterior(x, mask)))
    mean = mean - mean.mean(0)
    if mean.shape[1] > 2:
        mean = mean @ torch.linalg.svd(mean, full_matrices=False).Vh[:2].T
    groups = _groups(labels, len(mean))
    apart = sorted(np.unique(groups), key=_order)
    names, columns = named([[group] for group in apart], 30), -(-len(apart) // HIGH)
    wide = 4.6 if labels is None else max(6.4, 4.6 + columns * (0.5 + 0.8 * beside(names)))
    ax, plane = new_axes(ax, (wide, 4.2)), mean.double().cpu().numpy()
    plane = plane if plane.shape[1] == 2 else np.column_stack([plane[:, 0], np.zeros(len(plane))])
    for number, (group, name) in enumerate(zip(apart, names)):
        chosen, marker = plane[groups == group], MARKERS[number % len(MARKERS)]
        style: dict[str, Any] = {"color": f"C{number % 10}"} if group not in UNKNOWN else {"color": "0.8", "zorder": 1}
        ax.plot(chosen[:, 0], chosen[:, 1], marker, markersize=3, alpha=0.6, label=name, **style)
    if labels is not None:
        beyond: Any = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "ncols": columns}
        ax.legend(frameon=False, fontsize=8, markerscale=1.5, **beyond)
    second = "second axis" if mean.shape[1] > 1 else "no second axis"
    ax.set(xlabel="first axis of the posterior means", ylabel=second)
    ax.set_aspect("equal", adjustable="datalim")  # a code that lies on a line would press the axes to one
    return ax


def _groups(labels: Any, rows: int) -> Any:
    """The labels as text, (row,): whole numbers with all their digits, so that no two are one."""
    if isinstance(labels, torch.Tensor):
        labels = tensor_of("labels", labels).detach().cpu()
        labels = labels.float() if labels.dtype == torch.bfloat16 else labels  # which NumPy lacks
    if isinstance(labels, np.ma.MaskedArray):
        labels = labels.tolist()  # None where masked
    found = np.zeros(rows) if labels is None else np.asarray(labels)
    if found.shape != (rows,):
        raise ValueError(f"labels have shape {found.shape} for {rows} rows; give one a row")
    real = (float, np.floating)
    return np.array([str(label).removesuffix(".0") if isinstance(label, real) else str(label) for label in found])


def _order(group: str) -> tuple[bool, float, str]:
    """Numbers by their size, then names, and last what is no label."""
    try:
        return group in UNKNOWN, float(group), group
    except ValueError:
        return group in UNKNOWN, np.inf, group
