"""What a result shows of itself: a few numbers that sum it up, with their units, and not its tensors."""

import math
from itertools import pairwise

import pytest
import torch
from matplotlib.figure import Figure

import pyro_mmvae as mm
from pyro_mmvae.diagnostics.certificate import SubsetCertificate
from pyro_mmvae.diagnostics.compare import Compared


def numbered(rows=4):
    return torch.arange(1.0, rows + 1)


def test_log_likelihoods_show_their_mean_its_error_and_where_it_is_not_to_be_trusted():
    found = mm.LogLikelihood(-numbered(), torch.tensor([0.3, 0.4, 0.0, 1.2]), torch.tensor([0.1, 0.69, 0.71, math.inf]))
    first, second = repr(found).splitlines()
    assert first.startswith("log-likelihood of 4 rows, -2.500 +- 0.325 nats a row") and "for 50% of them" in second
    few = repr(found._replace(khat=torch.full((4,), math.inf)))  # it says nothing bad of them, but nothing
    assert few == f"{first}\nk-hat cannot be told, as of fewer than 25 draws"
    value, se, khat = found
    assert value is found.value and se is found.se and khat is found.khat


def test_weighted_draws_show_how_many_of_them_count():
    weights = torch.full((100, 4), 0.01).log()
    khat, ess = torch.tensor([0.1, 0.49, 0.51, 0.9]), torch.tensor([90.0, 60.0, 50.0, 7.0])
    text = repr(
        mm.Importance({"z": torch.zeros(100, 4, 2), "a.w": torch.zeros(100, 4, 1)}, weights, khat, ess, weights)
    )
    assert text.startswith("100 weighted draws of z, a.w for each of 4 rows\n")
    few = repr(mm.Importance({"z": torch.zeros(9, 4, 2)}, weights[:9], khat + math.inf, ess, weights[:9]))
    assert "\nk-hat cannot be told, as of fewer than 25 draws; effective draws: 50 in" in few and "inf" not in few
    assert "below 0.50, for 50% of them" in text and "50 in the median row, 7 in the worst" in text


def test_a_curve_shows_its_mean_for_every_number_of_particles():
    value, se = torch.stack([-numbered(), 1 - numbered()]), torch.full((2, 4), 0.1)
    head, one, ten = repr(mm.IWAECurve([1, 10], value, se)).splitlines()
    assert "4 rows" in head and one.split() == ["1", "particle", "-2.500", "+-", "0.050"]
    assert ten.split() == ["10", "particles", "-1.500", "+-", "0.050"] and one.index("-2") == ten.index("-1")


def test_ranks_show_their_spread_coverage_and_the_worst_check():
    even = (torch.arange(100) + 0.5) / 100
    text = repr(mm.Calibration({"z[0]": even, "z[1]": 0.5 + 0.4 * (even - 0.5), "tarp": even}))
    spread = float(12 * ((even - 0.5) ** 2).mean()) * (1 + 0.16) / 2
    assert text.startswith("100 simulated rows, 3 quantities ranked\n") and f"spread {spread:.2f}, 1 if" in text
    assert "75% and 95% of the truths" in text and "corrected for 9 tests; farthest off: spread of z[1]" in text
    assert "of the truths" not in repr(mm.Calibration({"tarp": even}))


def test_nested_posteriors_show_their_largest_shift_and_the_range_of_spreads():
    shift, spread = torch.tensor([0.1, -0.3, 0.2]), torch.tensor([1.0, 0.9, 1.5])
    text = repr(mm.Nested(7, 1.25, shift, shift.abs() / 10, spread, spread / 10))
    assert text.startswith("7 rows, of which the further modalities tell 1.250 nats a row\n")
    assert "shift -0.300 +- 0.030 (z[1])" in text and "from 0.900 +- 0.090 (z[1]) to 1.500 +- 0.150 (z[2])" in text


def test_gaps_show_the_means_of_the_two_and_what_they_are_between():
    one, two, se = numbered(), 0.1 * numbered(), torch.tensor([0.3, 0.4, 0.0, 1.2])
    khat = torch.tensor([0.1, 0.49, 0.51, math.inf])
    assert repr(mm.Gaps(-one, -one - two, -2 * one - two, two, se, one, se / 10, khat, 100)).splitlines() == [
        "nats a row, +- Monte-Carlo standard error of the mean",
        "  log p(x_S)            -2.500",
        "  approximation gap      0.250 +- 0.325",
        "  amortisation gap       2.500 +- 0.033",
        "  ELBO                  -5.250",
        "k-hat is good for 50% of 4 rows; elsewhere log p(x_S) is a lower bound",
    ]


