"""Importance weights and log-likelihoods against the oracle and against ArviZ."""

import math
from itertools import combinations

import pyro
import pytest
import torch
from cases import of_tables, three, three_rows
from exact import LinearGaussian

import pyro_mmvae as mm
from pyro_mmvae.chance import seeded
from pyro_mmvae.diagnostics.conditional import _mixture, _with
from pyro_mmvae.diagnostics.curve import _bound
from pyro_mmvae.psis import Smoothed, khat_limit, resampled, smooth

SUBSETS = [s for size in (1, 2, 3) for s in combinations("abc", size)]


def test_the_effective_number_of_raw_draws_is_kishs():
    log_weights = torch.randn(300, 5) * torch.linspace(0, 4, 5) - 900
    weights = (log_weights + 900).exp()
    found = smooth(log_weights)
    torch.testing.assert_close(found.raw_ess, weights.sum(0) ** 2 / weights.square().sum(0))
    torch.testing.assert_close(found.log_mean, weights.mean(0).log() - 900)
    torch.testing.assert_close(found.raw_ess[0], torch.tensor(300.0))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("draws", [100, 205, 900, 2500])
def test_khat_and_smoothed_weights_are_those_of_arviz(draws):
    """Of 0.x here, where no length of tail is rounded: it rounds up, arviz-stats and we down; see arviz1.py."""
    arviz = pytest.importorskip("arviz")
    if not hasattr(arviz, "psislw"):
        pytest.skip("ArviZ 1.x keeps psislw elsewhere")
    raw = torch.randn(draws, 40) * torch.linspace(0.1, 4, 40)
    theirs, khat = arviz.psislw(raw.T.numpy())
    found = smooth(raw)
    torch.testing.assert_close(found.khat, torch.as_tensor(khat), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.log_weights, torch.as_tensor(theirs.T), rtol=0, atol=1e-6)


def test_khat_tells_a_finite_variance_from_none():
    """Ratios of a normal to one of scale s: for s < 1 the tail index is 1 - s^2 in theory."""
    q = torch.distributions.Normal(0.0, torch.tensor([0.6, 0.9, 1.5]))
    z = q.sample((20_000,))
    khat = smooth(torch.distributions.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).khat
    assert 0.5 < khat[0] < 0.85 and khat[1] < 0.4 and khat[2] < 0


def test_few_draws_and_equal_weights_have_no_estimate():
    assert smooth(torch.randn(10, 3)).khat.isposinf().all()
    assert smooth(torch.zeros(100, 3)).khat.isneginf().all()
    assert mm.khat_limit(1000) == pytest.approx(2 / 3) and mm.khat_limit(10**6) == 0.7
    assert mm.khat_limit(1) == -math.inf


@pytest.mark.parametrize("given", SUBSETS)
def test_weights_repair_a_wrong_guide(given):
    """A single expert that counts the prior twice is too narrow, a mixture of experts too wide: weighted, they are the
    exact mean and sd."""
    truth, narrow = LinearGaussian(), len(given) == 1
    x, vae = truth.simulate(30), truth.vae(mm.PoE() if narrow else mm.MoE(), expert="posterior")
    found = mm.importance(vae, x, given=given, num_draws=20_000)
    mean, covariance = truth.posterior(x, subset=given)
    sd = covariance.diagonal(dim1=1, dim2=2).sqrt()
    good = found.khat < 0.5
    assert good.double().mean() > 0.5
    assert ((found.mean() - mean).abs() < 0.1 * sd)[good].all()
    assert ((found.sd() / sd - 1).abs() < 0.1)[good].all()
    plain = found.latents["z"].std(0) / sd
    assert ((plain < 0.97) if narrow else (plain > 1.03)).double().mean() > 0.9
    drawn = found.resample(4000)["z"]
    assert ((drawn.mean(0) - mean).abs() < 0.2 * sd)[good].all()
    assert (found.ess <= 20_000 + 1e-6).all() and (found.ess > 100)[good].all()


