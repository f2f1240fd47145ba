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


def test_what_x_lacks_is_predicted_imputed_and_translated():
    """E[b | a] = 3 E[z | a] = 3 a / 2, Var(b | a) = 9 / 2 + 0.04; and the codes of others are taken for it."""
    x, pair = {"a": torch.randn(ROWS)}, mm.Pair(program(LACKING["continuous"]), guide)
    rows = 1.5 * x["a"]
    for ask in (mm.impute, lambda *args, **options: {"b": mm.translate(*args, to="b", **options)}):
        drawn = ask(pair, x, num_draws=20_000)["b"]
        assert ((drawn.mean(0) - rows).abs() < 5 * (4.54 / 20_000) ** 0.5).all()
        assert torch.allclose(drawn.var(0), torch.tensor(4.54), rtol=0.06)
    assert torch.allclose(mm.predict(pair, x, num_draws=20_000)["b"], rows, atol=5 * (4.5 / 20_000) ** 0.5)
    known = mm.predict(pair, x, latents={"z": torch.arange(ROWS, dtype=rows.dtype)[None]})
    assert torch.allclose(known["b"], 3 * torch.arange(ROWS, dtype=rows.dtype))


def test_what_the_model_never_observes_is_no_modality():
    """The private code w, of which this guide knows nothing, is drawn from its prior and predicted by no one."""

    def model(x=None, mask=None):
        with pyro.plate("data", len(x["a"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("a", dist.Normal(z, 1.0), obs=x["a"])
            pyro.sample("b", dist.Normal(w.unsqueeze(-1) + torch.zeros(3), 1.0).to_event(1), obs=x.get("b"))

    x = {"a": torch.randn(ROWS)}
    found = mm.predict(mm.Pair(model, guide), x)
    assert {name: tuple(value.shape) for name, value in found.items()} == {"a": (ROWS,), "b": (ROWS, 3)}
    with pytest.raises(ValueError, match="x lacks 'w', and programs of the user's do not say"):
        mm.translate(mm.Pair(model, guide), x, to="w")
