"""C2ST and the predictive check of left-out modalities: level, power, and what they can tell apart."""

import math

import pytest
import torch
from exact import LinearGaussian
from test_gaps import broken
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.diagnostics.predictive import FEWEST, _left_out, _t_test


def test_c2st_keeps_its_level():
    found = [mm.c2st(torch.randn(60, 2), torch.randn(60, 2), permutations=39, seed=s).p for s in range(200)]
    share = sum(p <= 0.05 for p in found) / 200
    assert share < 0.05 + 3.5 * (0.05 * 0.95 / 200) ** 0.5
    assert sum(found) / 200 == pytest.approx(0.5, abs=0.1)


def test_c2st_keeps_its_level_with_a_classifier_of_few_features():
    options = {"permutations": 39, "features": lambda z: z}
    found = [mm.c2st(torch.randn(50, 1), torch.randn(50, 1), seed=s, **options).p for s in range(600)]
    for level in (0.1, 0.2):
        share = sum(p <= level for p in found) / 600
        assert share < level + 3.5 * (level * (1 - level) / 600) ** 0.5


def test_c2st_accuracy_is_that_of_the_best_classifier_for_shifted_normals():
    a, b = torch.randn(2000, 2), torch.randn(2000, 2) + torch.tensor([1.0, 0.0])
    best = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    found = mm.c2st(a, b, permutations=19)
    assert found.accuracy == pytest.approx(best, abs=0.02) and found.p == 0.05


def test_c2st_is_the_same_in_other_units():
    a, b, units = torch.randn(200, 2), torch.randn(200, 2) * 1.3, torch.tensor([1024.0, 0.125])
    assert mm.c2st(a, b, permutations=9) == mm.c2st(units * a, units * b, permutations=9)


def test_c2st_is_the_same_wherever_rows_are_and_however_wide():
    a, b, width, place = torch.randn(100, 2, 2), torch.randn(100, 2, 2) + 0.3, torch.tensor([[64.0], [0.5]]), 40.0
    moved = (width * one + torch.tensor([[place], [-place]]) for one in (a, b))
    assert mm.c2st(a, b, permutations=9) == mm.c2st(*moved, permutations=9)


def test_permutations_that_do_as_well_count_against_a_difference():
    same = torch.zeros(50, 1)
    assert mm.c2st(same, same, features=lambda z: z, permutations=19).p == 1.0


def test_a_p_value_of_two_tests_is_twice_the_smaller_and_stays_a_probability():
    even = (torch.arange(FEWEST) + 0.5).unsqueeze(1) / FEWEST  # of the mean and spread that calibrated ranks have
    assert _left_out("a", even).p == 1.0
    high = even * 0.9 + 0.1
    centred = (high - 0.5).squeeze(1)
    two = [_t_test(centred), _t_test(12 * centred**2 - 1)]
    assert _left_out("a", high).p == pytest.approx(2 * min(two)) and min(two) < 0.5


def test_c2st_sees_correlation_and_shape_where_means_and_scales_agree():
    a = torch.randn(1000, 2)
    z = torch.randn(1000, 2)
    tilted = torch.stack([z[:, 0], 0.7 * z[:, 0] + math.sqrt(1 - 0.49) * z[:, 1]], 1)
    halves = (0.9 * torch.randn(1000, 2).sign() + math.sqrt(0.19) * torch.randn(1000, 2)) * torch.tensor([1.0, 0.0])
    halves = halves + z * torch.tensor([0.0, 1.0])
    for other in (tilted, halves):
        assert mm.c2st(a, other, permutations=49).p == 0.02


def test_c2st_between_guide_and_exact_posterior():
    truth = LinearGaussian()
    x = truth.simulate(8)
    mean, covariance = truth.posterior(x)
    exact = torch.distributions.MultivariateNormal(mean, covariance).sample((200,))
    right = mm.importance(truth.vae(), x, num_draws=200).latents["z"]
    wide = mm.importance(truth.vae(mm.MoE(), expert="posterior"), x, num_draws=200).latents["z"]
    assert mm.c2st(right, exact, permutations=99).p > 0.01
    found = mm.c2st(wide, exact, permutations=99)
    assert found.p == 0.01 and found.accuracy > 0.55
    with pytest.raises(ValueError, match="as many of each"):
        mm.c2st(right, exact[:50])


