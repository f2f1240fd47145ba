"""The certificate against guides that are right, over-confident, under-confident, biased and blind."""

import pyro
import pytest
import torch
from cases import NAMES, RECIPES, SinhArcsinh
from exact import LinearGaussian
from matplotlib.figure import Figure
from test_gaps import broken, collapsed
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.diagnostics.calibration import Calibration
from pyro_mmvae.diagnostics.certificate import LEVEL
from pyro_mmvae.diagnostics.certify import verdict
from pyro_mmvae.diagnostics.compare import Compared
from pyro_mmvae.diagnostics.patterns import chosen_subsets
from pyro_mmvae.diagnostics.ranks import Check, corrected
from pyro_mmvae.diagnostics.simulated import WholeMixtures, simulate, weight_at
from pyro_mmvae.recipes.base import ByComponent
from pyro_mmvae.weights import draw

WHOLE = [("a", "b", "c")]


def certificate(vae, subsets=None, rows=500, num_particles=300, gap_rows=0, **options):
    options = {"subsets": subsets, "rows": rows, "num_particles": num_particles, "gap_rows": gap_rows, **options}
    return mm.certify(vae, LinearGaussian().simulate(200), progress=False, **options)


def test_the_exact_guide_passes_for_every_subset():
    truth = LinearGaussian()
    found = certificate(truth.vae())
    assert len(found.rows) == 7
    x = truth.simulate(200)
    for row in found.rows:
        assert row.verdict == "pass", row
        assert row.log_likelihood == pytest.approx(truth.log_prob(x, subset=row.given).mean().item(), abs=1e-6)
        assert abs(row.gap) < 1e-9 and row.good_khat == 1.0
        assert row.dispersion == pytest.approx(1.0, abs=0.12)
        assert row.coverage50 == pytest.approx(0.5, abs=0.06) and row.coverage90 == pytest.approx(0.9, abs=0.04)


def test_a_prior_in_every_expert_is_over_confident():
    for row in certificate(LinearGaussian().vae(expert="posterior")).rows:
        assert row.verdict == "over-confident", row
        assert row.dispersion > 1.1 and row.coverage90 < 0.87 and row.gap > 0.1


@pytest.mark.parametrize("fusion", [mm.MoE, mm.MoPoE])
def test_mixtures_of_posteriors_are_under_confident_together_and_right_alone(fusion):
    found = certificate(LinearGaussian().vae(fusion(), expert="posterior"))
    for row in found.rows:
        assert row.verdict == ("pass" if len(row.given) == 1 else "under-confident"), row


def test_a_collapsed_guide_fails_although_its_ranks_of_z_are_uniform():
    blind = collapsed(LinearGaussian())
    calibration = mm.sbc(blind, ("a", "b", "c"))
    on_z = [test.p for test in calibration.tests() if test.quantity.startswith("z[")]
    assert min(on_z) * len(on_z) > LEVEL
    row = certificate(blind, WHOLE).rows[0]
    assert row.verdict == "under-confident" and row.because == "mean of log p(x | z)"
    assert row.gap > 1


def test_a_shifted_guide_is_biased():
    def shifted(loc, scale):
        return pyro.distributions.Normal(loc + 0.35 * scale, scale).to_event(1)

    row = certificate(LinearGaussian().vae(Changed(shifted)), WHOLE).rows[0]
    assert row.verdict == "biased" and row.because.startswith("mean of z[")


class Changed(nn.Module):
    """The exact posterior, changed."""

    def __init__(self, change):
        super().__init__()
        self.fusion, self.change = mm.PoE(), change

    def forward(self, experts):
        q = self.fusion(experts).base_dist
        return self.change(q.loc, q.scale)


def correlated(loc, scale):
    """Every coordinate is right alone."""
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.45], [0.45, 1.0]]))
    return pyro.distributions.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * root)


def right_on_average(loc, scale):
    """Too narrow in half of the rows and too wide in the others."""
    return pyro.distributions.Normal(loc, scale * torch.where(loc[..., :1] > 0, 0.85, 1.2)).to_event(1)


@pytest.mark.parametrize("change", [correlated, right_on_average])
def test_errors_that_cancel_over_coordinates_or_rows_are_found_by_the_weights(change):
    vae = LinearGaussian().vae(Changed(change))
    tests = mm.sbc(vae, WHOLE[0]).tests()
    others = [test.p for test in tests if test.quantity != "log weight"]
    assert min(others) * len(tests) > LEVEL
    row = certificate(vae, WHOLE).rows[0]
    assert (row.verdict, row.because) == ("mismatched", "mean of log weight") and row.p < 1e-6


