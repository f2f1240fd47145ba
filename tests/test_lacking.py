"""A modality that x lacks and a model of the user's then draws, `obs=x.get(name)`, is no code of its posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_mmvae as mm

ROWS = 6


def program(lacking, hanging=False):
    """z ~ N(0, 1), a = z + noise of 1, and b, which x may lack; a hangs on it too, if `hanging`."""

    def model(x=None, mask=None):
        x = x or {}
        with pyro.plate("data", len(x["a"]) if x else 1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            b = pyro.sample("b", lacking(z), obs=x.get("b"))
            pyro.sample("a", dist.Normal(z + (b if hanging else 0), 1.0), obs=x.get("a"))

    return model


def guide(x, mask=None):
    """The posterior given a."""
    with pyro.plate("data", len(x["a"])):
        pyro.sample("z", dist.Normal(x["a"] / 2, 0.5**0.5))


LACKING = {
    "continuous": lambda z: dist.Normal(3 * z, 0.2),
    "discrete": lambda z: dist.Categorical(logits=torch.stack([z, -z], -1)),
    "plain": lambda z: dist.Poisson(z.exp()),
}


@pytest.mark.parametrize("lacking", LACKING.values(), ids=LACKING)
def test_what_x_lacks_is_no_code(lacking):
    """b hangs on z and nothing on b: the guide is the posterior, of which a normal is exact, and of which draws of the
    guide are certified."""
    x = {"a": torch.randn(ROWS)}
    pair = mm.Pair(program(lacking), guide)
    exact = dist.Normal(0.0, 2.0**0.5).log_prob(x["a"])
    found = mm.gaps(pair, x, num_draws=100)
    for value in (found.log_likelihood, found.elbo, mm.annealed_log_likelihood(pair, x, chains=4).value):
        torch.testing.assert_close(value, exact, atol=1e-5, rtol=0)
    assert float(found.approximation.abs().max()) < 1e-5 and float(found.amortisation.abs().max()) < 1e-5
    draws = mm.posterior_draws(pair, x, method="refined", progress=False)
    assert bool(draws.certified.all()) and draws.latents.keys() == {"z"}


def test_what_something_hangs_on_is_a_code():
    """With b ~ N(3 z, 0.2) in the mean of a, a ~ N(0, 16 + 1.04)."""
    x = {"a": torch.randn(ROWS) * 4}
    pair = mm.Pair(program(LACKING["continuous"], hanging=True), guide)
    found = mm.gaps(pair, x, full_rank=True)
    assert torch.allclose(found.log_likelihood, dist.Normal(0.0, 17.04**0.5).log_prob(x["a"]), atol=1e-4)
    with pytest.raises(ValueError, match="the site 'b' is discrete; only continuous codes can be refined"):
        mm.gaps(mm.Pair(program(LACKING["discrete"], hanging=True), guide), x)
