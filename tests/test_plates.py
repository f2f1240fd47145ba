"""Programs of a user's may have plates of their own, on either side of the rows; what mixes rows is refused."""

import contextlib

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_mmvae as mm
from pyro_mmvae.plates import plate, shared_plate
from pyro_mmvae.sites import as_drawn, per_row, value_of

ROWS, LOADING = 12, torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
PRECISION = 1 + (LOADING**2).sum() / 0.25 + 1


def rows_of(x):
    return 1 if x is None else len(x["b"])


def programs(features, codes=1, exact=True):
    """Code t = sum of z over the plate "codes" / sqrt(codes), three features a = t loading + noise, and b = t + noise.

    Args:
        features: "event", or the side of the rows that their plate and the plate of the codes are on.
        exact: whether the guide knows the posterior; with one code it can.
    """
    side = {"event": -2, "left": -1, "right": -2}[features]  # of the rows
    own = -3 - side

    def model(x=None, mask=None):
        a, b = (None, None) if x is None else (x["a"], x["b"].reshape(-1, *[1] * (-side - 1)))
        with pyro.plate("data", rows_of(x), dim=side):
            with pyro.plate("codes", codes, dim=own):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            t = z.sum(own, keepdim=True) / codes**0.5
            if features == "event":
                loc = t.unsqueeze(-1) * LOADING
                pyro.sample("a", dist.Normal(loc, 0.5).to_event(1), obs=None if a is None else a.unsqueeze(1))
            else:
                with pyro.plate("features", 3, dim=own):
                    loading, a = (LOADING, a) if features == "right" else (LOADING[:, None], None if a is None else a.T)
                    pyro.sample("a", dist.Normal(t * loading, 0.5), obs=a)
            pyro.sample("b", dist.Normal(t, 1.0), obs=b)

    def guide(x, mask=None):
        loc = (x["a"] @ LOADING / 0.25 + x["b"]) / PRECISION / codes**0.5
        scale = PRECISION.rsqrt() if exact else torch.ones(())
        with pyro.plate("data", len(loc), dim=side), pyro.plate("codes", codes, dim=own):
            pyro.sample("z", dist.Normal(loc.reshape(-1, *[1] * (-side - 1)), scale))

    return mm.Pair(model, guide)


def data():
    t = torch.randn(ROWS)
    return {"a": t[:, None] * LOADING + 0.5 * torch.randn(ROWS, 3), "b": t + torch.randn(ROWS)}


def evidence(x):
    loading = torch.cat([LOADING, torch.ones(1)])
    covariance = torch.outer(loading, loading) + torch.diag(torch.tensor([0.25, 0.25, 0.25, 1.0]))
    return dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(torch.cat([x["a"], x["b"][:, None]], 1))


def code(x):
    return (x["a"] @ LOADING / 0.25 + x["b"]) / PRECISION


@pytest.mark.parametrize("features", ["event", "left", "right"])
def test_a_plate_of_features_is_an_axis_of_the_entries(features):
    x, pair = data(), programs(features)
    found = mm.log_likelihood(pair, x, num_particles=50)
    torch.testing.assert_close(found.value, evidence(x), rtol=0, atol=1e-9)
    torch.testing.assert_close(Trace_ELBO().loss(pair.model, pair.guide, x), -float(evidence(x).sum()))
    predicted = mm.predict(pair, x, num_draws=4000)
    torch.testing.assert_close(predicted["a"], code(x)[:, None] * LOADING, rtol=0, atol=0.05)
    hidden = {"b": torch.arange(ROWS) < 5}
    filled = mm.impute(pair, x, hidden, num_draws=2)
    assert torch.equal(filled["a"], x["a"].expand(2, -1, -1)) and torch.equal(filled["b"][0, :5], x["b"][:5])
    drawn = mm.generate(pair, 4000)
    torch.testing.assert_close(drawn["a"].var(0), LOADING**2 + 0.25, rtol=0.1, atol=0)
    ranks = mm.sbc(pair, ["a", "b"], rows=200).position
    assert all(float(mm.rank_ecdf(u).p) > 1e-3 for u in ranks.values())
    assert mm.sandwich(pair, given=["a", "b"], rows=3, chains=2, temperatures=3).lower.shape == (3,)


@pytest.mark.parametrize("features", ["left", "right"])
def test_a_plate_of_codes_is_an_axis_of_them(features):
    """Two codes a row, of which the data know the sum alone: its posterior is that of one code."""
    x, pair = data(), programs(features, codes=2, exact=False)
    found = mm.importance(pair, x, num_draws=4000)
    assert found.latents["z"].shape[:3] == (4000, ROWS, 2)
    found = mm.posterior_draws(pair, x, num_draws=1000, progress=False)
    t = found.latents["z"].reshape(1000, ROWS, 2).sum(-1) / 2**0.5
    torch.testing.assert_close(t.mean(0), code(x), rtol=0, atol=0.1)
    torch.testing.assert_close(t.std(0), PRECISION.rsqrt().expand(ROWS), rtol=0.2, atol=0)


