"""Codes with conditions beside them, against closed forms: what stands beside z is no code, whoever moves on it."""

import math
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch
from cases import From
from matplotlib.figure import Figure
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_mmvae as mm

WEIGHT, SHIFT, NOISE = 0.8, 1.5, 0.6
VARIANCE = 1 / (1 + WEIGHT**2 / NOISE**2)
X = {
    "x": torch.linspace(-2, 3, 6, dtype=torch.float64).unsqueeze(1),
    "c": torch.tensor([[0.0], [1.0], [-1.0], [2.0], [0.5], [0.0]], dtype=torch.float64),
}


def mean_of(x, c):
    return VARIANCE * WEIGHT / NOISE**2 * (x - SHIFT * c)


def exact_cvae(looks=None, prior=None):
    """z is N(0, 1) and x given z and c is N(0.8 z + 1.5 c, 0.6); the encoder knows the posterior."""
    parts = {
        "x": mm.Modality(
            mm.NormalLikelihood(From(lambda z: WEIGHT * z[:, :1] + SHIFT * z[:, 1:2]), NOISE), nn.Identity()
        ),
        "c": mm.Modality(None, nn.Identity() if looks is None else looks[0]),
    }
    net = From(lambda h: dist.Normal(mean_of(h[:, :1], h[:, 1:2]), VARIANCE**0.5).to_event(1))
    return mm.recipes.cvae(parts, 1, "x", net, {"x": 1, "c": 1}, prior)[0]


def exact_log_p():
    return dist.Normal(SHIFT * X["c"], (WEIGHT**2 + NOISE**2) ** 0.5).log_prob(X["x"]).squeeze(1)


@pytest.mark.parametrize("full_rank", [False, True])
def test_an_exact_guide_has_no_gaps(full_rank):
    found = mm.gaps(exact_cvae(), X, full_rank=full_rank)
    torch.testing.assert_close(found.log_likelihood, exact_log_p(), rtol=0, atol=0.02)
    assert found.approximation.abs().max() < 0.02 and found.amortisation.abs().max() < 0.02


def test_annealing_moves_the_code_alone():
    found = mm.annealed_log_likelihood(exact_cvae(), X)
    torch.testing.assert_close(found.value, exact_log_p(), rtol=0, atol=0.05)


def test_stock_nuts_and_autoguides_leave_conditions_as_they_are():
    vae = exact_cvae()
    walk = MCMC(NUTS(vae.model), num_samples=300, warmup_steps=150, disable_progbar=True)
    walk.run(X)
    z = walk.get_samples()["z"].squeeze(2)
    assert (z[..., 1:] == torch.cat([X["c"], torch.ones(6, 1)], 1)).all()
    torch.testing.assert_close(z[..., 0].mean(0), mean_of(X["x"], X["c"]).squeeze(1), rtol=0, atol=0.15)
    assert float(z[..., 0].var(0).mean()) == pytest.approx(VARIANCE, rel=0.15)
    guide = AutoNormal(vae.model)
    guide(X)
    assert guide.locs.z_unconstrained.shape == (6, 1, 1)


def test_the_support_of_a_condition_maps_there_and_back():
    site = exact_cvae().prior(exact_cvae().experts(X))
    there = torch.distributions.biject_to(site.support)
    z = torch.randn(6, 1, 1)
    assert torch.equal(there.inv(there(z)), z) and there.log_abs_det_jacobian(z, there(z)).abs().max() == 0
    assert there.forward_shape(z.shape) == there(z).shape and there.inverse_shape(there(z).shape) == z.shape
    assert site.support.check(there(z)).all()


def test_usage_ranks_and_pictures_are_of_the_code():
    vae = exact_cvae()
    used = mm.usage(vae, X, num_draws=200)
    assert used.active.tolist() == [True] and used.kl_of.shape == (1,)
    mean = mean_of(X["x"], X["c"])
    exact = torch.distributions.kl_divergence(dist.Normal(mean, VARIANCE**0.5), dist.Normal(0.0, 1.0)).mean()
    assert used.kl == pytest.approx(exact.item(), abs=0.1)
    calibration = mm.sbc(vae, ["x"], rows=200)
    assert set(calibration.position) == {"z[0]", "log p(x | z)", "log weight", "tarp"}
    shown = mm.plot_latent(vae, X, ax=Figure().subplots()).lines[0].get_xydata()
    torch.testing.assert_close(torch.as_tensor(shown[:, 0]), (mean - mean.mean()).squeeze(1))


