"""Experts and priors of other families than the library's own, against their densities and dense linear algebra."""

from itertools import combinations_with_replacement

import pyro.distributions as dist
import pytest
import torch
from cases import From
from pyro import poutine
from pyro.infer import Trace_ELBO

import pyro_mmvae as mm
from pyro_mmvae.distributions import Normal, mapped

ROOT = torch.tensor([[1.0, 0.0], [0.5, 0.7]], dtype=torch.float64)
FACTOR = torch.tensor([[0.8, 0.1], [0.5, -0.3]], dtype=torch.float64)


def root(h):
    return ROOT * h[:, 2:3, None].exp()


def two(h):
    """A mixture of ours, with its components in front."""
    parts = Normal(torch.stack([h[:, :2], h[:, 2:]]), torch.full((2, len(h), 2), 0.5)).to_event(1)
    return mm.Mixture(parts, torch.tensor([0.3, 0.7]).unsqueeze(1).expand(2, len(h)))


CORRELATED = {
    "root": lambda h: dist.MultivariateNormal(h[:, :2], scale_tril=root(h)),
    "covariance": lambda h: dist.MultivariateNormal(h[:, :2], root(h) @ root(h).mT),
    "precision": lambda h: dist.MultivariateNormal(h[:, :2], precision_matrix=root(h) @ root(h).mT),
    "rank 1": lambda h: dist.LowRankMultivariateNormal(h[:, :2], FACTOR[:, :1].expand(len(h), 2, 1), h[:, 2:].exp()),
    "rank 2": lambda h: dist.LowRankMultivariateNormal(h[:, :2], FACTOR.expand(len(h), 2, 2), h[:, 2:].exp()),
}
EXPERTS = CORRELATED | {
    "normal": lambda h: dist.Normal(h[:, :2], h[:, 2:].exp()).to_event(1),
    "Laplace": lambda h: dist.Laplace(h[:, :2], h[:, 2:].exp()).to_event(1),
    "StudentT": lambda h: dist.StudentT(5.0, h[:, :2], h[:, 2:].exp()).to_event(1),
    "mixture": two,
}


def prior_of(kind):
    p = CORRELATED[kind](torch.tensor([[1.0, -2.0, 0.2, -0.4]]))
    return lambda: mapped(p, lambda value, _: value[0])


def of(kinds, prior, fusion):
    """A model whose experts read their parameters from the data, rows of it, and a mask; row 4 has nothing."""
    parts = {name: mm.Modality(None, From(EXPERTS[kind])) for name, kind in zip("ab", kinds)}
    x = {name: 0.5 * torch.randn(5, 4) for name in parts}
    mask = {"a": torch.tensor([True, True, False, False, False]), "b": torch.tensor([True, False, True, True, False])}
    return mm.MultimodalVAE(parts, prior, fusion), x, mask


def covariance(q):
    return q.covariance_matrix.reshape(2, 2) if hasattr(q, "covariance_matrix") else torch.diag(q.variance.flatten())


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prior_expert", [False, True])
@pytest.mark.parametrize("kinds", list(combinations_with_replacement(EXPERTS, 2)), ids=" and ".join)
def test_a_mixture_takes_experts_of_any_two_families(kinds, prior_expert):
    """Their mean density, the prior's beside it or not, wherever which of them was seen."""
    vae, x, mask = of(kinds, prior_of("covariance"), mm.MoE(prior_expert))
    q, z, prior = vae.posterior(x, mask), torch.randn(5, 2), prior_of("covariance")()
    for row in range(5):
        seen = [EXPERTS[kind](x[n][row : row + 1]).log_prob(z[row]) for n, kind in zip("ab", kinds) if mask[n][row]]
        seen += [prior.log_prob(z[row : row + 1])] if prior_expert or not seen else []
        same(q.log_prob(z)[row], torch.cat(seen).exp().mean().log())
    draws = q.sample((4000,))
    assert ((draws.mean(0) - q.mean).abs() < 5 * (q.variance / 4000).sqrt()).all()


