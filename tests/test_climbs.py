"""Posteriors of several modes far apart, which neither the guide nor draws of the prior have seen all of."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import Modes
from test_annealed import two_modes

import pyro_mmvae as mm
from pyro_mmvae.diagnostics import climbs
from pyro_mmvae.diagnostics.climbs import witnesses
from pyro_mmvae.diagnostics.refine import diagonal
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.diagnostics.witness import Witness
from pyro_mmvae.psis import Smoothed
from pyro_mmvae.questions import opened

ROWS = 24


CASES = [(2, 6, 3, 0.1), (2, 8, 2, 0.01), (3, 8, 2, 0.03)]


@pytest.mark.parametrize("case", CASES)
def test_draws_that_are_certified_have_all_modes(case):
    truth = Modes(*case)
    x = truth.simulate()
    mean, sd, _ = truth.moments(x["a"])
    found = mm.posterior_draws(mm.Pair(truth.model, truth.guide), x, max_nuts_rows=0, progress=False)
    right = ((found.latents["z"].mean(0) - mean) / sd).abs().amax(-1) < 0.3  # 1 to 2 in one mode
    assert found.certified.double().mean() > 0.8
    assert right[found.certified].double().mean() > 0.85  # 176 of 183 over eight seeds of the first case


@pytest.mark.parametrize("case", CASES)
def test_their_likelihood_is_that_of_all_modes(case):
    truth = Modes(*case)
    x = truth.simulate()
    found = mm.gaps(mm.Pair(truth.model, truth.guide), x, full_rank=True)
    error = found.log_likelihood - truth.moments(x["a"])[-1]
    assert (found.khat < mm.khat_limit(1000)).double().mean() > 0.8
    assert error.mean().abs() < 0.05 and error.abs().median() < 0.03  # -0.5 to -1.2 in one mode


@pytest.mark.parametrize("case", CASES)
def test_annealing_starts_in_all_modes(case):
    truth = Modes(*case)
    x = truth.simulate()
    found = mm.annealed_log_likelihood(mm.Pair(truth.model, truth.guide), x)
    assert (found.value - truth.moments(x["a"])[-1]).mean().abs() < 0.06  # -0.3 to -0.7 in one mode


def test_a_posterior_of_one_mode_keeps_its_witness():
    """The prior's own draws, whatever the climbs did."""
    truth = Modes(1, 4, 2, 0.1)
    x = truth.simulate()
    vae = mm.Pair(truth.model, truth.guide)
    target = Target(vae, opened(vae, x))
    with torch.no_grad():
        _, prior, missed, unsure = witnesses(target, 200)
        z = target.coordinates({"z": prior.z})
        torch.testing.assert_close(prior.raw, target.log_prob(z, {}) - truth.prior.log_prob(z))
    assert not missed.any() and not unsure.any()


def test_two_modes_with_one_climb_each_make_doubt_and_draws_are_of_the_modes_where_there_are_several(monkeypatch):
    """By Good and Turing: of rows with none, one and two modes found once; the last has nothing that holds anything."""
    truth, real = Modes(2, 4, 2, 0.1), climbs._climbs
    x = truth.simulate(4)
    target = Target(mm.Pair(truth.model, truth.guide), opened(mm.Pair(truth.model, truth.guide), x))

    def found(part, *args, **more):
        mass = torch.zeros(more["starts"], 4)
        mass[1:, 1], mass[:, 3] = (-torch.inf, -torch.inf) if more == climbs.GOOD else (0.0, 0.0)
        return climbs.Climbs(real(part, *args, **more).q, mass, torch.tensor([0, 1, 2, 0]))

    monkeypatch.setattr(climbs, "_climbs", found)
    monkeypatch.setattr(climbs, "FEW", torch.inf)
    monkeypatch.setattr(Smoothed, "beats", lambda *_: torch.ones(4, dtype=torch.bool))
    guide, prior = Witness(*target.guide(100)), climbs.of_prior(target, 100)
    draws, unsure = climbs.with_modes(target, guide, prior)
    assert unsure.tolist() == [False, False, True, False]
    assert (draws.raw == prior.raw).all(0).tolist() == (draws.z == prior.z).all(0).all(-1).tolist()
    assert (draws.raw == prior.raw).all(0).tolist() == [False, True, False, True]