def test_agreement_similarity_and_what_is_written_to_cells_are_of_the_code():
    vae, c = exact_cvae(), torch.randn(2000, 1)
    rows = {"c": c, "x": SHIFT * c + (WEIGHT**2 + NOISE**2) ** 0.5 * torch.randn(2000, 1)}
    found = mm.consistency(vae, rows, given=["c"], more=["c", "x"])
    for value, right, se in ((found.shift, 0.0, found.shift_se), (found.spread, 1.0, found.spread_se)):
        assert value.shape == (1,) and abs(float(value) - right) < 4.5 * float(se)
    mean = mean_of(X["x"], X["c"])
    side = (mean - mean.mean()).sign()
    similar = mm.latent_similarity(vae, X, query=["x", "c"], target=["c", "x"])
    torch.testing.assert_close(similar, side @ side.T)
    cells = SimpleNamespace(obs_names=list("abcdef"), X=X["x"].numpy(), layers={"c": X["c"].numpy()}, obsm={})
    mm.to_mudata(vae, cells, {"x": "X", "c": "c"})
    torch.testing.assert_close(torch.as_tensor(cells.obsm["X_mmvae"]), mean)
    assert cells.obsm["X_mmvae_sd"] == pytest.approx(VARIANCE**0.5)


def test_a_condition_that_no_encoder_looks_at_is_not_passed_over():
    """It would count as missing in every row, without a word."""
    with pytest.raises(ValueError, match="'c' has no encoder, so that nobody looks at it; give it one"):
        mm.log_likelihood(exact_cvae(looks=[None]), X)


def test_a_fusion_beside_conditions_has_the_prior_of_z_as_a_factor_and_where_nothing_else_is_given():
    prior = mm.LearnedNormal(1)
    prior.loc.data += 2
    parts = {
        "x": mm.Modality(
            mm.NormalLikelihood(From(lambda z: z[:, :1]), NOISE), From(lambda x: dist.Normal(x, NOISE).to_event(1))
        ),
        "c": mm.Modality(None, nn.Identity()),
    }
    fusion = mm.Conditioned(mm.LooksAt(["x"], mm.PoE()), {"c": 1})
    vae = mm.MultimodalVAE(parts, mm.Conditioned(prior, {"c": 1}), fusion)
    q = vae.posterior(X, {"x": torch.arange(6) < 4})
    precision = 1 + 1 / NOISE**2
    mean = torch.cat([(2 + X["x"][:4, 0] / NOISE**2) / precision, torch.full((2,), 2.0)])
    torch.testing.assert_close(q.mean, torch.stack([mean, X["c"][:, 0], torch.ones(6)], -1))
    torch.testing.assert_close(q.variance[:, 0], torch.tensor([1 / precision] * 4 + [1.0] * 2))
    exact = dist.Normal(2.0, (1 + NOISE**2) ** 0.5).log_prob(X["x"][:, 0])
    torch.testing.assert_close(mm.log_likelihood(vae, X, num_particles=9).value, exact)
    assert [row.rows for row in mm.leave_one_out(vae, X).rows] == [6]


def test_a_prior_learnt_from_conditions_can_do_without_them():
    looks = From(lambda h: dist.Normal(h[:, :1] + h[:, 1:2], 1.0).to_event(1))  # N(c + 1, 1) where c is there
    prior = mm.DynamicPrior(mm.JointEncoder(looks, {"c": 1}), otherwise=mm.StandardNormal(1))
    vae = exact_cvae(prior=prior)
    z = vae.prior(vae.experts(X, {"c": torch.arange(6) < 4})).mean[:, 0, 0]
    torch.testing.assert_close(z, torch.cat([X["c"][:4, 0] + 1, torch.zeros(2)]))
    assert mm.leave_one_out(vae, X, method="refined").rows[0].certified > 0


def shifted(scale=1.0):
    """z is N(c + 1, 1), x as in `exact_cvae`; a guide that knows the posterior given x and c, up to its scale."""
    looks = From(lambda h: dist.Normal(h[:, :1] + h[:, 1:2], 1.0).to_event(1))
    vae = exact_cvae(prior=mm.DynamicPrior(mm.JointEncoder(looks, {"c": 1}), otherwise=mm.StandardNormal(1)))

    def posterior(h):
        mean = mean_of(h[:, :1], h[:, 1:2]) + VARIANCE * (h[:, 1:2] + 1)
        return dist.Normal(mean, scale * VARIANCE**0.5).to_event(1)

    vae.fusion.part.fusion.net.function = posterior
    return vae


