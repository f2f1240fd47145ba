"""The certificate: is q(z | x_S) the model's posterior, for every subset S of the modalities?"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.diagnostics.calibration import Calibration, sbc
from pyro_mmvae.diagnostics.importance import importance
from pyro_mmvae.programs import alone
from pyro_mmvae.psis import khat_limit
from pyro_mmvae.weights import opened

LEVEL = 0.01
"""The probability with which a correct guide is refused for one subset."""
FEWEST = 100
"""Simulated rows below which no verdict is given."""


class SubsetCertificate(NamedTuple):
    """What is known of q(z | x_S) for one subset S.

    Attributes:
        given: S.
        rows: rows of the data that have all of S.
        log_likelihood, se: mean log p(x_S) of those rows by importance sampling, and its standard error, in nats.
        gap: log_likelihood - ELBO, the mean KL from guide to posterior, nats a row.
        good_khat: share of rows with a k-hat below its limit.
        dispersion: 12 times the variance of the ranks of z in simulated rows; 1 is calibrated, above over-confident.
        coverage50, coverage90: share of simulated truths inside the central 50 % and 90 % intervals.
        p: the smallest p-value of all checks, times their number.
        verdict: "pass", "over-confident", "under-confident", "biased" or "not enough draws".
        because: the check that decided.
    """

    given: tuple[str, ...]
    rows: int
    log_likelihood: float
    se: float
    gap: float
    good_khat: float
    dispersion: float
    coverage50: float
    coverage90: float
    p: float
    verdict: str
    because: str


@dataclass
class Certificate:
    """One `SubsetCertificate` a subset; `print` shows a table, `mm.plot_certificate` a picture.

    Attributes:
        rows: the subsets.
        simulated: rows simulated for each.
        num_draws: draws from the guide for each of them.
    """

    rows: list[SubsetCertificate]
    simulated: int
    num_draws: int

    def __str__(self) -> str:
        width = max(8, *(len(_title(row.given)) for row in self.rows))
        head = f"{'given':{width}}  {'log p(x_S)':>11} {'+-':>6} {'gap':>6}  k-hat  spread  50 %  90 %  verdict"
        lines = [
            f"{_title(r.given):{width}}  {r.log_likelihood:11.2f} {r.se:6.2f} {r.gap:6.2f}  {r.good_khat:5.0%}"
            f"  {r.dispersion:6.2f}  {r.coverage50:4.0%}  {r.coverage90:4.0%}  {r.verdict}"
            + (f" ({r.because})" if r.because else "")
            for r in self.rows
        ]
        foot = (
            f"log p(x_S) and gap to the ELBO in nats a row; k-hat: share of rows where it is good; spread: 1 is"
            f" calibrated, above 1 over-confident;\n50 %, 90 %: coverage of intervals. Calibration on {self.simulated}"
            f" rows simulated from the model, {self.num_draws} draws each; a correct guide is refused with probability"
            f" {LEVEL:g}."
        )
        return "\n".join([head, *lines, "", foot])

    def to_xarray(self) -> Any:
        """The numbers as an `xarray.Dataset` with dim "subset"."""
        import xarray

        names = [field for field in SubsetCertificate._fields if field != "given"]
        columns = {name: ("subset", [getattr(row, name) for row in self.rows]) for name in names}
        attributes = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}
        return xarray.Dataset(columns, {"subset": [_title(row.given) for row in self.rows]}, attributes)


def certify(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    subsets: Sequence[Collection[str]] | None = None,
    rows: int = 500,
    num_draws: int = 199,
    num_particles: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Certificate:
    """Checks the guide against the model for every subset of the modalities.

    Simulated rows tell whether it is calibrated (ranks of every latent, of log p(x_S | z) and TARP); rows of the data
    tell how likely they are, how far the ELBO is from that, and for how many the guide can serve as a proposal.

    Args:
        vae: a `MultimodalVAE`, or a `Pair` whose model can be drawn from without data.
        x, mask: held-out data; the first `rows` rows that have all of S are used.
        subsets: which S; by default all for up to four modalities, else the patterns that occur in the data.
        rows: simulated rows, and the most rows of the data, for each subset.
        num_draws: draws from the guide for each simulated row.
        num_particles: draws for each row of the data.
        seed: of all that is random in here; the global generator is left as it was.
        progress: whether to show a progress bar.

    Returns:
        `Certificate`.

    Raises:
        ValueError: bad input, or a model that cannot be drawn from without data.
    """
    batch, found = opened(vae, x, mask), []
    wanted = [tuple(s) for s in subsets] if subsets is not None else default_subsets(batch)
    if hasattr(vae, "check_names"):
        vae.check_names([name for given in wanted for name in given])
    with alone(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for given in tqdm(wanted, disable=not progress, unit="subset"):
            data = _on_data(vae, batch, given, rows, num_particles)
            calibration = sbc(vae, given, rows=rows, num_draws=num_draws)
            spread = (calibration.dispersion, calibration.coverage(0.5), calibration.coverage(0.9))
            found.append(SubsetCertificate(given, *data, *spread, *verdict(calibration)))
    return Certificate(found, rows, num_draws)


def default_subsets(batch: Batch) -> list[tuple[str, ...]]:
    """All subsets for up to four modalities, else the patterns that occur in the data, the frequent ones first."""
    names = list(batch)
    if len(names) <= 4:
        return [s for size in range(1, len(names) + 1) for s in combinations(names, size)]
    seen = torch.stack([m.reshape(batch.rows, -1).any(-1) for m in batch.mask.values()], 1)
    patterns, counts = seen.unique(dim=0, return_counts=True)
    chosen = patterns[counts.argsort(descending=True)].tolist()
    return [tuple(n for n, there in zip(names, row) if there) for row in chosen if any(row)]


def verdict(calibration: Calibration) -> tuple[float, str, str]:
    """The corrected p-value, the verdict in a word, and the check that decided."""
    tests = calibration.tests()
    worst = min(tests, key=lambda test: test.p)
    p = min(1.0, worst.p * len(tests))
    rows = len(next(iter(calibration.position.values())))
    if rows < FEWEST:
        return p, "not enough draws", f"{rows} rows"
    if p > LEVEL:
        return p, "pass", ""
    refused = [test for test in tests if test.p * len(tests) <= LEVEL and test.of != "histogram"] or [worst]
    telling = max(refused, key=lambda test: (test.quantity in calibration.latents, abs(test.z)))
    reason = f"{telling.of} of {telling.quantity}"
    if telling.of == "mean" and telling.quantity in calibration.latents:
        return p, "biased", reason
    # A truth that fits the data better than the draws do means draws that are too wide; one that lies further from a
    # random point, or is ranked at the ends, means draws that are too narrow.
    wide = telling.z > 0 if telling.of == "mean" and telling.quantity != "tarp" else telling.z < 0
    return p, "under-confident" if wide else "over-confident", reason


def _on_data(
    vae: Any, batch: Batch, given: tuple[str, ...], rows: int, num_particles: int
) -> tuple[int, float, float, float, float]:
    """Rows used, log p(x_S), its standard error, the gap to the ELBO, and the share of good k-hats."""
    there = torch.ones(batch.rows, dtype=torch.bool)
    for name in given:
        there &= batch.mask[name].reshape(batch.rows, -1).any(-1).cpu() if name in batch else False
    index = there.nonzero().squeeze(-1)[:rows]
    if not len(index):
        return 0, math.nan, math.nan, math.nan, math.nan
    weights = importance(vae, batch.take(index), given=given, num_draws=num_particles)
    value = weights.raw.logsumexp(0) - math.log(num_particles)
    good = (weights.khat < khat_limit(num_particles)).double().mean()
    gap = (value - weights.raw.mean(0)).mean()
    se = float(value.std()) / math.sqrt(len(index)) if len(index) > 1 else math.nan
    return len(index), float(value.mean()), se, float(gap), float(good)


def _title(given: Sequence[str]) -> str:
    return " + ".join(given) or "nothing"
