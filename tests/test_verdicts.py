"""The word of a certificate, from positions that are given."""

import pytest
import torch

from pyro_mmvae.diagnostics.calibration import FIT, TARP, WEIGHT, Calibration
from pyro_mmvae.diagnostics.certify import _numbers, verdict
from pyro_mmvae.diagnostics.ranks import rank, rank_ecdf, rank_of_weight, two_sided, uniformity

EVEN = (torch.arange(400, dtype=torch.float64) + 0.5) / 400


def shifted(z):
    """Positions whose mean is so many standard errors from the middle, and all else closer."""
    return EVEN + z * 6 / (12 * 400) ** 0.5 * EVEN * (1 - EVEN)


def stretched(by):
    return (0.5 + by * (EVEN - 0.5)).clamp(0, 1)


@pytest.mark.parametrize(
    ("others", "z", "word"), [(0, 2.92, "pass"), (0, 2.95, "biased"), (1, 3.12, "pass"), (1, 3.16, "biased")]
)
def test_one_in_a_hundred_is_the_level_of_all_tests_together(others, z, word):
    """Three tests of each quantity: 0.01 / 3 is 2.935 standard errors, 0.01 / 6 is 3.144."""
    found = verdict(Calibration({"z[0]": shifted(z), **dict.fromkeys([WEIGHT][:others], EVEN)}))
    assert found[0] == word and (found[2] <= 0.01) == (word == "biased")


def test_below_a_hundred_rows_there_is_no_verdict():
    words = [verdict(Calibration({"z[0]": 0.3 * torch.rand(rows)}))[0] for rows in (99, 100)]
    assert words == ["not enough draws", "biased"]


def apart(z=0.0, share=1.0):
    """A share of the positions at two places with the mean and spread of the uniform, but for so many errors more."""
    ends = 0.5 + (2 * (torch.arange(400) % 2) - 1) / 12**0.5 + z / 4800**0.5 / share
    return torch.where(torch.arange(400) < 400 * share, ends, EVEN[torch.arange(400) * 63 % 400])


def spread(errors):
    """Positions whose spread is so many standard errors above that of the uniform."""
    return stretched((1 + errors * 0.002**0.5) ** 0.5)


WORDS = [
    ({"z[0]": stretched(1.3)}, "over-confident", "spread of z[0]"),
    ({"z[0]": stretched(0.7)}, "under-confident", "spread of z[0]"),
    ({"z[0]": 1 - shifted(5.0), "z[1]": shifted(4.0)}, "biased", "mean of z[0]"),
    ({TARP: EVEN**0.7}, "over-confident", "mean of tarp"),
    ({TARP: EVEN**1.4}, "under-confident", "mean of tarp"),
    ({FIT: EVEN**1.4}, "over-confident", f"mean of {FIT}"),
    ({FIT: EVEN**0.7}, "under-confident", f"mean of {FIT}"),
    ({FIT: stretched(1.3)}, "mismatched", f"spread of {FIT}"),
    ({WEIGHT: EVEN**0.7}, "mismatched", f"mean of {WEIGHT}"),
    ({TARP: EVEN**0.3, "z[1]": stretched(0.75)}, "under-confident", "spread of z[1]"),  # of the latents, if refused
    ({"z[1]": shifted(2.7), FIT: EVEN**0.7}, "under-confident", f"mean of {FIT}"),  # which one of nine is not at 0.007
    ({WEIGHT: EVEN**0.3, FIT: EVEN**0.7}, "under-confident", f"mean of {FIT}"),  # then of the fit
    ({FIT: stretched(1.6), WEIGHT: EVEN**0.8}, "mismatched", f"spread of {FIT}"),  # then the one furthest off
    ({"z[0]": apart()}, "mismatched", "ECDF of z[0]"),  # which has no direction
    ({"z[0]": apart(2.8)}, "biased", "mean of z[0]"),  # but for one of 3 that is not refused among three
    ({"z[0]": apart(2.5)}, "mismatched", "ECDF of z[0]"),  # nor alone
    ({"z[0]": shifted(2.8), "z[1]": apart()}, "mismatched", "ECDF of z[1]"),  # and is not that of another
    ({"z[0]": apart(share=0.35), "z[1]": apart()}, "mismatched", "ECDF of z[1]"),  # the ECDF furthest off
    ({"z[0]": spread(-1.9), FIT: EVEN**1.4}, "over-confident", f"mean of {FIT}"),
    ({"z[0]": spread(-2.1), FIT: EVEN**1.4}, "mismatched", f"mean of {FIT}"),  # intervals say that draws are too wide
    ({"z[0]": spread(1.9), FIT: EVEN**0.7}, "under-confident", f"mean of {FIT}"),
    ({"z[0]": spread(2.3), FIT: EVEN**0.7}, "mismatched", f"mean of {FIT}"),
]


