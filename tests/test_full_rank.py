"""Experts with covariances: their normal against Pyro's, their product against the oracle, and what they learn."""

from itertools import combinations

import pyro.distributions as dist
import pytest
import torch
from cases import three, three_holes, three_rows
from exact import LinearGaussian
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.functional import softplus

import pyro_mmvae as mm
from pyro_mmvae.distributions import LogPool, NaturalNormal, Normal, mapped
from pyro_mmvae.heads import SMALLEST

SUBSETS = [s for size in (1, 2, 3) for s in combinations("abc", size)]


def one(*batch, dim=3):
    root = torch.randn(*batch, dim, dim, requires_grad=True)
    shift = torch.randn(*batch, dim, requires_grad=True)
    precision = root @ root.mT + 0.3 * torch.eye(dim)
    return (
        NaturalNormal(shift, precision),
        dist.MultivariateNormal(torch.linalg.solve(precision, shift), precision_matrix=precision),
        (root, shift),
    )


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_it_is_pyros_multivariate_normal():
    q, p, leaves = one(4, 1)
    for value in (torch.randn(4, 1, 3), torch.randn(6, 4, 1, 3), torch.randn(3)):
        same(q.log_prob(value), p.log_prob(value))
        for a, b in zip(
            torch.autograd.grad(q.log_prob(value).sum(), leaves, retain_graph=True),
            torch.autograd.grad(p.log_prob(value).sum(), leaves, retain_graph=True),
        ):
            same(a, b)
    same(q.mean, p.mean), same(q.variance, p.variance), same(q.covariance_matrix, p.covariance_matrix)
    assert q.batch_shape == (4, 1) and q.expand((5, 4, 1)).rsample((2,)).shape == (2, 5, 4, 1, 3)
    assert mapped(q, lambda value, events: value.squeeze(-1 - events)).batch_shape == (4,)


def test_its_draws_have_its_moments_and_its_gradients():
    q, p, leaves = one()
    torch.manual_seed(0)
    draws = q.rsample((200_000,))
    se = (q.variance / 200_000).sqrt()
    assert ((draws.mean(0) - q.mean).abs() < 4.5 * se).all()
    assert (torch.cov(draws.T) - q.covariance_matrix).abs().max() < 0.02 * q.variance.max()
    weights = torch.tensor([1.0, -2.0, 0.5])  # d E[(w' z)^2] = d (w' Cov w + (w' mean)^2)
    found = torch.autograd.grad(((draws @ weights) ** 2).mean(), leaves, retain_graph=True)
    exact = torch.autograd.grad(weights @ p.covariance_matrix @ weights + (weights @ p.mean) ** 2, leaves)
    for a, b in zip(found, exact):
        assert (a - b).abs().max() < 0.03 * b.abs().max()


def test_what_is_drawn_without_gradients_is_scored_with_them():
    q, _, leaves = one(2)
    with torch.no_grad():
        value = q.sample()
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(q.log_prob(value).sum(), leaves))


def test_no_density_where_the_precision_is_none():
    q = NaturalNormal(torch.zeros(2, 2), torch.stack([torch.eye(2), -torch.eye(2)]))
    assert q.log_prob(torch.zeros(2)).isnan().tolist() == [False, True]
    assert q.sample().isnan().any(-1).tolist() == [False, True]


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_product_is_the_posterior_of_every_subset_though_it_is_correlated(subset):
    truth = LinearGaussian(orthogonal=False)
    x, vae = truth.simulate(20), truth.vae(expert="full rank")
    mask = {name: torch.rand(value.shape) > 0.3 for name, value in x.items()}
    mask[subset[0]][:, 0] = True  # something in every row
    q, (mean, covariance) = vae.posterior(x, mask, given=subset), truth.posterior(x, mask, subset)
    same(q.mean, mean)
    same(q.covariance_matrix, covariance)
    assert (covariance - torch.diag_embed(q.variance)).abs().max() > 0.01  # or diagonal experts would do


def test_the_elbo_is_log_p_and_every_weight_is_the_same_with_single_entries_missing():
    truth = LinearGaussian(orthogonal=False)
    x, vae = truth.simulate(40), truth.vae(expert="full rank")
    mask = {name: torch.rand(value.shape) > 0.4 for name, value in x.items()}
    exact = truth.log_prob(x, mask)
    assert -Trace_ELBO().loss(vae.model, vae.guide, x, mask) == pytest.approx(exact.sum().item(), abs=1e-8)
    found = mm.log_likelihood(vae, x, mask, num_particles=50)
    same(found.value, exact)
    assert found.se.max() < 1e-8 and (found.khat < 0).all()
    assert -Trace_ELBO().loss(truth.vae().model, truth.vae().guide, x, mask) < exact.sum() - 1  # a diagonal one is not