def test_of_rows_whose_prior_has_seen_enough_none_is_in_doubt(monkeypatch):
    """Of four rows two have a hundred effective draws; where all have, or where draws are few, nothing climbs."""
    truth, real, rows = Modes(2, 4, 2, 0.1), climbs._climbs, []
    x, there = truth.simulate(4), torch.tensor([True, False, True, False])
    target = Target(mm.Pair(truth.model, truth.guide), opened(mm.Pair(truth.model, truth.guide), x))

    def found(part, *args, **more):
        rows.append(part.batch.rows)
        mass = torch.zeros(more["starts"], rows[-1])
        return climbs.Climbs(real(part, *args, **more).q, mass, torch.full((rows[-1],), 2))

    monkeypatch.setattr(climbs, "_climbs", found)
    monkeypatch.setattr(Smoothed, "beats", lambda own, other: torch.ones_like(own.khat, dtype=torch.bool))
    guide, prior = Witness(*target.guide(100)), climbs.of_prior(target, 100)
    few = Witness(prior.z, torch.where(there, 0.0, 9.0 * torch.randn(100, 4)))
    draws, unsure = climbs.with_modes(target, guide, few)
    assert rows == [4, 2] and torch.equal(unsure, ~there)
    assert torch.equal((draws.raw == few.raw).all(0), there)
    for enough in (Witness(prior.z, torch.zeros(100, 4)), Witness(few.z[:31], few.raw[:31])):
        draws, unsure = climbs.with_modes(target, guide, enough)
        assert draws is enough and not unsure.any()
    assert rows == [4, 2]


def test_a_normal_that_covers_two_modes_has_the_moments_of_the_posterior():
    """Modes at +-1.4 of equal mass, of which a fitted normal has one: the prior has seen both."""
    x = {"a": torch.full((3, 1), 2.0)}
    vae, _ = two_modes(x)
    q = climbs.covering(Target(vae, opened(vae, x)), 2000)
    grid = torch.linspace(-4, 4, 2001).unsqueeze(-1)
    share = Target(vae, opened(vae, x)).log_prob(grid.unsqueeze(1).expand(-1, 3, 1), {})[:, 0].softmax(0)
    sd = (share * grid[:, 0].square()).sum().sqrt()
    assert q.loc.abs().max() < 4.5 * float(sd) / 100**0.5
    torch.testing.assert_close(q.stddev, sd.expand(3, 1), rtol=0.1, atol=0)


def test_of_climbs_count_those_that_hold_something_and_end_apart(monkeypatch):
    """In each of two rows one ends at 0, two near it, the second as its wide normal reaches it, one at 10 with what
    matters, one at 20 with a bit less than that, of what the guide has found of one row, the prior of the other, and
    two near 40, of which the wide one has more."""
    loc, sd = torch.tensor([0.0, 2.2, -6, 10, 20, 40, 46]), torch.tensor([1.0, 1, 3, 1, 1, 3, 1])
    q = diagonal(*(value.reshape(7, 1, 1).expand(7, 2, 1) for value in (loc, sd)))
    mass = torch.tensor([0.0, -1, -0.5, -6, -8, -2, -3]).unsqueeze(-1).expand(7, 2)
    target = SimpleNamespace(size=1, log_weights=lambda z, q: mass.expand(len(z), 7, 2))
    monkeypatch.setattr(climbs, "climbed", lambda *_, **__: q)
    guide, prior = (Witness(torch.randn(40, 2, 1), torch.tensor(raw).expand(40, 2)) for raw in ([0.0, -3], [-3.0, 0]))
    found = climbs._climbs(target, guide, prior, starts=7, steps=1, num_particles=1)
    kept = torch.tensor([0.0, -torch.inf, -torch.inf, -6, -torch.inf, -2, -torch.inf])
    assert torch.equal(found.mass, kept.unsqueeze(-1).expand(7, 2)) and found.alone.tolist() == [1, 1]