def test_an_ecdf_has_no_direction_and_no_word_for_one():
    position = 0.5 + torch.tensor([-1.0, 1.0]).repeat(100) / 12**0.5  # mean and spread of the uniform
    assert verdict(Calibration({"z[0]": position}))[:2] == ("mismatched", "ECDF of z[0]")


@pytest.mark.parametrize(("stretch", "word"), [(1.0, "under-confident"), (1.065, "mismatched")])
def test_a_poor_fit_is_not_called_under_confident_beside_intervals_that_are_too_short(stretch, word):
    uniform = (torch.arange(250) + 0.5) / 250
    latent = (0.5 + stretch * (uniform - 0.5)).clamp(0, 1)
    found = verdict(Calibration({"z[0]": latent, "log p(x | z)": uniform**0.6}))
    assert found[:2] == (word, "mean of log p(x | z)")


@pytest.mark.parametrize("noise", [0.7, 0.242])
def test_rounding_does_not_refuse_an_exact_guide_of_many_numbers(noise):
    """With the smaller noise the log-densities of the entries cancel, so that their sum does not tell its rounding."""
    truth = LinearGaussian({"a": 3000, "b": 2})
    truth.noise["a"] = noise
    x = {name: value.float() for name, value in truth.simulate(5).items()}
    vae = truth.vae().float()
    torch.set_default_dtype(torch.float32)
    row = mm.certify(vae, x, subsets=[("a",)], gap_rows=0, progress=False).rows[0]
    assert row.verdict == "pass"


@pytest.mark.parametrize("fusion", [mm.MoE, mm.MoPoE])
@pytest.mark.parametrize("within", ["alone", "in a flow"])
def test_a_mixture_that_its_loss_scores_by_component_is_ranked_by_the_weights_of_the_whole(fusion, within):
    found = []
    for one in (fusion(), ByComponent(fusion())):
        one = one if within == "alone" else mm.Flow(one, [SinhArcsinh(2)])
        torch.manual_seed(0)
        found.append(mm.sbc(LinearGaussian().vae(one, expert="posterior"), ("a", "b"), rows=50).position)
    assert list(found[0]) == list(found[1]) and "log weight" in found[0]
    for first, second in zip(found[0].values(), found[1].values()):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("recipe", sorted(RECIPES.keys() - {"mmvm"}))  # which cannot be drawn from
def test_codes_of_the_guide_are_weighed_as_its_draws_are_when_they_are_taken_for_the_truth(recipe):
    vae = RECIPES[recipe]()[0].eval()
    for given in (NAMES[:1], NAMES):
        batch = simulate(vae, 20).batch.only(given)
        with torch.no_grad(), WholeMixtures():
            found = draw(vae, batch, 1)
            weight = weight_at(vae, {name: value[0] for name, value in found.latents.items()}, batch)
        torch.testing.assert_close(weight, found.log_weights[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["noise of its own", "draws alone"])
def test_a_guide_whose_density_is_not_known_at_the_truth_is_judged_by_the_other_checks(kind):
    vae = LinearGaussian().vae()
    flow = pyro.distributions.transforms.Planar(2)

    def guide(x, mask):
        with pyro.plate("data", len(next(iter(x.values()))), dim=-2):
            normal = pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1)
            if kind == "draws alone":
                pyro.sample("z", pyro.distributions.TransformedDistribution(normal, [flow]))
            else:
                noise = pyro.sample("noise", normal, infer={"is_auxiliary": True})
                pyro.sample("z", pyro.distributions.Delta(2 * noise, event_dim=1))

    found = mm.sbc(mm.Pair(vae.model, guide), ("a",), rows=50)
    assert sorted(found.position) == ["log p(x | z)", "tarp", "z[0]", "z[1]"]


CENTRES = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)


def which(x=None, mask=None):
    """A mixture of three normals, the code of which is the component."""
    rows = len(x["a"]) if x else 1
    with pyro.plate("data", rows, dim=-2):
        k = pyro.sample("k", pyro.distributions.Categorical(torch.ones(3) / 3).expand((rows, 1)))
        pyro.sample("a", pyro.distributions.Normal(CENTRES[k], 1.0), obs=x["a"].unsqueeze(1) if x else None)