def test_left_out_modalities_of_the_oracle_are_calibrated_and_in_level():
    truth = LinearGaussian({"a": 3, "b": 2})
    vae, found = truth.vae(), []
    for seed in range(100):
        rows = mm.leave_one_out(vae, truth.simulate(100, seed=seed), num_draws=60, seed=seed).rows
        found += rows
    assert [row.name for row in found[:2]] == ["a", "b"]
    share = sum(row.p < 0.05 for row in found) / 200
    assert share < 0.05 + 3.5 * (0.05 * 0.95 / 200) ** 0.5
    assert sum(r.coverage50 for r in found) / 200 == pytest.approx(0.5, abs=0.01)
    assert sum(r.coverage90 for r in found) / 200 == pytest.approx(0.9, abs=0.01)
    assert "left out" in str(mm.PredictiveCheck(found[:2]))


@pytest.mark.parametrize("entries", [1, 3])
def test_p_values_of_the_fewest_rows_that_have_one_keep_their_level(entries):
    found = [_left_out("a", torch.rand(FEWEST, 1).expand(-1, entries)).p for _ in range(2000)]
    assert sum(p < 0.05 for p in found) / 2000 < 0.075 and sum(p < 0.01 for p in found) / 2000 < 0.025


def test_a_model_that_is_too_sure_of_its_noise_fails_on_data_and_says_how():
    truth = LinearGaussian()
    x = truth.simulate(300)
    x["b"][:20] = torch.nan
    sure = truth.vae()
    x["a"] = truth.offset["a"] + 1.6 * (x["a"] - truth.offset["a"])  # data wider than the model says
    x["c"] = x["c"] + 0.8
    found = {row.name: row for row in mm.leave_one_out(sure, x).rows}
    assert found["a"].dispersion > 1.2 and found["a"].coverage90 < 0.8 and found["a"].p < 1e-3
    assert found["c"].bias > 0.1 and found["b"].rows == 280


def test_the_model_alone_is_asked_where_the_guide_is_wrong(monkeypatch):
    """A guide off by two standard deviations of its own makes a right model look wrong; a wrong model stays wrong."""
    monkeypatch.setattr("pyro_mmvae.weights.NUMBERS_AT_ONCE", 2**20)  # ten rows at a time
    truth = LinearGaussian()
    x, astray = truth.simulate(40), broken(truth, 3, 0.5)
    by_guide, by_model = (mm.leave_one_out(astray, x, method=method) for method in ("guide", "refined"))
    assert max(row.p for row in by_guide.rows) < 1e-3 < 0.01 < min(row.p for row in by_model.rows)
    assert sum(row.coverage90 for row in by_model.rows) / 3 == pytest.approx(0.9, abs=0.04)
    x["c"] = x["c"] + 0.8
    shifted = {row.name: row for row in mm.leave_one_out(astray, x, method="refined").rows}
    assert shifted["c"].p < 1e-3 and shifted["c"].bias > 0.1
    assert "or of its guide: mm.leave_one_out" in str(by_guide) and "of the model: the codes are" in str(by_model)
    assert [row.certified for row in by_model.rows] == [1.0] * 3 and math.isnan(by_guide.rows[0].certified)
    with pytest.raises(ValueError, match="unknown method 'gide'; choose one of auto, guide, refined"):
        mm.leave_one_out(astray, x, method="gide")


def test_counts_and_single_entries_have_uniform_pit():
    class Rate(nn.Module):
        def forward(self, z):
            return torch.full((*z.shape[:-1], 2), 0.3)

    parts = {"n": mm.Modality(mm.PoissonLikelihood(Rate()), mm.encoder(2, dim=2))}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    rate = vae.likelihoods()["n"].mean.flatten()[0]
    x = torch.poisson(rate.expand(500, 2))
    mask = torch.rand(500, 2) > 0.3
    found = mm.leave_one_out(vae, {"n": x}, {"n": mask}).rows[0]
    assert found.entries == int(mask.sum()) and found.p > 0.01
    assert mm.rank_ecdf(found.pit[~found.pit.isnan()]).p > 0.01
