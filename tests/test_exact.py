"""The core against the linear-Gaussian oracle: posteriors, bounds and log-likelihoods of every subset."""

from itertools import combinations

import pyro.distributions as dist
import pytest
import torch
from cases import FUSIONS, OF_NETWORKS
from exact import LinearGaussian
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

import pyro_mmvae as mm
from pyro_mmvae import weights

SUBSETS = [s for size in (1, 2, 3) for s in combinations("abc", size)]


def holes(rows, *names):
    return {name: torch.rand(rows) > 0.4 for name in names}


@pytest.mark.parametrize("subset", SUBSETS)
def test_poe_is_the_posterior(subset):
    truth = LinearGaussian()
    x, vae = truth.simulate(20), truth.vae()
    q = vae.posterior(x, given=subset)
    mean, covariance = truth.posterior(x, subset=subset)
    torch.testing.assert_close(q.mean, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(q.variance, covariance.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=1e-10)
    assert (covariance - torch.diag_embed(q.variance)).abs().max() < 1e-10


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_elbo_of_the_exact_guide_is_log_p(subset):
    truth = LinearGaussian()
    x, vae = truth.simulate(20), truth.vae()
    x = {name: x[name] for name in subset}
    exact = truth.log_prob(x).sum().item()
    assert -Trace_ELBO().loss(vae.model, vae.guide, x) == pytest.approx(exact, abs=1e-4)
    renyi = RenyiELBO(alpha=0.0, num_particles=3, vectorize_particles=True, max_plate_nesting=2)
    assert -renyi.loss(vae.model, vae.guide, x) == pytest.approx(exact, abs=1e-4)


def test_the_mean_field_elbo_is_log_p_on_average():
    truth = LinearGaussian()
    x, vae = truth.simulate(20), truth.vae()
    draws = torch.tensor([-TraceMeanField_ELBO().loss(vae.model, vae.guide, x) for _ in range(400)])
    assert (draws.mean() - truth.log_prob(x).sum()).abs() < 4 * draws.std() / 20


def test_the_elbo_is_log_p_with_holes_and_single_entries_missing():
    """With single entries missing the experts of this oracle are not exact, so there only importance sampling is."""
    truth = LinearGaussian()
    x, vae = truth.simulate(40), truth.vae()
    mask = holes(40, "a", "b", "c")
    assert -Trace_ELBO().loss(vae.model, vae.guide, x, mask) == pytest.approx(
        truth.log_prob(x, mask).sum().item(), abs=1e-4
    )
    mask["b"] = torch.rand(40, 3) > 0.4
    found = mm.log_likelihood(vae, x, mask, num_particles=4000)
    assert (found.value - truth.log_prob(x, mask)).mean().abs() < 0.01


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name not in OF_NETWORKS])
def test_log_likelihood_is_exact_with_every_fusion(fusion, orthogonal):
    truth = LinearGaussian(orthogonal=orthogonal)
    rows = 60
    x, expert = truth.simulate(rows), "factor" if fusion.startswith("PoE") or "with prior" in fusion else "posterior"
    vae = truth.vae(FUSIONS[fusion](x, truth.dim), expert=expert)
    mask = holes(rows, "a", "c")
    for seen in (None, mask):
        found = mm.log_likelihood(vae, x, seen, num_particles=5000 if orthogonal else 20_000)
        trusted = found.khat < 0.7
        assert trusted.double().mean() > 0.95
        assert (found.value - truth.log_prob(x, seen))[trusted].mean().abs() < 0.01


def test_log_likelihood_does_not_depend_on_chunks_or_order(monkeypatch):
    truth = LinearGaussian()
    x, vae, turned = truth.simulate(50), truth.vae(mm.MoE(), expert="posterior"), torch.randperm(50)
    whole = mm.log_likelihood(vae, x, num_particles=4000)
    monkeypatch.setattr(weights, "NUMBERS_AT_ONCE", 600 * 1500)
    parts = mm.log_likelihood(vae, {k: v[turned] for k, v in x.items()}, num_particles=4000)
    se = (whole.se[turned] ** 2 + parts.se**2).sqrt()
    assert ((whole.value[turned] - parts.value).abs() < 4.5 * se + 1e-9).all()
    assert (parts.value - truth.log_prob(x)[turned]).mean().abs() < 0.01


def test_the_standard_error_is_the_spread_over_repetitions():
    truth = LinearGaussian()
    x, vae = truth.simulate(200), truth.vae(mm.MoE(), expert="posterior")
    runs = [mm.log_likelihood(vae, x, num_particles=2000) for _ in range(10)]
    spread = torch.stack([run.value for run in runs]).std(0).mean()
    assert spread / torch.stack([run.se for run in runs]).mean() == pytest.approx(1.0, abs=0.15)


def test_khat_of_an_exact_guide_is_minus_infinity_and_se_zero():
    truth = LinearGaussian()
    found = mm.log_likelihood(truth.vae(), truth.simulate(5), num_particles=1000)
    assert (found.khat < -1).all() or found.khat.isneginf().all()
    assert found.se.max() < 1e-9