@pytest.mark.parametrize(("tempered", "expected"), [(1.0, {"pass"}), (2.0, {"over-confident", "mismatched"})])
def test_discrete_codes_are_ranked_with_ties_broken_by_chance(tempered, expected):
    def guide(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-2):
            logits = -0.5 * (x["a"].reshape(-1, 1, 1) - CENTRES) ** 2
            pyro.sample("k", pyro.distributions.Categorical(logits=tempered * logits))

    pair, x = mm.Pair(which, guide), {"a": torch.randn(50)}
    row = mm.certify(pair, x, gap_rows=0, progress=False).rows[0]
    with pytest.warns(UserWarning, match=r"gap is not taken apart.* 'k' is discrete"):
        assert str(mm.certify(pair, x, progress=False).rows[0]) == str(row)
    assert row.verdict in expected, row
    assert tempered > 1 or (row.coverage90 == pytest.approx(0.9, abs=0.05) and abs(row.gap) < 1e-9)


@pytest.mark.parametrize(("events", "scale", "word"), [(0, 1.0, "pass"), (1, 1.0, "pass"), (1, 0.7, "over-confident")])
def test_codes_in_a_plate_inside_the_rows(events, scale, word):
    """Three items a row, each with a code of its own: x = u + noise, whose posterior is N(0.8 x, 0.2)."""
    normal, size = pyro.distributions.Normal, (2,) * events

    def model(x=None, mask=None):
        rows = len(x["a"]) if x else 1
        with pyro.plate("data", rows, dim=-2), pyro.plate("items", 3, dim=-1):
            u = pyro.sample("u", normal(torch.zeros(rows, 3, *size), 1.0).to_event(events))
            pyro.sample("a", normal(u, 0.5).to_event(events), obs=x["a"] if x else None)

    def guide(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-2), pyro.plate("items", 3, dim=-1):
            pyro.sample("u", normal(0.8 * x["a"], scale * 0.2**0.5).to_event(events))

    data = {"a": torch.randn(20, 3, *size)}
    row = mm.certify(mm.Pair(model, guide), data, rows=300, num_particles=50, gap_rows=0, progress=False).rows[0]
    assert row.verdict == word, row


def test_the_programs_of_a_model_with_repeats_are_certified_as_the_model_is():
    truth = LinearGaussian({"a": 4, "c": 5}, repeated=("c",))
    vae, x = truth.vae(), truth.simulate(20, repeats=3)
    options = {"rows": 100, "num_particles": 50, "gap_rows": 0, "progress": False}
    assert mm.certify(mm.Pair(vae.model, vae.guide), x, **options).rows == mm.certify(vae, x, **options).rows


def test_a_correct_guide_is_refused_no_more_often_than_stated_by_the_verdict_or_by_any_check():
    vae, repeats = LinearGaussian({"a": 4, "c": 5}).vae(), 200
    found = [mm.sbc(vae, ("a", "c"), rows=150, num_draws=60) for _ in range(repeats)]
    wrong = sum(verdict(one)[0] != "pass" for one in found)
    assert wrong <= 7  # binomial(200, 0.01): more than 7 has probability 0.001
    for column in zip(*(one.tests() for one in found)):  # each check alone
        share = sum(test.p < 0.05 for test in column) / repeats
        assert share < 0.05 + 3.5 * (0.05 * 0.95 / repeats) ** 0.5, column[0]


def test_the_gap_is_taken_apart_on_some_rows():
    """A prior in every expert is still a normal: all that it loses a better encoder could mend."""
    truth = LinearGaussian()
    right = certificate(truth.vae(), WHOLE, rows=200, gap_rows=20).rows[0]
    assert abs(right.approximation) < 0.01 and abs(right.amortisation) < 0.01
    found = certificate(truth.vae(expert="posterior"), WHOLE, rows=200, gap_rows=20, num_particles=1000)
    row = found.rows[0]
    assert row.amortisation == pytest.approx(row.gap, rel=0.5) and row.amortisation > 0.1
    assert abs(row.approximation) < 0.1 * row.amortisation
    text = str(found)
    assert "amortisation" in text and "20 rows" in text and max(len(line) for line in text.splitlines()) <= 110
    assert "amortisation" not in str(certificate(truth.vae(), WHOLE, rows=100))