def test_bounds_from_both_sides_show_how_far_apart_they_are():
    lower, se = -numbered(), torch.zeros(4)
    found = mm.Sandwich(lower, se, lower + torch.tensor([0.0, 0.1, 0.2, 0.5]), se, {}, {})
    assert found.width == (pytest.approx(0.2), pytest.approx((0.14 / 3 / 4) ** 0.5))
    bounds = "lower bound -2.500, upper bound -2.300 nats a row, width 0.200 +- 0.108"
    assert repr(found) == f"log p(x_S) of 4 simulated rows: {bounds}"


def test_an_ecdf_shows_where_it_is_farthest_by_its_band():
    grid = torch.tensor([0.25, 0.5, 0.75])
    text = repr(mm.RankECDF(grid, torch.tensor([0.0, 0.04, -0.03]), torch.tensor([0.1, 0.2, 0.1]), 0.25))
    assert text == "ECDF - uniform is farthest from 0 at 0.75: -0.030, band +- 0.100; p 0.250"


def test_a_modality_left_out_shows_its_line_of_the_table():
    found = mm.LeftOut("size", 20, 60, -0.01, 1.25, 0.45, 0.85, 0.0001, torch.zeros(20, 3))
    assert repr(found) == (
        "size: 60 entries of 20 rows, bias -0.010, spread 1.25, 45% and 85% in central intervals of 50 % and 90 %,"
        " p <0.001"
    )


def test_a_table_says_why_a_p_value_is_missing():
    few, many = (
        mm.LeftOut("size", n, 60, 0.0, 1.0, 0.5, 0.9, p, torch.zeros(n, 3)) for n, p in ((5, math.nan), (20, 0.2))
    )
    foot = "\nnan: fewer than 20 rows have no p-value."
    assert repr(mm.PredictiveCheck([few, many])).endswith(foot) and "nan" not in repr(mm.PredictiveCheck([many]))


def test_an_imputation_error_shows_what_there_is():
    numbers = mm.ImputationError(32, 0.967, 0.976, math.nan, math.nan, -1.388, 0.112)
    assert repr({"b": numbers}) == (
        "{'b': ImputationError(32 entries, rmse 0.967 for 0.976 of the baseline,"
        " log score -1.388 +- 0.112 nats an entry)}"
    )
    names = mm.ImputationError(8, math.nan, math.nan, 0.75, 0.5, -0.5, 0.1)
    assert "rmse" not in repr(names) and "accuracy 75.0% for 50.0% of the baseline" in repr(names)


def test_a_posterior_of_any_family_shows_its_shapes():
    x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.GaussianMixture(2, 3), mm.MoE())
    x["a"][0], x["b"][0] = math.nan, math.nan
    assert repr(vae.posterior(x)) == "Switch(batch (5,), event (2,))"
    assert repr(vae.prior()) == "Mixture(batch (), event (2,))"


def test_a_loss_shows_its_passes_its_bound_and_its_weights():
    from pyro_mmvae.objectives import Pass, dropped, iwae, joint, random_subsets, unimodal

    assert repr(mm.Objective()) == "Objective([joint], elbo, num_particles=1, beta=1)"
    passes = [joint, Pass(unimodal, beta=0.0, weight=0.5), random_subsets(2), dropped(0.25)]
    shown = "[joint, Pass(unimodal, beta=0, weight=0.5), random_subsets(2), dropped(0.25)]"
    assert repr(mm.Objective(passes, iwae, num_particles=7, beta=0.2)) == (
        f"Objective({shown}, iwae, num_particles=7, beta=0.2)"
    )
    parts = mm.guess_modalities({"a": torch.randn(9, 3), "b": torch.randn(9, 2)}, dim=2)
    _, loss = mm.recipes.mhvae(parts, [2, 2], {"a": 128, "b": 128}, 8)
    assert "[Pass(every_subset, beta=1, weight=0.333333)]" in repr(loss)


def test_data_and_experts_show_their_modalities_and_what_is_observed_of_them():
    x = {"a": torch.randn(4, 3), "b": torch.randn(4, 2)}
    batch = mm.Batch.of(x, {"b": torch.tensor([True, False, False, False])})
    assert repr(batch) == "Batch(4 rows, a (3,) 100% observed, b (2,) 25% observed)"
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
    assert repr(vae.experts(x)) == "Experts(4 rows, a, b)" and repr(vae.experts(None)) == "Experts(1 row, none)"


