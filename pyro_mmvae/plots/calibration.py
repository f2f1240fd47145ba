"""How far the posterior can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyro_mmvae.arrays import counted, percent
from pyro_mmvae.checks import check_collection, check_named
from pyro_mmvae.data import Arrays
from pyro_mmvae.diagnostics import Calibration, Certificate, Comparison, rank_ecdf
from pyro_mmvae.diagnostics.patterns import rows_with
from pyro_mmvae.evidence import log_likelihood
from pyro_mmvae.modes import tool
from pyro_mmvae.plots.axes import BLUE, GREY, MARKERS, RED, UNTOLD, beside, check_result, named, new_axes
from pyro_mmvae.psis import khat_limit
from pyro_mmvae.questions import opened


@tool
def plot_khat(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    ax: Any = None,
    *,
    subsets: Sequence[Sequence[str]],
    num_particles: int = 1000,
) -> Any:
    """k-hat of the rows that have all of a subset, with the line above which no guide is to be trusted.

    Rows whose k-hat is infinite are not drawn; the share of good ones, beside each line, counts them.

    Args:
        x, mask, num_particles: as in `mm.log_likelihood`.
        subsets: collections of names, one line each.

    Raises:
        ValueError: bad input, or no subset.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> from matplotlib.figure import Figure
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> ax = plot_khat(vae, x, subsets=[["a"], ["a", "b"]], num_particles=100, ax=Figure().subplots())
        >>> [text.get_text() for text in ax.get_yticklabels()]
        ['a', 'a + b']
    """
    check_collection(subsets)
    for given in subsets:
        check_collection(given)
    if not len(subsets):
        raise ValueError('subsets is empty; give at least one, such as [("image", "sound")]')
    names = named(subsets)
    ax = new_axes(ax, (max(6.0, 4.0 + beside(names)), 0.45 * len(subsets) + 1.4))
    limit = khat_limit(num_particles)
    for position, given in enumerate(subsets):
        found = log_likelihood(vae, x, mask, num_particles=num_particles, targets=given).khat
        found = found[rows_with(opened(vae, x, mask), given).to(found.device)]
        value = found[found.isfinite()].cpu().numpy()
        spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(value))
        ax.plot(value, position + spread, ".", markersize=3, alpha=0.5, color=BLUE)
        good = f"{percent(float((found < limit).double().mean()))} good" if len(found) else "no row"
        ax.text(1.01, position, good, transform=ax.get_yaxis_transform(), va="center")
    ax.axvline(limit, color=RED)
    ax.set_yticks(range(len(subsets)), names)
    ax.set(xlabel=f"k-hat of a row, good below {limit:.2f} (red)", ylim=(len(subsets) - 0.5, -0.5))
    return ax


def plot_ranks(calibration: Calibration, ax: Any = None, *, level: float = 0.95) -> Any:
    """ECDF of ranks minus the uniform's, with a simultaneous band: a calibrated quantity stays inside everywhere.

    A hump on the left and a dip on the right: the truth lies at the ends too often, and the guide is over-confident.
    Quantities that leave the band are drawn in red, and the three worst are named with their p-values; the others are
    thin.

    Args:
        calibration: from `mm.sbc`.
        level: probability that a calibrated quantity stays within the band.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> from matplotlib.figure import Figure
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> ax = plot_ranks(mm.sbc(vae, ["a"], rows=100), Figure().subplots())
    """
    check_result("calibration", calibration, Calibration, "mm.sbc")
    ax = new_axes(ax)
    found = {name: rank_ecdf(u, level) for name, u in calibration.position.items()}
    worst = sorted(found, key=lambda name: -float((found[name].difference.abs() / found[name].band).max()))[:3]
    for (name, one), text in zip(found.items(), named([[name] for name in found], 30)):
        colour = RED if bool((one.difference.abs() > one.band).any()) else BLUE
        if name in worst:
            style, p = ["-", "--", ":"][worst.index(name)], "p < 1e-6" if one.p < 1e-6 else f"p = {one.p:.2g}"
            ax.plot(one.grid, one.difference, style, color=colour, linewidth=1.6, label=f"{text}, {p}")
        else:
            ax.plot(one.grid, one.difference, color=colour, alpha=0.5, linewidth=0.5)
    if others := len(found) - len(worst):
        ax.plot([], [], color="0.5", linewidth=0.5, label=f"{counted(others, 'other')}, thin")
    band = next(iter(found.values())).band
    ax.fill_between(one.grid, -band, band, color=GREY, alpha=0.4, label=f"{100 * level:g}% band, simultaneous")
    ax.set(xlabel="rank of the truth among the draws", ylabel="ECDF - uniform", xlim=(0, 1))
    ends = torch.stack([*(one.difference for one in found.values()), band, -band])
    ax.update_datalim([(0.5, float(ends.max() + 0.4 * (ends.max() - ends.min())))])  # room for the legend, as of data
    ax.autoscale_view()
    wide = ax.get_window_extent().width / ax.figure.dpi > 4
    ax.legend(frameon=False, fontsize=8, ncols=2 if wide else 1)
    return ax


def plot_coverage(nominal: Sequence[float], actual: Mapping[str, Sequence[float]], ax: Any = None) -> Any:
    """Share of truths inside central intervals against their probability; below the diagonal: over-confident.

    Args:
        nominal: probabilities of the intervals, (interval,).
        actual: name -> the share of truths inside each of them, (interval,).

    Raises:
        ValueError: shares of another number than the probabilities.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> from matplotlib.figure import Figure
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> calibration, nominal = mm.sbc(vae, ["a"], rows=100), [0.1, 0.5, 0.9]
        >>> ax = plot_coverage(nominal, {"a": [calibration.coverage(p) for p in nominal]}, Figure().subplots())
    """
    check_named("actual", actual, "{'sound': [0.48, 0.91]}")
    for name, values in actual.items():
        if np.shape(values) != np.shape(nominal) or np.ndim(nominal) != 1:
            shapes = f"{np.shape(values)} for {np.shape(nominal)}"
            raise ValueError(f"actual[{name!r}] has shape {shapes} probabilities; give one share for each of them")
    for what, values in (("nominal", nominal), *((f"actual[{name!r}]", values) for name, values in actual.items())):
        shares = np.asarray(values)
        for value in shares[(shares < 0) | (shares > 1)]:  # NaN where nothing was asked
            raise ValueError(f"{what} has {value:g}; give numbers between 0 and 1")
    names = named([[name] for name in actual], 30)
    outside = len(names) > 4 or beside(names) > 1
    ax = new_axes(ax, (4.2 + outside * (0.8 + beside(names)), max(4.0, 1.0 + 0.22 * len(names))))
    ax.plot([0, 1], [0, 1], color=GREY, label="calibrated")
    for number, (name, values) in enumerate(zip(names, actual.values())):
        ax.plot(nominal, values, MARKERS[number % len(MARKERS)] + "-", markersize=4, label=name)
    ax.set(
        xlabel="probability of the interval", ylabel="share of truths inside", xlim=(0, 1), ylim=(0, 1), aspect="equal"
    )
    if outside:
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        ax.legend(frameon=False)
    return ax


def plot_certificate(certificate: Certificate, ax: Any = None) -> Any:
    """One line a subset: the spread of the ranks (1 = calibrated), and the verdict in words; blue where it passed, red
    where it did not, grey where there were not enough draws.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> from matplotlib.figure import Figure
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> certificate = mm.certify(vae, x, rows=100, num_particles=100, gap_rows=0, progress=False)
        >>> ax = plot_certificate(certificate, Figure().subplots())
        >>> [text.get_text() for text in ax.get_yticklabels()]
        ['a', 'b', 'a + b']
    """
    check_result("certificate", certificate, Certificate, "mm.certify")
    rows = certificate.rows
    names = named([row.given for row in rows])
    ax = new_axes(ax, (max(8.5, 6.5 + beside(names)), 0.4 * len(rows) + 1.6))
    for position, row in enumerate(rows):
        colour = {"pass": BLUE, "not enough draws": UNTOLD}.get(row.verdict, RED)
        ax.plot([1, row.dispersion], [position, position], color=colour, linewidth=1)
        ax.plot(row.dispersion, position, "o", color=colour)
        good = "" if np.isnan(row.good_khat) else f", k-hat good for {percent(row.good_khat)}"
        text = f"{row.verdict}{good}"
        ax.text(1.02, position, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9, color=colour)
    ax.axvline(1.0, color=GREY)
    ax.set_yticks(range(len(rows)), names)
    widest = max(0.2, *(1.15 * abs(row.dispersion - 1) for row in rows))
    ax.set(xlim=(max(-0.05, 1 - widest), 1 + widest), ylim=(len(rows) - 0.5, -0.5))  # no spread is below zero
    ax.set_xlabel(
        "spread of ranks of the codes:\ndraws too far apart < 1 < too close together"
    )  # one reason of several
    return ax


def plot_compare(comparison: Comparison, ax: Any = None) -> Any:
    """Mean differences of held-out log-likelihood to the best model, or to that of `Comparison.against`, with two
    standard errors; a star or a cross and grey for what is not to be compared, see `mm.compare`.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> from matplotlib.figure import Figure
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> ax = plot_compare(mm.compare({"poe": vae}, x, num_particles=100), Figure().subplots())
    """
    check_result("comparison", comparison, Comparison, "mm.compare")
    rows = comparison.rows
    names = named([[row.name] for row in rows], 30)
    ax = new_axes(ax, (max(6.5, 4.5 + beside(names)), 0.4 * len(rows) + 1.5))
    for marked, colour in ((False, BLUE), (True, GREY)):
        lines = [line for line, row in enumerate(rows) if bool(row.mark) == marked]
        found, error = [rows[line].difference for line in lines], [2 * rows[line].se for line in lines]
        ax.errorbar(found, lines, xerr=error, fmt="o", color=colour, capsize=3)
    ax.axvline(0.0, color=GREY)
    ax.set_yticks(range(len(rows)), [name + row.mark for name, row in zip(names, rows)])
    cut = dict(zip((row.name for row in rows), names))
    whose = "the best model's" if comparison.reference is None else f"that of {cut[comparison.reference]}"
    grey = "; grey: not to be compared" if any(row.mark for row in rows) else ""
    ax.set(xlabel=f"log p(x) minus {whose},\nnats a row (two standard errors{grey})", ylim=(len(rows) - 0.5, -0.5))
    return ax