def test_the_weight_of_a_modality_scales_the_loss_and_not_the_log_likelihood():
    truth = LinearGaussian()
    x, vae = truth.simulate(10), truth.vae()
    plain = -Trace_ELBO().loss(vae.model, vae.guide, {"a": x["a"]})
    vae.modalities["a"].weight = 0.0
    nothing = -Trace_ELBO().loss(vae.model, vae.guide, {"a": x["a"]})
    vae.modalities["a"].weight = 3.0
    with torch.random.fork_rng():
        torch.manual_seed(1)
        three = -Trace_ELBO().loss(vae.model, vae.guide, {"a": x["a"]})
    vae.modalities["a"].weight = 1.0
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = -Trace_ELBO().loss(vae.model, vae.guide, {"a": x["a"]})
        z = vae.posterior({"a": x["a"]}).mean
    assert plain == pytest.approx(truth.log_prob({"a": x["a"]}).sum().item(), abs=1e-6)
    assert nothing < 0 and z.shape == (10, 2)  # only -KL is left
    vae.modalities["a"].weight = 3.0
    found = mm.log_likelihood(vae, {"a": x["a"]}, num_particles=100)
    torch.testing.assert_close(found.value, truth.log_prob({"a": x["a"]}), atol=1e-8, rtol=0)
    assert three != one


def test_imputation_is_the_exact_conditional_and_leaves_observed_entries_alone():
    truth = LinearGaussian()
    x, vae = truth.simulate(6), truth.vae()
    mask = {"b": torch.zeros(6, dtype=torch.bool), "a": torch.rand(6, 4) > 0.0}
    drawn = mm.impute(vae, x, mask, num_draws=20_000)
    assert torch.equal(drawn["a"], x["a"].expand(20_000, -1, -1)) and torch.equal(drawn["c"][7], x["c"])
    mean, covariance = truth.posterior(x, subset=["a", "c"])
    w = truth.loading["b"]
    loc, spread = mean @ w.T + truth.offset["b"], w @ covariance @ w.T + truth.noise["b"] ** 2 * torch.eye(3)
    sd = spread.diagonal(dim1=1, dim2=2).sqrt()
    assert ((drawn["b"].mean(0) - loc).abs() < 4.5 * sd / 20_000**0.5).all()
    torch.testing.assert_close(drawn["b"].std(0), sd, rtol=0.03, atol=0)


def test_translate_and_predict_have_the_exact_mean():
    truth = LinearGaussian()
    x, vae = truth.simulate(6), truth.vae()
    mean, _ = truth.posterior(x, subset=["a"])
    loc = mean @ truth.loading["c"].T + truth.offset["c"]
    drawn = mm.translate(vae, {"a": x["a"], "c": x["c"]}, to="c", num_draws=20_000)
    assert (drawn.mean(0) - loc).abs().max() < 4.5 * drawn.std(0).max() / 20_000**0.5
    predicted = mm.predict(vae, {"a": x["a"]}, num_draws=20_000)["c"]
    assert (predicted - loc).abs().max() < 0.05


def test_generated_rows_have_the_moments_of_the_model():
    truth = LinearGaussian()
    rows = mm.generate(truth.vae(), 20_000)
    joint = torch.cat([rows[name] for name in truth.names], -1)
    w = torch.cat([truth.loading[name] for name in truth.names])
    noise = torch.cat([torch.full((len(truth.loading[n]),), truth.noise[n] ** 2) for n in truth.names])
    covariance = w @ w.T + torch.diag(noise)
    assert (joint.T.cov() - covariance).abs().max() < 0.08
    assert (joint.mean(0) - torch.cat([truth.offset[n] for n in truth.names])).abs().max() < 0.05


def test_a_modality_that_is_named_twice_counts_once():
    """As where lists of names are put one behind the other."""
    truth = LinearGaussian()
    x, vae = truth.simulate(20), truth.vae()
    exact = truth.log_prob(x, subset="ab") - truth.log_prob(x, subset="a")
    for ask in (mm.guide_predictive_log_likelihood, mm.conditional_log_likelihood):
        found = ask(vae, x, given=["a", "a"], targets=["b", "b"])
        assert ((found.value - exact).abs() < 5 * found.se).all()


@pytest.mark.parametrize("fusion, expert", [(mm.PoE(), "full rank"), (mm.MoE(), "posterior")], ids=["PoE", "MoE"])
def test_a_posterior_without_a_formula_of_its_entropy_says_how_to_average_it(fusion, expert):
    truth = LinearGaussian()
    x, mask = truth.simulate(4), {"b": torch.arange(4) > 1, "a": torch.arange(4) > 2, "c": torch.zeros(4).bool()}
    q = truth.vae(fusion, expert=expert).posterior(x, mask, given=["b"])
    with pytest.raises(NotImplementedError, match=r"in nats, by -q.log_prob\(q.sample\(\(1000,\)\)\).mean"):
        q.entropy()
    _, covariance = truth.posterior(x, mask, subset="b")
    exact = dist.MultivariateNormal(torch.zeros(4, 2), covariance).entropy()
    average = -q.log_prob(q.sample((1000,))).mean(0).detach()
    torch.testing.assert_close(average, exact, rtol=0, atol=4.5 * 1000**-0.5)
