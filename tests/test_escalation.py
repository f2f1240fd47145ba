"""Draws that every row can vouch for: wrong guides are repaired, right ones are left alone, budgets are kept."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import of_tables
from exact import LinearGaussian
from test_annealed import two_modes
from test_gaps import broken, collapsed

import pyro_mmvae as mm
from pyro_mmvae.diagnostics import escalation, rungs, walk
from pyro_mmvae.diagnostics.chains import mixing

ROWS, DRAWS = 12, 1000


def repaired(found, truth, x, mask=None, subset=None):
    """Mean and sd of the draws are those of the exact posterior, within their Monte-Carlo error and the tolerance."""
    mean, covariance = truth.posterior(x, mask, subset)
    sd = covariance.diagonal(dim1=1, dim2=2).sqrt()
    z, error = found.latents["z"], 4.5 * found.ess.clamp(max=len(found.latents["z"])).rsqrt().unsqueeze(-1) + 0.02
    assert found.certified.all()
    assert ((z.mean(0) - mean).abs() < error * sd).all() and ((z.std(0) / sd - 1).abs() < error).all()
    return set(found.method)


BROKEN = {
    "too narrow": lambda truth: broken(truth, 0, 0.3),
    "far too narrow": lambda truth: broken(truth, 1, 0.02),
    "too wide": lambda truth: broken(truth, 0, 3),
    "shifted": lambda truth: broken(truth, 2, 1),
    "collapsed": collapsed,
    "mixture of experts": lambda truth: truth.vae(mm.MoE(), expert="posterior"),
    "mixture of products": lambda truth: truth.vae(mm.MoPoE(), expert="posterior"),
    "prior in every expert": lambda truth: truth.vae(mm.PoE(), expert="posterior"),
}


@pytest.mark.parametrize("guide", BROKEN)
def test_every_broken_guide_is_repaired(guide):
    truth = LinearGaussian(orthogonal=False)
    x, vae = truth.simulate(ROWS), BROKEN[guide](truth)
    found = mm.posterior_draws(vae, x, num_draws=DRAWS, progress=False)
    assert repaired(found, truth, x) <= {"refined", "psis"}


def test_chains_repair_a_guide_far_off():
    truth = LinearGaussian(orthogonal=False)
    x = truth.simulate(5)
    found = mm.posterior_draws(broken(truth, 3, 0.1), x, method="hmc", num_draws=DRAWS, progress=False)
    assert set(found.method) == {"hmc"} and (found.rhat < 1.03).all() and (found.ess > 1000).all()
    found.certified[:] = True
    repaired(found, truth, x)


def test_chains_that_agree_but_for_want_of_draws_go_on(monkeypatch):
    """Of chains that are slow and many the R-hat is that of chance alone, sqrt(1 + 16 / ESS)."""
    truth, seen = LinearGaussian({"a": 4}, dim=4, orthogonal=False), []
    x = truth.simulate(2)
    monkeypatch.setattr(walk, "LONGEST", 0.25)
    monkeypatch.setattr(rungs, "APART", rungs.APART[:2])
    monkeypatch.setattr(rungs, "mixing", lambda y: seen.append(mixing(y)) or seen[-1])
    found = mm.posterior_draws(truth.vae(), x, method="hmc", progress=False)
    (short, few), (long, many) = seen
    assert (short > 1.01).all() and (short < 1.1).all() and (long < 1.01).all() and (many > 2.5 * few).all()
    assert torch.equal(found.rhat, long) and torch.equal(found.ess, many)
    repaired(found, truth, x)


def test_chains_do_not_go_on_where_the_time_would_be_up_first(monkeypatch):
    truth, seen = LinearGaussian({"a": 4}, dim=4, orthogonal=False), []
    monkeypatch.setattr(walk, "LONGEST", 0.25)
    monkeypatch.setattr(rungs, "GROWTH", 1e9)
    monkeypatch.setattr(rungs, "mixing", lambda y: seen.append(mixing(y)) or seen[-1])
    found = mm.posterior_draws(truth.vae(), truth.simulate(2), method="hmc", progress=False)
    assert len(seen) == 1 and torch.equal(found.rhat, seen[0][0]) and not found.certified.any()


def test_posteriors_of_many_coordinates_are_certified():
    """Where ten times as much is seen of some directions as of others: covariances and climbs have to settle."""
    truth = LinearGaussian({"a": 40, "b": 10}, dim=40, orthogonal=False)
    x = truth.simulate(3)
    found = mm.posterior_draws(truth.vae(), x, max_nuts_rows=0, seconds=0.0, progress=False)
    assert repaired(found, truth, x) <= {"refined", "psis"} and (found.khat < 0.5).all() and (found.ess > 900).all()


def test_the_guide_serves_where_it_is_right():
    truth = LinearGaussian()
    x = truth.simulate(ROWS)
    found = mm.posterior_draws(truth.vae(), x, num_draws=DRAWS, progress=False)
    assert repaired(found, truth, x) == {"guide"}
    forced = mm.posterior_draws(broken(truth, 1, 0.5), x, method="guide", progress=False)
    assert set(forced.method) == {"guide"} and not forced.certified.any() and "guide" in str(forced)


@pytest.mark.parametrize("method", ["guide", "refined", "psis"])
def test_more_draws_than_weights_need_are_as_many_different_ones(method):
    """And few draws have the certificate of a thousand weights, of which ten alone would know no k-hat."""
    truth = LinearGaussian(orthogonal=False)
    x, vae = truth.simulate(2), broken(truth, 0, 1)
    many, few = (mm.posterior_draws(vae, x, method=method, num_draws=k, progress=False) for k in (2500, 10))
    z, least = many.latents["z"], 1500 if method == "psis" else 2500  # which takes some of them twice
    assert z.shape == (2500, 2, 2) and few.latents["z"].shape == (10, 2, 2)
    assert min(len(z[:, row].unique(dim=0)) for row in range(2)) >= least
    assert set(many.method) == set(few.method) == {method} and (few.khat < 0.7).all() and (few.ess > 200).all()
    many.certified[:] = True
    repaired(many, truth, x)


def test_every_row_goes_as_far_as_it_needs_and_no_further():
    """The guide is right on even rows, and off by two standard deviations on odd ones."""
    truth = LinearGaussian()
    x = truth.simulate(ROWS)
    x["a"][:, 0] = torch.arange(ROWS) % 2

    def guide(x, mask):
        mean, covariance = truth.posterior(dict(x))
        sd = covariance.diagonal(dim1=1, dim2=2).sqrt()
        with pyro.plate("data", len(mean), dim=-2):
            loc = mean + 2 * sd * x["a"][:, :1]
            pyro.sample("z", dist.Normal(loc.unsqueeze(1), sd.unsqueeze(1)).to_event(1))

    found = mm.posterior_draws(mm.Pair(truth.vae().model, guide), x, num_draws=DRAWS, progress=False)
    assert found.method == ["guide", "refined"] * (ROWS // 2)
    repaired(found, truth, x)


@pytest.fixture
def short(monkeypatch):
    """Chains a bit too short for their certificate, for the sake of the clock."""
    monkeypatch.setattr(rungs, "WARMUP", 60)
    monkeypatch.setattr(rungs, "FEWEST", 125)
    monkeypatch.setattr(rungs, "APART", rungs.APART[:1])


def test_nuts_repairs_as_well(short):
    truth = LinearGaussian(orthogonal=False)
    x = truth.simulate(2)
    found = mm.posterior_draws(broken(truth, 1, 0.5), x, method="nuts", num_draws=DRAWS, progress=False)
    assert set(found.method) == {"nuts"} and (found.rhat < 1.05).all()
    found.certified[:] = True  # R-hat of a run as short as this is close to its limit
    repaired(found, truth, x)


def counts(dim=96):
    """z ~ N(0, 2^2 I), x_d | z ~ Poisson(exp z_d): skewed in too many dimensions for a proposal; by quadrature."""
    x = {"n": torch.tensor([0.0, 1, 0, 3, 0, 0, 8, 1]).repeat(dim // 8).expand(3, dim).clone()}

    def model(x, mask):
        with pyro.plate("data", len(x["n"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 2.0).to_event(1))
            pyro.sample("n", dist.Poisson(z.exp()).to_event(1), obs=x["n"])

    def guide(x, mask):
        with pyro.plate("data", len(x["n"]), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(dim), 2.0).to_event(1))

    grid = torch.linspace(-14, 8, 4001).unsqueeze(1)
    weights = (dist.Normal(0.0, 2.0).log_prob(grid) + dist.Poisson(grid.exp()).log_prob(x["n"][0])).softmax(0)
    mean = (weights * grid).sum(0)
    return mm.Pair(model, guide), x, mean, (weights * (grid - mean) ** 2).sum(0).sqrt()


def test_chains_serve_where_no_proposal_does(monkeypatch):
    monkeypatch.setattr(rungs, "APART", rungs.APART[:1])  # as long as one certificate asks, for the sake of the clock
    vae, x, mean, sd = counts()
    found = mm.posterior_draws(vae, x, num_draws=DRAWS, progress=False, max_nuts_rows=0)
    assert set(found.method) == {"hmc"} and (found.rhat < 1.03).all()
    error = 4.5 * (found.ess.clamp(max=DRAWS) / 2).rsqrt().unsqueeze(-1)
    assert ((found.latents["z"].mean(0) - mean).abs() < error * sd).all()
    assert ((found.latents["z"].std(0) / sd - 1).abs() < error).all()


def test_rows_beyond_the_budget_are_served_by_less_and_say_so():
    vae, x, *_ = counts()
    late = mm.posterior_draws(vae, x, seconds=0.0, progress=False)
    assert set(late.method) <= {"refined", "psis"} and not late.certified.any() and late.rhat.isnan().all()
    few = mm.posterior_draws(vae, x, method="nuts", max_nuts_rows=0, progress=False)
    assert "nuts" not in few.method and not few.certified.any()


def test_two_modes_keep_their_shares():
    """Modes at +-1.4 of equal mass: resampled draws of a guide that sees both have half of each, although a normal
    that fits one of them has weights that look better."""
    x = {"a": torch.full((4, 1), 2.0)}
    vae, _ = two_modes(x)
    found = mm.posterior_draws(vae, x, method="psis", num_draws=DRAWS, progress=False)
    share = (found.latents["z"] > 0).double().mean(0)
    assert ((share - 0.5).abs() < 4.5 * (0.25 / found.ess.unsqueeze(-1)).sqrt()).all()
    chains = mm.posterior_draws(vae, x, method="hmc", progress=False)
    assert not chains.certified.any() and (chains.rhat > 1.1).all()  # eight chains that hardly ever change modes


def agree(first, second):
    """Two methods that share nothing but the model give one answer."""
    for site, z in first.latents.items():
        for f in (lambda v: v, lambda v: v**2):
            a, b = f(z), f(second.latents[site])
            share = 1 / first.ess.clamp(max=len(z)) + 1 / second.ess.clamp(max=len(z))
            error = (torch.maximum(a.var(0), b.var(0)) * share.reshape(-1, *[1] * (a.dim() - 2))).sqrt()
            assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all(), site


def private_codes():
    return mm.recipes.dmvae(of_tables(2), 2, 2)[0]


def code_above():
    parts = of_tables()
    prior = mm.HierarchicalNormal(2, mm.StandardNormal(2), mm.encoder(2, 6, dim=2), mm.encoder(2, 6, dim=2))
    return mm.MultimodalVAE(parts, prior, mm.PoE())


@pytest.mark.parametrize("build", [private_codes, code_above])
def test_methods_agree_on_several_sites_and_missing_modalities(build, short):
    vae, rows = build(), 6
    x = {"a": torch.randn(rows, 3), "b": torch.randn(rows, 2), "c": torch.randn(rows, 4)}
    mask = {"b": torch.arange(rows) % 2 == 0, "c": torch.rand(rows, 4) > 0.3}
    first, second = (mm.posterior_draws(vae, x, mask, method=m, progress=False) for m in ("psis", "hmc"))
    assert set(first.method) == {"psis"} and set(second.method) == {"hmc"} and len(first.latents) > 1
    agree(first, second)


def test_repeats_and_holes():
    truth = LinearGaussian(repeated=["b"], orthogonal=False)
    x = truth.simulate(ROWS, repeats=3)
    mask = {"b": torch.rand(ROWS, 3) > 0.5, "c": torch.rand(ROWS, 5) > 0.4, "a": torch.arange(ROWS) > 1}
    found = mm.posterior_draws(truth.vae(), x, mask, num_draws=DRAWS, progress=False)
    repaired(found, truth, x, mask)
    part = mm.posterior_draws(truth.vae(), x, mask, given=["b"], num_draws=DRAWS, progress=False)
    repaired(part, truth, x, mask, ["b"])


def test_chunks_of_rows_that_lack_a_private_code(monkeypatch):
    monkeypatch.setattr("pyro_mmvae.weights.NUMBERS_AT_ONCE", 2**15)  # three rows at a time
    vae = private_codes()
    x = {"a": torch.randn(9, 3), "b": torch.randn(9, 2)}
    mask = {"b": torch.arange(9) > 5}
    drawn = mm.posterior_draws(vae, x, mask, method="refined", num_draws=100, progress=False)
    for found in (drawn, mm.importance(vae, x, mask, num_draws=20)):
        assert found.latents["b.w"][:, 0].isnan().all() and found.latents["b.w"][:, 6:].isfinite().all()
        assert found.latents["z"].isfinite().all()


def test_sites_outside_the_plate_are_drawn_from_the_guide():
    """A shift of all data, which the guide holds for a half: the draws are those given that."""
    truth = LinearGaussian({"a": 4}, orthogonal=False)
    x = truth.simulate(4)

    def model(x, mask):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z @ truth.loading["a"].T + truth.offset["a"] + shift.unsqueeze(-1)
            pyro.sample("a", dist.Normal(loc, truth.noise["a"]).to_event(1), obs=x["a"])

    def guide(x, mask):
        pyro.sample("shift", dist.Normal(0.5, 1e-9))
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    for method in ("refined", "psis"):
        found = mm.posterior_draws(mm.Pair(model, guide), x, method=method, num_draws=DRAWS, progress=False)
        assert repaired(found, truth, {"a": x["a"] - 0.5}) == {method}


def test_mixing_sees_what_keeps_chains_apart():
    draws = torch.randn(500, 4, 3, 2)
    draws[:, 0, 1, 0] += 1  # one chain elsewhere
    draws[:, 0, 2, 1] *= 3  # one chain wider
    rhat, ess = mixing(draws)
    assert rhat[0] < 1.01 and (rhat[1:] > 1.05).all() and ess[0] > 1500 and ess[1] < 200
    slow = torch.randn(2000, 4, 1, 1).cumsum(0)
    assert mixing(slow)[0] > 1.1


def test_a_bar_counts_the_rows_and_says_what_serves_them_unless_told_not_to(capsys):
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(5)
    mm.posterior_draws(vae, x, method="guide", num_draws=20)
    end = capsys.readouterr().err.split("\r")[-1]
    assert "5/5" in end and "row/s" in end and "guide=5" in end
    mm.posterior_draws(vae, x, method="guide", num_draws=20, progress=False)
    latents, share = escalation.codes_by("psis", vae, vae.check(x), 10)
    assert latents["z"].shape == (10, 5, 2) and share == 1 and capsys.readouterr().err == ""


def test_a_budget_is_what_was_asked_for(monkeypatch):
    truth, seen, real = LinearGaussian(), [], escalation.Ladder
    monkeypatch.setattr(escalation, "Ladder", lambda target, *told: seen.append(told) or real(target, *told))
    monkeypatch.setattr(escalation.time, "monotonic", lambda: 100.0)
    for seconds in (5.0, math.inf):
        more = {"num_draws": 20, "tolerance": 0.3, "max_nuts_rows": 7, "seconds": seconds}
        mm.posterior_draws(truth.vae(), truth.simulate(2), method="guide", progress=False, **more)
        assert seen.pop() == ("guide", 20, 0.3, rungs.Budget(7, 100.0 + seconds))


WRONG = [("num_draws", 0), ("tolerance", 0.0), ("max_nuts_rows", -1), ("seconds", -1.0)]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_numbers_out_of_range_are_named(name, value):
    truth = LinearGaussian()
    with pytest.raises(ValueError, match=f"^{name} is {value}; give a "):
        mm.posterior_draws(truth.vae(), truth.simulate(2), **{name: value})


def test_bad_input():
    truth = LinearGaussian()
    with pytest.raises(ValueError, match="unknown method 'best'; choose one of auto, guide"):
        mm.posterior_draws(truth.vae(), truth.simulate(2), method="best")