@pytest.mark.parametrize("given", [("a",), ("a", "c")])
def test_the_conditional_log_likelihood_is_the_models(given):
    truth = LinearGaussian()
    x, vae = truth.simulate(40), truth.vae(mm.MoE(), expert="posterior")
    options = {"given": given, "targets": ["b"], "num_particles": 20_000}
    exact = truth.log_prob(x, subset=[*given, "b"]) - truth.log_prob(x, subset=given)
    found = mm.conditional_log_likelihood(vae, x, **{**options, "num_particles": 500})
    z = (found.value - exact) / found.se
    assert z.abs().max() < 4.5 and 0.6 < z.std() < 1.5 and (found.se < 0.1).all()
    guide = mm.guide_predictive_log_likelihood(truth.vae(), x, **options)
    assert (guide.value - exact).mean().abs() < 0.01  # one number for an exact guide
    wrong = mm.guide_predictive_log_likelihood(truth.vae(expert="posterior"), x, **options)
    assert (wrong.value - exact).mean() < -0.01


def test_the_errors_of_what_tells_next_to_nothing_cancel():
    """As both terms have their draws in common: each alone has an error of some hundredths of a nat."""
    truth = LinearGaussian({"a": 4, "b": 3})
    truth.noise["b"] = 30.0
    x = truth.simulate(10)
    found = mm.conditional_log_likelihood(truth.vae(), x, given=["a"], targets=["b"], num_particles=100)
    exact = truth.log_prob(x) - truth.log_prob(x, subset=["a"])
    assert ((found.value - exact).abs() < 5 * found.se + 1e-6).all() and (found.se < 0.01).all()


def test_a_proposal_for_more_codes_has_those_of_fewer_beside_them():
    """Blocks of two normals, independent of each other; and the density of a mixture in equal parts."""
    factor, small = torch.randn(2, 4, 4), torch.randn(2, 2, 2)
    q = torch.distributions.MultivariateNormal(torch.randn(2, 4), factor @ factor.mT + torch.eye(4))
    part = torch.distributions.MultivariateNormal(torch.randn(2, 2), small @ small.mT + torch.eye(2))
    both = _with(q, part, torch.tensor([3, 1]))
    assert torch.equal(both.loc[:, [3, 1]], part.loc) and torch.equal(both.loc[:, [0, 2]], q.loc[:, [0, 2]])
    found = both.covariance_matrix[:, [3, 1, 0, 2]][..., [3, 1, 0, 2]]
    expected = torch.stack(
        [torch.block_diag(a, b) for a, b in zip(part.covariance_matrix, q.covariance_matrix[:, ::2, ::2])]
    )
    torch.testing.assert_close(found, expected)
    z = torch.randn(5, 2, 4)
    density = (q.log_prob(z).exp() + both.log_prob(z).exp()) / 2
    torch.testing.assert_close(_mixture([q, both]).log_prob(z).exp(), density)


def test_a_model_with_a_global_site_is_weighted_row_by_row():
    """A user's model with a global shift: given the shift, the weights of each row are those of that row."""
    truth = LinearGaussian()
    x = {"a": truth.simulate(12)["a"]}

    def model(x, mask):
        shift = pyro.sample("shift", pyro.distributions.Normal(0.0, 1e-6))
        with pyro.plate("data", len(x["a"]), dim=-2):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("a_plate", 1, dim=-1):
                loc = z @ truth.loading["a"].T + truth.offset["a"] + shift.unsqueeze(-1)
                pyro.sample("a", pyro.distributions.Normal(loc, truth.noise["a"]).to_event(1), obs=x["a"].unsqueeze(1))

    ours = truth.vae()

    def guide(x, mask):
        pyro.sample("shift", pyro.distributions.Normal(0.0, 1e-6))
        ours.guide(x, mask)

    found = mm.log_likelihood(mm.Pair(model, guide), x, num_particles=200)
    torch.testing.assert_close(found.value, truth.log_prob(x), rtol=0, atol=1e-3)