def test_the_numbers_of_the_data_are_those_of_the_first_rows_that_have_the_subset():
    """Thirty of the forty that have a and b, five of them for the split; nothing is asked of c, which all have."""
    truth = LinearGaussian()
    x, vae = truth.simulate(60), truth.vae(expert="posterior")
    x["b"][:20] = torch.nan
    options = {"subsets": [("a", "b")], "rows": 30, "num_draws": 9, "num_particles": 2000, "progress": False}
    row = mm.certify(vae, x, gap_rows=5, **options).rows[0]
    part = {name: value[20:50] for name, value in x.items()}
    exact, (mean, covariance) = (ask(part, subset=["a", "b"]) for ask in (truth.log_prob, truth.posterior))
    q = vae.posterior(part, given=["a", "b"])
    q = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    kl = torch.distributions.kl_divergence(q, torch.distributions.MultivariateNormal(mean, covariance)).detach()
    assert row.rows == 30 and row.log_likelihood == pytest.approx(exact.mean().item(), abs=0.02)
    assert row.se == pytest.approx(exact.std().item() / 30**0.5, rel=0.05)
    assert row.gap == pytest.approx(kl.mean().item(), abs=0.03)
    assert row.amortisation == pytest.approx(kl[:5].mean().item(), abs=0.05) and abs(row.approximation) < 0.01
    assert abs(kl.mean() - kl[:5].mean()) > 0.1  # which it was not of all rows
    pyro.set_rng_seed(0)
    khat = mm.log_likelihood(vae, part, given=["a", "b"], num_particles=2000).khat
    assert row.good_khat == pytest.approx((khat < mm.khat_limit(2000)).double().mean().item(), abs=0.1)


def test_too_few_rows_get_no_verdict():
    assert certificate(LinearGaussian().vae(), WHOLE, rows=50).rows[0].verdict == "not enough draws"


def test_it_prints_a_table_and_gives_numbers_and_is_reproducible():
    vae = LinearGaussian().vae()
    state = torch.get_rng_state()
    first, second = (certificate(vae, WHOLE, seed=1) for _ in range(2))
    assert first.rows == second.rows and torch.equal(state, torch.get_rng_state())
    text = str(first)
    assert "a + b + c" in text and "pass" in text and "nats a row" in text
    words = ("over-confident", "under-confident", "biased", "mismatched")
    assert all(f"{word}:" in text.lower() for word in words)  # what each verdict says
    assert max(len(line) for line in text.splitlines()) <= 110
    data = first.to_xarray()
    assert data["dispersion"].sel(subset="a + b + c").item() == first.rows[0].dispersion
    assert data.attrs["simulated"] == 500


def test_by_default_many_modalities_are_checked_in_the_patterns_of_the_data():
    truth = LinearGaussian(dict.fromkeys("abcde", 2))
    x = truth.simulate(60)
    mask = {"b": torch.arange(60) < 20, "e": torch.arange(60) < 0}
    found = mm.certify(truth.vae(), x, mask, rows=100, progress=False)
    assert [row.given for row in found.rows] == [("a", "c", "d"), ("a", "b", "c", "d")]
    assert [row.rows for row in found.rows] == [60, 20]
    with pytest.raises(ValueError, match="unknown modality 'taste'"):
        mm.certify(truth.vae(), x, subsets=[("taste",)], progress=False)


def test_subsets_that_would_read_the_same_are_written_out():
    first, second = ("pressure", "temperature", "wind"), ("pressure", "temperature", "rain")
    rows = [mm.SubsetCertificate(given, "pass", "", 1.0, *[0] * 14) for given in (first, second)]
    assert "pressure + ... (3)" in str(mm.Certificate(rows[:1], 100, 100, 100, 0))
    lines = str(mm.Certificate(rows, 100, 100, 100, 0)).splitlines()
    assert all(sum(line.startswith(" + ".join(given)) for line in lines) == 2 for given in (first, second))


def test_a_subset_that_no_row_has_says_so_and_is_no_number():
    truth = LinearGaussian()
    x = truth.simulate(40)
    mask = {"a": torch.arange(40) < 20, "b": torch.arange(40) >= 20}
    found = mm.certify(truth.vae(), x, mask, subsets=[("a",), ("a", "b")], rows=20, num_draws=9, progress=False)
    assert "nan" not in str(found) and "a + b          0  no row has all of these" in str(found)


def test_models_of_long_names_are_told_apart():
    names = [f"a product of experts with the seed {seed}" for seed in (1, 2)]
    rows = [Compared(name, -1.0, 0.0, 0.1, 1.0) for name in names]
    first, second = str(mm.Comparison(rows)).splitlines()[1:3]
    assert first != second and len(first) < 80
    labels = [label.get_text() for label in mm.plot_compare(mm.Comparison(rows)).get_yticklabels()]
    assert len(set(labels)) == 2 and max(map(len, labels)) <= 30


