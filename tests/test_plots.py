"""What the pictures show: the data of their lines, and their words."""

import inspect
import itertools
import math
import warnings

import matplotlib
import pyro.distributions as dist
import pytest
import torch
from cases import three, three_rows
from exact import LinearGaussian
from matplotlib import pyplot

import pyro_mmvae as mm
from pyro_mmvae.diagnostics.certificate import SubsetCertificate
from pyro_mmvae.diagnostics.compare import Compared

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_history_shows_both_losses_and_the_best_epoch():
    ax = mm.plot_history(mm.History(loss=[3.0, 2.0, 1.0], validation=[4.0, 2.5, 2.6], best_epoch=1))
    assert [line.get_ydata().tolist() for line in ax.lines[:2]] == [[3.0, 2.0, 1.0], [4.0, 2.5, 2.6]]
    assert ax.lines[2].get_xdata() == [1, 1] and ax.get_legend().texts[2].get_text() == "best epoch, 1"


def test_history_is_not_pressed_flat_by_how_it_began():
    """Nor by the margin above it: one row of raw counts may cost 1e12 nats at first."""
    loss = [3e12, 500.0, *(300.0 - epoch for epoch in range(30))]
    ax = mm.plot_history(mm.History(loss=loss, validation=[2e9, *loss[1:]]))
    assert ax.get_ylim() == pytest.approx((271 - 0.05 * 229, 500 + 0.05 * 229))
    low, high = mm.plot_history(mm.History(loss=[1e9, *[4.0] * 12])).get_ylim()
    assert low < 4 and high > 1e9  # there is no range but that one


def test_history_of_any_length_is_seen_against_whole_epochs():
    for epochs in (1, 2, 20, 37):
        ax = mm.plot_history(mm.History([5.0 - epoch / 10 for epoch in range(epochs)]))
        ax.figure.draw_without_rendering()
        low, high = ax.get_xlim()
        ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
        assert ticks and all(tick == round(tick) for tick in ticks)
        assert (ax.lines[0].get_marker() == "o") == (epochs == 1)  # no line is drawn of one


def test_history_shows_how_held_out_rows_get_worse_at_the_end():
    held_out = [5 - epoch / 10 + epoch**2 / 125 for epoch in range(30)]
    ax = mm.plot_history(mm.History([5 - epoch / 10 for epoch in range(30)], held_out, best_epoch=6))
    assert held_out[-1] < ax.get_ylim()[1] < 1.1 * held_out[-1]


