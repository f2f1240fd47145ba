"""The sleep phase, held to the linear-Gaussian oracle."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from torch import nn

import pyro_mmvae as mm

SUBSETS = [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]


class Linear(nn.Module):
    """An expert that could be exact: a linear location and one scale for all rows."""

    def __init__(self, size):
        super().__init__()
        self.loc, self.log_scale = nn.Linear(size, 2), nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return dist.Normal(self.loc(x), self.log_scale.exp().expand(len(x), 2)).to_event(1)


def untaught(truth):
    vae = truth.vae()
    for name, part in vae.modalities.items():
        part.encoder = Linear(len(truth.loading[name]))
    return vae


def test_its_value_is_the_mean_entropy_of_the_posteriors_at_the_exact_guide():
    truth, rows = LinearGaussian(), 20_000
    vae, x = truth.vae(), truth.simulate(rows)
    few, expected = {k: v[:1] for k, v in x.items()}, 0.0
    for given in SUBSETS:
        covariance = truth.posterior(few, subset=given)[1][0]
        probability = 1 / 6 if len(given) == 1 else 1 / 8  # one alone is also what is left where all would be hidden
        expected += probability * dist.MultivariateNormal(torch.zeros(2), covariance).entropy()
    value = mm.Sleep().loss(vae.model, vae.guide, x) / rows
    assert abs(value - expected) < 4 * math.sqrt(1.0 / rows)  # (z - loc)^2 / 2 in two dimensions has variance one


@pytest.mark.parametrize("holes", [False, True])
def test_it_finds_the_posterior_of_every_subset_and_leaves_the_model_alone(holes):
    truth = LinearGaussian()
    vae, x = untaught(truth), truth.simulate(400)
    mask = {"a": torch.rand(400) > 0.5} if holes else None
    free = mm.objectives.encoders_only(vae)
    fixed = {k: v.clone() for k, v in vae.state_dict().items() if ".decoder." in k or k.startswith("prior")}
    mm.fit(vae, x, mask, loss=mm.Sleep(), epochs=150, lr=3e-2, progress=False)
    assert free and all(torch.equal(fixed[k], v) for k, v in vae.state_dict().items() if k in fixed)
    fresh = truth.simulate(200, seed=9)
    for given in SUBSETS:
        mean, covariance = truth.posterior(fresh, subset=given)
        sd = covariance.diagonal(dim1=1, dim2=2).sqrt()
        q = vae.posterior(fresh, given=given)
        assert ((q.mean - mean) / sd).square().mean().sqrt() < 0.1
        torch.testing.assert_close(q.stddev, sd, rtol=0.08, atol=0)


@pytest.mark.parametrize("names, free", [(None, "ab"), (["b", "c"], "b")])
def test_the_encoders_of_the_named_modalities_alone_stay_free(names, free):
    parts = {name: mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, dim=2)) for name in "ab"}
    parts["c"] = mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)))  # which has none
    vae = mm.MultimodalVAE(parts, mm.LearnedNormal(2), mm.PoE())
    found = mm.objectives.encoders_only(vae, names)
    wanted = [id(p) for name in free for p in parts[name].encoder.parameters()]
    assert [id(p) for p in found] == wanted == [id(p) for p in vae.parameters() if p.requires_grad]


@pytest.mark.parametrize("fusion", [mm.MoE(), mm.MoPoE(), mm.MixtureOfWasserstein()])
def test_a_guide_that_is_scored_by_component_is_taught_the_density_of_the_whole(fusion):
    truth, found = LinearGaussian(), []
    x = truth.simulate(30)
    for part in (fusion, mm.recipes.ByComponent(fusion)):
        vae = truth.vae(part, expert="posterior")
        torch.manual_seed(0)
        loss = mm.Sleep().differentiable_loss(vae.model, vae.guide, x, None)
        found.append([loss.detach(), *torch.autograd.grad(loss, [m.encoder.dummy for m in vae.modalities.values()])])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def test_it_teaches_a_guide_of_the_users():
    truth = LinearGaussian()
    vae, x = truth.vae().requires_grad_(False), truth.simulate(300)
    log_scale = nn.Parameter(torch.tensor(1.0))

    def guide(x, mask):
        q = vae.fusion(vae.experts(x, mask)).base_dist
        with pyro.plate("data", x.rows, dim=-2):
            pyro.sample("z", dist.Normal(q.loc, q.scale * log_scale.exp()).to_event(1))

    optim = torch.optim.Adam([log_scale], lr=0.05)
    for _ in range(150):
        optim.zero_grad()
        (mm.Sleep().differentiable_loss(vae.model, guide, x, None) / 300).backward()
        optim.step()
    assert abs(log_scale) < 0.05
