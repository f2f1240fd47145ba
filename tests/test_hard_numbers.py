"""Numbers where they are hard to get: modes that a guide lacks, rounding, ties and few rows, against closed forms."""

import math
from copy import deepcopy

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import From, three, three_rows
from exact import LinearGaussian
from matplotlib.figure import Figure
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.diagnostics.predictive import _t_test
from pyro_mmvae.diagnostics.ranks import rank
from pyro_mmvae.diagnostics.rungs import Budget, Ladder
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.distributions import Mixture, NegativeBinomial
from pyro_mmvae.psis import smooth


def normal(loc, scale):
    return dist.Normal(loc, torch.full_like(loc, scale)).to_event(1)


@pytest.mark.parametrize("off", [0.0, 1e4, 2e5])
def test_large_log_weights_do_not_pass_for_equal_ones(off):
    torch.manual_seed(0)
    raw = 10 * torch.randn(1000, 3, dtype=torch.float32)
    torch.testing.assert_close(smooth(raw - off).khat, smooth(raw).khat, rtol=0, atol=0.05)


@pytest.mark.parametrize("size", [-17_000, 25_000, 60_000])
def test_weights_that_are_equal_but_for_rounding_are_good_below_a_hundred_thousand_nats(size):
    torch.manual_seed(0)
    last = torch.finfo(torch.float32).eps * abs(size)  # pictures err by a few of these
    raw = (size + last * torch.randn(1000, 2, dtype=torch.float64)).float()
    assert smooth(raw).khat.tolist() == [-math.inf] * 2


def test_weights_are_alike_up_to_the_rounding_of_the_larger_terms_that_they_are_differences_of():
    """Of rows with little to see and many codes: those were called -inf, some k-hat, or none at all, by chance."""
    torch.manual_seed(0)
    prior, q = (100 + 1e-13 * torch.randn(1000, 50) for _ in range(2))
    assert smooth(prior - q - 3).khat.tolist() == [-math.inf] * 50
    assert (smooth(1e-3 * torch.randn(1000, 50)).khat > -1).all()  # which are alike to no such degree


def test_an_exact_guide_of_large_pictures_is_trusted_in_single_precision(single):
    """At -20,000 nats a worse proposal, with weights that differ, must not take the place of the exact one."""
    truth = LinearGaussian({"picture": 3 * 80 * 80})
    vae, x = truth.vae(), truth.simulate(6)
    exact = mm.log_likelihood(deepcopy(vae).double(), {"picture": x["picture"].double()}, num_particles=50).value
    found = mm.gaps(vae, x)
    assert exact.max() < -20_000 and (found.khat < mm.khat_limit(1000)).all()
    assert (found.log_likelihood - exact).abs().max() < 0.01  # one of those others errs by 0.2
    assert mm.posterior_draws(vae, x, progress=False).method == ["guide"] * 6


def test_weights_that_rounding_makes_alike_are_not_called_good():
    raw = torch.full((1000, 2), -2e5, dtype=torch.float32)
    assert smooth(raw).khat.tolist() == [math.inf] * 2
    assert smooth(raw.double()).khat.tolist() == [-math.inf] * 2


def test_draws_that_are_impossible_do_not_spoil_the_k_hat_of_the_others():
    raw = torch.full((1000, 2), -3.0, dtype=torch.float32)
    raw[::7] = -torch.inf
    assert smooth(raw).khat.tolist() == [-math.inf] * 2


def two_modes():
    """x given z is N(z^2, 0.3), and the guide is the prior: the posterior has two modes and the guide draws both."""
    look = From(lambda x: normal(torch.zeros(len(x), 1), 1.0))
    part = mm.Modality(mm.NormalLikelihood(From(torch.square), scale=0.3), look)
    vae = mm.MultimodalVAE({"a": part}, mm.StandardNormal(1), mm.PoE(prior_expert=False))
    return vae, {"a": torch.full((60, 1), 4.0)}


def test_draws_of_one_mode_are_not_certified_where_the_guide_has_seen_two():
    vae, x = two_modes()
    found = mm.posterior_draws(vae, x, progress=False, max_nuts_rows=0)
    mean = found.latents["z"].mean(0).squeeze(-1)
    assert not bool((found.certified & (mean.abs() > 0.5)).any())