@pytest.mark.parametrize(("positions", "word", "because"), WORDS)
def test_the_word_is_that_of_the_refused_test_that_says_most(positions, word, because):
    assert verdict(Calibration({"z[0]": EVEN, **positions}))[:2] == (word, because)


def test_the_numbers_of_a_certificate_are_those_of_its_positions():
    """Intervals of 50 % hold 0.5 / 0.8 of what is drawn together to 0.8, and u^2 is a quarter below u."""
    found = Calibration({"z[0]": stretched(0.8), "w[0]": EVEN, FIT: EVEN**0.5})
    assert found.coverage(0.5) == pytest.approx((0.625 + 0.5) / 2) and found.coverage(0.9) == pytest.approx(0.95)
    assert found.dispersion == pytest.approx((0.64 + 1) / 2, abs=1e-4)
    assert found.deviation("z[0]", FIT) == pytest.approx(0.25, abs=3e-3)
    assert found.deviation("w[0]") < 3e-3


def test_ranks_and_tarp_have_columns_and_corrections_of_their_own():
    """Six tests of two ranked quantities, three of TARP; the ECDFs are as far off as u (1 - u) is."""
    sbc, sbc_p, tarp, tarp_p = _numbers(Calibration({"z[0]": shifted(2.5), WEIGHT: shifted(3.0), TARP: shifted(3.5)}))[
        :4
    ]
    assert (sbc_p, tarp_p) == pytest.approx((6 * two_sided(3.0), 3 * two_sided(3.5)), rel=1e-3)
    assert (sbc, tarp) == pytest.approx((18 / 4800**0.5 / 4, 21 / 4800**0.5 / 4), abs=4e-3)


def test_the_truth_is_anywhere_among_its_equals_between_its_neighbours():
    """Of four draws: between the second and third a fifth of the line; as large as two of them, three fifths."""
    draws = torch.tensor([1.0, 2.0, 2.0, 3.0]).unsqueeze(1)
    for truth, low, high in ((2.5, 0.6, 0.8), (2.0, 0.2, 0.8), (4.0, 0.8, 1.0)):
        place = rank(draws.expand(-1, 4000), torch.full((4000,), truth))
        assert place.min() == pytest.approx(low, abs=0.003) and place.max() == pytest.approx(high, abs=0.003)
        assert place.min() >= low and place.max() <= high and place.mean() == pytest.approx((low + high) / 2, abs=0.015)


def test_log_weights_half_a_bin_apart_are_alike_half_of_the_time():
    """A bin is a tenth of a nat: alike they have any rank, else the truth has that above; 1/2 of 1/2 and of 3/4."""
    place = rank_of_weight(torch.full((1, 8000), -3.0), torch.full((8000,), -2.95))
    assert place.mean() == pytest.approx(0.625, abs=0.013)


def test_mean_and_spread_are_measured_from_those_of_the_uniform_in_its_standard_errors():
    mean, spread, _ = uniformity("z", torch.full((100,), 0.7))
    assert mean.z == pytest.approx(0.2 * 1200**0.5) and spread.z == pytest.approx((12 * 0.04 - 1) / 0.008**0.5)


def test_an_ecdf_counts_what_is_at_a_point_and_its_band_is_as_wide_as_its_errors():
    found = rank_ecdf(torch.tensor([0.5]))
    assert found.difference[24] == 0.5 and found.difference[23] == pytest.approx(-0.48)
    torch.testing.assert_close(found.band / found.band[24], 2 * (found.grid * (1 - found.grid)).sqrt())