@pytest.mark.parametrize("prior", CORRELATED)
@pytest.mark.parametrize("kind", CORRELATED)
def test_a_product_takes_normals_in_every_form(kind, prior):
    vae, x, mask = of((kind, "normal"), prior_of(prior), mm.PoE())
    q, p = vae.posterior(x, mask), prior_of(prior)()
    for row in range(5):
        factors = [p, *(EXPERTS[k](x[n][row : row + 1]) for n, k in zip("ab", (kind, "normal")) if mask[n][row])]
        precisions = [torch.linalg.inv(covariance(f)) for f in factors]
        total = sum(precisions)
        shift = sum(own @ f.mean.flatten() for own, f in zip(precisions, factors))
        same(q.mean[row], torch.linalg.solve(total, shift))
        same(q.variance[row], torch.linalg.inv(total).diagonal())


@pytest.mark.parametrize("kind", CORRELATED)
def test_a_product_leaves_its_experts_as_they_are(kind):
    """A matrix that was inverted for it stands beside its first form, and no normal can be built of both."""
    vae, x, mask = of((kind, "normal"), mm.Pooled(mm.StandardNormal(2), 0.3), mm.PoE(prior_expert=False))
    batch = mm.Batch.of(x, mask).remembering()
    z = poutine.trace(vae.guide).get_trace(batch).nodes["z"]["value"]
    pool = poutine.trace(vae.model).get_trace(batch).nodes["z"]["fn"]
    experts = [EXPERTS[k](x[n]).log_prob(z[:, 0]) * mask[n] for n, k in zip("ab", (kind, "normal"))]
    rest = 1 - 0.3 * (mask["a"].double() + mask["b"].double())
    expected = rest * mm.StandardNormal(2)().log_prob(z[:, 0]) + 0.3 * sum(experts)
    same(pool.log_prob(z)[:, 0], expected)


def test_a_joint_encoder_may_give_a_mixture_for_complete_rows():
    for rows in (2, 3):  # as many as there are components, and another number
        net = torch.nn.Sequential(torch.nn.Linear(10, 4), From(two))
        joint = mm.JointEncoder(net, {"a": 4, "b": 4}, otherwise=mm.PoE())
        vae, x, mask = of(("normal", "normal"), mm.StandardNormal(2), joint)
        mask["a"] = mask["b"] = torch.arange(5) < rows
        mask["b"] = mask["b"] | (torch.arange(5) == 3)
        z = torch.randn(5, 2)
        found = vae.posterior(x, mask).log_prob(z)
        whole = net(torch.cat([x["a"], x["b"], torch.ones(5, 2)], 1)).log_prob(z)
        same(found[:rows], whole[:rows])
        other = mm.MultimodalVAE(vae.modalities, mm.StandardNormal(2), mm.PoE()).posterior(x, mask)
        same(found[rows:], other.log_prob(z)[rows:])


def test_one_point_is_scored_under_parts_that_differ_in_kind():
    vae, x, mask = of(("normal", "normal"), mm.GaussianMixture(2, components=3), mm.MoE(prior_expert=True))
    q, z = vae.fusion(vae.experts(x, mask)), torch.randn(2)
    same(q.log_prob(z), q.log_prob(z.expand(5, 1, 2)))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("fusion", [mm.PoE(), mm.PoE(prior_expert=False), mm.MoE(prior_expert=True)])
def test_experts_of_another_size_than_the_prior_are_named_and_do_not_broadcast(fusion, whole, size):
    parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 4, dim=size))}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), fusion)
    x, mask = {"a": torch.randn(4, 3)}, {"a": torch.arange(4) >= int(not whole)}
    line = rf"the (encoder of 'a'|guide) gives codes \({size},\), the prior \(2,\); give both the size of z"
    with pytest.raises(ValueError, match=line) as caught:
        mm.fit(vae, x, mask, epochs=1, progress=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=line):
        Trace_ELBO().loss(vae.model, vae.guide, x, mask)