def test_the_guides_draws_are_what_they_were_after_other_methods_served_the_row():
    """Else half of the chains start at the refined normal's draws instead, and all of them in one mode."""
    vae, x = two_modes()
    target = Target(vae, vae.check(x), 2)
    ladder = Ladder(target, "refined", 1000, 0.1, Budget(0, math.inf))
    before = ladder.guide.z.clone()
    assert "refined" in ladder.climb(lambda _: None).method
    assert torch.equal(ladder.guide.z, before)


def test_the_gaps_of_such_rows_have_the_whole_likelihood():
    vae, x = two_modes()
    z = torch.linspace(-6, 6, 12001).double()
    exact = (-0.5 * z**2 - 0.5 * ((4 - z**2) / 0.3) ** 2).exp().sum().mul(0.001 / (2 * math.pi * 0.3)).log()
    error = mm.gaps(vae, x).log_likelihood - exact
    assert float(error.median().abs()) < 0.1 and float((error < -0.5).double().mean()) < 0.1  # without a mode -0.69


def far_out():
    """x = 1 says that |z| > 1, so half of the posterior is on either side; the guide knows one of them."""
    look = From(lambda x: normal(torch.full((len(x), 1), 1.5), 0.3))
    part = mm.Modality(mm.BernoulliLikelihood(From(lambda z: 20 * (z.abs() - 1))), look)
    return mm.MultimodalVAE({"a": part}, mm.StandardNormal(1), mm.MoE()), {"a": torch.ones(60, 1)}


def test_the_prior_sees_the_mode_that_the_guide_does_not_know():
    vae, x = far_out()
    z = torch.linspace(-8, 8, 16001)
    density = (-0.5 * z**2 - nn.functional.softplus(-20 * (z.abs() - 1))).exp() / math.sqrt(2 * math.pi)
    found = mm.gaps(vae, x)
    assert (found.log_likelihood - density.sum().mul(0.001).log()).abs().max() < 0.25  # -0.69 without the other mode
    assert (found.khat < mm.khat_limit(1000)).all()
    draws = mm.posterior_draws(vae, x, progress=False, max_nuts_rows=0)
    assert draws.certified.all() and (draws.latents["z"].mean(0).abs() < 0.5).all()  # 1.5 in one mode


def test_a_guide_with_next_to_nothing_of_a_posterior_is_not_certified():
    """It fits a mode of 1e-5 of the mass; of a thousand draws of the prior two or three reach the other, not ten."""
    modes = dist.Normal(torch.tensor([[-0.36, 0.0], [0.36, 0.0]]), 0.06).to_event(1)
    posterior = dist.MixtureSameFamily(dist.Categorical(torch.tensor([1e-5, 1 - 1e-5])), modes)

    def logits(z):
        log_p = posterior.log_prob(z) - dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(z) - 6
        return (log_p - torch.log1p(-log_p.exp())).unsqueeze(-1)

    look = From(lambda x: normal(torch.tensor([[-0.36, 0.0]]).expand(len(x), 2), 0.06))
    part = mm.Modality(mm.BernoulliLikelihood(From(logits)), look)
    vae = mm.MultimodalVAE({"a": part}, mm.StandardNormal(2), mm.PoE(prior_expert=False))
    x = {"a": torch.ones(60, 1)}
    found = mm.posterior_draws(vae, x, progress=False, max_nuts_rows=0)
    assert not bool((found.certified & (found.latents["z"].mean(0)[:, 0] < 0)).any())
    gaps = mm.gaps(vae, x)
    assert not bool(((gaps.log_likelihood + 6 < -2) & (gaps.khat < mm.khat_limit(1000))).any())  # -11.5


