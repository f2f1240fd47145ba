"""Each prior against its formula, and with every fusion and `generate`."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import (
    DIM,
    FUSIONS,
    OF_EXPERTS,
    WITHOUT_ENCODERS,
    data,
    modality,
    of_tables,
    rows_of_tables,
    three_holes,
    three_rows,
)
from exact import LinearGaussian
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

import pyro_mmvae as mm


def square(points=601, size=12.0):
    axis = torch.linspace(-size, size, points)
    return torch.cartesian_prod(axis, axis), (2 * size / (points - 1)) ** 2


def pseudo(rows=5):
    return three_rows(rows)


def parts():
    return {"body": modality("Normal learned"), "label": modality("Categorical"), "counts": modality("Poisson")}


# name -> (modalities -> prior); what is drawn from and scored without data
PRIORS = {
    "Laplace": lambda m: mm.Laplace(DIM),
    "GaussianMixture": lambda m: mm.GaussianMixture(DIM, 3),
    "FlowPrior": lambda m: mm.FlowPrior(DIM, [dist.transforms.affine_coupling(DIM, [16])]),
    "VampPrior": lambda m: mm.VampPrior(DIM, m, mm.PoE(), pseudo()),
    "VampPrior of mixtures": lambda m: mm.VampPrior(DIM, m, mm.MoPoE(), pseudo()),
    "HierarchicalNormal": lambda m: hierarchical(),
    "DynamicPrior": lambda m: mm.DynamicPrior(mm.GeometricMean(prior_expert=True), otherwise=mm.StandardNormal(DIM)),
    "Pooled": lambda m: mm.Pooled(mm.StandardNormal(DIM), 1 / 4),
}


def hierarchical():
    return mm.HierarchicalNormal(DIM, mm.StandardNormal(3), mm.encoder(3, 8, dim=DIM), mm.encoder(DIM, 8, dim=3))


@pytest.mark.parametrize("name", [n for n in PRIORS if n != "HierarchicalNormal"])
def test_priors_without_data_are_densities_and_draw_what_they_score(name):
    prior = PRIORS[name](parts())(None)
    grid, area = square()
    density = prior.log_prob(grid).exp()
    torch.testing.assert_close(density.sum() * area, torch.ones(()), rtol=2e-3, atol=0)
    draws = prior.expand((20_000,)).sample()
    for f in (lambda z: z.sum(-1).tanh(), lambda z: (z[..., 0] * z[..., 1]).cos()):
        values, exact = f(draws), (density * f(grid)).sum() * area
        assert abs(values.mean() - exact) < 4.5 * values.std() / 20_000**0.5 + 2e-3


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_works_with_every_fusion_and_generate(name, fusion):
    """Finite gradients on every parameter with holes and rows without anything, and draws of new rows."""
    modalities = parts()
    if fusion in WITHOUT_ENCODERS and name not in OF_EXPERTS and "Vamp" not in name:
        for part in modalities.values():
            part.encoder = nn.Identity()
    vae = mm.MultimodalVAE(
        modalities, PRIORS[name](modalities), FUSIONS[fusion]({"body": 3, "label": 1, "counts": 3}, DIM)
    )
    x, mask = three_rows(24), three_holes(24)
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=2)
    loss = elbo.differentiable_loss(vae.model, vae.guide, x, mask)
    learnt = {k: p for k, p in vae.named_parameters() if p.requires_grad}
    for key, gradient in zip(learnt, torch.autograd.grad(loss, list(learnt.values()))):
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, key
    found = mm.generate(vae, 4)
    assert set(found) == {"body", "label", "counts"} and all(v.isfinite().all() for v in found.values())


@pytest.mark.parametrize("fusion", ["PoE", "MoE", "MoPoE", "Attention", "Flow of a mixture"])
@pytest.mark.parametrize("name", PRIORS)
def test_a_batch_without_anything_given_has_the_prior_in_every_row(name, fusion):
    modalities = parts()
    prior = PRIORS[name](modalities)
    vae = mm.MultimodalVAE(modalities, prior, FUSIONS[fusion]({"body": 3, "label": 1, "counts": 3}, DIM))
    x = three_rows(6)
    for q in (vae.posterior(x, given=[]), vae.posterior({"body": torch.full((6, 3), torch.nan)})):
        assert q.batch_shape == (6,) and q.sample((4,)).shape == (4, 6, DIM)
        z = torch.randn(4, 6, DIM)
        if name != "HierarchicalNormal":  # whose density is estimated
            torch.testing.assert_close(q.log_prob(z), vae.prior(None).log_prob(z))
            assert name == "FlowPrior" or q.mean.shape == q.stddev.shape == (6, DIM)


def test_a_fusion_alone_as_prior_says_why_it_cannot_generate():
    vae = mm.MultimodalVAE(parts(), mm.MoE(), mm.MoE())
    assert Trace_ELBO().loss(vae.model, vae.guide, three_rows(4)) < math.inf
    with pytest.raises(ValueError, match=r"use mm\.DynamicPrior"):
        mm.generate(vae, 2)


def test_a_dynamic_prior_of_private_codes_has_its_own_normal_where_a_fusion_has_the_prior():
    """As one of z: for a row with nothing given, as prior expert, and without data; it was N(0, I), and an error."""
    prior = mm.DynamicPrior(mm.GeometricMean(prior_expert=True), otherwise=mm.LearnedNormal(DIM))
    vae, _ = mm.recipes.mmvm(of_tables(), prior)
    prior.otherwise.loc.data.fill_(9.0)
    x, _ = rows_of_tables(4)
    p = prior(vae.experts(x, {name: torch.arange(4) < 2 for name in x}).private(None))
    normals = [prior.otherwise(), *(vae.modalities[name].private(x[name][:2]) for name in x)]
    precision = sum(q.variance.expand(2, DIM) ** -1 for q in normals)
    middle = sum(q.mean / q.variance for q in normals) / precision
    torch.testing.assert_close(p.mean.squeeze(1), torch.cat([middle, torch.full((2, DIM), 9.0)]))
    assert mm.generate(vae, 3)["a"].shape == (3, 3)


def unpooled(vae, x, names):
    """q of each row, the experts, and the prior, as plain normals (row, dim)."""
    q = vae.posterior(x, given=names)
    return q, [vae.modalities[n].encoder(x[n]) for n in names], mm.StandardNormal(2)(None).expand(q.batch_shape)


@pytest.mark.parametrize("method", ["mvtcae", "jmvae", "crmvae"])
def test_pooled_priors_are_the_sums_of_divergences_of_the_methods(method):
    alpha, count, truth = 0.3, 3, LinearGaussian()
    weight = {"mvtcae": alpha / count, "jmvae": alpha / (1 + alpha * count), "crmvae": 1 / (1 + count)}[method]
    vae = truth.vae(mm.PoE(prior_expert=False), mm.Pooled(mm.StandardNormal(2), weight))
    x = truth.simulate(6)
    q, experts, normal = unpooled(vae, x, list("abc"))
    to_prior, to_experts = kl_divergence(q, normal), sum(kl_divergence(q, e) for e in experts)
    expected = {
        "mvtcae": (1 - alpha) * to_prior + alpha / count * to_experts,
        "jmvae": (to_prior + alpha * to_experts) / (1 + alpha * count),
        "crmvae": (to_prior + to_experts) / (1 + count),
    }[method]
    blind = mm.View(targets=[])
    exact = TraceMeanField_ELBO().loss(vae.model, vae.guide, x, None, blind)
    assert exact == pytest.approx(expected.sum().item(), rel=1e-10)
    many = Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=2)
    assert many.loss(vae.model, vae.guide, x, None, blind) == pytest.approx(exact, rel=0.02)


def test_pooled_gives_the_weight_of_what_is_missing_to_the_prior():
    truth = LinearGaussian()
    vae = truth.vae(mm.PoE(prior_expert=False), mm.Pooled(mm.StandardNormal(2), {"a": 0.5, "b": 0.2, "c": 0.3}))
    x = truth.simulate(4)
    mask = {n: torch.ones(4, dtype=torch.bool) for n in x}
    mask["a"][1:3] = False
    z = torch.randn(4, 1, 2)
    pool = vae.prior(vae._experts(*vae.open(x, mask), mm.EVERYTHING)).log_prob(z)[:, 0]
    logs = {n: vae.modalities[n].encoder(x[n]).log_prob(z[:, 0]) for n in x}
    normal = mm.StandardNormal(2)(None).log_prob(z[:, 0])
    whole = 0.5 * logs["a"] + 0.2 * logs["b"] + 0.3 * logs["c"]
    holed = 0.5 * normal + 0.2 * logs["b"] + 0.3 * logs["c"]
    torch.testing.assert_close(pool, torch.where(mask["a"], whole, holed))


def test_pooled_shares_the_weight_of_a_modality_among_its_repeats():
    truth = LinearGaussian(repeated=["b"])
    vae = truth.vae(mm.PoE(), mm.Pooled(mm.StandardNormal(2), 0.3))
    x = truth.simulate(3, repeats=4)
    z = torch.randn(3, 1, 2)
    pool = vae.prior(vae._experts(*vae.open(x, None), mm.EVERYTHING)).log_prob(z)[:, 0]
    parts = [vae.modalities[n].encoder(x[n]).log_prob(z[:, 0]) for n in "ac"]
    parts.append(torch.stack([vae.modalities["b"].encoder(x["b"][:, k]).log_prob(z[:, 0]) for k in range(4)]).mean(0))
    expected = 0.1 * mm.StandardNormal(2)(None).log_prob(z[:, 0]) + 0.3 * sum(parts)
    torch.testing.assert_close(pool, expected)


def test_pooled_refuses_weights_that_are_too_large():
    truth = LinearGaussian()
    vae = truth.vae(mm.PoE(), mm.Pooled(mm.StandardNormal(2), 0.5))
    with pytest.raises(ValueError, match=r"weights of 3 modalities sum to 1.5"):
        Trace_ELBO().loss(vae.model, vae.guide, truth.simulate(2))
    with pytest.raises(ValueError, match="the weight is -1"):
        mm.Pooled(mm.StandardNormal(2), -1.0)


def test_vamp_prior_is_the_mean_posterior_of_its_pseudo_inputs():
    truth = LinearGaussian()
    vae = truth.vae(mm.PoE())
    rows = truth.simulate(7)
    prior = mm.VampPrior(2, vae.modalities, vae.fusion, rows)
    z = torch.randn(11, 2)
    expected = vae.posterior(rows).log_prob(z.unsqueeze(1)).logsumexp(1) - math.log(7)
    torch.testing.assert_close(prior(None).log_prob(z), expected)


def test_vamp_prior_owns_its_pseudo_inputs_and_nothing_else():
    modalities, rows = parts(), pseudo()
    before = {name: value.clone() for name, value in rows.items()}
    prior = mm.VampPrior(DIM, modalities, mm.PoE(), rows)
    vae = mm.MultimodalVAE(modalities, prior, mm.PoE())
    assert {k for k, p in prior.named_parameters()} == {"pseudo.body", "pseudo.label", "pseudo.counts"}
    assert len(list(vae.parameters())) == len({id(p) for p in vae.parameters()})
    with torch.no_grad():
        prior.pseudo["body"].add_(1.0)
    assert torch.equal(rows["body"], before["body"])
    assert not prior.pseudo["label"].requires_grad
    loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, three_rows(4))
    (gradient,) = torch.autograd.grad(loss, prior.pseudo["body"])
    assert gradient.abs().sum() > 0
    twin = copy.deepcopy(vae)
    with torch.no_grad():
        next(twin.modalities["body"].encoder.parameters()).add_(1.0)
    z = torch.zeros(DIM)
    assert twin.prior(None).log_prob(z) != prior(None).log_prob(z)


class Correlated(nn.Module):
    """N(rho * given, (1 - rho^2) I): both conditionals of a pair of standard normals."""

    def __init__(self, rho):
        super().__init__()
        self.rho = nn.Parameter(torch.tensor(rho))

    def forward(self, value):
        return dist.Normal(self.rho * value, (1 - self.rho**2).sqrt()).to_event(1)


def test_a_hierarchical_prior_is_exact_for_the_linear_gaussian_model():
    """v and z a pair of standard normals with correlation .8: p(z) is N(0, I), and every bound is log p(x)."""
    truth = LinearGaussian()
    prior = mm.HierarchicalNormal(2, mm.StandardNormal(2), Correlated(0.8), Correlated(0.8))
    vae, x = truth.vae(mm.PoE(), prior), truth.simulate(6)
    mask = {n: torch.rand(6) > 0.4 for n in x}
    for m in mask.values():
        m[0] = False
    loss = Trace_ELBO().loss(vae.model, vae.guide, x, mask)
    assert loss == pytest.approx(-truth.log_prob(x, mask).sum().item(), rel=1e-10)
    z = torch.randn(9, 2)
    torch.testing.assert_close(prior(None).log_prob(z), mm.StandardNormal(2)(None).log_prob(z))
    found = mm.log_likelihood(vae, x, mask, num_particles=10)
    torch.testing.assert_close(found.value, truth.log_prob(x, mask))
    draws = prior(None).expand((40_000,)).sample()
    assert ((draws.var(0) - 1).abs() < 5 * (2 / 40_000) ** 0.5).all()


def test_a_row_with_nothing_seen_contributes_nothing_below_a_hierarchical_prior():
    """Its guide is p(z) of two levels, however wrong r(v | z) is: so its weights are one, and its bounds zero."""
    truth = LinearGaussian()
    prior = mm.HierarchicalNormal(2, mm.StandardNormal(2), Correlated(0.8), Correlated(0.3))
    vae, x = truth.vae(mm.PoE(), prior), truth.simulate(20)
    hidden = {n: torch.zeros(20, dtype=torch.bool) for n in x}
    assert mm.importance(vae, x, hidden, num_draws=50).raw.abs().max() < 1e-12
    assert abs(Trace_ELBO(num_particles=3).loss(vae.model, vae.guide, x, hidden)) < 1e-12
    sticking = mm.Objective(bound=mm.objectives.stl, num_particles=3)
    value = sticking.differentiable_loss(vae.model, vae.guide, x, hidden)
    slopes = torch.autograd.grad(value, list(prior.parameters()), allow_unused=True)
    assert all(abs(number) < 1e-12 for number in [value, *slopes])  # of r the slope was that of a sleep phase
    hidden["b"] = torch.arange(20) < 10
    found = mm.log_likelihood(vae, x, hidden, num_particles=4000, given=["a"], targets=["b"])
    error = found.value - torch.where(hidden["b"], truth.log_prob(x, subset=["b"]), 0)
    assert (error.abs() <= 4.5 * found.se + 1e-12).all()  # with a density of p(z) by chance 2 nats too high


def test_autoguides_and_predictive_run_on_a_hierarchical_prior():
    vae = mm.MultimodalVAE({"x": modality("Normal fixed")}, hierarchical(), mm.PoE())
    x = {"x": data("Normal fixed", 20)}
    guide = pyro.infer.autoguide.AutoNormal(vae.model, init_scale=0.1)
    svi = pyro.infer.SVI(vae.model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10])
    draws = pyro.infer.Predictive(vae.model, num_samples=4000, parallel=True)()
    given = vae.prior.down(draws["prior.top.w"])
    terms = (draws["z"] - given.mean) / given.stddev
    assert abs(terms.mean()) < 4.5 / 8000**0.5 and abs(terms.var() - 1) < 4.5 * (2 / 8000) ** 0.5


def test_stock_pyro_trains_a_hierarchical_prior_and_a_likelihood_head_of_each_kind():
    vae = mm.MultimodalVAE({"x": modality("Normal fixed")}, hierarchical(), mm.PoE())
    x = {"x": data("Normal fixed", 50)}
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(150)]
    assert sum(losses[-20:]) < sum(losses[:20])


def clusters(rows):
    """Two modalities that show a code in one of three narrow clusters."""
    centre = torch.tensor([[-3.0, -3.0], [3.0, 3.0], [-3.0, 3.0]])[torch.randint(0, 3, (rows,))]
    z, loading = centre + 0.3 * torch.randn(rows, 2), torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(1))
    return {name: z @ loading[k].T + torch.randn(rows, 6) for k, name in enumerate("ab")}


def held_out(prior):
    """log p(x) of new rows after a short training, nats a row."""
    pyro.set_rng_seed(0)
    x, new = clusters(400), clusters(200)
    modalities = {n: mm.Modality(mm.NormalLikelihood(mm.mlp(2, 32, 6), 1.0), mm.encoder(6, 32, dim=2)) for n in "ab"}
    vae = mm.MultimodalVAE(modalities, prior(modalities, x), mm.PoE(prior_expert=False))
    optimiser = torch.optim.Adam(vae.parameters(), 5e-3)
    for _ in range(400):
        optimiser.zero_grad()
        (Trace_ELBO().differentiable_loss(vae.model, vae.guide, x) / 400).backward()
        optimiser.step()
    return mm.log_likelihood(vae, new, num_particles=300).value.mean().item()


def test_learnt_priors_find_clusters_that_a_normal_cannot():
    normal = held_out(lambda m, x: mm.StandardNormal(2))
    for prior in (
        lambda m, x: mm.GaussianMixture(2, components=6),
        lambda m, x: mm.VampPrior(2, m, mm.PoE(prior_expert=False), {n: v[:20] for n, v in x.items()}),
    ):
        assert held_out(prior) > normal + 0.5


def test_the_networks_of_a_hierarchy_are_named():
    for name, sizes in {"down": (9, DIM), "up": (3, 9)}.items():
        nets = mm.encoder(sizes[0], 8, dim=DIM), mm.encoder(sizes[1], 8, dim=3)
        vae = mm.MultimodalVAE(parts(), mm.HierarchicalNormal(DIM, mm.StandardNormal(3), *nets), mm.PoE())
        with pytest.raises(ValueError, match=f"the network {name} of 'HierarchicalNormal' fails on .*; mend its sizes"):
            mm.log_likelihood(vae, pseudo(4), num_particles=2)
