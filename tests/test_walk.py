"""The way from a normal to the posterior: coordinates, forces and transitions against closed forms, and mixing."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from scipy.stats import norm, rankdata

import pyro_mmvae as mm
from pyro_mmvae.diagnostics import chains
from pyro_mmvae.diagnostics.chains import hmc, mixing, nuts
from pyro_mmvae.diagnostics.refine import normal
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.diagnostics.walk import ACCEPTED, Path, transition, tuned
from pyro_mmvae.questions import opened


def walked(chains, rows=3):
    """A path from a normal that is off and correlated otherwise, with the exact posterior and log p(x)."""
    truth = LinearGaussian(orthogonal=False)
    x, vae = truth.simulate(rows), truth.vae()
    mean, covariance = truth.posterior(x)
    tilt = torch.tensor([[1.3, 0.0], [0.6, 0.9]])
    base = normal(mean + 0.3, torch.linalg.cholesky(covariance) @ tilt)
    return Path(Target(vae, opened(vae, x)), base, chains), mean, covariance, truth.log_prob(x)


def test_a_path_has_the_density_and_the_slope_of_the_posterior_in_its_coordinates():
    path, mean, covariance, log_prob = walked(5)
    y = torch.randn(5, 3, 2, requires_grad=True)
    z = path.codes(y)
    torch.testing.assert_close(path.whitened(z), y)
    volume = torch.linalg.slogdet(path.base.covariance_matrix).logabsdet / 2
    exact = dist.MultivariateNormal(mean, covariance).log_prob(z) + log_prob + volume
    state = path.at(y.detach())
    torch.testing.assert_close(state.joint, exact)
    torch.testing.assert_close(state.slope, torch.autograd.grad(exact.sum(), y)[0])
    torch.testing.assert_close(state.base, path.base.log_prob(z) + volume)


@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_transitions_leave_the_density_as_it_is(beta):
    """Of chains that stand by an exact draw each; some of the steps are refused."""
    chains = 20_000
    path, mean, covariance, _ = walked(chains)
    factor, apart = path.base.scale_tril, (mean - path.base.loc).unsqueeze(-1)
    precision = (1 - beta) * torch.eye(2) + beta * factor.mT @ torch.linalg.inv(covariance) @ factor
    centre = torch.linalg.solve(precision, beta * factor.mT @ torch.linalg.solve(covariance, apart)).squeeze(-1)
    exact = dist.MultivariateNormal(centre, precision_matrix=precision)
    state = path.at(exact.sample((chains,)))
    for _ in range(3):
        before = state.y
        state, accept = transition(path, state, beta, torch.full((3,), 1.0))
        moved = (state.y != before).any(-1).double().mean(0)
        assert ((accept - moved).abs() < 4.5 * 0.5 / chains**0.5).all() and accept.min() > 0.5 and accept.max() < 0.97
    white = (torch.linalg.inv(exact.scale_tril) @ (state.y - centre).unsqueeze(-1)).squeeze(-1)
    assert white.mean(0).abs().max() < 4.5 / chains**0.5
    second = torch.einsum("crk,crl->rkl", white, white) / chains
    assert (second - torch.eye(2)).abs().max() < 4.5 * (2 / chains) ** 0.5
    assert transition(path, state, beta, torch.full((3,), 0.02))[1].min() > 0.999  # as the force is that density's
    same, accept = transition(path, state, beta, torch.full((3,), 1e200))  # so far that nothing there is a number
    assert torch.equal(same.y, state.y) and bool((accept == 0).all())


def test_chains_keep_every_so_many_of_their_states_after_the_warmup_and_none_if_the_time_is_up():
    path, *_ = walked(4)
    found = []
    for warmup, draws, apart in ((0, 6, 1), (0, 3, 2), (2, 4, 1)):
        pyro.set_rng_seed(1)
        found.append(hmc(path, torch.zeros(4, 3, 2), warmup, draws, math.inf, apart))
    assert torch.equal(found[1], found[0][1::2]) and len(found[2]) == 4
    assert all(walk(path, torch.zeros(4, 3, 2), 1, 1, 0.0) is None for walk in (hmc, nuts))


def test_steps_are_tuned_in_the_warmup_alone_and_less_and_less(monkeypatch):
    """From an eighth on by 2 k^-0.6 times what too much is accepted, here 0.05 for one row and -0.1 for the other."""
    steps, path = [], walked(4, 2)[0]
    accept = ACCEPTED + torch.tensor([0.05, -0.1])
    monkeypatch.setattr(chains, "transition", lambda p, state, beta, step: steps.append(step) or (state, accept))
    y = hmc(path, torch.zeros(4, 2, 2), 4, 2, math.inf, 3)
    gains = torch.tensor([0.0, 2.0, 2 * 2**-0.6, 2 * 3**-0.6, 2 * 4**-0.6] + [0.0] * 5).cumsum(0).unsqueeze(1)
    torch.testing.assert_close(torch.stack(steps), 0.125 * (gains * torch.tensor([0.05, -0.1])).exp())
    assert y.shape == (2, 4, 2, 2)


def test_which_states_are_kept_does_not_hang_on_the_warmup(monkeypatch):
    """The last of every three."""
    path, made = walked(1, 1)[0], []

    def transition(path, state, beta, step):
        made.append(path.at(torch.full((1, 1, 2), float(len(made)))))
        return made[-1], torch.full((1,), ACCEPTED)

    monkeypatch.setattr(chains, "transition", transition)
    for warmup in (4, 5):
        made.clear()
        found = hmc(path, torch.zeros(1, 1, 2), warmup, 2, math.inf, 3)
        assert found[:, 0, 0, 0].tolist() == [warmup + 2, warmup + 5]


def test_a_trajectory_goes_four_steps_each_of_60_to_100_percent():
    """Straight on, where they are short."""
    path = walked(5000)[0]
    state = path.at(torch.zeros(5000, 3, 2))
    pyro.set_rng_seed(1)
    new, _ = transition(path, state, 1.0, torch.full((3,), 1e-7))
    pyro.set_rng_seed(1)
    steps = (new.y / torch.randn_like(new.y) / 1e-7).median(-1).values
    assert steps.min() > 2.399 and steps.max() < 4.001
    assert steps.min() < 2.41 and steps.max() > 3.99 and steps.mean() == pytest.approx(3.2, abs=0.02)


def test_nuts_warms_up_for_as_long_as_it_is_told_and_shows_no_bar(capsys, monkeypatch):
    lengths, real = [], chains.MCMC
    monkeypatch.setattr(chains, "MCMC", lambda *a, **k: lengths.append(k["warmup_steps"]) or real(*a, **k))
    assert nuts(walked(2)[0], torch.zeros(2, 3, 2), 2, 3, math.inf).shape == (3, 2, 3, 2)
    assert lengths == [2] and capsys.readouterr().err == ""


def test_steps_settle_where_they_are_accepted_as_often_as_they_should_be():
    step = torch.tensor([0.01, 0.4])
    for position in range(300):
        step = tuned(step, (1 - step).clamp(min=0), 2 * (1 + position) ** -0.6)
    torch.testing.assert_close(step, torch.full((2,), 1 - ACCEPTED), rtol=0.01, atol=0)


def test_every_chain_has_a_draw_of_its_own_of_what_all_rows_share():
    def program(x, mask=None):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            if "a" in x:
                pyro.sample("a", dist.Normal(z + shift.unsqueeze(-1), 1.0).to_event(1), obs=x["a"])

    pair = mm.Pair(program, lambda x, mask=None: program({}))
    path = Path(Target(pair, opened(pair, {"a": torch.ones(2, 1)})), normal(torch.zeros(2, 1), torch.ones(2, 1, 1)), 6)
    assert len(path.at(torch.zeros(6, 2, 1)).joint[:, 0].unique()) == 6


def scale_reduction(draws):
    """Split R-hat of normal scores, from (draw, chain), by its definition."""
    scores = norm.ppf((rankdata(draws.numpy()) - 3 / 8) / (draws.numel() + 1 / 4)).reshape(draws.shape)
    halves = torch.cat(torch.as_tensor(scores).chunk(2), 1)
    within, between = halves.var(0).mean(), halves.mean(0).var()
    return ((1 - 1 / len(halves)) + between / within).sqrt()


def test_mixing_of_few_draws_with_heavy_tails_is_that_of_their_normal_scores():
    draws = dist.StudentT(1.0).sample((12, 4, 5, 2)) + torch.tensor([0.0, 30.0])
    for row, found in enumerate(mixing(draws)[0]):
        each = [f(v) for v in draws[:, :, row].unbind(-1) for f in (lambda v: v, lambda v: (v - v.median()).abs())]
        torch.testing.assert_close(found, torch.stack([scale_reduction(v) for v in each]).max(), rtol=1e-9, atol=0)


def test_mixing_is_that_of_ranks_and_of_folded_ranks():
    draws = torch.randn(300, 4, 3, 2) + 5
    draws[:, 0, 1, 0] += 1  # one chain elsewhere
    draws[:, 0, 2, 1] = 5 + 3 * (draws[:, 0, 2, 1] - 5)  # one chain wider
    for row, found in enumerate(mixing(draws)[0]):
        each = draws[:, :, row].unbind(-1)
        plain, folded = ([scale_reduction(f(v)) for v in each] for f in (lambda v: v, lambda v: (v - v.median()).abs()))
        torch.testing.assert_close(found, torch.stack([*plain, *folded]).max(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_chains_that_stand_still_have_not_mixed_and_the_verdict_has_the_precision_of_the_draws(value):
    still = torch.randn(250, 8, 3, 2, dtype=torch.float32)
    still[:, :, 0, 1], still[:, 3, 1], still[:, :, 2] = value, value, still[0, :, 2].clone()
    rhat, ess = mixing(still)
    assert (rhat > 1.1).all() and rhat.dtype == ess.dtype == torch.float32


def test_the_effective_number_of_draws_of_an_autoregression():
    """Of the worse of two coordinates, v_t = v_(t-1) / 2 + noise: a third of them."""
    draws = torch.randn(5000, 4, 1, 2)
    for before, after in zip(draws[:-1, :, 0, 1], draws[1:, :, 0, 1]):
        after += before / 2
    assert float(mixing(draws)[1]) == pytest.approx(20_000 / 3, rel=0.1)