def test_a_conditional_likelihood_knows_all_modes_of_the_condition():
    """x_a = 1 leaves four stripes of the prior, and the normal of x_a is in one of them; b | a by quadrature."""
    torch.manual_seed(0)
    stripes = From(lambda z: 10 * (4 * z).sin())
    parts = {
        "a": mm.Modality(mm.BernoulliLikelihood(stripes), From(lambda x: normal(torch.full((len(x), 1), 0.9), 0.4))),
        "b": mm.Modality(mm.NormalLikelihood(nn.Identity(), scale=0.5), From(lambda x: normal(0.8 * x, 0.4))),
    }
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(1), mm.PoE())
    x, z = {"a": torch.ones(40, 1), "b": torch.linspace(-2, 2, 40).unsqueeze(1)}, torch.linspace(-8, 8, 16001)
    label = dist.Normal(0.0, 1.0).log_prob(z) - nn.functional.softplus(-10 * (4 * z).sin())
    exact = (label + dist.Normal(z, 0.5).log_prob(x["b"])).logsumexp(1) - label.logsumexp(0)
    found = mm.conditional_log_likelihood(vae, x, given=["a"], targets=["b"])
    error = (found.value - exact).abs()
    assert error.max() < 0.6 and (error < 3 * found.se).double().mean() > 0.85  # by the two normals alone 6.1 and 0.16


@pytest.mark.parametrize("scale", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("width", [0.05, 0.1])
def test_a_guide_with_nine_tenths_of_a_posterior_is_not_certified(width, scale):
    """x = 1 makes the posterior 0.9 N(-0.6, width) + 0.1 N(0.6, width); good weights and a log p of -0.1 look right."""
    modes = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.9, 0.1])), dist.Normal(torch.tensor([-0.6, 0.6]), width)
    )

    def logits(z):
        log_p = modes.log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z) - 3.5  # log p(x = 1 | z)
        return log_p - torch.log1p(-log_p.exp())

    look = From(lambda x: normal(torch.full((len(x), 1), -0.6), scale * width))
    part = mm.Modality(mm.BernoulliLikelihood(From(logits)), look)
    vae = mm.MultimodalVAE({"a": part}, mm.StandardNormal(1), mm.PoE(prior_expert=False))
    x, sd = {"a": torch.ones(60, 1)}, math.sqrt(width**2 + 0.09 * 1.2**2)
    found = mm.posterior_draws(vae, x, progress=False, max_nuts_rows=0)
    error = (found.latents["z"].mean(0).squeeze(-1) + 0.48).abs() / sd  # 0.33 in one mode
    assert float((found.certified & (error > 0.2)).double().mean()) < 0.1
    error = mm.gaps(vae, x).log_likelihood + 3.5  # -0.105 in one mode; by the prior alone, 0.08 in the root mean square
    assert float((error**2).mean().sqrt()) < 0.03


def test_draws_of_a_pooled_prior_have_the_constant_that_its_density_leaves_out():
    """The pool is 0.5 N(0, 1) and 0.5 q in the exponent, which integrates to less than one; by quadrature."""
    look = From(lambda x: normal(2 * x, 0.3))
    part = mm.Modality(mm.NormalLikelihood(nn.Identity(), scale=1.0), look)
    vae, x = mm.MultimodalVAE({"a": part}, mm.Pooled(mm.StandardNormal(1), 0.5), mm.PoE()), torch.randn(40, 1)
    z = torch.linspace(-12, 12, 12001)
    pool = 0.5 * (dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(2 * x, 0.3).log_prob(z))
    exact = (pool + dist.Normal(x, 1.0).log_prob(z)).logsumexp(1) + math.log(0.002)
    found = mm.gaps(vae, {"a": x}, full_rank=True)
    torch.testing.assert_close(found.log_likelihood, exact, rtol=0, atol=1e-3)
    target = Target(vae, vae.check({"a": x}), 2)
    value = target.prior(20_000)[1].logsumexp(0) - math.log(20_000)
    torch.testing.assert_close(value, exact, rtol=0, atol=0.1)


