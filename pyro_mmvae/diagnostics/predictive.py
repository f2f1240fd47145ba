"""Does the model predict a modality that it has not seen? On real data, one modality left out at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mmvae.arrays import counted, percent, whole, with_axes
from pyro_mmvae.chance import seeded
from pyro_mmvae.checks import seen_rows
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.diagnostics.coordinates import of_angles
from pyro_mmvae.diagnostics.draws import Method
from pyro_mmvae.diagnostics.escalation import codes_by
from pyro_mmvae.diagnostics.ranks import rank, shown_p, two_sided
from pyro_mmvae.modes import tool
from pyro_mmvae.predictive import predictive
from pyro_mmvae.programs import library_of
from pyro_mmvae.questions import devices, opened
from pyro_mmvae.weights import parts

FEWEST = 20
"""Rows below which there is no p-value: of five, each with one entry, one of 0.001 came ten times too often."""


class LeftOut(NamedTuple):
    """One modality, predicted from all others.

    Attributes:
        name: of the modality.
        rows, entries: that were observed, and so checked.
        bias: mean of PIT - 1/2, between -1/2 and 1/2; above zero, the data are larger than predicted.
        dispersion: 12 times the variance of the PIT around 1/2: 1 is calibrated, above is over-confident.
        coverage50, coverage90: share of entries inside their central 50 % and 90 % intervals.
        p: of the tests of bias and dispersion over rows, the smaller one times two; NaN below twenty rows.
        pit: (row, entry), uniform where calibrated; NaN where nothing was observed.
        certified: share of the rows whose codes `mm.posterior_draws` vouches for; NaN of the guide's draws.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> [row.name for row in mm.leave_one_out(vae, x).rows]
        ['a', 'b']
    """

    name: str
    rows: int
    entries: int
    bias: float
    dispersion: float
    coverage50: float
    coverage90: float
    p: float
    pit: Tensor
    certified: float = math.nan

    def __repr__(self) -> str:
        entries, rows = counted(self.entries, "entry", "entries"), counted(self.rows, "row")
        return (
            f"{self.name}: {entries} of {rows}, bias {self.bias:z.3f}, spread"
            f" {self.dispersion:.2f}, {self.coverage50:.0%} and {self.coverage90:.0%} in central intervals of 50 % and"
            f" 90 %, p {shown_p(self.p).strip()}"
        )


@dataclass(repr=False)
class PredictiveCheck:
    """One `LeftOut` a modality; `print` shows a table.

    Attributes:
        rows: the modalities.
        method: whose draws predicted them, "guide" or a method of `mm.posterior_draws`.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> check = mm.leave_one_out(vae, x)
        >>> len(check.rows)
        2
    """

    rows: list[LeftOut]
    method: Method = "guide"

    def __repr__(self) -> str:
        width = max([10, *(len(row.name) for row in self.rows)])
        lines = [f"{'left out':{width}}  {'rows':>6} {'entries':>8}  {'bias':>6}  spread  50 %  90 %       p"]
        for r in self.rows:
            covered = f"{r.coverage50:4.0%}  {r.coverage90:4.0%}"
            numbers = f"{r.rows:6d} {r.entries:8d}  {r.bias:z6.3f}  {r.dispersion:6.2f}"
            lines.append(f"{r.name:{width}}  {numbers}  {covered}  {shown_p(r.p)}")
        least = min((row.certified for row in self.rows), default=math.nan)
        blame = [
            "of the model, or of its guide: mm.leave_one_out(..., method='refined') asks the model alone.",
            f"of the model: the codes are of its own posterior ({self.method}; at least {percent(least)} certified).",
        ]
        foot = [
            "Every observed entry among draws from p(x_m | all other modalities of its row). Spread: 1 if calibrated,",
            "above 1 over-confident; 50 %, 90 %: coverage of central intervals. Entries of a row count together in p,",
            "not one by one. A small p says that this modality is not as predicted, which is the fault",
            blame[self.method != "guide"],
        ]
        if any(math.isnan(row.p) for row in self.rows):
            foot.append(f"nan: fewer than {FEWEST} rows have no p-value.")
        return "\n".join([*lines, "", *foot])


@tool
def leave_one_out(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    num_draws: int = 199,
    method: Method = "guide",
    seed: int = 0,
) -> PredictiveCheck:
    """Predictive PIT and interval coverage of every modality, from q(z | x without it).

    Nothing is used twice: x_m does not enter the code that predicts it. Unlike simulation-based calibration this looks
    at the data, so that a wrong model fails as a wrong guide does; with draws of the model's own posterior in place of
    the guide's, a wrong model alone.

    Args:
        vae: a `MultimodalVAE` or a `Pair`.
        x, mask: held-out data. A row without any other modality is predicted from the prior. A modality has a p-value
            from twenty rows on.
        num_draws: of each entry. Ties with the data (counts, categories) are broken by chance, so that the PIT of a
            discrete entry is uniform as well.
        method: who draws the codes: the guide, or a method of `mm.posterior_draws`.
        seed: of all that is random in here.

    Returns:
        `PredictiveCheck`.

    Raises:
        ValueError: bad input, or an unknown method.

    Reference:
        Gneiting, Balabdaoui and Raftery, 2007, Probabilistic Forecasts, Calibration and Sharpness, JRSS B 69(2);
        Czado, Gneiting and Held, 2009, Predictive Model Assessment for Count Data, Biometrics 65(4)

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(50, 3), "b": torch.randn(50, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> [row.entries for row in leave_one_out(vae, x).rows]
        [150, 100]
    """
    num_draws = whole("num_draws", num_draws)
    batch, found = opened(vae, x, mask), []
    with seeded(seed, devices(vae, batch)):
        for name in batch:
            there = seen_rows(batch.mask[name]).nonzero().squeeze(-1)
            pit = _pit(vae, batch.take(there), name, num_draws, method) if len(there) else None
            if pit is not None:
                found.append(_left_out(name, *pit))
    return PredictiveCheck(found, method)


def _pit(vae: Any, batch: Batch, name: str, num_draws: int, method: Method) -> tuple[Tensor, float] | None:
    """The PIT (row, entry), NaN where hidden, and the share of certified rows; in chunks of rows, so that the draws of
    all are never held at once.

    None of a modality that the model does not explain.
    """
    others, columns, at = [other for other in batch if other != name], [], 0
    ours = library_of(vae)
    p = None if ours is None else ours.likelihoods(batch).get(name)
    angles = p is not None and of_angles(p)
    codes, share = codes_by(method, vae, batch.only(others), num_draws)
    for part in parts(batch, num_draws):
        rows, at = slice(at, at + part.rows), at + part.rows
        latents = None if codes is None else {site: value[:, rows] for site, value in codes.items()}
        drawn = predictive(vae, part, num_draws=num_draws, given=others, latents=latents, only=[name]).get(name)
        if drawn is None:
            return None
        mask = with_axes(part.mask[name], part[name].dim())
        truth = torch.remainder(part[name] + math.pi, math.tau) - math.pi if angles else part[name]
        position = rank(drawn.reshape(num_draws, *truth.shape), truth)
        columns.append(torch.where(mask, position.double(), torch.nan).reshape(part.rows, -1))
    return torch.cat(columns).cpu(), share


def _left_out(name: str, pit: Tensor, certified: float = math.nan) -> LeftOut:
    """Entries of one row depend on each other; rows do not, and the tests are t-tests over rows."""
    seen, centred = ~pit.isnan(), pit - 0.5
    values = centred[seen]
    means = [centred.nanmean(1), (12 * centred**2 - 1).nanmean(1)]
    half, most = (float((values.abs() < width / 2).double().mean()) for width in (0.5, 0.9))
    p = min(1.0, 2 * min(map(_t_test, means))) if len(pit) >= FEWEST else math.nan
    dispersion = float(12 * (values**2).mean())
    return LeftOut(name, len(pit), int(seen.sum()), float(values.mean()), dispersion, half, most, p, pit, certified)


def _t_test(values: Tensor) -> float:
    """The p-value of mean zero. Student's t as a normal: Wallace, 1959."""
    freedom = len(values) - 1
    t = float(values.mean()) / max(float(values.std()) / math.sqrt(len(values)), 1e-300)
    return two_sided(
        (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(min(t * t, 1e300) / freedom))
    )
