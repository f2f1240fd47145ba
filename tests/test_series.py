"""Rows that are series, visits with holes: codes of all visits under one prior, against Gaussian conditioning."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.distributions import LogPool, NaturalNormal

VISITS, KEPT, NOISE = 5, 0.8, {"lab": 0.5, "wear": 0.9}
LOADING = {"lab": torch.tensor([[1.0], [-0.7]]).double(), "wear": torch.tensor([[1.3]]).double()}


def prior_covariance():
    """Of a code z_t = KEPT z_(t-1) + noise that stays as wide as it starts."""
    visit = torch.arange(VISITS).double()
    return KEPT ** (visit - visit[:, None]).abs()


def prior():
    return dist.MultivariateNormal(torch.full((VISITS,), 0.4), prior_covariance())


class Visits(nn.Module):
    """The code of each visit, (..., visit), as what is measured there, (..., visit, feature)."""

    def __init__(self, name):
        super().__init__()
        self.loading = nn.Parameter(LOADING[name].clone())

    def forward(self, z):
        return z.unsqueeze(-1) @ self.loading.mT


class Look(nn.Module):
    """What the measurements of a patient say of all codes: their likelihood, all but flat where nothing was."""

    def __init__(self, name, family):
        super().__init__()
        self.name, self.family = name, family

    def forward(self, h):
        x, seen = (part.unflatten(-1, (VISITS, -1)) for part in h.chunk(2, -1))
        loading, variance = LOADING[self.name][:, 0], NOISE[self.name] ** 2
        shift, precision = (seen * x * loading).sum(-1) / variance, (seen * loading**2).sum(-1) / variance + 1e-9
        if self.family is NaturalNormal:
            return NaturalNormal(shift, torch.diag_embed(precision))
        return self.family(shift / precision, precision_matrix=torch.diag_embed(precision))


def series(family):
    holes = mm.WithHoles(nn.Identity())
    parts = {
        name: mm.Modality(mm.NormalLikelihood(Visits(name), NOISE[name]), Look(name, family), trunk=holes)
        for name in LOADING
    }
    return mm.MultimodalVAE(parts, prior, mm.PoE())


def data(rows=12):
    z, x, mask = prior().sample((rows,)), {}, {}
    for name, loading in LOADING.items():
        loc = z.unsqueeze(-1) @ loading.mT
        x[name] = loc + NOISE[name] * torch.randn(loc.shape)
        mask[name] = torch.rand(loc.shape) > 0.4
    mask["wear"][:, 1:-1] = False  # at the first visit and at the last
    mask["lab"][:3, 3:] = False  # who dropped out
    for seen in mask.values():
        seen[0] = False
    return x, mask


def exact(x, mask, row):
    """log p(x_S), and mean and covariance of the codes given it."""
    seen = torch.cat([mask[name][row].flatten() for name in x])
    values = torch.cat([x[name][row].flatten() for name in x])[seen]
    loading = torch.cat([torch.kron(torch.eye(VISITS), LOADING[name]) for name in x])[seen]
    noise = torch.cat([torch.full(x[name][row].shape, NOISE[name]).flatten() for name in x])[seen]
    p = prior()
    if not len(values):
        return torch.zeros(()), p.mean, p.covariance_matrix
    joint = loading @ p.covariance_matrix @ loading.mT + torch.diag(noise**2)
    gain = torch.linalg.solve(joint, loading @ p.covariance_matrix).mT
    density = dist.MultivariateNormal(loading @ p.mean, joint).log_prob(values)
    mean = p.mean + gain @ (values - loading @ p.mean)
    return density, mean, p.covariance_matrix - gain @ loading @ p.covariance_matrix


@pytest.mark.parametrize("family", [NaturalNormal, dist.MultivariateNormal])
def test_a_prior_with_covariances_stands_in_the_product_of_such_experts(family):
    (x, mask), vae = data(), series(family)
    truth = [exact(x, mask, row) for row in range(12)]
    q = vae.posterior(x, mask)
    for row, (_, mean, covariance) in enumerate(truth):
        torch.testing.assert_close(q.mean[row], mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(q.variance[row], covariance.diagonal(), rtol=0, atol=1e-6)
    evidence = torch.stack([density for density, *_ in truth])
    found = mm.log_likelihood(vae, x, mask, num_particles=50)
    torch.testing.assert_close(found.value, evidence, rtol=0, atol=1e-6)
    bound = -Trace_ELBO().loss(vae.model, vae.guide, x, mask)
    assert bound == pytest.approx(evidence.sum().item(), abs=1e-5)


def test_a_guide_may_leave_the_states_of_a_hidden_markov_chain_to_the_model():
    """Its draws are the prior's: unbiased for log p, and too wide, as the certificate says now."""
    stay, loc, visits = torch.tensor([[0.8, 0.2], [0.3, 0.7]]), torch.tensor([-1.0, 1.5]), range(3)

    def model(x=None, mask=None):
        batch, state = mm.Batch.of(x, mask), None
        with pyro.plate("data", batch.rows, dim=-1):
            for t in visits:
                chances = torch.full((2,), 0.5) if state is None else stay[state]
                state = pyro.sample(f"state {t}", dist.Categorical(chances))
                p, name = dist.Normal(loc[state], 0.8), f"visit {t}"
                pyro.sample(name, p.mask(batch.mask[name]) if name in batch else p, obs=batch.get(name))

    def guide(x=None, mask=None):
        with pyro.plate("data", mm.Batch.of(x, mask).rows, dim=-1):
            pass

    pair = mm.Pair(model, guide)
    x = mm.generate(pair, 30)
    x["visit 1"][:8] = torch.nan
    forward = torch.full((30, 2), 0.5).log()
    for t, value in enumerate(x.values()):
        forward = forward if t == 0 else (forward.unsqueeze(-1) + stay.log()).logsumexp(1)
        score = dist.Normal(loc, 0.8).log_prob(value.nan_to_num().unsqueeze(-1))
        forward = forward + torch.where(value.isnan().unsqueeze(-1), 0, score)
    found = mm.log_likelihood(pair, x, num_particles=3000)
    assert ((found.value - forward.logsumexp(1)).abs() < 4 * found.se + 1e-3).all()
    (row,) = mm.certify(pair, x, subsets=[list(x)], rows=150, gap_rows=0, progress=False).rows
    assert row.verdict == "under-confident"
    assert row.log_likelihood == pytest.approx(forward.logsumexp(1)[8:].mean().item(), abs=0.1)


def test_a_pool_of_a_correlated_normal_and_a_diagonal_one_is_drawn_as_their_product():
    p, q = prior(), dist.Normal(torch.linspace(-1, 1, VISITS), 0.7).to_event(1)
    found = LogPool([p, q], [torch.tensor(0.6), torch.tensor(0.4)]).normalized()
    precision = 0.6 * p.precision_matrix + 0.4 / 0.7**2 * torch.eye(VISITS)
    torch.testing.assert_close(found.covariance_matrix, torch.linalg.inv(precision))
    shift = 0.6 * p.precision_matrix @ p.mean + 0.4 / 0.7**2 * q.mean
    torch.testing.assert_close(found.mean, torch.linalg.solve(precision, shift))