def halfway(x, mask=None):
    """The posterior of z ~ N(0, 1), b ~ N(z, 1)."""
    with pyro.plate("data", len(x["b"]), dim=-1):
        pyro.sample("z", dist.Normal(x["b"] / 2, 0.5**0.5))


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 1), (2, 1), (1, 5), (2, 5), (3,), (3, 5)])
def test_our_plate_does_what_pyros_does_but_for_a_copy(shape):
    found, normal = [], dist.Normal(torch.zeros(shape), 1.0)
    for make in (pyro.plate, plate, shared_plate):
        try:
            with pyro.poutine.trace() as traced, make("data", 2, dim=-2), make("inner", 5, dim=-1):
                pyro.sample("z", normal)
            site = traced.trace.nodes["z"]
            found.append((site["value"].shape, site["fn"].batch_shape, site["cond_indep_stack"], site["scale"]))
            assert make is pyro.plate or (site["fn"] is normal) == (shape == (2, 5))
        except ValueError as error:
            found.append(str(error))
    assert found[0] == found[1] == found[2]
    assert isinstance(found[0], str) == (3 in shape)


def test_plates_on_both_sides_of_the_rows_keep_their_order():
    """(draw, 2, 3, row, 4, event) there and (draw, row, 2, 3, 4, event) back."""
    with pyro.poutine.trace() as traced, contextlib.ExitStack() as plates:
        for axis, (name, size) in enumerate({"draws": 6, "one": 2, "two": 3, "data": 5, "right": 4}.items()):
            plates.enter_context(pyro.plate(name, size, dim=axis - 5))
        z = pyro.sample("z", dist.Normal(torch.zeros(7), 1.0).to_event(1))
    site = traced.trace.nodes["z"]
    value = value_of(site, 6, 5)
    assert torch.equal(value, z.permute(0, 3, 1, 2, 4, 5))
    assert torch.equal(as_drawn(value, site["fn"].batch_shape, -2, 4, (7,)), z)
    torch.testing.assert_close(per_row(site, 6, 5), site["fn"].log_prob(z).sum((1, 2, 4)))


def test_a_plate_of_one_beside_another_on_the_right_keeps_the_axes_of_the_data():
    x = {"a": torch.randn(ROWS, 3, 1)}

    def program(x, model=True):
        with pyro.plate("data", ROWS if x is None else len(x["a"]), dim=-3):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("features", 3, dim=-2), pyro.plate("one", 1, dim=-1):
                model and pyro.sample("a", dist.Normal(0 * z + LOADING[:, None], 1.0), obs=x["a"])

    pair = mm.Pair(lambda x, mask=None: program(x), lambda x, mask=None: program(x, False))
    assert torch.equal(mm.predict(pair, x)["a"], LOADING[:, None].expand(ROWS, 3, 1))