def test_a_row_plate_elsewhere_is_found_by_its_name():
    truth = LinearGaussian()
    x = {"a": truth.simulate(12)["a"]}
    vae = truth.vae()

    def model(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z @ truth.loading["a"].T + truth.offset["a"]
            pyro.sample("a", pyro.distributions.Normal(loc, truth.noise["a"]).to_event(1), obs=x["a"])

    def guide(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", vae.posterior(x, mask))

    found = mm.log_likelihood(mm.Pair(model, guide), x, num_particles=50)
    torch.testing.assert_close(found.value, truth.log_prob(x), rtol=0, atol=1e-8)
    assert mm.importance(mm.Pair(model, guide), x, num_draws=30).latents["z"].shape == (30, 12, 2)


def test_the_conditional_log_likelihood_of_private_codes_needs_no_good_guide():
    """Codes that only the targets have: both terms share their draws, and the errors are what they say."""
    torch.manual_seed(3)
    vae = mm.recipes.dmvae(of_tables(2), 2, 2)[0]
    x = {"a": torch.randn(8, 3), "b": torch.randn(8, 2)}
    found = mm.conditional_log_likelihood(vae, x, given=["a"], targets=["b"], num_particles=1000)
    both, one = (mm.annealed_log_likelihood(vae, x, given=s, temperatures=60) for s in (["a", "b"], ["a"]))
    error = (found.se**2 + both.se**2 + one.se**2).sqrt()
    assert ((found.value - both.value + one.value).abs() < 4.5 * error + 1e-3).all() and (error < 0.2).all()


def test_the_iwae_curve_climbs_from_the_elbo_to_the_log_likelihood():
    truth = LinearGaussian()
    x = truth.simulate(40)
    vae, names = truth.vae(mm.MoE(), expert="posterior"), ["a", "b"]
    curve = mm.iwae_curve(vae, x, given=names, num_particles=[300, 1, 3000, 30])
    assert curve.num_particles == [1, 30, 300, 3000]
    raw = mm.importance(vae, x, given=names, num_draws=3000).raw
    assert ((curve.value[0] - raw.mean(0)).abs() < 4.5 * 2**0.5 * curve.se[0]).all()
    assert (curve.value.mean(1).diff() > 0).all()
    z = (curve.value[-1] - truth.log_prob(x, subset=names)) / curve.se[-1]
    assert z.abs().max() < 4.5 and 0.6 < z.std() < 1.5
    exact = mm.iwae_curve(truth.vae(), x, num_particles=[1, 5])
    torch.testing.assert_close(exact.value, truth.log_prob(x).expand(2, -1), rtol=0, atol=1e-8)
    assert mm.iwae_curve(vae, x, num_particles=[1]).se.isnan().all()  # of one draw, which is not known to be exact


def test_the_proposal_of_a_likelihood_looks_at_what_it_is_given():
    """Exact guides have one weight where they look at what is scored, and no other place has."""
    truth = LinearGaussian()
    x, vae = truth.simulate(30), truth.vae()
    for given, targets in [(["a"], None), (["a"], ["a", "b"]), (["b"], ["a"])]:
        found = mm.log_likelihood(vae, x, given=given, targets=targets, num_particles=4000)
        z = (found.value - truth.log_prob(x, subset=targets or ["a", "b", "c"])) / found.se
        assert found.se.min() > 1e-4 and z.abs().max() < 4.5 and 0.6 < z.std() < 1.5
    assert mm.log_likelihood(vae, x, targets=["a"], num_particles=50).se.max() < 1e-8


def test_the_standard_errors_of_a_bound_are_those_of_means_of_weights():
    log_weights = 3 * torch.randn(60, 4) - 700
    weights = (log_weights + 700).exp()
    value, se = _bound(log_weights, 60)  # one group: the error of the logarithm of a mean
    torch.testing.assert_close(value, weights.mean(0).log() - 700)
    torch.testing.assert_close(se, weights.std(0) / weights.mean(0) / 60**0.5)
    torch.testing.assert_close(_bound(log_weights, 40), _bound(log_weights[:40], 40))  # one, and what is left over
    value, se = _bound(log_weights, 25)  # two, and ten draws that are left over
    groups = weights[:50].reshape(2, 25, 4).mean(1).log() - 700
    torch.testing.assert_close(value, groups.mean(0))
    torch.testing.assert_close(se, groups.std(0) / 2**0.5)


def test_the_guide_predicts_nothing_where_no_target_was_observed():
    truth = LinearGaussian()
    x, mask = truth.simulate(6), {"c": torch.arange(6) < 3}
    found = mm.guide_predictive_log_likelihood(truth.vae(), x, mask, given=["a"], targets=["c"], num_particles=50)
    assert (found.value[3:] == 0).all() and (found.value[:3] < 0).all()
    nothing = {"c": torch.zeros(6, dtype=torch.bool)}
    found = mm.guide_predictive_log_likelihood(truth.vae(), x, nothing, given=["a"], targets=["c"], num_particles=50)
    assert (found.value == 0).all()


def test_draws_of_a_few_rows_at_a_time_are_those_of_all(monkeypatch):
    """A modality that no row of a part has is scored as zero there, and each row has its own draws."""
    vae, x, mask = three(), three_rows(12), {"body": torch.arange(12) < 5, "label": torch.arange(12) > 8}
    batch = vae.check(x, mask)
    monkeypatch.setattr(mm.weights, "NUMBERS_AT_ONCE", 1)
    latents, weights, likelihood = mm.weights.draw_in_parts(vae, batch, 4000)
    for name in ("body", "label"):
        scored = likelihood[name] != 0
        assert torch.equal(scored, mask[name].expand_as(scored))
    monkeypatch.undo()
    whole = mm.weights.draw(vae, batch, 4000)
    for ours, theirs in [(latents["z"], whole.latents["z"]), (weights.unsqueeze(-1), whole.log_weights.unsqueeze(-1))]:
        se = (ours.var(0) / 4000 + theirs.var(0) / 4000).sqrt()
        assert bool(((ours.mean(0) - theirs.mean(0)).abs() < 5 * se).all())


@pytest.mark.parametrize("features", [8, 2000, 9000])
def test_chunks_hold_all_rows_and_draws_and_no_more_numbers_than_at_once(features, monkeypatch):
    """One of the modalities has no row, and takes no room; chunks are half full at least."""
    monkeypatch.setattr(mm.weights, "NUMBERS_AT_ONCE", 2**13)
    for rows, draws in ((1, 1), (7, 1), (300, 1), (3, 40), (300, 40), (300, 1000), (40, 10**5)):
        there = {"a": torch.ones(rows, dtype=torch.bool), "b": torch.zeros(rows, dtype=torch.bool)}
        batch = mm.Batch.of({name: torch.zeros(rows, features) for name in "ab"}, there)
        assert mm.weights.size_of(batch) == 512 + features
        found = list(mm.weights.chunks(batch, draws))
        assert sum(part.rows for part, _ in found) == rows and all(sum(sizes) == draws for _, sizes in found)
        most = max(part.rows * max(sizes) for part, sizes in found)
        assert most == 1 or most * (512 + features) <= 2**13
        assert most == rows * draws or (most == 1 < 2**13 / (512 + features) < 2) or most * (512 + features) > 2**12
        parts = list(mm.weights.parts(batch, draws))
        assert sum(part.rows for part in parts) == rows and len(parts) == -(-rows // parts[0].rows)
        assert parts[0].rows == 1 or parts[0].rows * draws * (512 + features) <= 2**13
        assert len(parts) == 1 or (parts[0].rows + 1) * draws * (512 + features) > 2**13


def test_codes_that_a_part_of_the_rows_has_none_of_are_no_number_there():
    z, w, more = torch.randn(4, 2, 3), torch.randn(4, 1, 2), torch.randn(4, 1, 3)
    found = mm.weights.joined([(2, {"z": z}), (1, {"w": w, "z": more})])
    assert torch.equal(found["z"], torch.cat([z, more], 1)) and torch.equal(found["w"][:, 2:], w)
    assert found["w"].shape == (4, 3, 2) and found["w"][:, :2].isnan().all()


def test_a_seed_gives_the_same_numbers_and_the_generator_back():
    before = torch.get_rng_state()
    found = []
    for seed in (3, 3, 4):
        with seeded(seed):
            found.append(torch.rand(5))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), before)


def proposal(draws, khat=0.1, log_mean=0.0, raw_ess=50.0, ess=None):
    """One row; equal weights of as many draws as are effective, and none of the others."""
    log_weights = torch.full((draws, 1), -torch.inf)
    log_weights[: ess or draws] = -math.log(ess or draws)
    return Smoothed(log_weights, *(torch.tensor([v]) for v in (khat, log_mean, raw_ess)))


@pytest.mark.parametrize("errors", [1.0, 3.0])
def test_a_proposal_misses_what_another_has_found_beyond_its_errors(errors):
    """A hundredth and 3 / 100 of nats, and the errors of means of 100 draws of which 80 count, and of 200 of which 50;
    seven nats where fewer than ten count."""
    own = proposal(100, log_mean=-900.0, raw_ess=60.0, ess=80)
    doubt = 0.04 + errors * (1 / 80 - 1 / 100 + 1 / 50 - 1 / 200) ** 0.5
    for count, least in ((50.0, doubt), (10.0, doubt + errors * (0.0975**0.5 - 0.0175**0.5)), (9.9, 7.0)):
        for beyond in (-1e-6, 1e-6):
            other = proposal(200, log_mean=-900.0 + least + beyond, raw_ess=count)
            assert bool(own.misses(other, errors)) == (beyond > 0) and not other.misses(own, errors)
    exact, lucky = proposal(100, raw_ess=100.0), proposal(100, log_mean=0.05, raw_ess=100.0 + 1e-9)
    assert exact.misses(lucky)  # of which rounding makes the variance negative


def test_the_better_proposal_misses_nothing_has_a_good_khat_or_the_larger_ess():
    few, many = proposal(100, ess=50), proposal(100, ess=80)
    assert many.beats(few) and not few.beats(many) and not few.beats(few)
    for bad in (proposal(100, ess=80, khat=0.9), proposal(100, ess=80, khat=khat_limit(100))):
        assert few.beats(bad) and not bad.beats(few)
    further = proposal(100, ess=50, khat=0.9, log_mean=0.6, raw_ess=50.0)
    assert further.beats(many) and not many.beats(further)
    assert not further.beats(many, errors=6.0) and many.beats(further, errors=6.0)


def test_draws_are_taken_as_often_as_their_weights_say_and_by_strata():
    rows, weights = 20_000, torch.tensor([0.05, 0.31, 0.64, 0.0])
    index = resampled(weights.log().unsqueeze(1).expand(-1, rows), 3)
    counts = torch.nn.functional.one_hot(index, 4).sum(0).double()
    assert ((counts.mean(0) - 3 * weights).abs() <= 4.5 * (counts.var(0) / rows).sqrt()).all()
    assert (counts.var(0) < 0.99 * 3 * weights * (1 - weights))[:3].all()  # that of draws without strata


def test_an_expectation_is_of_draws_and_not_of_what_was_averaged_before():
    """A mean over draws would come back as it is, without the weights."""
    truth = LinearGaussian()
    found = mm.importance(truth.vae(mm.MoE(), expert="posterior"), truth.simulate(6), num_draws=50)
    above = found.expectation(lambda codes: codes["z"][..., 0] > 0)
    torch.testing.assert_close(above, ((found.latents["z"][..., 0] > 0) * found.log_weights.exp()).sum(0))
    for function in (lambda codes: codes["z"][..., 0].mean(0), lambda codes: codes["z"].mean()):
        with pytest.raises(ValueError, match=r"function returned shape \(.*\); give one .* 50 draws of 6 rows"):
            found.expectation(function)
    with pytest.raises(ValueError, match="num_draws is -1; give a whole number from 1 on"):
        found.resample(-1)
