"""Mixtures, pools and columns against quadrature and closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import three, three_rows
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

import pyro_mmvae as mm
from pyro_mmvae.distributions import (
    Binomial,
    Chain,
    Columnwise,
    LogPool,
    Mixture,
    Normal,
    ProductMixture,
    Stacked,
    Switch,
    detached,
    feasible,
    mapped,
    masked,
    moments_of,
    stacked,
)
from pyro_mmvae.distributions.strata import Stratum


def normals(*batch, dim=2):
    return dist.Normal(torch.randn(*batch, dim), 0.3 + torch.rand(*batch, dim)).to_event(1)


def test_implicit_gradients_of_a_mixture_are_unbiased_weights_included():
    """Gradient of E[f(z)] to weights, means and scales, against quadrature on a grid of two dimensions."""
    logits, loc = torch.tensor([0.3, -0.4, 0.1]), torch.tensor([[-1.0, 0.5], [0.7, -0.3], [0.2, 1.2]])
    log_scale = torch.tensor([[0.1, -0.5], [-0.3, 0.2], [-0.6, -0.1]])
    parameters = [t.requires_grad_() for t in (logits, loc, log_scale)]

    def f(z):
        return (z[..., 0] * z[..., 1] + torch.sin(2 * z[..., 0] - z[..., 1])).tanh()

    mixture = Mixture(dist.Normal(loc, log_scale.exp()).to_event(1), logits.softmax(0))
    axis = torch.linspace(-8, 8, 801)
    grid = torch.cartesian_prod(axis, axis)
    exact = torch.autograd.grad((mixture.log_prob(grid).exp() * f(grid)).sum() * 0.02**2, parameters)
    found = []
    for _ in range(50):
        mixture = Mixture(dist.Normal(loc, log_scale.exp()).to_event(1), logits.softmax(0))
        found.append(torch.autograd.grad(f(mixture.rsample((2000,))).mean(), parameters))
    for position, value in enumerate(exact):
        estimates = torch.stack([g[position] for g in found])
        se = estimates.std(0) / 50**0.5
        assert ((estimates.mean(0) - value).abs() < 4.5 * se).all()
        assert (se < 0.01).all()


def test_a_mixture_with_learned_weights_draws_what_it_scores():
    logits = torch.tensor([0.5, -1.0]).requires_grad_()
    mixture = Mixture(dist.Normal(torch.tensor([[-9.0], [9.0]]), 1.0).to_event(1), logits.softmax(0))
    draws = 40_000
    share = (mixture.rsample((draws,)) > 0).double().mean()
    expected = logits.softmax(0)[1].detach()
    assert abs(share - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5


@pytest.mark.parametrize("batch", [(), (4,)])
def test_responsibilities_are_those_of_bayes_and_the_share_of_draws_that_a_component_made(batch):
    weights = torch.tensor([0.2, 0.5, 0.3]).reshape(3, *[1] * len(batch)).expand(3, *batch)
    loc = torch.tensor([-1.0, 0.0, 1.5]).reshape(3, *[1] * len(batch), 1).expand(3, *batch, 1)
    parts = dist.Normal(loc, 0.7).to_event(1)
    index = dist.Categorical(weights.movedim(0, -1)).sample((20_000,))
    z = parts.sample((20_000,)).movedim(1, -2).gather(-2, index[..., None, None]).squeeze(-2)
    found = Mixture(parts, weights).responsibilities(z)
    by_hand = torch.stack(
        [w * dist.Normal(m, 0.7).log_prob(z[..., 0]).exp() for w, m in zip((0.2, 0.5, 0.3), (-1, 0, 1.5))]
    )
    torch.testing.assert_close(found, (by_hand / by_hand.sum(0)).movedim(0, -1))
    for low in (0.1, 0.4, 0.7):  # of draws that are said to be of a component with that probability, so many are
        said = (found > low) & (found < low + 0.1)
        truth = torch.nn.functional.one_hot(index, 3)[said].double()
        assert abs(float(truth.mean() - found[said].mean())) < 4.5 * 0.5 / len(truth) ** 0.5


def test_the_variance_of_a_mixture_is_that_within_and_that_between_its_parts():
    mixture = Mixture(dist.Normal(torch.tensor([[-1.0], [3.0]]), 1.0).to_event(1), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(mixture.mean, torch.tensor([2.0]))
    torch.testing.assert_close(mixture.variance, torch.tensor([1.0 + 0.25 * 9 + 0.75 * 1]))


def test_a_component_of_weight_zero_brings_no_nan():
    weights = torch.tensor([0.0, 0.4, 0.6]).requires_grad_()
    loc = torch.tensor([[torch.inf], [0.0], [1.0]])
    mixture = Mixture(dist.Normal(loc.nan_to_num(posinf=1e9), 1.0).to_event(1), weights)
    z = mixture.rsample((5,))
    (gradient,) = torch.autograd.grad((mixture.log_prob(z) + z.sum(-1)).sum(), weights)
    assert gradient.isfinite().all() and gradient[0] == 0


def test_learned_weights_of_other_families_fall_back_on_the_score_function():
    parts, weights = dist.Laplace(torch.zeros(2, 1), 1.0).to_event(1), torch.full((2,), 0.5)
    assert Mixture(parts, weights).has_rsample
    assert not Mixture(parts, weights.clone().requires_grad_()).has_rsample


def test_a_mixture_of_angles_draws_what_it_scores():
    """They have no reparameterised draw; E cos t of VonMises(m, 2) is cos(m) I1(2) / I0(2)."""
    loc, two = torch.tensor([0.5, -2.0, 3.0]), torch.tensor(2.0)
    mixture = Mixture(dist.VonMises(loc.unsqueeze(-1), two).to_event(1), torch.tensor([0.5, 0.2, 0.3]))
    strata = (Stratum(mixture, 1, 2), torch.tensor([0.0, 0.4, 0.6])), (Stratum(mixture, 1, 1), torch.eye(3)[1])
    for angles, w in ((mixture, mixture.weights), *strata):
        exact = (w * loc.cos()).sum() * torch.special.i1(two) / torch.special.i0(two)
        assert not angles.has_rsample
        assert abs(angles.sample((20_000,)).cos().mean() - exact) < 4.5 * (0.5 / 20_000) ** 0.5


def test_a_mixture_of_mixtures_is_the_flat_one():
    inner, weights = normals(3, 4, 2), torch.rand(4, 2)
    weights = weights / weights.sum(0)
    nested = Mixture(Mixture(inner, torch.full((3, 4, 2), 1 / 3)), weights)
    flat = Mixture(
        dist.Normal(inner.base_dist.loc.flatten(0, 1), inner.base_dist.scale.flatten(0, 1)).to_event(1),
        (weights / 3).repeat(3, 1),
    )
    z = torch.randn(7, 2, 2)
    torch.testing.assert_close(nested.log_prob(z), flat.log_prob(z))
    torch.testing.assert_close(nested.mean, flat.mean)
    draws = nested.sample((40_000,))
    se = (flat.variance / 40_000).sqrt()
    assert ((draws.mean(0) - flat.mean).abs() < 4.5 * se).all()


@pytest.mark.parametrize("powers", [(0.5, 0.3, 0.2), (1.0, 0.0, 0.0), (0.4, 0.1, 0.1)])
def test_a_pool_is_a_sum_of_divergences(powers):
    """E_q[log q - log pool] = sum_j b_j KL(q || r_j) + (1 - B) E_q[log q], registered and by definition."""
    q, parts = normals(6, 1), [normals(6, 1) for _ in range(3)]
    pool = LogPool(parts, [torch.full((6, 1), p) for p in powers])
    expected = sum(p * kl_divergence(q, r) for p, r in zip(powers, parts)) - (1 - sum(powers)) * q.entropy()
    torch.testing.assert_close(kl_divergence(q, pool), expected)
    z = q.sample((100_000,))
    terms = q.log_prob(z) - pool.log_prob(z)
    assert ((terms.mean(0) - expected).abs() < 4.5 * terms.std(0) / 100_000**0.5 + 1e-12).all()


def test_mean_field_elbo_scores_a_pool_with_its_own_divergence():
    q, parts = normals(6, 1), [normals(6, 1) for _ in range(3)]
    weights = [torch.full((6, 1), p) for p in (0.2, 0.7, 0.1)]

    def program(d):
        def run():
            with pyro.plate("data", 6, dim=-2):
                pyro.sample("z", d)

        return run

    loss = TraceMeanField_ELBO().loss(program(LogPool(parts, weights)), program(q))
    expected = sum((w * kl_divergence(q, r)).sum() for w, r in zip(weights, parts))
    assert loss == pytest.approx(expected.item(), rel=1e-12)


def test_a_pool_of_normals_is_drawn_from_its_normalised_density():
    parts = [normals(4, 1) for _ in range(2)]
    pool = LogPool(parts, [torch.full((4, 1), 0.3), torch.full((4, 1), 0.7)])
    z = torch.randn(9, 4, 1, 2)
    difference = pool.log_prob(z) - pool.normalized().log_prob(z)
    torch.testing.assert_close(difference, difference[:1].expand_as(difference))
    other = LogPool([parts[0], dist.Laplace(torch.zeros(4, 1, 2), 1.0).to_event(1)], pool.weights)
    with pytest.raises(NotImplementedError, match="Laplace can be scored, not drawn"):
        other.rsample()


def test_columns_are_scored_each_by_its_own_family():
    parts = [dist.Normal(torch.randn(5), 1.0), dist.Poisson(torch.rand(5)), dist.Categorical(torch.ones(5, 3))]
    table = Columnwise(parts)
    x = torch.stack([torch.randn(5), torch.randint(0, 4, (5,)), torch.randint(0, 3, (5,))], -1)
    expected = torch.stack([p.log_prob(x[:, k]) for k, p in enumerate(parts)], -1)
    assert torch.equal(table.log_prob(x), expected)
    mask = torch.rand(5, 3) > 0.5
    torch.testing.assert_close(masked(table.to_event(1), mask, 1).log_prob(x), (expected * mask).sum(-1))
    assert table.support.check(x).all() and table.support.check(feasible(table, x).expand(5, 3)).all()
    bad = torch.tensor([0.3, -1.0, 7.0]).expand(5, 3)
    assert table.support.check(bad).tolist() == [[True, False, False]] * 5
    draws = table.to_event(1).expand((20_000, 5)).sample()
    assert ((draws[..., 1].mean(0) - parts[1].mean).abs() < 5 * (parts[1].mean / 20_000).sqrt()).all()
    assert table.expand((2, 5, 3)).batch_shape == (2, 5, 3)


FAMILIES = {  # of two positive parameters, of which many are kept in a distribution inside or in a transform
    "Beta": dist.Beta,
    "Gamma": dist.Gamma,
    "Gumbel": dist.Gumbel,
    "HalfNormal": lambda a, b: dist.HalfNormal(a),
    "InverseGamma": dist.InverseGamma,
    "Kumaraswamy": dist.Kumaraswamy,
    "LogNormal": dist.LogNormal,
    "LogisticNormal": dist.LogisticNormal,
    "RelaxedBernoulli": lambda a, b: dist.RelaxedBernoulli(torch.tensor(0.5), logits=a - b),
    "StudentT": lambda a, b: dist.StudentT(3 * a, a, b),
    "Weibull": dist.Weibull,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_rebuilt_from_its_parameters_row_by_row(family):
    """Also where the number of rows stays as it was, so that a parameter left behind would not be noticed."""
    a, b = torch.rand(5, 2) + 0.5, torch.rand(5, 2) + 0.5
    q, order = FAMILIES[family](a, b), torch.tensor([3, 0, 4, 2, 1])
    q = q.to_event(1 - len(q.event_shape))
    value = q.sample()
    found = mapped(q, lambda parameter, event_dims: parameter[order])
    assert found.event_shape == q.event_shape and (found.batch_shape, q.batch_shape) == ((5,), (5,))
    torch.testing.assert_close(found.log_prob(value[order]), q.log_prob(value)[order])
    assert (found.log_prob(value) - q.log_prob(value)).abs().min() > 1e-6
    last = mapped(q, lambda parameter, event_dims: parameter.unsqueeze(parameter.dim() - 1 - event_dims))
    torch.testing.assert_close(last.log_prob(value.unsqueeze(0)), q.log_prob(value).unsqueeze(0))
    both = stacked([q, found])
    torch.testing.assert_close(
        both.log_prob(value.unsqueeze(0)), torch.stack([q.log_prob(value), found.log_prob(value)])
    )


class BetaHead(torch.nn.Linear):
    def forward(self, x):
        return dist.Beta(*super().forward(x).exp().chunk(2, -1)).to_event(1)


class Unit(torch.nn.Module):
    """A prior of codes between 0 and 1."""

    def forward(self, *_):
        return dist.Uniform(torch.zeros(2), torch.ones(2)).to_event(1)


def test_a_mixture_of_betas_with_holes_is_the_mean_of_what_each_row_has():
    parts = {k: mm.Modality(mm.NormalLikelihood(mm.mlp(2, 4, 3)), BetaHead(3, 4)) for k in "ab"}
    vae = mm.MultimodalVAE(parts, Unit(), mm.MoE())
    x = {k: torch.randn(6, 3) for k in "ab"}
    x["a"][:2], x["b"][2:4] = torch.nan, torch.nan
    mm.fit(vae, x, epochs=2, lr=1e-2, progress=False)
    z = torch.rand(6, 2)
    with torch.no_grad():
        a, b = (vae.modalities[k].encoder(x[k].nan_to_num()).log_prob(z) for k in "ab")
        got = vae.posterior(x).log_prob(z)
    torch.testing.assert_close(got[:2], b[:2])
    torch.testing.assert_close(got[2:4], a[2:4])
    torch.testing.assert_close(got[4:], torch.logaddexp(a, b)[4:] - torch.tensor(2.0).log())


def test_families_side_by_side_score_as_they_do_alone():
    parts = [normals(3, 1), dist.Laplace(torch.zeros(3, 1, 2), 1.0).to_event(1)]
    z = torch.randn(4, 1, 3, 1, 2)
    both = stacked(parts).log_prob(z)
    assert torch.equal(both[:, 0], parts[0].log_prob(z[:, 0])) and torch.equal(both[:, 1], parts[1].log_prob(z[:, 0]))


@pytest.mark.parametrize("fusion", ["Flow", "Flow of a mixture"])
def test_the_moments_of_a_flow_are_those_of_draws_that_are_always_the_same(fusion):
    q = three(fusion=fusion).posterior(three_rows(5))
    before, (mean, sd) = torch.get_rng_state(), moments_of(q)
    assert all(map(torch.equal, (mean, sd), moments_of(q))) and torch.equal(before, torch.get_rng_state())
    draws = q.sample((20000,))
    assert ((mean - draws.mean(0)).abs() < 5 * draws.std(0) / 1000**0.5).all()
    assert ((sd / draws.std(0)).log().abs() < 0.2).all()


CONDITION = torch.tensor([[True], [False], [True], [False]])


def narrow(loc, dim=2):
    """One distribution for all rows, as a prior is."""
    return dist.Normal(torch.full((dim,), loc), 1.0 + loc).to_event(1)


def test_a_switch_of_two_priors_draws_and_scores_each_row_by_its_own():
    switch, draws = Switch(CONDITION, narrow(0.0), narrow(4.0)), 4000
    z = switch.expand((3, 4, 1)).sample((draws,))
    assert z.shape == (draws, 3, 4, 1, 2)
    assert len(z[0].flatten().unique()) == z[0].numel()  # rows share no draw
    loc, scale = torch.tensor([0.0, 4.0, 0.0, 4.0]), torch.tensor([1.0, 5.0, 1.0, 5.0])
    shape = (4, 1, 2)
    torch.testing.assert_close(switch.mean, loc.reshape(4, 1, 1).expand(shape))
    torch.testing.assert_close(switch.variance, scale.reshape(4, 1, 1).expand(shape) ** 2)
    assert ((z.mean((0, 1)) - switch.mean).abs() < 4.5 * switch.stddev / (3 * draws) ** 0.5).all()
    expected = dist.Normal(loc.reshape(4, 1, 1), scale.reshape(4, 1, 1)).log_prob(z).sum(-1)
    torch.testing.assert_close(switch.log_prob(z), expected)
    turned = mapped(switch.expand((4, 1)), lambda value, _: value.flip(0))
    assert torch.equal(turned.mean, switch.mean.flip(0))


def test_a_switch_is_reparameterised_only_if_both_of_its_are():
    counts = dist.Poisson(torch.ones(2)).to_event(1)
    assert Switch(CONDITION, narrow(0.0), narrow(1.0)).has_rsample
    assert not Switch(CONDITION, narrow(0.0), counts).has_rsample
    assert not Switch(CONDITION, counts, narrow(0.0)).has_rsample


def test_a_detached_switch_has_the_density_and_sends_no_gradient():
    locs = [torch.full((2,), loc, requires_grad=True) for loc in (0.0, 4.0)]
    switch, z = Switch(CONDITION, *(dist.Normal(loc, 1.0).to_event(1) for loc in locs)), torch.randn(4, 1, 2)
    density = detached(switch).log_prob(z)
    assert torch.equal(density, switch.log_prob(z).detach()) and not density.requires_grad


def test_a_mask_of_some_axes_of_an_entry_hides_all_that_follow():
    """Channels of pictures whose height and width could be taken for them."""
    p, mask = dist.Normal(torch.randn(3, 1, 3, 3, 3), 1.0).to_event(3), torch.rand(3, 1, 3) > 0.4
    x = torch.randn(3, 1, 3, 3, 3)
    expected = (p.base_dist.log_prob(x).sum((-1, -2)) * mask).sum(-1)
    torch.testing.assert_close(masked(p, mask, 1).log_prob(x), expected)


def test_families_side_by_side_draw_spread_and_have_the_moments_of_each():
    one = dist.Normal(torch.tensor([[[1.0, -2.0]], [[0.0, 3.0]]]), 2.0).to_event(1)  # batch (2, 1)
    both = Stacked([one, dist.Laplace(torch.tensor([5.0, 6.0]), 1.0).to_event(1)])
    assert both.batch_shape == (2, 2, 1)
    z = both.expand((3, 2, 2, 1)).sample((4000,))
    assert z.shape == (4000, 3, 2, 2, 1, 2) and len(z[0].flatten().unique()) == z[0].numel()
    assert torch.equal(both.mean[0], one.mean) and torch.equal(both.mean[1, :, 0], torch.tensor([[5.0, 6.0]] * 2))
    assert torch.equal(both.variance[0], one.variance) and (both.variance[1] == 2).all()
    assert ((z.mean((0, 1)) - both.mean).abs() < 4.5 * both.variance.sqrt() / 12_000**0.5).all()


def test_columns_of_one_row_and_of_many_have_the_moments_of_each_and_the_finest_kind_of_number():
    one, many = dist.Normal(torch.tensor(1.0), 3.0), dist.Poisson(torch.tensor([2.0, 5.0]))
    table = Columnwise([one, many])
    torch.testing.assert_close(table.mean, torch.tensor([[1.0, 2.0], [1.0, 5.0]]))
    torch.testing.assert_close(table.variance, torch.tensor([[9.0, 2.0], [9.0, 5.0]]))
    turned = mapped(table.expand((2, 2)), lambda value, _: value.flip(0))
    torch.testing.assert_close(turned.mean, torch.tensor([[1.0, 5.0], [1.0, 2.0]]))
    torch.set_default_dtype(torch.float32)
    assert table.log_prob(table.sample()).dtype == torch.float64


def test_one_point_is_scored_in_a_whole_batch():
    loc, precision = torch.randn(3, 4, 1, 2), torch.rand(3, 4, 1, 2) + 0.5
    products = ProductMixture(loc, precision, torch.ones(3, 4, 1, dtype=torch.bool), whole=True)
    point = torch.tensor([0.3, -1.0])
    for q in (products, Mixture(products.components, products.weights)):
        torch.testing.assert_close(q.log_prob(point), q.log_prob(point.expand(4, 1, 2)))


def test_a_sure_grey_level_has_the_small_loss_that_it_has():
    logits, levels = torch.tensor([25.0, 40.0]), 255
    log_prob = Binomial(levels, logits).log_prob(torch.full((2,), float(levels)))
    torch.testing.assert_close(log_prob, -levels * (-logits).exp(), rtol=1e-3, atol=1e-13)


def test_a_chain_of_linear_steps_is_the_normal_that_it_makes():
    """a ~ N(m, 1), b | a ~ N(2a + c, 1/2), row by row."""
    m, c = torch.tensor([[1.0], [-2.0], [0.5]]), torch.tensor([[0.3], [4.0], [-1.0]])

    def step(a, context):
        return dist.Normal(2 * a + context, 0.5).to_event(1)

    q = Chain(dist.Normal(m, 1.0).to_event(1), [step], [1, 1], c)
    covariance = torch.tensor([[1.0, 2.0], [2.0, 4.25]])
    exact = dist.MultivariateNormal(torch.cat([m, 2 * m + c], 1), covariance)
    torch.testing.assert_close(q.mean, exact.mean)
    z = q.rsample((20_000,))
    torch.testing.assert_close(q.log_prob(z), exact.log_prob(z))
    torch.testing.assert_close(q.log_prob(z + 1), exact.log_prob(z + 1))
    assert ((z.mean(0) - exact.mean).abs() < 4.5 * (exact.variance / 20_000).sqrt()).all()
    torch.testing.assert_close(mapped(q, lambda value, _: value.flip(0)).mean, exact.mean.flip(0))


def test_a_column_of_counts_has_the_mean_and_the_dispersion_that_it_is_told():
    p = mm.CountColumn(4.0).distribution(torch.tensor([[0.7], [-1.0]]), torch.tensor([1.3]))
    mean = 4 * torch.tensor([0.7, -1.0]).exp()
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(p.variance, mean + mean**2 / math.exp(1.3))


def test_what_encoders_see_of_columns():
    """Typical values are near 0, whatever the units; what is hidden may be any number."""
    found = [
        (mm.RealColumn(40.0, 5.0), [30.0, 40.0], [-2.0, 0.0]),
        (mm.PositiveColumn(4.0), [8.0, -1.0], [math.log(2), 0.0]),
        (mm.CountColumn(4.0), [12.0, -9.0], [math.log(4), 0.0]),
        (mm.OrdinalColumn(4), [0.0, 3.0], [-1.0, 1.0]),
    ]
    for column, x, expected in found:
        torch.testing.assert_close(column.features(torch.tensor(x)), torch.tensor(expected).unsqueeze(1))


def test_a_normal_whose_scale_has_more_axes_than_its_mean_is_pyros():
    loc, scale, x = torch.randn(3), torch.rand(2, 3) + 0.5, torch.randn(4, 2, 3)
    ours, pyros = Normal(loc, scale), dist.Normal(loc, scale)
    assert ours.batch_shape == (2, 3) and ours.rsample().shape == (2, 3)
    torch.testing.assert_close(ours.log_prob(x), pyros.log_prob(x))
    torch.testing.assert_close(ours.to_event(2).log_prob(x), pyros.to_event(2).log_prob(x))