def test_a_prior_that_cannot_be_drawn_is_no_witness():
    vae, x = three(), three_rows(6)
    pooled = mm.MultimodalVAE(dict(vae.modalities), mm.Pooled(mm.Laplace(2), 0.2), mm.PoE())
    assert mm.gaps(pooled, x, num_draws=100, steps=5).log_likelihood.isfinite().all()
    assert mm.posterior_draws(pooled, x, method="guide", progress=False).latents["z"].shape == (1000, 6, 2)
    with pytest.warns(match="is no likelihood"):
        found = mm.conditional_log_likelihood(pooled, x, given=["body"], targets=["label"], num_particles=100)
    assert found.value.isfinite().all()
    with pytest.raises(ValueError, match=r"pool of Laplace.* can be scored, not drawn.* leave from_prior=False"):
        mm.annealed_log_likelihood(pooled, x, chains=2, temperatures=2, from_prior=True)


def conjugate(x=None, mask=None):
    batch = mm.Batch.of(x, mask)
    with pyro.plate("data", batch.rows, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        for name in "ab":
            p = dist.Normal(z, 1.0).to_event(1)
            pyro.sample(name, p) if x is None else pyro.sample(name, p, obs=batch[name])


def through_noise(x=None, mask=None):
    """The exact posterior, as Pyro's own guides are written: noise, and a code that is a function of it."""
    batch = mm.Batch.of(x, mask)
    loc, scale = (batch["a"] + batch["b"]) / 3, torch.tensor(3**-0.5)
    with pyro.plate("data", batch.rows, dim=-1):
        noise = dist.Normal(torch.zeros(batch.rows, 1), 1.0).to_event(1)
        e = pyro.sample("eps", noise, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(loc + scale * e, log_density=-scale.log(), event_dim=1))


def test_the_density_of_a_guides_noise_is_part_of_the_weights():
    torch.manual_seed(0)
    pair, x = mm.Pair(conjugate, through_noise), {name: 1.4 * torch.randn(50, 1) for name in "ab"}
    covariance = torch.eye(2) + 1
    exact = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(torch.cat([x["a"], x["b"]], -1))
    torch.testing.assert_close(mm.log_likelihood(pair, x, num_particles=50).value, exact, rtol=0, atol=1e-4)
    assert mm.Objective().loss(*pair, x) == pytest.approx(-float(exact.sum()), abs=1e-3)


def test_many_steps_of_a_large_log_likelihood_are_not_rounded_one_by_one(single):
    """The guide is exact, so that every weight is p(x), whatever the number of temperatures."""

    def model(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("a", dist.Normal(z, 1.0).to_event(1), obs=x["a"])
            pyro.factor("pixels", torch.full((len(x["a"]),), 90_000.0))

    def guide(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", normal(x["a"] / 2, 0.5**0.5))

    x = {"a": 1.4 * torch.randn(8, 1)}
    exact = 90_000 + dist.Normal(0.0, 2**0.5).log_prob(x["a"].squeeze(-1))
    found = mm.annealed_log_likelihood(mm.Pair(model, guide), x, chains=4, temperatures=60)
    assert (found.value - exact).abs().max() < 0.012  # a number of this size is rounded by 0.004


def test_usage_of_a_prior_of_two_levels_is_that_of_z_alone():
    torch.manual_seed(0)
    slope = 1 / (1 + 4 / 0.25)  # v ~ N(0, 1), z | v ~ N(2v, 0.5), so z ~ N(0, 4.25), and up is p(v | z)
    up, down = From(lambda z: normal(slope * 8 * z, slope**0.5)), From(lambda v: normal(2 * v, 0.5))
    prior = mm.HierarchicalNormal(1, mm.StandardNormal(1), down, up)
    part = mm.Modality(mm.NormalLikelihood(nn.Linear(1, 1)), From(lambda x: normal(0.5 * x, 0.4)))
    vae, x = mm.MultimodalVAE({"a": part}, prior, mm.PoE(prior_expert=False)), {"a": torch.randn(500, 1)}
    exact = torch.distributions.kl_divergence(vae.posterior(x).base_dist, dist.Normal(0.0, 4.25**0.5)).mean()
    assert mm.usage(vae, x).kl == pytest.approx(float(exact), abs=0.1)


@pytest.mark.parametrize("dispersion", [1e-2, 1.0, 29.0, 31.0, 1e4, 1e7])
@pytest.mark.parametrize("count", [0.0, 3.0, 500.0])
def test_negative_binomials_have_their_digits_in_single_precision(dispersion, count):
    logits = math.log(5.0 / dispersion)
    exact = dist.NegativeBinomial(torch.tensor(dispersion).double(), logits=torch.tensor(logits).double())
    single = (torch.tensor(number, dtype=torch.float32) for number in (dispersion, logits, count))
    r, odds, k = single
    found = NegativeBinomial(r, logits=odds).log_prob(k)
    exact = float(exact.log_prob(torch.tensor(count).double()))
    assert float(found) == pytest.approx(exact, rel=2e-5, abs=2e-4)


def test_negative_binomials_beyond_the_start_of_the_series_are_pyros():
    r, k = torch.tensor([[30.1], [40.0], [300.0]]), torch.tensor([0.0, 3.0, 40.0, 500.0])
    logits = torch.tensor(-0.5)
    exact = dist.NegativeBinomial(r, logits=logits).log_prob(k)
    assert (NegativeBinomial(r, logits=logits).log_prob(k) - exact).abs().max() < 2e-7  # the series errs by r^-3 / 360


@pytest.mark.parametrize("draws", [1, 4, 19])
def test_ranks_among_equals_are_uniform(draws):
    torch.manual_seed(0)
    found = rank(torch.zeros(draws, 200_000), torch.zeros(200_000))
    assert 12 * float(found.var()) == pytest.approx(1.0, abs=0.01)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.005)


def test_a_likelihood_that_is_not_finite_names_the_row_and_what_is_large_in_it():
    truth = LinearGaussian()
    x = truth.simulate(4)
    x["b"][2, 0] = 1e160
    with pytest.raises(ValueError, match=r"^log p\(x\) is not finite in row 2, .* 1e\+160, of modality 'b'"):
        mm.log_likelihood(truth.vae(), x, num_particles=9)
    with pytest.raises(ValueError, match=r"^the sum of the weights is not finite in row 2, "):
        mm.importance(truth.vae(), x, num_draws=9)
    with pytest.raises(ValueError, match=r"^log p\(x\) is not finite in row 2, "):
        mm.certify(truth.vae(), x, subsets=[["b"]], rows=4, num_draws=9, num_particles=9, gap_rows=0, progress=False)


def test_levels_far_from_the_thresholds_keep_their_log_probability():
    column, start = mm.OrdinalColumn(5), mm.OrdinalColumn(5).start().to(torch.float32)
    for out, level, exact in ((-20.0, 1.0, -18.96), (-30.0, 4.0, -31.5), (30.0, 0.0, -31.5)):
        p = column.distribution(torch.tensor([out], dtype=torch.float32), start)
        assert float(p.log_prob(torch.tensor(level))) == pytest.approx(exact, abs=0.01)
    ours = column.distribution(torch.tensor([0.3]), start.double())
    theirs = dist.OrderedLogistic(torch.tensor([0.3]), start[0].double() + torch.arange(4.0))
    torch.testing.assert_close(ours.probs.squeeze(), theirs.probs.squeeze())
    closed = mm.OrdinalColumn(3).distribution(torch.zeros(1), torch.tensor([0.0, -800.0]))  # two thresholds are one
    assert float(closed.log_prob(torch.tensor(1.0))) == pytest.approx(math.log(1e-12 / 4), abs=0.01)


def test_the_variance_of_a_narrow_mixture_far_from_zero():
    parts = dist.Normal(torch.tensor([[30.0], [30.0]]), 1e-3)
    assert float(Mixture(parts, torch.full((2, 1), 0.5)).variance) == pytest.approx(1e-6, rel=1e-3)


def test_one_draw_has_no_standard_error_and_gives_no_warning():
    vae, x = three(), three_rows(4)
    one = mm.conditional_log_likelihood(vae, x, given=["body"], targets=["label"], num_particles=1)
    split = mm.gaps(vae, x, num_draws=1, steps=2)
    bounds = mm.sandwich(vae, given=["body"], rows=1, chains=1, temperatures=2)
    errors = [mm.log_likelihood(vae, x, num_particles=1).se, one.se, split.approximation_se, split.amortisation_se]
    errors += [bounds.lower_se, bounds.upper_se, torch.tensor(bounds.width[1])]
    assert all(bool(se.isnan().all()) for se in errors)


def test_rows_without_the_subset_are_not_counted_as_good():
    torch.manual_seed(0)
    x = {"a": 5 * torch.randn(100, 3), "b": torch.randn(100, 2)}
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2, hidden=8), mm.StandardNormal(2), mm.PoE())
    shares = []
    for hidden in (0, 90):
        torch.manual_seed(0)
        mask = {"a": torch.arange(100) >= hidden}
        ax = mm.plot_khat(vae, x, mask, subsets=[["a"]], num_particles=200, ax=Figure().subplots())
        shares.append(float(ax.texts[0].get_text().split("%")[0]))
    assert abs(shares[1] - shares[0]) < 40 and shares[1] < 90