@pytest.mark.parametrize("scale, word", [(1.0, "pass"), (0.7, "over-confident"), (1.4, "under-confident")])
def test_a_certificate_takes_conditions_from_the_data(scale, word):
    vae, subsets = shifted(scale), [("c",), ("x", "c")]
    found = mm.certify(vae, X, subsets=subsets, rows=300, gap_rows=2, progress=False).rows
    assert [row.verdict for row in found] == ["pass", word]
    exact = dist.Normal((WEIGHT + SHIFT) * X["c"] + WEIGHT, (WEIGHT**2 + NOISE**2) ** 0.5).log_prob(X["x"]).mean()
    assert found[0].log_likelihood == 0 and found[1].log_likelihood == pytest.approx(float(exact), abs=0.1)
    calibration = mm.sbc(vae, ["x", "c"], X, rows=300)
    assert (abs(calibration.dispersion - 1) < 4.5 * (0.8 / 300) ** 0.5) == (scale == 1)
    with pytest.raises(
        ValueError, match=r"'c' can be simulated: the model has no likelihood of it; .* or data in like"
    ):
        mm.sbc(vae, ["x", "c"])
    with pytest.raises(ValueError, match="'c' can be simulated"):
        mm.certify(vae, {"x": X["x"]}, subsets=[("x", "c")])
    with pytest.raises(ValueError, match="no row has all of c, which the model looks at"):
        mm.certify(vae, X, {"c": torch.zeros(6).bool()}, subsets=[("x", "c")])


def test_a_guide_dreams_of_the_conditions_of_the_data():
    """The loss is the entropy of the posterior given x and c, and larger for every other guide."""
    torch.manual_seed(0)
    x = {"x": torch.zeros(4000, 1), "c": torch.linspace(-2, 2, 4000).unsqueeze(1)}
    right, wide = (mm.Sleep(hide=0.0).loss(vae.model, vae.guide, x) / 4000 for vae in (shifted(), shifted(2.0)))
    entropy = dist.Normal(0.0, VARIANCE**0.5).entropy().item()
    assert right == pytest.approx(entropy, abs=4.5 * (0.5 / 4000) ** 0.5)
    assert wide - entropy == pytest.approx(math.log(2) - 0.5 + 1 / 8, abs=0.05)


@pytest.mark.parametrize("prior", [mm.LearnedNormal(2), mm.GaussianMixture(2, components=3)], ids=["normal", "mixture"])
def test_a_conditioned_product_is_the_product_with_the_condition_beside(prior):
    """Also in rows, and in data, without anything that the product looks at: there it is the prior of z alone."""
    torch.manual_seed(0)
    prior = prior.double().requires_grad_(False)
    for weight in prior.parameters():
        weight += torch.randn(weight.shape)
    encoder = mm.encoder(1, 8, dim=2)
    plain, seen = (mm.Modality(mm.NormalLikelihood(mm.mlp(size, 8, 1)), encoder).double() for size in (2, 4))
    fusion = mm.Conditioned(mm.LooksAt(["x"], mm.PoE()), {"c": 1})
    parts = {"x": seen, "c": mm.Modality(None, nn.Identity())}
    vae = mm.MultimodalVAE(parts, mm.Conditioned(prior, {"c": 1}), fusion)
    plain = mm.MultimodalVAE({"x": plain}, prior, mm.PoE())
    mask = {"x": torch.arange(6) > 1, "c": torch.arange(6) % 2 > 0}
    for given in (None, ["c"]):
        found = vae.posterior(X, mask, given=given)
        wanted = plain.posterior({"x": X["x"]}, {"x": mask["x"] & (given is None)})
        torch.testing.assert_close(found.mean[:, :2], wanted.mean)
        torch.testing.assert_close(found.variance[:, :2], wanted.variance)
        assert (found.mean[:, 2] == torch.where(mask["c"], X["c"][:, 0], 0)).all()


def test_codes_of_rows_under_one_condition_tell_what_had_been_under_another():
    vae = exact_cvae()
    z = torch.randn(50, 6, 1)
    latents = {"z": torch.cat([z, X["c"].expand(50, -1, -1), torch.ones(50, 6, 1)], -1)}
    other = {**X, "c": X["c"] + 2}
    as_it_was, had_been = (mm.predict(vae, x, latents=latents)["x"] for x in (X, other))
    torch.testing.assert_close(as_it_was, WEIGHT * z.mean(0) + SHIFT * X["c"])
    torch.testing.assert_close(had_been, as_it_was + 2 * SHIFT)
    drawn = mm.translate(vae, other, to="x", latents=latents)
    apart = drawn - WEIGHT * z - SHIFT * other["c"]  # the noise alone
    assert apart.mean().abs() < 4.5 * NOISE / 300**0.5


def test_a_likelihood_of_targets_is_under_the_conditions_that_are_given_with_them():
    vae = exact_cvae()
    under = mm.log_likelihood(vae, X, targets=["x"], given=["x", "c"])
    torch.testing.assert_close(under.value, exact_log_p())
    without = mm.log_likelihood(vae, X, targets=["x"])
    nothing = dist.Normal(0.0, (WEIGHT**2 + NOISE**2) ** 0.5).log_prob(X["x"]).squeeze(1)
    torch.testing.assert_close(without.value, nothing)
