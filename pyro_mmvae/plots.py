"""Pictures: matplotlib only, an Axes in (or None for a new one), the Axes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.inference import log_likelihood, predict
from pyro_mmvae.psis import khat_limit
from pyro_mmvae.training import History

BLUE, RED, GREY = "#4c72b0", "#c44e52", "#bbbbbb"


def _axes(ax: Any, size: tuple[float, float] = (6.0, 3.6)) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def plot_history(history: History, ax: Any = None) -> Any:
    """Training and validation loss against the epoch, the best epoch marked.

    Args:
        history: what `mm.fit` returned.
    """
    ax = _axes(ax)
    ax.plot(history.loss, color=BLUE, label="training")
    if history.validation:
        ax.plot(history.validation, color=RED, label="held out")
    if history.best_epoch is not None:
        ax.axvline(history.best_epoch, color=GREY, linestyle="--", label=f"best epoch, {history.best_epoch}")
    ax.set(xlabel="epoch", ylabel="loss, nats a row")
    values = np.asarray(history.loss + history.validation)
    if len(values) > 10:  # the first steps would press all the rest flat
        ax.set_ylim(values.min() - 0.05 * np.ptp(values), np.quantile(values, 0.97) + 0.05 * np.ptp(values))
    ax.legend(frameon=False)
    return ax


def plot_missingness(x: Arrays, mask: Arrays | None = None, ax: Any = None) -> Any:
    """Which modalities the rows have: one line a pattern, dark = observed, with the share of the rows."""
    batch = Batch.of(x, mask)
    seen = torch.stack([m.reshape(batch.rows, -1).any(-1) for m in batch.mask.values()], 1)
    patterns, counts = seen.unique(dim=0, return_counts=True)
    order = counts.argsort(descending=True)
    patterns, shares = patterns[order], counts[order] / batch.rows
    ax = _axes(ax, (1.2 * len(batch) + 2.5, 0.35 * len(patterns) + 1.2))
    ax.imshow(patterns.numpy(), cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    ax.set_xticks(range(len(batch)), [f"{n}\n{s:.0%}" for n, s in zip(batch, seen.double().mean(0).tolist())])
    ax.set_yticks(range(len(patterns)), [f"{share:.0%}" for share in shares.tolist()])
    ax.set(ylabel="share of rows", title="Observed (dark) in each pattern")
    return ax


@torch.no_grad()
def plot_latent(vae: Any, x: Arrays, mask: Arrays | None = None, labels: Any = None, ax: Any = None) -> Any:
    """Posterior means in the plane of their two leading principal axes (or of z itself if it has two).

    Args:
        labels: (row,) whole numbers or names, for the colours.
    """
    mean = vae.posterior(x, mask).mean
    mean = mean - mean.mean(0)
    if mean.shape[1] > 2:
        mean = mean @ torch.linalg.svd(mean, full_matrices=False).Vh[:2].T
    ax, plane = _axes(ax, (4.6, 4.2)), mean.double().cpu().numpy()
    plane = plane if plane.shape[1] == 2 else np.column_stack([plane[:, 0], np.zeros(len(plane))])
    groups = np.zeros(len(plane)) if labels is None else np.asarray(labels)
    for group in np.unique(groups):
        chosen = plane[groups == group]
        ax.plot(chosen[:, 0], chosen[:, 1], "o", markersize=3, alpha=0.6, label=f"{group}")
    if labels is not None:
        ax.legend(frameon=False, fontsize=7, markerscale=1.5)
    ax.set(xlabel="first axis of the posterior means", ylabel="second axis", aspect="equal")
    return ax


def plot_khat(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    subsets: Sequence[Sequence[str]],
    num_particles: int = 1000,
    ax: Any = None,
) -> Any:
    """k-hat of every row for each subset of the modalities, with the line above which no guide is to be trusted."""
    ax = _axes(ax, (6.0, 0.45 * len(subsets) + 1.4))
    limit = khat_limit(num_particles)
    for position, given in enumerate(subsets):
        found = log_likelihood(vae, x, mask, num_particles=num_particles, targets=given).khat
        value = found[found.isfinite()].cpu().numpy()
        spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(value))
        ax.plot(value, position + spread, ".", markersize=3, alpha=0.5, color=BLUE)
        ax.text(
            1.01,
            position,
            f"{(found < limit).double().mean():.0%} good",
            transform=ax.get_yaxis_transform(),
            va="center",
        )
    ax.axvline(limit, color=RED, label=f"limit {limit:.2f}")
    ax.set_yticks(range(len(subsets)), [" + ".join(given) for given in subsets])
    ax.set(xlabel="k-hat of a row")
    ax.invert_yaxis()
    ax.legend(frameon=False, loc="lower right")
    return ax


def plot_ranks(ranks: Tensor, num_draws: int, ax: Any = None, level: float = 0.95) -> Any:
    """ECDF of ranks minus the uniform's, with a simultaneous band: inside it, a guide is calibrated.

    Args:
        ranks: (row,) or (row, quantity), whole numbers from 0 to num_draws.
        num_draws: how many draws each truth was ranked among.
        level: probability that a calibrated quantity stays within the band everywhere.
    """
    ax = _axes(ax)
    table = ranks.reshape(len(ranks), -1).numpy()
    grid = np.arange(num_draws + 1)
    expected = (grid + 1) / (num_draws + 1)
    for quantity in table.T:
        ecdf = np.searchsorted(np.sort(quantity), grid, side="right") / len(quantity)
        ax.plot(expected, ecdf - expected, color=BLUE, alpha=0.7, linewidth=1)
    random = np.random.default_rng(0).integers(0, num_draws + 1, (1000, len(table)))
    simulated = np.stack([np.searchsorted(np.sort(row), grid, side="right") / len(row) for row in random])
    sd = np.sqrt(expected * (1 - expected) / len(table)).clip(1e-9)
    width = np.quantile((np.abs(simulated - expected) / sd).max(1), level) * sd
    ax.fill_between(expected, -width, width, color=GREY, alpha=0.4, label=f"{level:.0%} band, simultaneous")
    ax.set(xlabel="rank of the truth among the draws", ylabel="ECDF - uniform")
    ax.legend(frameon=False)
    return ax


def plot_coverage(nominal: Sequence[float], actual: Mapping[str, Sequence[float]], ax: Any = None) -> Any:
    """Share of truths inside central intervals against their probability; below the diagonal: over-confident."""
    ax = _axes(ax, (4.2, 4.0))
    ax.plot([0, 1], [0, 1], color=GREY, label="calibrated")
    for name, values in actual.items():
        ax.plot(nominal, values, "o-", markersize=4, label=name)
    ax.set(
        xlabel="probability of the interval", ylabel="share of truths inside", xlim=(0, 1), ylim=(0, 1), aspect="equal"
    )
    ax.legend(frameon=False)
    return ax


def plot_cross_modal(vae: Any, x: dict[str, Tensor], figure: Any = None) -> Any:
    """Every modality predicted from every other: a block for each given modality, as observed in its first line.

    Args:
        x: a few rows, every modality observed; one column each.
        figure: a matplotlib Figure to draw in; a new one by default.

    Returns:
        The Figure.
    """
    names, columns = list(x), len(next(iter(x.values())))
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(columns + 2.2, 1.05 * len(names) ** 2 + 0.4))
    axes = figure.subplots(len(names) ** 2, columns, squeeze=False)
    for block, given in enumerate(names):
        found = predict(vae, {given: x[given]}, num_draws=1)
        for line, name in enumerate([given, *(other for other in names if other != given)]):
            own, row = name == given, axes[block * len(names) + line]
            title = f"{given}\n(given)" if own else f"{name}\nfrom {given}"
            row[0].text(-0.25, 0.5, title, transform=row[0].transAxes, ha="right", va="center", fontsize=9)
            for ax, value in zip(row, x[name] if own else found[name]):
                plot_entry(value, ax)
                for spine in ax.spines.values():
                    spine.set(color=RED if own else GREY, linewidth=1.8 if own else 0.6)
    figure.suptitle("Held-out rows: what is given (red frame), and what the model predicts from it", fontsize=11)
    figure.tight_layout(rect=(0.06, 0, 1, 0.98), h_pad=0.3, w_pad=0.3)
    return figure


def plot_entry(value: Tensor, ax: Any = None) -> Any:
    """One entry of a modality: a picture as a picture, a category as text, probabilities and vectors as bars."""
    ax = _axes(ax, (2.0, 2.0))
    ax.set_xticks([])
    ax.set_yticks([])
    if value.dim() == 0:
        ax.text(0.5, 0.5, f"{value.item():g}", ha="center", va="center", fontsize=16, transform=ax.transAxes)
    elif value.dim() == 1:
        ax.bar(range(len(value)), value.cpu().numpy(), color=BLUE)
        if value.min() >= 0 and abs(float(value.sum()) - 1) < 1e-3:
            best = int(value.argmax())
            ax.set_ylim(0, 1.45)
            ax.text(best, float(value[best]) + 0.05, str(best), ha="center", va="bottom", fontsize=9)
    else:
        picture = value if value.dim() == 2 or value.shape[-1] == 3 else value.movedim(0, -1)
        shades = "magma" if max(picture.shape) > 16 else "gray_r"
        ax.imshow(picture.squeeze().cpu().numpy(), cmap=shades, aspect="auto")
    return ax


def plot_certificate(certificate: Any, ax: Any = None) -> Any:
    """One line a subset: the spread of the guide against the truth's (1 = calibrated), coloured by the verdict."""
    rows = certificate.rows
    ax = _axes(ax, (7.0, 0.5 * len(rows) + 1.4))
    for position, row in enumerate(rows):
        good = row.verdict == "pass"
        ax.plot(row.dispersion, position, "o", color=BLUE if good else RED)
        text = f"{row.verdict}; k-hat good for {row.good_khat:.0%}"
        ax.text(1.02, position, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    ax.axvline(1.0, color=GREY)
    ax.set_yticks(range(len(rows)), [" + ".join(row.given) or "nothing" for row in rows])
    ax.set(xlabel="spread of ranks (1 = calibrated, above: over-confident, below: under-confident)")
    ax.invert_yaxis()
    return ax


def plot_compare(comparison: Any, ax: Any = None) -> Any:
    """Mean differences of held-out log-likelihood to the best model, with two standard errors."""
    rows = comparison.rows
    ax = _axes(ax, (6.0, 0.5 * len(rows) + 1.2))
    ax.errorbar(
        [row.difference for row in rows],
        range(len(rows)),
        xerr=[2 * row.se for row in rows],
        fmt="o",
        color=BLUE,
        capsize=3,
    )
    ax.axvline(0.0, color=GREY)
    ax.set_yticks(range(len(rows)), [row.name for row in rows])
    ax.set(xlabel="log-likelihood minus the best model's, nats a row (two standard errors)")
    ax.invert_yaxis()
    return ax