@pytest.mark.parametrize("labels", [[1.0] * 20 + [math.nan] * 10, ["a"] * 20 + [None] * 10])
def test_every_row_is_drawn_whatever_its_label(labels):
    vae = three()
    ax = mm.plot_latent(vae, three_rows(30), labels=labels, ax=Figure().subplots())
    assert sum(len(line.get_xdata()) for line in ax.lines) == 30
    with pytest.raises(ValueError, match="labels have shape"):
        mm.plot_latent(vae, three_rows(30), labels="a", ax=Figure().subplots())


def test_seeds_and_names_that_cannot_be():
    vae, x = three(), three_rows(4)
    with pytest.raises(ValueError, match=r"seed is 1.5"):
        mm.leave_one_out(vae, x, seed=1.5)
    with pytest.raises(ValueError, match="num_draws is 0"):
        mm.to_arviz(vae, x, num_draws=0)
    draw = mm.MultimodalVAE({"draw": vae.modalities["body"]}, mm.StandardNormal(2), mm.PoE())
    with pytest.raises(ValueError, match="modality 'draw' has the name of an axis"):
        mm.to_arviz(draw, {"draw": x["body"]})


def test_tied_scores_have_the_recall_of_chance():
    assert mm.retrieval(torch.zeros(2, 2)).recall[1] == 0.5
    assert mm.retrieval(torch.zeros(20, 20)).recall[5] == 0.25
    with pytest.raises(ValueError, match="NaN"):
        mm.retrieval(torch.full((3, 3), math.nan))


