"""What is missing and a model of the user's then draws, by `obs=x.get(name)` or `obs_mask`, is no code of its posterior
and has no share in its loss."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate

import pyro_mmvae as mm
from pyro_mmvae.training.balance import pulls
from pyro_mmvae.weights import draw

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


def measured(how):
    """a, b = z + noise of a learnt scale, each missing in some rows; a guide with parameters of its own."""
    scale = torch.nn.Parameter(torch.ones(2))

    def model(x, mask):
        pyro.param("scale", scale)
        with pyro.plate("data", len(x["a"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            for k, name in enumerate("ab"):
                p = dist.Normal(z, scale[k].exp())
                if how == "obs_mask":
                    pyro.sample(name, p, obs=x[name], obs_mask=mask[name])
                else:
                    pyro.sample(name, p.mask(mask[name]), obs=x[name])

    def guide(x, mask):
        gain = pyro.param("gain", torch.zeros(2))
        with pyro.plate("data", len(x["a"])):
            pyro.sample("z", dist.Normal(sum(g * mask[k] * x[k] for g, k in zip(gain, "ab")), 0.7))

    return mm.Pair(model, guide), scale


def test_missing_values_as_pyro_has_them():
    """With `obs_mask` a model has the sites b_observed and b_unobserved, and says of b what one with a mask says."""
    x = {"a": torch.randn(20), "b": torch.randn(20)}
    x["a"][:5], x["b"][5:12] = torch.nan, torch.nan
    mask = {name: ~value.isnan() for name, value in x.items()}
    count, total = sum(m.to(x["a"].dtype) for m in mask.values()), sum(v.nan_to_num() for v in x.values())

    def exact(x, mask):
        seen = sum(m.to(total.dtype) for m in mask.values())
        with pyro.plate("data", len(seen)):
            loc = sum(torch.where(mask[name], x[name], 0) for name in mask) / (1 + seen)
            pyro.sample("z", dist.Normal(loc, (1 + seen).rsqrt()))

    found, scores, said = [], [], []
    for how in ("mask", "obs_mask"):
        pair, scale = measured(how)
        scale.data.zero_()  # of the logarithm
        pair = mm.Pair(pair.model, exact)
        parts = mm.gaps(pair, x, num_draws=50)
        assert float(parts.approximation.abs().max()) < 1e-6 and float(parts.amortisation.abs().max()) < 1e-6
        annealed = mm.annealed_log_likelihood(pair, x, chains=4, temperatures=20).value
        found.append(torch.stack([mm.log_likelihood(pair, x, num_particles=10).value, parts.log_likelihood, annealed]))
        error = mm.imputation_error(pair, x, visible={"b": torch.arange(20) < 14}, num_draws=20_000)["b"]
        scores.append(error.log_score)
        said.append(draw(pair, mm.Batch.of(x), 10).log_likelihood)
        drawn = mm.impute(pair, x, num_draws=20_000)["b"]
        assert torch.equal(drawn[0, mask["b"]], x["b"][mask["b"]])
        apart = drawn.mean(0) - total / (1 + count)
        assert (apart[~mask["b"]].abs() < 5 * (1.5 / 20_000) ** 0.5).all()
    torch.testing.assert_close(*found)
    torch.testing.assert_close(found[0][0], found[0][1])
    hidden = dist.Normal(x["a"][14:] / 2, 1.5**0.5).log_prob(x["b"][14:]).mean()
    assert scores == pytest.approx([float(hidden)] * 2, abs=0.02)
    assert said[1].keys() == {"a", "b"}
    assert bool((said[1]["b"][:, 5:12] == 0).all()) and not bool((said[1]["b"][:, :5] == 0).any())


def self_masked(x=None, mask=None):
    """Two columns, x0 and x1 = z + noise of 0.5, of which x0 is missing the more, the larger it is."""
    batch = mm.Batch.of(x, mask)
    with pyro.plate("data", batch.rows, dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("columns", 2, dim=-1):
            value = pyro.sample("x", dist.Normal(z, 0.5), obs=batch.get("x"), obs_mask=batch.mask.get("x"))
        seen = batch["seen"].unsqueeze(-1) if "seen" in batch else None
        pyro.sample("seen", dist.Bernoulli(logits=-3 * value[..., :1]), obs=seen)


def test_missing_not_at_random():
    """What is missing because of its value is log p(x) and imputation by draws that know of it, as on a grid."""

    def given_x1(x, mask):
        with pyro.plate("data", len(x["x"]), dim=-2):
            pyro.sample("z", dist.Normal(0.8 * x["x"][:, 1:], 0.2**0.5))

    pair, x1 = mm.Pair(self_masked, given_x1), torch.randn(8)
    x = {"x": torch.stack([torch.full((8,), torch.nan), x1], 1), "seen": torch.zeros(8)}
    grid = torch.linspace(-7, 7, 4001)
    log_p = dist.Normal(0.8 * x1[:, None], 0.45**0.5).log_prob(grid) + torch.nn.functional.logsigmoid(3 * grid)
    exact = (log_p.softmax(1) * grid).sum(1)
    log_px = log_p.logsumexp(1) + math.log(14 / 4000) + dist.Normal(0.0, 1.25**0.5).log_prob(x1)
    found = mm.importance(pair, x, num_draws=20_000)
    assert torch.allclose(found.raw.logsumexp(0) - math.log(20_000), log_px, atol=0.05)
    for latents in (found.resample(5000), mm.posterior_draws(pair, x, num_draws=2000, progress=False).latents):
        drawn = mm.impute(pair, x, latents=latents)["x"]
        assert torch.allclose(drawn[..., 0].mean(0), exact, atol=0.05) and torch.equal(drawn[7, :, 1], x1)
    blind = mm.impute(pair, x, num_draws=5000)["x"][..., 0].mean(0)  # z of the guide, which does not know of it
    assert torch.allclose(blind, 0.8 * x1, atol=0.05) and float((exact - blind).mean()) > 0.3


def test_what_x_lacks_and_something_hangs_on_is_imputed_by_its_own_draws():
    """E[b | a] where a ~ N(z + b, 1) and b ~ N(z, 1): Cov(a, b) / Var(a) = 3 / 6, and 2 / 6 for E[z | a]."""
    x, pair = {"a": torch.randn(ROWS) * 2}, mm.Pair(program(lambda z: dist.Normal(z, 1.0), hanging=True), guide)
    latents = mm.posterior_draws(pair, x, method="refined", num_draws=2000, progress=False).latents
    assert torch.allclose(mm.impute(pair, x, latents=latents)["b"].mean(0), x["a"] / 2, atol=0.1)
    assert torch.allclose(latents["z"].mean(0), x["a"] / 3, atol=0.1)


def test_pulls_of_a_modality_with_obs_mask():
    """Draws of z come first in both programs, and so are the same under one seed."""
    x = {"a": torch.randn(20), "b": torch.randn(20) * 10}
    x["a"][:5] = torch.nan
    found = []
    for how in ("mask", "obs_mask"):
        pyro.set_rng_seed(1)
        pair, batch = measured(how)[0], mm.Batch.of(x)
        found.append(pulls(pair.model, batch))
    pyro.set_rng_seed(1)
    z = poutine.trace(pair.model).get_trace(batch, batch.mask).nodes["z"]["value"]
    slopes = {name: (batch[name] - z)[batch.mask[name]].abs().mean() / math.exp(2) for name in x}  # the scale is e
    assert found[0] == found[1] == pytest.approx({name: float(slope) for name, slope in slopes.items()}, rel=1e-10)


LOSSES = {
    "none": None,
    "trace": Trace_ELBO(),
    "graph": TraceGraph_ELBO(),
    "objective": mm.Objective(max_plate_nesting=1),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_what_is_missing_has_no_share_in_the_loss(loss):
    """Pyro's losses would add log p(b | z) at a draw of b: minus the entropy, which narrow likelihoods make small."""
    x = {"a": torch.randn(20), "b": torch.randn(20)}
    x["a"][:5], x["b"][5:12] = torch.nan, torch.nan
    found = []
    for how in ("mask", "obs_mask"):
        pyro.clear_param_store()
        pair, scale = measured(how)
        history = mm.fit(pair, x, loss=loss, validation=x, epochs=1, lr=0.1, progress=False)
        losses = torch.tensor([*history.loss, *history.validation])
        found.append(torch.cat([losses, scale.detach(), pyro.param("gain").detach()]))
    torch.testing.assert_close(*found)
    assert float((found[0][2:4] - 1).abs().min()) > 0.05  # the step was one