ONE, NONE = torch.ones(1), torch.zeros(1)
SINGLE = {
    "log-likelihood of 1 row,": mm.LogLikelihood(ONE, ONE, ONE),
    "1 weighted draw of z for 1 row\n": mm.Importance({"z": torch.zeros(1, 1, 2)}, NONE[None], ONE, ONE, NONE[None]),
    "mean bound of 1 row,": mm.IWAECurve([1], ONE[None], ONE[None]),
    "1 simulated row, 1 quantity ranked": mm.Calibration({"tarp": ONE / 2}),
    "1 row, of which": mm.Nested(1, 1.0, ONE, ONE, ONE, ONE),
    "size: 1 entry of 1 row,": mm.LeftOut("size", 1, 1, 0.0, 1.0, 0.5, 0.9, math.nan, ONE),
    "ImputationError(1 entry,": mm.ImputationError(1, 1.0, 1.0, 1.0, 1.0, 1.0, math.nan),
    "for 0% of 1 row;": mm.Gaps(ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE, 100),
    "1 of 1 dimension active": mm.Usage(1.0, 0.1, 0.9, 0.1, ONE, ONE, ONE > 0),
    "log p(x_S) of 1 simulated row:": mm.Sandwich(ONE, ONE, ONE, ONE, {}, {}),
    "Batch(1 row, a (2,)": mm.Batch.of({"a": torch.zeros(1, 2)}),
}


@pytest.mark.parametrize("words", SINGLE)
def test_one_is_no_plural(words):
    assert words in repr(SINGLE[words])


def certified(**numbers):
    return SubsetCertificate(
        **{**dict.fromkeys(SubsetCertificate._fields, 0.5), "rows": 9, "verdict": "pass", **numbers}
    )


def test_what_rounds_to_nothing_has_no_sign():
    little = torch.full((4,), -1e-5)
    numbers = dict.fromkeys(("log_likelihood", "gap", "approximation", "amortisation"), -1e-5)
    shown = [
        mm.Certificate([certified(given=("a",), because="", **numbers)], 100, 60, 100, 5),
        mm.Comparison([Compared("poe", -1e-5, 0.0, 0.0, 1.0), Compared("moe", -2e-5, -1e-5, 0.0, 1.0)]),
        mm.Gaps(little, little, little, little, -little, little, -little, little, 100),
        mm.Nested(4, -1e-5, little, -little, little + 1, -little),
        mm.IWAECurve([1], little[None], -little[None]),
        mm.LogLikelihood(little, -little, little),
        mm.LeftOut("size", 4, 4, -1e-5, 1.0, 0.5, 0.9, 0.5, little),
        mm.PredictiveCheck([mm.LeftOut("size", 4, 4, -1e-5, 1.0, 0.5, 0.9, 0.5, little)]),
        mm.ImputationError(4, 1.0, 1.0, math.nan, math.nan, -1e-5, 0.1),
        mm.Usage(-1e-5, 0.1, -1e-5, -1e-5, little, little, little > 0),
        mm.Sandwich(little, -little, 2 * little, -little, {}, {}),
    ]
    for thing in shown:
        assert "0.00" in repr(thing) and "-0.00" not in repr(thing)


def test_some_are_not_none_and_not_all_are_not_all():
    khat = torch.full((1000,), 0.1)
    khat[7] = 0.9
    many, named = torch.ones(1000), {"given": ("a",), "because": "", "good_khat": 0.999}
    certificate = mm.Certificate([certified(**named)], 100, 60, 100, 0)
    out = mm.LeftOut("size", 4, 4, 0.0, 1.0, 0.5, 0.9, 0.5, many, 0.999)
    shown = [
        mm.LogLikelihood(many, many, 1 - khat),
        mm.Importance({"z": torch.zeros(100, 1000, 2)}, torch.zeros(100, 1000), khat, many, many),
        mm.Gaps(*[many] * 7, khat, 1000),
        certificate,
        mm.Comparison([Compared("poe", -1.0, 0.0, 0.0, 0.999)]),
        mm.Coherence({(("a",), "b"): 0.5}, 1000, {("a",): 1000}, "nuts", {("a",): 0.999}),
        mm.PredictiveCheck([out], "nuts"),
        mm.Batch.of({"a": torch.where(khat > 0.5, math.nan, khat)}),
    ]
    assert all(">99%" in repr(thing) and "100%" not in repr(thing) for thing in shown)
    assert "for <1% of them" in repr(mm.LogLikelihood(many, many, khat))
    assert mm.plot_certificate(certificate, Figure().subplots()).texts[0].get_text() == "pass, k-hat good for >99%"
    ax = mm.plot_ranks(mm.Calibration({"tarp": torch.rand(50)}), Figure().subplots(), level=0.999)
    assert "99.9% band, simultaneous" in [text.get_text() for text in ax.get_legend().texts]