def test_repeats_are_factors_of_their_own():
    truth = LinearGaussian(orthogonal=False, repeated=("a",))
    x, vae = truth.simulate(15, repeats=3), truth.vae(expert="full rank")
    mask = {"a": torch.rand(15, 3) > 0.4, "b": torch.rand(15) > 0.4}
    q, (mean, covariance) = vae.posterior(x, mask), truth.posterior(x, mask)
    same(q.mean, mean)
    same(q.covariance_matrix, covariance)


def test_diagonal_experts_stand_beside_full_ones():
    truth = LinearGaussian()  # whose diagonal experts are exact as well
    x, vae, other = truth.simulate(10), truth.vae(), truth.vae(expert="full rank")
    for name in "ab":
        vae.modalities[name].encoder = other.modalities[name].encoder
        vae.modalities[name].trunk = other.modalities[name].trunk
    for subset in SUBSETS:
        mean, covariance = truth.posterior(x, subset=subset)
        q = vae.posterior(x, given=subset)
        same(q.mean, mean), same(q.variance, covariance.diagonal(dim1=1, dim2=2))


def test_a_prior_of_a_mean_and_scale_of_its_own_is_a_factor_of_such():
    truth = LinearGaussian()
    x, vae, other = truth.simulate(10), truth.vae(), truth.vae(expert="full rank")
    for one in (vae, other):
        one.prior = mm.LearnedNormal(2)
        one.prior.loc.data, one.prior.log_scale.data = torch.tensor([3.0, -1.0]), torch.tensor([0.7, -0.4])
    for subset in SUBSETS:
        diagonal, full = vae.posterior(x, given=subset), other.posterior(x, given=subset)
        same(full.mean, diagonal.mean), same(full.variance, diagonal.variance)


def test_without_the_prior_and_in_a_pool():
    truth = LinearGaussian(orthogonal=False)
    x, vae = truth.simulate(10), truth.vae(mm.PoE(prior_expert=False), expert="full rank")
    mask = {"a": torch.arange(10) > 0, "b": torch.arange(10) > 4, "c": torch.arange(10) > 0}
    q, factors = vae.posterior(x, mask), vae.experts(x, mask)
    assert torch.equal(q.mean[0], torch.zeros(2)) and torch.equal(q.variance[0], torch.ones(2))
    precision = sum(factors[n].precision[:, 0] * mask[n][:, None, None] for n in x)[1:]
    same(q.yes.covariance_matrix[1:], precision.inverse())  # q.no is the prior, of row 0
    parts = [NaturalNormal(torch.ones(2), torch.eye(2)), Normal(torch.zeros(2), torch.ones(2) * 0.5).to_event(1)]
    pool = LogPool(parts, [torch.tensor(0.25), torch.tensor(0.75)]).normalized()
    same(pool.precision, torch.eye(2) * (0.25 + 3.0)), same(pool.shift, torch.full((2,), 0.25))


def test_a_pool_has_weights_row_by_row():
    """As many rows as dimensions, so that one could be taken for the other."""
    q, _, _ = one(3, 1)
    weights, rest = torch.tensor([[0.2], [0.5], [1.0]]), Normal(torch.ones(3), torch.ones(3)).to_event(1)
    pool = LogPool([q, rest], [weights, 1 - weights]).normalized()
    for row, w in enumerate(weights.flatten()):
        same(pool.precision[row, 0], w * q.precision[row, 0] + (1 - w) * torch.eye(3))
        same(pool.shift[row, 0], w * q.shift[row, 0] + (1 - w))


def test_it_is_a_component_of_mixtures_and_of_a_vamp_prior():
    x, mask = three_rows(30), three_holes(30)
    vae = three(fusion="PoE with covariances")
    parts = {name: part for name, part in vae.modalities.items() if name != "label"}
    pseudo = {name: x[name][:5] for name in parts}
    x, mask = ({name: value[name] for name in parts} for value in (x, mask))
    for fusion in (mm.MoE(), mm.PoE()):
        vae = mm.MultimodalVAE(parts, mm.VampPrior(2, parts, mm.PoE(), pseudo), fusion)
        assert torch.tensor(mm.fit(vae, x, mask, epochs=2, progress=False).loss).isfinite().all()
        q = vae.posterior(x, {**mask, "body": torch.ones(30, dtype=torch.bool)})
        draws = q.sample((4000,))
        assert ((draws.mean(0) - q.mean).abs() < 5 * (q.variance / 4000).sqrt()).all()


def test_other_experts_are_refused_beside_it():
    vae = three(fusion="PoE with covariances")
    vae.modalities["label"].encoder[1][-1] = mm.LaplaceHead(8, 2)
    with pytest.raises(TypeError, match="the expert of 'label' is Laplace, but this fusion multiplies normals"):
        vae.posterior(three_rows(4))
    vae = mm.MultimodalVAE(vae.modalities, mm.StandardNormal(2), mm.GeometricMean())
    with pytest.raises(TypeError, match=r"'body' is NaturalNormal, but this fusion multiplies diagonal normals.*PoE"):
        vae.posterior(three_rows(4))


