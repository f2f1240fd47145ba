"""Annealed importance sampling and its way back: bounds of log p(x) that meet where it is."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from test_gaps import broken

import pyro_mmvae as mm


def two_modes(x, scale=0.5):
    """z ~ N(0, I), x | z ~ N(z^2, scale^2): two modes a dimension for a large x; and log p(x) by quadrature."""
    dim = x["a"].shape[1]

    def model(x=None, mask=None):
        with pyro.plate("data", 1 if x is None else len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            pyro.sample("a", dist.Normal(z**2, scale).to_event(1), obs=None if x is None else x["a"])

    def guide(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))

    grid = torch.linspace(-8, 8, 4001).view(-1, 1, 1)
    joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid**2, scale).log_prob(x["a"])
    return mm.Pair(model, guide), (torch.logsumexp(joint, 0) + torch.tensor(16 / 4000).log()).sum(-1)


def brackets(found, exact):
    """The mean of each bound over rows is on its own side of the truth, within the error of that mean."""
    for gap in (exact - found.lower, found.upper - exact):
        assert gap.mean() > -3 * gap.std() / len(gap) ** 0.5


def right(value, se, exact):
    """Errors are as large as they are said to be: of few chains, so a little larger."""
    z = (value - exact) / (se + 1e-9)
    assert z.abs().max() < 6 and (z**2).mean().sqrt() < 1.7


@pytest.mark.parametrize("from_prior", [False, True])
def test_the_sandwich_brackets_the_exact_log_likelihood(from_prior):
    truth = LinearGaussian(orthogonal=False)
    vae = truth.vae(mm.MoE(), expert="posterior")
    found = mm.sandwich(vae, given=["a", "c"], rows=60, temperatures=50, from_prior=from_prior)
    exact = truth.log_prob(found.x, subset=["a", "c"])
    brackets(found, exact)
    right(found.lower, found.lower_se, exact)
    if from_prior:  # where the chains have something to lose, they do not say more than that either
        assert ((found.lower - exact) / found.lower_se).std() > 0.7
        assert ((found.upper - exact) / found.upper_se).std() > 0.7
    assert ((found.upper - exact) / (found.upper_se + 1e-9)).abs().max() < 8  # all chains of a row share a code
    width, se = found.width
    assert abs(width) < 0.03 + 3 * se < 0.2 and "60 simulated rows" in str(found)


@pytest.mark.parametrize("temperatures", [2, 5])
def test_weights_are_unbiased_for_p_forwards_and_for_its_inverse_backwards(temperatures):
    """By so few steps that much is lost on the way."""
    truth = LinearGaussian({"a": 2}, orthogonal=False)
    truth.noise["a"] = 4.0  # so that draws of the posterior are all over the prior
    options = {"given": ["a"], "rows": 800, "chains": 4, "temperatures": temperatures, "from_prior": True}
    found = mm.sandwich(truth.vae(), **options)
    exact = truth.log_prob(found.x)
    for ratio in ((found.lower - exact).exp(), (exact - found.upper).exp()):
        error = ratio.std() / 800**0.5
        assert abs(float(ratio.mean()) - 1) < 4.5 * error < 0.15 and error > 0.002


@pytest.mark.parametrize("shift, scale", [(4, 0.02), (-2, 30)])
def test_annealing_needs_no_good_guide(shift, scale):
    truth = LinearGaussian(orthogonal=False)
    x = truth.simulate(30)
    for from_prior in (False, True):
        vae = broken(truth, shift, scale)
        found = mm.annealed_log_likelihood(vae, x, temperatures=50, from_prior=from_prior)
        right(found.value, found.se, truth.log_prob(x))
        assert found.se.mean() < 0.2


def test_modes_that_nobody_has_seen_show_as_a_wide_sandwich():
    """Of 256 modes a normal has one, and a thousand draws of guide and prior are too few to tell: the bounds part."""
    vae, _ = two_modes({"a": torch.ones(1, 8)}, scale=0.2)
    found = mm.sandwich(vae, given=["a"], rows=100, chains=32)
    brackets(found, two_modes(found.x, scale=0.2)[1])
    assert found.width[0] > 0.5


@pytest.mark.parametrize("from_prior", [False, True])
def test_modes_that_the_prior_sees_are_annealed_to(from_prior):
    """A normal fitted to one of two modes has half of p(x); the bounds meet where the chains start in a wider one."""
    vae, exact = two_modes({"a": torch.full((40, 1), 2.0)})
    found = mm.annealed_log_likelihood(vae, {"a": torch.full((40, 1), 2.0)}, from_prior=from_prior)
    right(found.value, found.se, exact)
    vae, _ = two_modes({"a": torch.ones(1, 1)})
    found = mm.sandwich(vae, given=["a"], rows=100, chains=32, from_prior=from_prior)
    brackets(found, two_modes(found.x)[1])
    assert found.width[0] < 0.05


def test_more_temperatures_tighten_the_bounds():
    truth = LinearGaussian(orthogonal=False)
    few, many = (
        mm.sandwich(truth.vae(), given=["a", "b", "c"], rows=100, chains=4, temperatures=t, from_prior=True)
        for t in (5, 60)
    )
    assert few.width[0] > 3 * many.width[0] > 0


def test_missing_entries_and_bad_input():
    truth = LinearGaussian()
    x = truth.simulate(20)
    mask = {"a": torch.rand(20, 4) > 0.4, "b": torch.arange(20) > 0}
    found = mm.annealed_log_likelihood(truth.vae(), x, mask, temperatures=20)
    torch.testing.assert_close(found.value, truth.log_prob(x, mask), rtol=0, atol=0.02)
    part = mm.annealed_log_likelihood(truth.vae(), x, mask, given=["b"], temperatures=20)
    torch.testing.assert_close(part.value, truth.log_prob(x, mask, ["b"]), rtol=0, atol=0.02)
    with pytest.raises(ValueError, match="unknown modality 'taste'"):
        mm.sandwich(truth.vae(), given=["taste"])