def test_what_all_rows_share_and_the_guide_leaves_to_the_model_has_no_share_either():
    """A scale of which the guide knows nothing: its own density would be taught to be narrow."""

    def model(x, mask=None):
        spread = pyro.param("spread", torch.full((), 0.01))
        pyro.sample("scale", dist.Normal(0.0, spread))
        with pyro.plate("data", len(x["a"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("a", dist.Normal(z, 1.0), obs=x["a"])

    pyro.clear_param_store()
    x = {"a": torch.randn(20)}
    found = mm.fit(mm.Pair(model, guide), x, loss=Trace_ELBO(), epochs=1, batch_size=10, lr=0.1, progress=False)
    exact = dist.Normal(0.0, 2.0**0.5).log_prob(x["a"]).mean()
    assert found.loss[0] == pytest.approx(-float(exact), rel=1e-9) and pyro.param("spread").item() == 0.01


def test_what_is_summed_out_keeps_its_share():
    """A class of which the guide knows nothing, enumerated in the model, is counted with its density."""

    @config_enumerate
    def model(x, mask=None):
        with pyro.plate("data", len(x["a"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.1, 0.9])))
            pyro.sample("a", dist.Normal(z + 4.0 * c, 1.0), obs=x["a"])

    def still(x, mask=None):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x["a"])):
            pyro.sample("z", dist.Delta(loc.expand(len(x["a"]))))

    pyro.clear_param_store()
    x = {"a": torch.randn(20)}
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    found = mm.fit(mm.Pair(model, still), x, loss=loss, epochs=1, lr=1e-9, progress=False).loss[0] * 20
    likelihood = (
        torch.stack([dist.Normal(4.0 * c, 1.0).log_prob(x["a"]) for c in (0, 1)])
        + torch.tensor([0.1, 0.9]).log()[:, None]
    )
    exact = likelihood.logsumexp(0).sum() + 20 * dist.Normal(0.0, 1.0).log_prob(torch.zeros(()))
    assert found == pytest.approx(-float(exact), rel=1e-6)