def ends(line):
    """Where the words of a line end."""
    return {at for at, (here, then) in enumerate(pairwise(f"{line} ")) if here != " " and then == " "}


def test_bounds_that_changed_places_by_chance_are_no_inequality():
    text = repr(mm.Sandwich(-torch.ones(4), torch.ones(4), -torch.ones(4) - 0.25, torch.ones(4), {}, {}))
    assert text == (
        "log p(x_S) of 4 simulated rows: lower bound -1.000, upper bound -1.250 nats a row, width -0.250 +- 0.000"
    )


def test_columns_are_as_wide_as_their_numbers():
    """Of pictures and spectra, whose log-likelihoods are -123456.789 nats, as of small tables."""
    large = {
        "log_likelihood": -1234567.891,
        "se": 12345.67,
        "gap": 123456.789,
        "approximation": 1e6,
        "amortisation": -1e8,
    }
    rows = [
        certified(given=("a",), because="", **large),
        certified(given=("b",), because="", rows=0),
        certified(given=("c",)),
    ]
    for gap_rows in (0, 5):
        table = mm.Certificate(rows, 100, 60, 100, gap_rows)._data()[2:6]
        assert ends(table[1]) == ends(table[3]) and len(table[0]) == len(table[1]) == len(table[3])
        assert "no row has all of these" in table[2] and ("approximation" in table[0]) == bool(gap_rows)
        assert table[0].endswith(f"{' amortisation' if gap_rows else ' gap'}  good k-hat")
    models = [Compared("poe", -1234567.891, 0.0, 0.0, 1.0), Compared("moe", -9e9, -1e9, 1e6, 0.0)]
    head, *table = repr(mm.Comparison(models)).splitlines()[:3]
    assert ends(table[0]) == ends(table[1]) and len(head) == len(table[0])
    _, *lines, _ = repr(mm.Gaps(*(torch.full((3,), 10.0**n) for n in (8, 7, 6, 5, 4, 3, 2, 1)), 100)).splitlines()
    assert len({line.index(".") for line in lines}) == 1


def test_posterior_draws_show_what_vouches_for_each_method_and_what_the_columns_mean():
    nan, khat, ess = math.nan, torch.tensor([0.1, 0.5, 0.66, 0.9]), torch.tensor([900.0, 400.0, 300.0, 80.0])
    methods, rhat = ["guide", "psis", "psis", "hmc"], torch.tensor([nan, nan, nan, 1.02])
    draws = mm.PosteriorDraws({"z": torch.zeros(100, 4, 2)}, methods, khat, ess, rhat, rhat.isnan())
    assert repr(draws).splitlines() == [
        "100 draws of z for each of 4 rows",
        "method     rows  certified  worst k-hat  least ess  worst r-hat",
        "guide         1          1         0.10        900             ",
        "psis          2          2         0.66        300             ",
        "hmc           1          0         0.90         80        1.020",
        "guide: its own draws; psis: resampled by smoothed weights; hmc: chains of all rows side by side",
        "certified: no posterior mean is off by more than the tolerance, as far as can be told",
    ]


def test_the_code_of_one_row_has_no_dimensions_that_are_known_to_be_active():
    x = {"a": torch.randn(9, 3)}
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
    assert repr(mm.usage(vae, {"a": x["a"][:1]})).endswith("; one row does not tell which of 2 dimensions are active")
    assert repr(mm.usage(vae, x)).endswith(" of 2 dimensions active")


def test_what_is_made_once_and_passed_on_says_what_it_is():
    assert repr(mm.Sleep(0.25)) == "Sleep(hide=0.25)"
    data = mm.MultimodalDataset({"a": torch.zeros(5, 3), "b": torch.zeros(5)}, rows=[1, 2])
    assert repr(data) == "MultimodalDataset(2 rows: a (3,), b ())"
