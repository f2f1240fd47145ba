"""The word of a certificate, from positions that are given."""

import pytest
import torch

from pyro_mmvae.diagnostics.calibration import FIT, TARP, WEIGHT, Calibration
from pyro_mmvae.diagnostics.certify import verdict

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