def test_missingness_counts_patterns():
    mask = {"a": torch.tensor([True, True, True, False]), "b": torch.tensor([True, True, False, True])}
    ax = mm.plot_missingness({"a": torch.zeros(4, 2), "b": torch.zeros(4)}, mask)
    assert ax.images[0].get_array().tolist()[0] == [1, 1]
    assert sorted(label.get_text() for label in ax.get_yticklabels()) == ["25%", "25%", "50%"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a\n75%", "b\n75%"]


def test_missingness_says_of_few_rows_that_they_are_some():
    some = torch.arange(1000) != 3
    ax = mm.plot_missingness({"a": torch.zeros(1000), "b": torch.zeros(1000), "c": torch.zeros(1000)}, {"b": some})
    assert [label.get_text() for label in ax.get_yticklabels()] == [">99%", "<1%"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a\n100%", "b\n>99%", "c\n100%"]
    ax = mm.plot_missingness({"a": torch.zeros(200), "b": torch.zeros(200)}, {"b": some[:200]})
    assert [label.get_text() for label in ax.get_yticklabels()] == [">99%", "<1%"]  # a half of a percent


def test_missingness_of_many_patterns_shows_the_frequent_ones_and_counts_the_others():
    bits = torch.arange(64).unsqueeze(1).bitwise_and(2 ** torch.arange(6)) > 0
    rows = torch.cat([bits[:1].expand(36, 6), bits])  # the first pattern is the most frequent one
    ax = mm.plot_missingness({f"m{i}": torch.zeros(100) for i in range(6)}, {f"m{i}": rows[:, i] for i in range(6)})
    shown = ax.images[0].get_array()
    assert shown.shape == (30, 6) and shown[0].tolist() == [0] * 6 and ax.get_yticklabels()[0].get_text() == "37%"
    assert ax.get_xlabel() == "34 rarer patterns, 34% of the rows, left out"


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a very long name of the only modality"], ["b", "a" * 30]])
def test_missingness_of_few_modalities_has_its_words_in_the_picture(names):
    ax = mm.plot_missingness({name: torch.zeros(4) for name in names})
    ax.figure.draw_without_rendering()
    for text in (ax.title, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()):
        box, page = text.get_window_extent(), ax.figure.bbox
        assert box.x0 >= 0 and box.x1 <= page.width and box.y0 >= 0 and box.y1 <= page.height, text.get_text()


def test_latent_shows_the_posterior_means_by_label():
    truth = LinearGaussian()
    x, vae = truth.simulate(10), truth.vae()
    ax = mm.plot_latent(vae, x, labels=["u"] * 4 + ["v"] * 6)
    mean = vae.posterior(x).mean.detach()
    shown = torch.as_tensor(ax.lines[0].get_xydata())
    torch.testing.assert_close(shown, (mean - mean.mean(0))[:4])
    assert [text.get_text() for text in ax.get_legend().texts] == ["u", "v"]


def test_khat_shows_every_row_and_the_share_of_good_ones():
    truth = LinearGaussian()
    vae = truth.vae(expert="posterior")
    ax = mm.plot_khat(vae, truth.simulate(20), subsets=[("a", "b"), ("c",)], num_particles=200)
    assert len(ax.lines[0].get_xdata()) == 20 and texts(ax)[0].endswith("good")
    assert ax.lines[-1].get_xdata()[0] == mm.khat_limit(200)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a + b", "c"]


def test_khat_is_that_of_the_log_likelihood():
    truth = LinearGaussian()
    vae, x = truth.vae(expert="posterior"), truth.simulate(20)
    torch.manual_seed(1)
    ax = mm.plot_khat(vae, x, subsets=[("a", "b"), ("c",)], num_particles=200)
    torch.manual_seed(1)
    for line, text, given in zip(ax.lines, texts(ax), (("a", "b"), ("c",))):
        khat = mm.log_likelihood(vae, x, num_particles=200, targets=given).khat
        assert line.get_xdata().tolist() == khat[khat.isfinite()].tolist()
        assert text == f"{(khat < mm.khat_limit(200)).double().mean():.0%} good"
    limit = mm.khat_limit(200)
    assert (
        ax.lines[-1].get_xdata() == [limit, limit]
        and ax.get_xlabel() == f"k-hat of a row, good below {limit:.2f} (red)"
    )
    assert ax.get_legend() is None  # which would lie on a title


def test_khat_is_of_the_rows_that_have_all_of_a_subset_as_in_the_certificate():
    truth = LinearGaussian()
    vae, x = truth.vae(mm.MoE(), expert="posterior"), truth.simulate(40)
    mask = {"a": torch.arange(40) < 15, "b": torch.arange(40) >= 10, "c": torch.zeros(40, dtype=torch.bool)}
    ax = mm.plot_khat(vae, x, mask, subsets=[("a", "b"), ("a", "c")], num_particles=200)
    assert [len(line.get_xdata()) for line in ax.lines[:2]] == [5, 0]
    assert [text.get_text()[-4:] for text in ax.texts] == ["good", " row"]


def test_ranks_are_drawn_against_their_band_and_the_worst_is_named():
    calibration = mm.Calibration({"z[0]": torch.rand(300), "z[1]": torch.rand(300) ** 2})
    ax = mm.plot_ranks(calibration)
    expected = mm.rank_ecdf(calibration.position["z[1]"])
    torch.testing.assert_close(torch.as_tensor(ax.lines[1].get_ydata()), expected.difference)
    colours = [line.get_color() for line in ax.lines]
    assert colours[0] != colours[1]  # one inside the band, one outside
    words = [text.get_text() for text in ax.get_legend().texts]
    assert "z[1], p < 1e-6" in words and "95% band, simultaneous" in words


def test_ranks_tell_the_named_quantities_from_the_others():
    ax = mm.plot_ranks(mm.Calibration({f"z[{i}]": torch.rand(200) ** (1 + i) for i in range(6)}))
    thin = [line for line in ax.lines if not line.get_label().startswith("z") and len(line.get_xdata())]
    thick = [line for line in ax.lines if line.get_label().startswith("z")]
    assert len(thin) == 3 and len({line.get_linestyle() for line in thick}) == 3
    assert max(line.get_linewidth() for line in thin) < min(line.get_linewidth() for line in thick) / 2
    assert "3 others, thin" in [text.get_text() for text in ax.get_legend().texts]


def test_subsets_that_are_cut_to_the_same_words_are_written_out():
    x = {f"m{i}": torch.randn(5, 2) for i in range(9)}
    names, few = list(x), [("m0",), ("m1",)]
    alike = [(*names[:6], "m7"), (*names[:6], "m8")]
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2, hidden=8), mm.StandardNormal(2), mm.PoE())
    numbers = dict.fromkeys(SubsetCertificate._fields, 0.5)
    for subsets, shown in ((alike, [" + ".join(s) for s in alike]), ([*few, alike[0]], "m0 + m1 + m2 + m3 + ... (7)")):
        rows = [SubsetCertificate(**{**numbers, "given": given, "verdict": "pass"}) for given in subsets]
        for ax in (
            mm.plot_khat(vae, x, subsets=subsets, num_particles=50),
            mm.plot_certificate(mm.Certificate(rows, 100, 60, 100, 0)),
        ):
            words = [label.get_text() for label in ax.get_yticklabels()]
            assert words == shown if subsets is alike else words[-1] == shown