def test_a_mixture_of_modes_has_each_by_what_it_holds_and_somewhat_evenly():
    """Of a row with two that hold 1 and 3, seven tenths by that and three alike; any of a row in which nothing does."""
    q = diagonal(torch.randn(3, 2, 1), 0.5 + torch.rand(3, 2, 1))
    mass = torch.tensor([[0.0, -torch.inf], [3.0, -torch.inf], [-torch.inf, -torch.inf]])
    mass[1, 0] = mass[1, 0].log()
    mixture = climbs.Climbs(q, mass, torch.zeros(2)).mixture()
    shares = torch.tensor([[0.325, 0.675, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(mixture.mixture_distribution.probs, torch.cat([0.9 * shares, 0.1 * shares], 1))
    parts, z = q.log_prob(torch.zeros(3, 2, 1)), mixture.component_distribution.log_prob(torch.zeros(2, 1, 1))
    torch.testing.assert_close(z[0, :3], parts[[0, 1, 1], 0])  # which is where nothing is held as well


@pytest.mark.parametrize("what", ["guide", "prior", "weights", "nothing"])
def test_a_normal_covers_what_any_witness_has_found(what, monkeypatch):
    """The mean of draws at 0, and at 1 with four times the weight, of which smoothing takes a bit, in its row alone."""
    x = {"a": torch.full((2, 1), 2.0)}
    target, q = Target(two_modes(x)[0], opened(two_modes(x)[0], x)), diagonal(torch.full((2, 1), 9.0), torch.ones(2, 1))
    raw = torch.tensor([0.0, 3.0]).log1p().repeat(500)
    guide, prior = (
        Witness(raw.sign().reshape(-1, 1, 1).expand(-1, 2, 1), raw.unsqueeze(-1).expand(-1, 2)) for _ in "12"
    )
    monkeypatch.setattr(climbs, "fit_normal", lambda *_, **__: q)
    monkeypatch.setattr(climbs, "witnesses", lambda *_: (guide, prior, None, None))
    monkeypatch.setattr(climbs, "better", lambda *_: prior)
    said = {"guide": guide, "prior": prior}.get(what)
    monkeypatch.setattr(Witness, "lacks", lambda self, other, q: torch.tensor([other is said, False]))
    monkeypatch.setattr(Smoothed, "misses", lambda *_: torch.tensor([what == "weights", False]))
    expected = torch.tensor([[9.0 if what == "nothing" else 0.8], [9.0]])
    torch.testing.assert_close(climbs.covering(target, 1000).loc, expected, rtol=0, atol=0.02)


def test_a_mixture_on_a_half_line_is_refined_in_its_logarithm():
    """z ~ Gamma(2, 1) or Gamma(60, 1), x | z ~ Poisson(z): the evidence is of two negative binomials."""
    shape, x = torch.tensor([2.0, 60.0]), {"count": torch.tensor([0.0, 3, 20, 60])}
    prior = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(shape, 1.0))

    def model(x, mask):
        with pyro.plate("data", len(x["count"]), dim=-1):
            pyro.sample("count", dist.Poisson(pyro.sample("rate", prior)), obs=x["count"])

    def guide(x, mask):
        with pyro.plate("data", len(x["count"]), dim=-1):
            pyro.sample("rate", dist.LogNormal((x["count"] + 1).log(), 0.5))

    found = mm.gaps(mm.Pair(model, guide), x, num_draws=4000)
    half = dist.NegativeBinomial(shape, probs=torch.tensor(0.5)).log_prob(x["count"].unsqueeze(-1))
    torch.testing.assert_close(found.log_likelihood, half.logsumexp(-1) - torch.tensor(2.0).log(), rtol=0, atol=0.1)


def test_a_support_without_a_transform_is_named():
    class Odd(dist.Normal):
        support = dist.constraints.Constraint()

    def program(x, mask):
        with pyro.plate("data", 2, dim=-1):
            pyro.sample("angle", Odd(0.0, 1.0))

    with pytest.raises(ValueError, match="the site 'angle' cannot be refined: its Odd has support"):
        mm.gaps(mm.Pair(program, program), {"a": torch.zeros(2)})


def test_entries_of_a_mixture_may_be_hidden():
    """log p of what is left is that of the entries alone."""

    class Likelihood(torch.nn.Module):
        def forward(self, z):
            rate = z.exp().unsqueeze(-1) * torch.tensor([1.0, 5.0])
            mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(2.0, rate))
            return mixture.to_event(1)

    part = mm.Modality(Likelihood(), mm.encoder(3, 8, dim=3))
    vae = mm.MultimodalVAE({"a": part}, mm.StandardNormal(3), mm.PoE())
    x = torch.tensor([[1.0, 2.0, float("nan")], [0.5, float("nan"), 3.0]])
    z = torch.zeros(2, 1, 3)
    with pyro.poutine.trace() as trace, pyro.poutine.condition(data={"z": z}):
        vae.model(*mm.from_nan({"a": x}))
    trace = trace.trace
    trace.compute_log_prob()
    expected = Likelihood()(z[:, 0]).base_dist.log_prob(x.nan_to_num(nan=1.0))
    torch.testing.assert_close(trace.nodes["a"]["log_prob"].squeeze(-1), (expected * ~x.isnan()).sum(-1))


def test_more_modes_than_climbs_can_find_are_not_certified():
    """x = |z| in four coordinates: sixteen modes alike."""

    def model(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("a", dist.Normal(z.abs(), 0.05).to_event(1), obs=x["a"])

    def guide(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", dist.Normal(x["a"], 0.05).to_event(1))

    x = {"a": 0.5 + torch.rand(ROWS, 4)}
    found = mm.posterior_draws(mm.Pair(model, guide), x, max_nuts_rows=0, progress=False)
    good = mm.gaps(mm.Pair(model, guide), x).khat < mm.khat_limit(1000)
    assert found.certified.double().mean() < 0.1 and good.double().mean() < 0.1  # all and all without a word of doubt
