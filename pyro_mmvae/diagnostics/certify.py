"""The certificate: is q(z | x_S) the model's posterior, for every subset S of the modalities?"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from pyro_mmvae.arrays import whole
from pyro_mmvae.chance import seeded, undisturbed
from pyro_mmvae.checks import refuse
from pyro_mmvae.contract import FEW, refuse_beside
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.diagnostics.calibration import FIT, TARP, Calibration, calibrate
from pyro_mmvae.diagnostics.certificate import LEVEL, Certificate, SubsetCertificate
from pyro_mmvae.diagnostics.gaps import gaps
from pyro_mmvae.diagnostics.patterns import Subsets, chosen_subsets, rows_with
from pyro_mmvae.diagnostics.ranks import Check, corrected
from pyro_mmvae.diagnostics.simulated import conditions, having, simulate
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.errors import standard_error
from pyro_mmvae.modes import tool
from pyro_mmvae.programs import silent
from pyro_mmvae.psis import share_good, smooth
from pyro_mmvae.questions import devices, known, nesting, opened
from pyro_mmvae.warn import warn
from pyro_mmvae.weights import chunks, draw

FEWEST = 100
"""Simulated rows below which no verdict is given."""


@tool
def certify(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    subsets: Subsets = None,
    rows: int = 500,
    num_draws: int = 199,
    num_particles: int = 400,
    gap_rows: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Certificate:
    """Checks the guide against the model for every subset of the modalities.

    Rows simulated from the model, with the holes of the data, tell whether it is calibrated (ranks of every latent, of
    log p(x_S | z) and of the log weight, and TARP, see `mm.sbc`); rows of the data tell how likely they are, how far
    the ELBO is from that, and for how many the guide can serve as a proposal. All subsets look at the same simulated
    rows, and all checks of a kind at the same draws. What the model looks at and does not explain cannot be simulated:
    subsets that have it take it from rows of the data.

    Args:
        vae: a `MultimodalVAE`, or a `Pair` whose model can be drawn from without data.
        x, mask: held-out data; the first `rows` rows that have all of S are used.
        subsets: which S: a list of collections of names; a number of random ones; or "all". By default all for up to
            four modalities, else the subsets that occur in the data, and of more than 64 the most frequent ones, with
            a warning.
        rows: simulated rows, and the most rows of the data for each subset; with fewer than 100 simulated rows there is
            no verdict but "not enough draws", however many draws there are of each.
        num_draws: draws from the guide for each simulated row.
        num_particles: draws for each row of the data.
        gap_rows: rows of the data on which the gap is taken apart by `mm.gaps`; 0 leaves that out, as a warning says
            that discrete codes do.
        seed: of all that is random in here; the global generator is left as it was.
        progress: whether to show a progress bar.

    Returns:
        `Certificate`.

    Raises:
        ValueError: bad input, no subset to look at, a model that cannot be drawn from without data, or one in which
            rows hang on the rows beside them.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> certificate = certify(vae, x, rows=100, num_particles=100, gap_rows=0, progress=False)
        >>> [row.given for row in certificate.rows]
        [('a',), ('b',), ('a', 'b')]
    """
    rows, num_draws = whole("rows", rows, 2), whole("num_draws", num_draws)
    num_particles, gap_rows = whole("num_particles", num_particles), whole("gap_rows", gap_rows, 0)
    batch, found = opened(vae, x, mask), []
    in_view = partial(conditions, vae, batch)
    with seeded(seed, devices(vae, batch)):
        wanted = chosen_subsets(batch, subsets)
        known(vae, [name for given in wanted for name in given])
        with silent(), undisturbed(devices(vae, batch)), torch.no_grad():
            refuse_beside(vae, batch.few(FEW))
        views = dict.fromkeys(map(in_view, wanted))
        simulated = {looked: simulate(vae, rows, having(batch, looked), looked) for looked in views}
        gap_rows = gap_rows if gap_rows and _refinable(vae, batch) else 0
        for given in tqdm(wanted, disable=not progress, unit="subset"):
            calibration = calibrate(vae, simulated[in_view(given)], given, num_draws)
            ranks: Any = *verdict(calibration), *_numbers(calibration)
            data: Any = _on_data(vae, batch, given, rows, num_particles, gap_rows)
            found.append(SubsetCertificate(given, *ranks, *data))
    return Certificate(found, rows, num_draws, num_particles, gap_rows)


def verdict(calibration: Calibration) -> tuple[str, str, float]:
    """The verdict in a word, the check that decided, and the corrected p-value."""
    tests = calibration.tests()
    p = corrected(tests)
    rows = len(next(iter(calibration.position.values())))
    if rows < FEWEST:
        return "not enough draws", f"{rows} rows", p
    if p > LEVEL:
        return "pass", "", p
    telling = _telling(calibration, [test for test in tests if test.p * len(tests) <= LEVEL], tests)
    return _word(calibration, telling), f"{telling.of} of {telling.quantity}", p


def _word(calibration: Calibration, telling: Check) -> str:
    """What a refused test says of the guide."""
    mean, of_latent = telling.of == "mean", telling.quantity in calibration.latents
    if of_latent and mean:
        return "biased"
    # A truth that fits the data better than the draws do means draws that are too wide; one that lies further from a
    # random point, or is ranked at the ends, means draws that are too narrow. A fit now better, now worse says neither.
    direction = {FIT: -telling.z * mean, TARP: telling.z}.get(telling.quantity, telling.z * of_latent)
    # Beside intervals of the latents that say the opposite, by more than chance, a poor fit means draws that are off.
    spread = (calibration.dispersion - 1) * math.sqrt(len(next(iter(calibration.position.values()))) / 0.8)
    if direction == 0 or (telling.quantity == FIT and spread * math.copysign(1, direction) < -2):
        return "mismatched"
    return "over-confident" if direction > 0 else "under-confident"


def _telling(calibration: Calibration, refused: list[Check], tests: list[Check]) -> Check:
    """The refused test that says most: of a latent, then of how well they fit the data, then the one furthest off.

    An ECDF has no direction; where nothing else is refused, mean or spread of the same quantity tell it, if they can.
    """
    directed = [test for test in refused if test.of != "ECDF"]
    if not directed:
        worst = min(refused, key=lambda test: test.p)
        same = [test for test in tests if test.quantity == worst.quantity and test.of != "ECDF"]
        directed = [test for test in same if test.p <= LEVEL] or [worst]
    return max(
        directed,
        key=lambda test: (test.quantity in calibration.latents, (test.quantity, test.of) == (FIT, "mean"), abs(test.z)),
    )


def _numbers(calibration: Calibration) -> tuple[float, ...]:
    """SBC and TARP with their p-values, the spread, and the coverage of 50 % and 90 % intervals."""
    tests = calibration.tests()
    ranked = [name for name in calibration.position if name != TARP]
    return (
        calibration.deviation(*ranked),
        corrected([test for test in tests if test.quantity != TARP]),
        calibration.deviation(TARP),
        corrected([test for test in tests if test.quantity == TARP]),
        calibration.dispersion,
        calibration.coverage(0.5),
        calibration.coverage(0.9),
    )


def _refinable(vae: Any, batch: Batch) -> bool:
    """Whether the gap can be taken apart; warns if not."""
    try:
        with undisturbed(devices(vae, batch)):
            Target(vae, batch.few())
    except ValueError as error:
        warn(f"the gap is not taken apart, as gap_rows=0 says without a warning: {error}")
        return False
    return True


@torch.no_grad()
def _on_data(
    vae: Any, batch: Batch, given: tuple[str, ...], rows: int, num_particles: int, gap_rows: int
) -> tuple[float, ...]:
    """The fields of `SubsetCertificate` from `rows` on; all but the first of them NaN if no row has all of S."""
    index = rows_with(batch, given)[:rows]
    if not len(index):
        return 0, *[math.nan] * 6
    data, columns = batch.take(index).only(given), []
    depth = nesting(vae, data)
    for part, sizes in chunks(data, num_particles):
        raw = torch.cat([draw(vae, part, k, depth=depth).log_weights for k in sizes])
        smoothed = smooth(raw)
        columns.append((smoothed.log_mean, raw.mean(0), smoothed.khat))
    value, elbo, khat = (torch.cat(column) for column in zip(*columns))
    refuse(data, value.isfinite(), "log p(x)")
    split = _gaps(vae, batch.take(index[:gap_rows]), given, num_particles) if gap_rows else (math.nan, math.nan)
    good = share_good(khat, num_particles)
    return len(index), float(value.mean()), float(standard_error(value)), float((value - elbo).mean()), *split, good


def _gaps(vae: Any, data: Batch, given: tuple[str, ...], num_draws: int) -> tuple[float, float]:
    """Mean approximation and amortisation gap."""
    found = gaps(vae, data, given=given, num_draws=num_draws)
    return float(found.approximation.mean()), float(found.amortisation.mean())