def inside(ax):
    """Whether all that is written beside the axes lies in the figure, as long as its layout could be made."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.canvas.draw()
    page = ax.figure.bbox
    words = [text for one in (ax, *ax.child_axes) for text in (*one.texts, *one.get_yticklabels(), one.xaxis.label)]
    boxes = [text.get_window_extent() for text in words if text.get_text()]
    return all(box.x0 >= -1 and box.x1 <= page.width + 1 for box in boxes)


def legend_inside(ax):
    """Whether the legend lies in the figure and beside the axes."""
    ax.figure.draw_without_rendering()
    box, page, data = ax.get_legend().get_window_extent(), ax.figure.bbox, ax.bbox
    within = box.x0 >= -1 and box.x1 <= page.width + 1 and box.y0 >= -1 and box.y1 <= page.height + 1
    return within and (box.x0 >= data.x1 or box.y0 >= data.y1)


def test_names_stand_as_they_are_written():
    """Two dollars are no formula, of which some could not even be drawn, and a legend names what begins with _."""
    names = ["cost_$", "price_$", "_kept", "50% of {x}"]
    x = {name: torch.randn(4, 2) for name in names}
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2, hidden=8), mm.StandardNormal(2), mm.PoE())
    numbers = dict.fromkeys(SubsetCertificate._fields, 0.5)
    rows = [SubsetCertificate(**{**numbers, "given": names[: i + 1], "verdict": "pass"}) for i in range(4)]
    compared = mm.compare(dict.fromkeys(names, vae), x, num_particles=5).against("cost_$")
    legends = [
        mm.plot_coverage([0.5, 0.9], {name: [0.4, 0.8] for name in names}),
        mm.plot_latent(vae, x, labels=names),
        mm.plot_ranks(mm.Calibration({name: torch.rand(30) for name in names[:3]})),
    ]
    others = [
        mm.plot_certificate(mm.Certificate(rows, 100, 60, 100, 0)),
        mm.plot_khat(vae, x, subsets=[names, names[:2]], num_particles=30),
        mm.plot_compare(compared),
        mm.plot_missingness(x),
        mm.plot_reconstructions(vae, {name: value[:1] for name, value in x.items()}),
        mm.plot_entry(torch.tensor(0), show=lambda _: "$5 or $6"),
    ]
    for ax in [*legends, *others]:
        ax.figure.canvas.draw()
        cells = [text for cell in ax.child_axes for text in cell.texts]
        words = [*ax.texts, *ax.get_yticklabels(), *ax.get_xticklabels(), ax.xaxis.label, *cells]
        words += ax.get_legend().texts if ax in legends else []
        assert not any(matplotlib.cbook.is_math_text(text.get_text()) is True for text in words)
        assert any("\\$" in text.get_text() for text in words)
    assert [sum("_kept" in text.get_text() for text in ax.get_legend().texts) for ax in legends] == [1, 1, 1]


@pytest.mark.parametrize("count", [3, 12])
def test_long_names_stay_in_the_picture(count):
    x = {f"a very long name of a modality, number {i}": torch.randn(1, 2) for i in range(count)}
    vae, names = mm.MultimodalVAE(mm.guess_modalities(x, dim=2, hidden=8), mm.StandardNormal(2), mm.PoE()), list(x)
    subsets = [names[:1], names, names[1:], names[:-1]]
    numbers = dict.fromkeys(SubsetCertificate._fields, 0.5)
    rows = [SubsetCertificate(**{**numbers, "given": given, "verdict": "over-confident"}) for given in subsets]
    assert inside(mm.plot_certificate(mm.Certificate(rows, 100, 60, 100, 0)))
    assert inside(mm.plot_khat(vae, x, subsets=subsets, num_particles=50))
    assert inside(mm.plot_compare(mm.compare(dict.fromkeys(names, vae), x, num_particles=5)))
    assert inside(mm.plot_reconstructions(vae, x))
    few = {name: x[name] for name in names[:3]}
    assert inside(mm.plot_cross_modal(vae, few))
    for some in (names[:3], names * 2):
        ax = mm.plot_coverage([0.5, 0.9], {f"{i} is {name}": [0.4, 0.8] for i, name in enumerate(some)})
        assert legend_inside(ax) and min(ax.get_window_extent().bounds[2:]) > 2.0 * ax.figure.dpi
    assert inside(mm.plot_compare(mm.compare(dict.fromkeys(names, vae), x, num_particles=5).against(names[1])))


@pytest.mark.parametrize("count", [1, 3, 70])
def test_the_legend_of_ranks_lies_on_no_line_and_below_a_title(count):
    positions = {f"a very long name of a modality.w[{i}]": torch.rand(100) ** (1 + i % 3) for i in range(count)}
    ax = mm.plot_ranks(mm.Calibration(positions))
    ax.set_title("a guide")
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert ax.bbox.x0 <= box.x0 < box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 < box.y1 <= ax.bbox.y1
    drawn = [line.get_xydata() for line in ax.lines if len(line.get_xdata())] + [
        ax.collections[0].get_paths()[0].vertices
    ]
    assert not any(box.count_contains(ax.transData.transform(points)) for points in drawn)


def test_ranks_in_axes_that_share_a_scale_are_all_within_it():
    axes = matplotlib.figure.Figure().subplots(1, 3, sharey=True)
    for ax, power in zip(axes, (1, 4, 0.25)):
        mm.plot_ranks(mm.Calibration({"tarp": torch.rand(200) ** power}), ax)
    low, high = axes[0].get_ylim()
    values = [value for ax in axes for line in ax.lines for value in line.get_ydata()]
    assert low < min(values) < -0.3 and 0.3 < max(values) < high < 1.3


def test_coverage_is_drawn_against_its_nominal_value():
    ax = mm.plot_coverage([0.5, 0.9], {"poe": [0.4, 0.8]})
    assert ax.lines[1].get_xydata().tolist() == [[0.5, 0.4], [0.9, 0.8]]


def test_coverage_is_not_in_percent():
    for nominal, actual, words in (([50, 90], [0.4, 0.8], "nominal has 50"), ([0.5], [1.5], r"actual\['a'\] has 1.5")):
        with pytest.raises(ValueError, match=f"^{words}; give numbers between 0 and 1"):
            mm.plot_coverage(nominal, {"a": actual})
    assert len(mm.plot_coverage(torch.tensor([0.5, 1]), {"a": torch.tensor([0.0, math.nan])}).lines) == 2


def test_certificate_has_no_spread_below_zero_and_does_not_condemn_what_was_not_looked_at():
    numbers = {**dict.fromkeys(SubsetCertificate._fields, 0.5), "given": ("a",)}
    found = {"pass": 0.0, "biased": 2.9, "not enough draws": 1.3}
    rows = [SubsetCertificate(**{**numbers, "verdict": word, "dispersion": d}) for word, d in found.items()]
    ax = mm.plot_certificate(mm.Certificate(rows, 50, 60, 100, 0))
    low, high = ax.get_xlim()
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert low > -0.1 and all(low < line.get_xdata()[0] < high for line in points)
    assert len({line.get_color() for line in points}) == 3
    assert [text.get_color() for text in ax.texts] == [line.get_color() for line in points]


def test_the_axis_of_a_certificate_has_words_of_its_own():
    """Beside a spread above 1 the verdict may be under-confident, by another check; the axis does not contradict it."""
    numbers = {**dict.fromkeys(SubsetCertificate._fields, 0.5), "given": ("a",), "dispersion": 1.1}
    row = SubsetCertificate(**{**numbers, "verdict": "under-confident"})
    assert "confident" not in mm.plot_certificate(mm.Certificate([row], 100, 60, 100, 0)).get_xlabel()


def test_certificate_says_the_verdicts_and_colours_them():
    numbers = dict.fromkeys(SubsetCertificate._fields, 0.5)
    rows = [
        SubsetCertificate(**{**numbers, "given": ("a",), "verdict": "pass", "dispersion": 1.01, "good_khat": 0.75}),
        SubsetCertificate(**{**numbers, "given": ("a", "b"), "verdict": "over-confident", "dispersion": 1.4}),
    ]
    ax = mm.plot_certificate(mm.Certificate(rows, 100, 60, 100, 0))
    assert texts(ax) == ["pass, k-hat good for 75%", "over-confident, k-hat good for 50%"]
    assert ax.lines[1].get_xdata() == [1.01] and ax.lines[3].get_xdata() == [1.4]
    assert ax.lines[1].get_color() != ax.lines[3].get_color()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "a + b"]


def test_codes_of_many_dimensions_are_shown_where_they_spread_most():
    x = {"a": torch.randn(40, 30)}
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=12), mm.StandardNormal(12), mm.PoE())
    shown = torch.as_tensor(mm.plot_latent(vae, x).lines[0].get_xydata())
    spread = torch.linalg.eigvalsh(vae.posterior(x).mean.detach().T.cov())
    torch.testing.assert_close(shown.T.cov(), spread[[-1, -2]].diag())


@pytest.mark.parametrize("across", [0, 1])
def test_a_code_that_lies_on_a_line_is_drawn_in_a_square(across):
    """One unit is as long on both axes, and the axes are as large as those of a code that fills the plane."""
    vae, x = LinearGaussian().vae(), LinearGaussian().simulate(30)
    plane = torch.randn(30, 2)
    plane[:, across] *= 1e-3

    class Line(torch.nn.Module):
        def forward(self, experts):
            return dist.Normal(plane.unsqueeze(1), 1.0).to_event(1)

    vae.fusion = Line()
    ax = mm.plot_latent(vae, x)
    ax.figure.draw_without_rendering()
    size, data = ax.get_window_extent(), ax.viewLim
    assert min(size.width, size.height) > 0.7 * max(size.width, size.height)
    assert data.width / size.width == pytest.approx(data.height / size.height)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1234567.0, 1234568.0, math.nan, 1234569.0], ["1234567", "1234568", "1234569", "nan"]),
        (torch.tensor([10.0, 9.0, 0.5, 0.5]).float(), ["0.5", "9", "10"]),
        (["10", "9", "x", None], ["9", "10", "x", "None"]),
        ([False, True, True, True], ["False", "True"]),
    ],
)
def test_labels_are_groups_by_all_their_digits_and_in_the_order_of_numbers(labels, names):
    lines = mm.plot_latent(LinearGaussian().vae(), LinearGaussian().simulate(4), labels=labels).lines
    assert [line.get_label() for line in lines] == names
    assert [len(line.get_xdata()) for line in lines] == [
        sum(f"{g}" in (n, f"{n}.0") for g in list(labels)) for n in names
    ]


def test_a_legend_of_many_labels_leaves_the_codes_their_room():
    vae, x = LinearGaussian().vae(), LinearGaussian().simulate(50)
    for labels in (range(50), [f"a very long name of a label, number {i}" for i in range(50)]):
        ax = mm.plot_latent(vae, x, labels=labels)
        assert inside(ax) and legend_inside(ax) and min(ax.get_window_extent().bounds[2:]) > 3.0 * ax.figure.dpi


@pytest.mark.parametrize("labels", [[2.0, torch.nan, 1.0, torch.nan], ["v", None, "u", None]])
def test_rows_without_a_label_are_grey_below_the_others(labels):
    vae, x = LinearGaussian().vae(), LinearGaussian().simulate(4)
    *named, other = mm.plot_latent(vae, x, labels=labels).lines
    assert [line.get_color() for line in named] == ["C0", "C1"] and other.get_color() == "0.8"
    assert len(other.get_xdata()) == 2 and other.get_zorder() < min(line.get_zorder() for line in named)


def test_no_two_groups_look_alike():
    """Neither to those who do not tell green from red."""
    vae, x = LinearGaussian().vae(), LinearGaussian().simulate(70)
    models = {f"m{number}": [0.5] for number in range(70)}
    for lines in (mm.plot_latent(vae, x, labels=range(70)).lines, mm.plot_coverage([0.5], models).lines[1:]):
        assert len({(line.get_color(), line.get_marker()) for line in lines}) == 70
        assert len({line.get_marker() for line in lines[:7]}) == 7


def test_compare_shows_differences_with_two_standard_errors():
    rows = [Compared("best", -1.0, 0.0, 0.0, 1.0), Compared("other", -3.0, -2.0, 0.25, 1.0)]
    ax = mm.plot_compare(mm.Comparison(rows))
    assert ax.lines[0].get_xydata().tolist() == [[0.0, 0.0], [-2.0, 1.0]] and "grey" not in ax.get_xlabel()
    low, high = ax.collections[0].get_segments()[1][:, 0]
    assert (low, high) == (-2.5, -1.5)
    ax = mm.plot_compare(mm.Comparison([*rows, Compared("pool", 2.0, 3.0, 0.0, 1.0, True)]))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["best", "other", "pool *"]
    assert (
        "grey: not to be compared" in ax.get_xlabel()
        and "grey" not in mm.plot_compare(mm.Comparison(rows)).get_xlabel()
    )
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert points[1].get_xydata().tolist() == [[3.0, 2.0]] and points[0].get_color() != points[1].get_color()


def test_entries_pictures_bars_categories_words_and_tables():
    picture = mm.plot_entry(torch.arange(12.0).reshape(3, 4))
    assert picture.images[0].get_array().tolist()[2] == [8.0, 9.0, 10.0, 11.0]
    colours = mm.plot_entry(torch.rand(3, 4, 5))  # channels first
    assert colours.images[0].get_array().shape == (4, 5, 3)
    bars = mm.plot_entry(torch.tensor([1.0, -2.0]))
    assert [bar.get_height() for bar in bars.patches] == [1.0, -2.0] and not bars.texts
    assert texts(mm.plot_entry(torch.tensor([0.2, 0.7, 0.1]))) == ["1"]  # probabilities: the best category
    assert texts(mm.plot_entry(torch.tensor(3))) == ["3"]
    assert texts(mm.plot_entry(torch.tensor([0, 2]), show=lambda v: " ".join("xyz"[i] for i in v))) == ["x z"]
    row = mm.plot_entry(torch.tensor([1.2345, 2.0]), show=lambda v: {"mass": v[0], "sex": "f"})
    assert texts(row) == ["mass 1.23\nsex f"]


def test_a_number_stays_in_its_frame():
    numbers = {-1.77634: "-1.78", -1.23457e-05: "-1.23e-05", 123456: "123456", math.nan: "", 1234567: "1234567"}
    for number, words in {**numbers, 1234.5: "1234", -0.0: "0", 1e6 + 0.5: "1e+06"}.items():
        ax = matplotlib.figure.Figure().add_axes((0.0, 0.0, 0.94 / 6.4, 0.9 / 4.8))  # an inch, as in a grid
        mm.plot_entry(torch.tensor(number), ax)
        ax.figure.draw_without_rendering()
        box = ax.texts[0].get_window_extent()
        assert texts(ax) == [words] and (not words or ax.bbox.x0 < box.x0 < box.x1 < ax.bbox.x1)


def test_letters_are_as_small_as_their_frame():
    """Of ten columns in a figure as it comes, a number would lie on its neighbours."""
    sizes = {}
    for columns in (2, 10):
        axes = matplotlib.figure.Figure().subplots(1, columns, squeeze=False)
        for ax, value in zip(axes.flat, (torch.tensor(-4.96e-07), torch.tensor([0.0, 1.0]))):
            mm.plot_entry(value, ax)
            ax.figure.draw_without_rendering()
            box = ax.texts[0].get_window_extent()
            assert ax.bbox.x0 < box.x0 < box.x1 < ax.bbox.x1 and ax.bbox.y0 < box.y0 < box.y1 < ax.bbox.y1
            sizes[columns, value.dim()] = ax.texts[0].get_fontsize()
    assert sizes[2, 1] == 9 and sizes[10, 0] < 0.6 * sizes[2, 0] and sizes[10, 1] < 6
    low = matplotlib.figure.Figure().add_axes((0.0, 0.0, 0.9 / 6.4, 0.2 / 4.8))
    assert mm.plot_entry(torch.tensor(7), low).texts[0].get_fontsize() == pytest.approx(8)  # of 14 points of height


def test_a_long_text_stands_in_lines_that_can_be_read():
    for words in ("two dogs run over wet sand beside the sea, one of them with a red ball", "word " * 60, "a" * 30):
        ax = matplotlib.figure.Figure().add_axes((0.0, 0.0, 0.94 / 6.4, 0.9 / 4.8))
        mm.plot_entry(torch.tensor(0), ax, show=lambda _, words=words: words)
        ax.figure.draw_without_rendering()
        text, box = ax.texts[0], ax.texts[0].get_window_extent()
        assert " ".join(text.get_text().split("\n")) == words.strip()
        assert ax.bbox.x0 < box.x0 < box.x1 < ax.bbox.x1 and ax.bbox.y0 < box.y0 < box.y1 < ax.bbox.y1
        ideal = (0.94 * 0.9 * 72**2 / (0.6 * 1.2 * len(words))) ** 0.5  # if letters filled the frame
        assert " " not in words or text.get_fontsize() > 0.5 * ideal
    table = {f"column {i} of many": 1.5 for i in range(9)}
    assert texts(mm.plot_entry(torch.tensor(0), show=lambda _: table)) == ["\n".join(f"{name} 1.5" for name in table)]


def test_the_number_of_a_category_stays_in_its_frame():
    for count in (3, 40, 2000):
        for best in (0, count // 2, count - 1):
            p = torch.full((count,), 0.5 / (count - 1))
            p[best] = 0.5
            ax = matplotlib.figure.Figure().add_axes((0.0, 0.0, 0.94 / 6.4, 0.9 / 4.8))
            mm.plot_entry(p, ax)
            ax.figure.draw_without_rendering()
            box = ax.texts[0].get_window_extent()
            assert ax.bbox.x0 <= box.x0 < box.x1 <= ax.bbox.x1 and texts(ax) == [str(best)]
            if count == 3:
                assert ax.texts[0].get_position()[0] == best  # above its bar


def test_reconstructions_have_two_lines_a_modality_and_say_what_is_missing():
    vae, x = three(), three_rows(3)
    mask = {"label": torch.tensor([True, False, True])}
    _, outer = matplotlib.pyplot.subplots()
    ax = mm.plot_reconstructions(vae, x, mask, show={"label": lambda v: f"<{v.dim()}>"}, ax=outer)
    assert ax is outer and len(ax.child_axes) == 2 * 3 * 3
    assert [bar.get_height() for bar in ax.child_axes[0].patches] == x["body"][0].tolist()
    labels = ax.child_axes[6:9]
    assert texts(labels[0]) == ["label", "<0>"] and texts(labels[1]) == ["missing"]
    assert texts(ax.child_axes[9]) == ["reconstructed", "<1>"]


def test_what_is_predicted_is_drawn_as_it_is_predicted():
    vae, x = three().eval(), three_rows(3)
    torch.manual_seed(1)
    cells = mm.plot_reconstructions(vae, x, {"body": torch.arange(3) != 1}).child_axes
    torch.manual_seed(1)
    body = mm.predict(vae, x, {"body": torch.arange(3) != 1})["body"]
    assert [[bar.get_height() for bar in cell.patches] for cell in cells[3:6]] == body.tolist()
    assert texts(cells[1]) == ["missing"] and not cells[1].patches
    torch.manual_seed(1)
    cells = mm.plot_cross_modal(vae, x).child_axes
    torch.manual_seed(1)
    for block, given in enumerate(x):
        found = mm.predict(vae, {given: x[given]}, num_draws=1)
        others = [name for name in x if name != given]
        for line, name in enumerate(others):
            drawn = cells[9 * block + 3 + 3 * line : 9 * block + 6 + 3 * line]
            heights = [[bar.get_height() for bar in cell.patches] for cell in drawn]
            assert heights == found[name].tolist() and texts(drawn[0])[0] == f"{name}\nfrom {given}"


def test_a_function_for_a_modality_that_is_none_is_refused():
    for draw in (mm.plot_reconstructions, mm.plot_cross_modal):
        with pytest.raises(ValueError, match=r"^unknown modality 'lable'; this model has body, label, counts"):
            draw(three(), three_rows(2), show={"lable": str})


def test_bars_of_a_modality_are_on_one_scale():
    """Predictions are nearer to the mean than what is observed; with a scale for each they would look as large."""
    vae, x = three().eval(), three_rows(3)
    x["body"][0] *= 7
    ax = mm.plot_reconstructions(vae, x)
    lines = {cell.get_ylim() for cell in ax.child_axes[:6]}  # as observed and as predicted, of three rows
    reach = [1.05 * float(end) for end in (x["body"].min(), x["body"].max())]
    assert len(lines) == 1 and lines.pop() == pytest.approx(reach)
    assert len(mm.plot_entry(torch.arange(100.0)).patches) == 1  # a hundred bars are one shape, without gaps


def test_grey_pictures_of_a_modality_are_on_one_scale():
    """A prediction that is all but flat would show noise at full contrast on a scale of its own."""
    x = {"sound": torch.randn(4, 6, 5) * 3 - 40, "counts": torch.poisson(torch.ones(4, 4)).long()}
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2, hidden=8), mm.StandardNormal(2), mm.PoE())
    for ax in (mm.plot_reconstructions(vae, x), mm.plot_cross_modal(vae, x)):
        scales = {cell.images[0].get_clim() for cell in ax.child_axes if cell.images}
        assert scales == {(float(x["sound"].min()), float(x["sound"].max()))}
    alone = mm.plot_entry(x["sound"][0]).images[0].get_clim()
    assert alone == (float(x["sound"][0].min()), float(x["sound"][0].max()))


def test_cross_modal_grids_predict_every_modality_from_every_other():
    vae, x = three(), three_rows(2)
    ax = mm.plot_cross_modal(vae, x)
    assert len(ax.child_axes) == 9 * 2
    named = [texts(cell)[0] for cell in ax.child_axes[::2]]
    assert named[:4] == ["body\n(given)", "label\nfrom body", "counts\nfrom body", "label\n(given)"]
    assert texts(ax.child_axes[7]) == [f"{x['label'][1].item():g}"]


def colour_model(values):
    """A model of colour pictures, flat codes in its encoder, and of four counts."""
    x = {"picture": values, "counts": torch.poisson(torch.full((len(values), 4), 1.0)).long()}
    return mm.MultimodalVAE(mm.guess_modalities(x, dim=2, hidden=8), mm.StandardNormal(2), mm.PoE()), x


def test_colours_from_0_to_255_are_drawn_in_one_range_observed_and_predicted():
    for dtype in (torch.int64, torch.float32):
        vae, x = colour_model(torch.randint(0, 256, (6, 3, 4, 5)).to(dtype))
        found = mm.predict(vae, x)["picture"]
        torch.manual_seed(1)
        ax = mm.plot_reconstructions(vae, x)
        observed = torch.as_tensor(ax.child_axes[0].images[0].get_array())
        torch.testing.assert_close(observed, x["picture"][0].movedim(0, -1).double() / 255)
        predicted = torch.as_tensor(ax.child_axes[6].images[0].get_array())
        torch.testing.assert_close(predicted, found[0].movedim(0, -1).double() / 255, rtol=0, atol=0.1)
    cross = mm.plot_cross_modal(vae, x).child_axes[18].images[0].get_array()  # counts, and pictures from them
    assert 0.3 < cross.mean() < 0.7 and cross.max() < 1
    alone = mm.plot_entry(torch.full((2, 2, 3), 51.0)).images[0].get_array()
    assert alone.tolist() == [[[0.2] * 3] * 2] * 2
    missing = mm.plot_reconstructions(vae, x, {"picture": torch.zeros(6, dtype=torch.bool)}).child_axes[6]
    assert missing.images[0].get_array().max() < 1


def test_colours_of_any_range_keep_their_contrast_and_means_above_one_are_cut():
    values = torch.tensor([-2.0, 0.0, 2.0]).expand(2, 2, 3)
    assert mm.plot_entry(values).images[0].get_array()[0, 0].tolist() == [0.0, 0.5, 1.0]
    over = torch.tensor([0.0, 0.5, 1.1]).expand(2, 2, 3)
    assert mm.plot_entry(over).images[0].get_array()[0, 0].tolist() == [0.0, 0.5, 1.0]


def test_entries_are_arrays_and_any_number_of_channels():
    assert [bar.get_height() for bar in mm.plot_entry(torch.ones(2).numpy()).patches] == [1.0, 1.0]
    assert [bar.get_height() for bar in mm.plot_entry(torch.ones(2).bfloat16()).patches] == [1.0, 1.0]
    assert not mm.plot_entry(torch.zeros(0)).patches
    two = torch.arange(24.0).reshape(2, 3, 4)
    assert mm.plot_entry(two).images[0].get_array().tolist() == torch.cat([two[0], two[1]], 1).tolist()
    assert mm.plot_entry(torch.rand(1, 1, 5)).images[0].get_array().shape == (1, 5)
    with pytest.raises(ValueError, match=r"^value has shape \(2, 3, 4, 5\); give up to three axes, or show=a function"):
        mm.plot_entry(torch.rand(2, 3, 4, 5))


def test_repeats_of_a_picture_are_pictures_and_no_colours():
    net, look = torch.nn.Sequential(mm.mlp(2, 20), torch.nn.Unflatten(-1, (4, 5))), torch.nn.Flatten()
    photo = mm.Modality(mm.NormalLikelihood(net), torch.nn.Sequential(look, mm.encoder(20, dim=2)), repeated=True)
    x = {"photo": torch.randn(2, 3, 4, 5)}
    x["photo"][0, 1] = torch.nan
    vae = mm.MultimodalVAE({"photo": photo}, mm.StandardNormal(2), mm.PoE())
    seen, _, predicted, _ = (cell.images[0].get_array() for cell in mm.plot_reconstructions(vae, x).child_axes)
    assert seen.shape == predicted.shape == (4, 15)
    assert seen.filled(math.nan)[:, :5].tolist() == x["photo"][0, 0].tolist() and seen.mask[:, 5:10].all()
    assert seen[:, 10:].tolist() == x["photo"][0, 2].tolist()


def test_counts_that_sum_to_one_are_no_probabilities():
    vae, x = colour_model(torch.rand(3, 3, 4, 5))
    x["counts"][0] = torch.tensor([0, 0, 1, 0])
    assert not texts(mm.plot_entry(x["counts"][0]))
    shown = mm.plot_reconstructions(vae, {**x, "counts": x["counts"].double()}).child_axes[6]
    assert texts(shown) == ["counts"] and shown.patches[2].get_height() == 1


def test_single_hidden_entries_are_told_from_zeros():
    vae, x = colour_model(torch.rand(2, 3, 4, 5))
    seen = {"counts": torch.tensor([[True, False, True, True]] * 2), "picture": torch.ones(2, 3, 4, 5) > 0}
    seen["picture"][0, :, 1, 2] = False
    x["counts"][:] = torch.tensor([0, 3, 0, 2])
    ax = mm.plot_reconstructions(vae, x, seen)
    bars = ax.child_axes[4].patches
    assert [bar.get_height() for bar in bars[:4] if bar.get_height() == bar.get_height()] == [0.0, 0.0, 2.0]
    assert len(bars) == 5 and bars[4].get_x() == pytest.approx(0.6)  # the hole
    picture = ax.child_axes[0].images[0].get_array()
    assert picture[1, 2].tolist() == pytest.approx(matplotlib.colors.to_rgb("#d7e1ee"))
    assert ax.child_axes[1].images[0].get_array()[1, 2].tolist() == pytest.approx(x["picture"][1, :, 1, 2].tolist())


def test_words_are_shown_without_the_hidden_ones():
    net = torch.nn.Sequential(mm.mlp(2, 15), torch.nn.Unflatten(-1, (5, 3)))
    look = torch.nn.Sequential(mm.OneHot(3), torch.nn.Flatten(), mm.encoder(15, dim=2))
    vae = mm.MultimodalVAE({"w": mm.Modality(mm.CategoricalLikelihood(net), look)}, mm.StandardNormal(2), mm.PoE())
    x, mask = {"w": torch.tensor([[2, 1, 0, 0, 0]])}, {"w": torch.tensor([[True, True, True, False, False]])}
    spell = {"w": lambda v: " ".join("xyz"[i] for i in (v if v.dim() == 1 else v.argmax(-1)))}
    assert texts(mm.plot_reconstructions(vae, x, mask, show=spell).child_axes[0]) == ["w", "z y x"]


def test_cross_modal_refuses_rows_without_a_modality_and_its_title_is_whole():
    vae, x = three(), three_rows(6)
    for columns in range(1, 7):
        ax = mm.plot_cross_modal(vae, {name: value[:columns] for name, value in x.items()})
        ax.figure.canvas.draw()
        extent = ax.title.get_window_extent()
        assert extent.x0 >= 0 and extent.x1 <= ax.figure.bbox.width and extent.y1 <= ax.figure.bbox.height
    with pytest.raises(ValueError, match=r"^modality 'body' is missing in row 3; give rows that have all"):
        mm.plot_cross_modal(vae, x, {"body": torch.arange(6) != 3})


@pytest.mark.parametrize(
    ("names", "angle", "width"),
    [
        (["a", "label"], 0, None),
        (["a", "blood_pressure_at_home"], 90, None),
        (range(30), 90, None),
        (["a", "label"], 0, 3.0),
        ([f"sensor {number}" for number in range(9)], 90, 6.4),  # in axes of the user's, as wide as they are
    ],
)
def test_names_of_columns_do_not_lie_upon_each_other(names, angle, width):
    ax = width and matplotlib.figure.Figure((width, 4.8)).subplots()
    ax = mm.plot_missingness({f"{name}": torch.zeros(4) for name in names}, ax=ax)
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {angle}
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))


def test_every_plot_takes_its_axes_after_what_it_draws_and_what_tunes_it_by_name():
    for name in (name for name in mm.__all__ if name.startswith("plot_")):
        parameters = list(inspect.signature(getattr(mm, name)).parameters.values())
        by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert by_place[-1] == "ax" and all(p.kind is p.KEYWORD_ONLY for p in parameters[len(by_place) :]), name