def test_models_that_differ_in_their_guides_alone_tie_once_proposals_are_refined():
    truth = LinearGaussian(orthogonal=False)
    x = truth.simulate(20)
    vaes = {"good": truth.vae(), "bad": broken(truth, 2, 0.3)}
    by_guide, refined = (mm.compare(vaes, x, num_particles=400, refined=refined).rows for refined in (False, True))
    assert [row.name for row in by_guide] == ["good", "bad"] and by_guide[1].difference < -0.5
    assert by_guide[1].good_khat < 0.5 and [row.good_khat for row in refined] == [1, 1]
    exact = float(truth.log_prob(x).mean())
    assert all(abs(row.log_likelihood - exact) < 0.01 for row in refined) and abs(refined[1].difference) < 0.01
    assert "refined=True" in str(mm.Comparison(by_guide))
    assert "refined=True" not in str(mm.Comparison(by_guide[:1])) + str(mm.Comparison(refined, True))


def test_compare_pairs_the_rows():
    truth = LinearGaussian()
    x = truth.simulate(300)
    worse = truth.vae()
    worse.modalities["a"].decoder.net.bias.data += 0.3
    found = mm.compare({"right": truth.vae(), "worse": worse}, x, num_particles=2000)
    assert [row.name for row in found.rows] == ["right", "worse"]
    w = torch.cat([truth.loading[n] for n in truth.names])
    noise = torch.cat([torch.full((len(truth.loading[n]),), truth.noise[n] ** 2) for n in truth.names])
    covariance = w @ w.T + torch.diag(noise)
    shift = torch.zeros(len(noise))
    shift[: len(truth.loading["a"])] = 0.3
    expected = -0.5 * shift @ torch.linalg.solve(covariance, shift)  # minus KL between the two models
    last = found.rows[-1]
    assert abs(last.difference - expected) < 4 * last.se and 0 < last.se < 0.1
    assert "worse" in str(found) and "paired" in str(found)
    turned = found.against("worse")
    assert [row.difference for row in turned.rows] == [-last.difference, 0] and turned.rows[0].se == last.se
    assert [row.log_likelihood for row in turned.rows] == [float(found.values[row.name].mean()) for row in found.rows]
    assert "difference to worse, +- one" in str(turned) and "best" not in str(turned)
    assert "that of worse" in mm.plot_compare(turned, Figure().subplots()).get_xlabel()
    with pytest.raises(ValueError, match="there is no model 'wrong'; there are right, worse"):
        found.against("wrong")


def test_of_many_patterns_of_holes_the_most_frequent_are_looked_at():
    pick = torch.tensor([[i, j] for i in range(30) for j in range(i)] + [[29, 28]] * 9)
    mask = {f"m{m}": (pick == m).any(1) for m in range(30)}
    batch = mm.Batch.of({name: torch.zeros(len(pick), 1) for name in mask}, mask)
    with pytest.warns(
        UserWarning, match="435 different subsets .* the 64 most frequent are looked at, 16% of the rows"
    ):
        found = chosen_subsets(batch)
    assert len(found) == 64 and found[0] == ("m28", "m29") and all(len(given) == 2 for given in found)
    few = chosen_subsets(mm.Batch.of(dict(batch), {name: mask[name] & (pick[:, 1] < 2) for name in mask}))
    assert len(few) == 57 and () not in few


def test_p_values_are_corrected_for_their_number_and_stay_probabilities():
    tests = [Check("z", "mean", 0.0, p) for p in (0.01, 0.7, 0.9)]
    assert corrected(tests) == pytest.approx(0.03) and corrected(tests[1:]) == 1.0


def test_draws_are_printed_with_the_worst_of_their_numbers():
    numbers = [torch.tensor(n) for n in ([0.125, 0.625, -1.0], [300.0, 20.0, 90.0], [1.001, 1.009, 1.002])]
    found = mm.PosteriorDraws(
        {"z": torch.zeros(9, 3, 1)}, ["nuts", "nuts", "guide"], *numbers, torch.tensor([True, False, True])
    )
    rows = {line.split()[0]: line.split()[1:] for line in str(found).splitlines()[2:4]}
    assert rows["nuts"] == ["2", "1", "0.62", "20", "1.009"] and rows["guide"] == ["1", "1", "-1.00", "90", "1.002"]