def test_a_modality_may_be_called_as_pyro_calls_what_it_observes():
    """b_observed is one more modality, not the part of b that `obs_mask` makes."""

    def model(x=None, mask=None):
        with pyro.plate("data", rows_of(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("b", dist.Normal(z, 1.0), obs=x["b"])
            pyro.sample("b_observed", dist.Normal(0.0, 2.0), obs=x["b_observed"])

    x = {"b": torch.randn(ROWS), "b_observed": torch.randn(ROWS)}
    exact = dist.Normal(0.0, 2.0**0.5).log_prob(x["b"]) + dist.Normal(0.0, 2.0).log_prob(x["b_observed"])
    torch.testing.assert_close(mm.log_likelihood(mm.Pair(model, halfway), x, num_particles=9).value, exact)


@pytest.mark.parametrize("whole", [False, True], ids=["by row", "at all"])
def test_what_is_masked_counts_nothing_where_it_has_no_density_either(whole):
    """c is missing, so 0 for want of a value, which a log-normal never is."""

    def model(x=None, mask=None):
        with pyro.plate("data", rows_of(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("b", dist.Normal(z, 1.0), obs=x["b"])
            with pyro.poutine.mask(mask=False if whole else mask["c"]):
                pyro.sample("c", dist.LogNormal(z, 1.0), obs=x["c"])

    x = {"b": torch.randn(ROWS), "c": torch.full((ROWS,), torch.nan)}
    exact = dist.Normal(0.0, 2.0**0.5).log_prob(x["b"])
    torch.testing.assert_close(mm.log_likelihood(mm.Pair(model, halfway), x, num_particles=9).value, exact)


def test_a_code_that_the_guide_leaves_to_the_prior_is_simulated_where_the_model_has_it():
    def model(x=None, mask=None):
        with pyro.plate("data", rows_of(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            c = pyro.sample("c", dist.Normal(z, 0.6))
            pyro.sample("b", dist.Normal(c, 0.8), obs=None if x is None else x["b"])

    ranks = mm.sbc(mm.Pair(model, halfway), ["b"], rows=200).position
    assert float(mm.rank_ecdf(ranks["z[0]"]).p) > 1e-3


@pytest.mark.parametrize("ask", [mm.log_likelihood, mm.predict, mm.gaps, mm.posterior_draws])
def test_a_modality_outside_of_the_plate_of_the_rows_is_not_left_out_without_a_word(ask):
    def model(x, mask=None):
        with pyro.plate("data", len(x["b"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("b", dist.Normal(z, 1.0), obs=x["b"])
        pyro.sample("a", dist.Normal(z.unsqueeze(-1) * LOADING, 0.5).to_event(2), obs=x["a"])

    with pytest.raises(
        ValueError, match="the modality 'a' is observed outside of the plate 'data', and no row's log p"
    ):
        ask(mm.Pair(model, halfway), data())


def mixing(x, mask=None):
    with pyro.plate("data", len(x["b"]), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), pyro.param("scale", torch.ones(()))).to_event(1))
        pyro.sample("b", dist.Normal(z, 1.0), obs=x["b"])  # (row, 1) beside (row,)


def test_a_program_that_mixes_rows_is_not_trained():
    def guide(x, mask=None):
        with pyro.plate("data", len(x["b"]), dim=-1):
            pyro.sample("z", dist.Normal(x["b"].unsqueeze(-1), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"site 'b' has log-probabilities \(2, 2\), more axes than its plates"):
        mm.fit(mm.Pair(mixing, guide), data(), epochs=1, progress=False)


def test_a_program_that_mixes_draws_is_not_scored():
    good = programs("left")

    def model(x=None, mask=None):
        with pyro.plate("data", rows_of(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("features", 3, dim=-2):  # z.unsqueeze is right for one draw alone
                pyro.sample("a", dist.Normal(z.unsqueeze(-2) * LOADING[:, None], 0.5), obs=x["a"].T)

    with pytest.raises(ValueError, match=r"site 'a' has log-probabilities .*, more axes than its plates"):
        mm.log_likelihood(mm.Pair(model, good.guide), data(), num_particles=50)


def test_a_model_that_needs_data_is_told_so():
    with pytest.raises(ValueError, match=r"cannot be drawn from without data .*'x'.*; give x and mask defaults"):
        mm.generate(mm.Pair(mixing, mixing), 3)

    def looking(x=None, mask=None):
        mixing(x)

    with pytest.raises(ValueError, match=r"cannot be drawn from without data .*NoneType.*; give x and mask defaults"):
        mm.certify(mm.Pair(looking, programs("left").guide), data(), progress=False)


@pytest.mark.parametrize("loss", [mm.Objective(), mm.Objective(bound=mm.objectives.iwae, num_particles=3)])
def test_factors_count_and_what_is_derived_is_no_modality(loss):
    def weighted(x=None, mask=None):
        with pyro.plate("data", rows_of(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.factor("odds", 3.0 + 0 * z)
            pyro.sample("b", dist.Normal(z, 1.0), obs=None if x is None else x["b"])

    x = {"b": torch.randn(ROWS)}
    exact = dist.Normal(0.0, 2.0**0.5).log_prob(x["b"]).sum() + 3 * ROWS
    assert loss.loss(weighted, halfway, x) == pytest.approx(-float(exact))
    assert mm.generate(mm.Pair(weighted, halfway), 5).keys() == {"b"}


def test_what_is_derived_outside_of_the_plate_is_no_modality_even_if_the_data_have_its_name():
    def model(x=None, mask=None):
        pyro.deterministic("dose", torch.tensor(2.0) if x is None else x["dose"].mean())
        with pyro.plate("data", rows_of(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("b", dist.Normal(z, 1.0), obs=None if x is None else x["b"])

    pair, x = mm.Pair(model, halfway), {"b": torch.randn(ROWS), "dose": torch.rand(ROWS)}
    assert mm.predict(pair, x).keys() == mm.impute(pair, x).keys() == {"b"}


@pytest.mark.parametrize("where", ["model", "guide"])
@pytest.mark.parametrize("bound", [mm.objectives.elbo, mm.objectives.iwae], ids=["elbo", "iwae"])
def test_a_factor_counts_as_in_losses_of_pyro_or_is_refused(where, bound):
    """In the guide against the bound, as one of its densities would; outside of the plate of the rows for no row."""

    def program(name, x, inside):
        with pyro.plate("data", len(x["b"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0) if name == "model" else dist.Normal(x["b"] / 2, 0.8))
            if name == "model":
                pyro.sample("b", dist.Normal(z, 1.0), obs=x["b"])
            if name == where and inside:
                pyro.factor("odds", x["b"] ** 2, has_rsample=True)
        if name == where and not inside:
            pyro.factor("odds", torch.tensor(3.0), has_rsample=True)

    x, found = {"b": torch.randn(ROWS)}, []
    for loss in (mm.Objective(bound=bound), Trace_ELBO()):
        pyro.set_rng_seed(0)
        found.append(loss.loss(*(lambda x, mask=None, n=n: program(n, x, True) for n in ("model", "guide")), x))
    assert found[0] == pytest.approx(found[1])
    with pytest.raises(ValueError, match="the factor 'odds' stands outside of the plate 'data', and no row's bound"):
        mm.Objective(bound=bound).loss(*(lambda x, mask=None, n=n: program(n, x, False) for n in ("model", "guide")), x)