def test_few_rows_are_judged_by_students_t():
    scipy = pytest.importorskip("scipy.stats")
    for rows in (5, 10, 40):
        values = torch.linspace(-1.0, 2.0, rows).double()
        assert _t_test(values) == pytest.approx(scipy.ttest_1samp(values.numpy(), 0).pvalue, rel=0.03)
    assert math.isnan(mm.leave_one_out(three(), three_rows(19), num_draws=9).rows[0].p)
    assert mm.leave_one_out(three(), three_rows(20), num_draws=9).rows[0].p >= 0


def test_two_samples_with_a_number_that_is_none_are_refused():
    draws = torch.randn(50, 2)
    draws[7] = math.nan
    with pytest.raises(ValueError, match="2 of the numbers in the reference are not finite"):
        mm.c2st(torch.randn(50, 2), draws)


def test_the_category_of_a_table_is_the_most_probable_of_the_averaged_ones():
    torch.manual_seed(0)
    columns = [mm.RealColumn(), mm.CategoryColumn(3)]
    net = nn.Linear(1, mm.outputs_of(columns))
    with torch.no_grad():  # of z: category 0 on one side, 2 on the other, 1 never
        net.weight.zero_(), net.bias.zero_()
        net.weight[-3:, 0], net.bias[-3:] = torch.tensor([-20.0, 0.0, 20.0]), torch.tensor([0.0, -50.0, 0.0])
    part = mm.Modality(mm.TableLikelihood(net, columns), mm.NormalHead(8, 1), trunk=mm.TableTrunk(columns, 8))
    vae = mm.MultimodalVAE({"t": part}, mm.StandardNormal(1), mm.PoE())
    x, mask = {"t": torch.zeros(40, 2)}, {"t": torch.zeros(40, 2, dtype=torch.bool)}
    assert set(mm.predict(vae, x, mask)["t"][:, 1].tolist()) <= {0.0, 2.0}