def test_every_tool_takes_it(tmp_path):
    torch.set_default_dtype(torch.float32)
    vae, x, mask = three(fusion="PoE with covariances"), three_rows(60), three_holes(60)
    few = {name: value[:4] for name, value in x.items()}
    assert mm.fit(vae, x, mask, epochs=30, lr=1e-2, progress=False).loss[-1] < 9
    mm.fit(vae, x, mask, epochs=1, autocast=torch.bfloat16, progress=False)
    assert mm.log_likelihood(vae, x, mask, num_particles=20).value.isfinite().all()
    assert mm.certify(vae, x, mask, rows=40, num_particles=20, progress=False).rows
    assert mm.gaps(vae, few, num_draws=20, steps=5).log_likelihood.isfinite().all()
    assert mm.posterior_draws(vae, few, num_draws=20).latents["z"].isfinite().all()
    mm.usage(vae, x, mask), mm.to_arviz(vae, few), mm.impute(vae, x, mask), mm.sandwich(vae, given=["body"], rows=3)
    vae.save(tmp_path / "vae.pt")
    again = mm.load(tmp_path / "vae.pt", lambda: three(fusion="PoE with covariances"))
    assert torch.equal(again.posterior(few).mean, vae.posterior(few).mean)


def test_a_head_gives_any_normal():
    """Its Linear's bias alone reaches any mean and covariance; without covariances it is the diagonal head."""
    head, diagonal = mm.FullRankHead(4, 3), mm.NormalHead(4, 3)
    scale = torch.tensor([0.3, 2.0, 0.7])
    factor = torch.tensor([[1.0, 0, 0], [-0.5, 1.0, 0], [0.3, 0.1, 1.0]])
    loc = torch.tensor([1.0, 2.0, 3.0])
    head.linear.weight.data.zero_()
    head.linear.bias.data = torch.cat([loc, (scale.exp() - 1).log(), factor[[1, 2, 2], [0, 0, 1]]])
    q = head(torch.randn(5, 4))
    torch.testing.assert_close(q.mean, loc.expand(5, 3))
    expected = factor @ torch.diag(scale**2) @ factor.T
    torch.testing.assert_close(q.covariance_matrix, expected.expand(5, 3, 3), rtol=1e-4, atol=1e-4)  # SMALLEST
    head.linear.weight.data[:6], head.linear.bias.data[:6] = diagonal.linear.weight.data, diagonal.linear.bias.data
    head.linear.bias.data[6:] = 0
    h = torch.randn(5, 4)
    same(head(h).mean, diagonal(h).mean), same(head(h).variance, diagonal(h).variance)
    assert mm.FullRankHead(4, 1)(torch.zeros(2, 4)).precision.shape == (2, 1, 1)


def test_training_starts_without_covariances_whatever_the_scale_of_the_features():
    """Factors at random are singular in float32, and every loss from the first step on is NaN."""
    torch.set_default_dtype(torch.float32)
    for dim, scale in ((64, 1.0), (4, 30.0)):
        torch.manual_seed(0)
        head, h = mm.FullRankHead(64, dim), scale * torch.randn(500, 64).relu()
        q = head(h)
        loc, raw = head.linear(h)[:, : 2 * dim].chunk(2, -1)
        torch.testing.assert_close(q.mean, loc, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(q.variance, (softplus(raw) + SMALLEST) ** 2, rtol=1e-4, atol=0)
        slope = torch.autograd.grad(q.log_prob(q.mean.detach() + 0.1 * torch.randn(500, dim)).sum(), head.linear.weight)
        assert slope[0][2 * dim :].abs().min() > 0  # and learns them


def test_nothing_is_saved_but_the_weights():
    assert set(nn.Sequential(mm.FullRankHead(4, 3)).state_dict()) == {"0.linear.weight", "0.linear.bias"}


def test_only_the_network_of_a_head_is_lowered():
    """Its matrices are multiplied in float32, or a precision with eight bits would hardly be positive definite."""
    torch.set_default_dtype(torch.float32)
    head, h = mm.FullRankHead(4, 3), torch.randn(5, 4)
    torch.nn.init.zeros_(head.linear.weight)
    head.linear.bias.data = torch.tensor([1.0, -2.0, 0.5, 0.25, -3.0, 1.0, 0.75, -1.5, 0.125])  # the same in bfloat16
    expected = head(h)
    with torch.autocast("cpu", torch.bfloat16):
        q = head(h)
    assert q.precision.dtype == q.shift.dtype == torch.float32
    torch.testing.assert_close(q.precision, expected.precision, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(q.shift, expected.shift, rtol=1e-6, atol=1e-6)
