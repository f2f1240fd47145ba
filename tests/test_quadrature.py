"""Laws of everything that returns a number, on models without a closed form: against sums over a grid."""

import pytest
import torch
from quadrature import GRID, LIKELIHOODS, holes, model

import pyro_mmvae as mm
from pyro_mmvae.diagnostics.certify import verdict

PAIRS = [(name, "Normal" if name != "Normal" else "Poisson") for name in LIKELIHOODS]


@pytest.mark.parametrize("names", PAIRS, ids=lambda names: names[0])
def test_an_exact_guide_of_any_likelihood_knows_log_p_of_what_was_seen(names):
    vae = model(*names)
    x = mm.generate(vae, 12)
    mask, exact = holes(x), vae.fusion
    found = mm.log_likelihood(vae, x, mask, num_particles=40)
    torch.testing.assert_close(found.value, exact.log_prob(x, mask), rtol=0, atol=1e-2)
    part = mm.log_likelihood(vae, x, mask, num_particles=40, targets=[names[0]])
    torch.testing.assert_close(part.value, exact.log_prob(x, mask, [names[0]]), rtol=0, atol=1e-2)
    mean = (exact.posterior(x, mask) * GRID.unsqueeze(1)).sum(0)
    error = mm.posterior_draws(vae, x, mask, method="guide", progress=False).latents["z"].squeeze(-1)
    assert ((error.mean(0) - mean).abs() < 4.5 * error.std(0) / 1000**0.5).all()


def standardised(found, exact):
    """Errors in standard errors, of the rows that have one."""
    z = (found.value - exact) / found.se
    return z[found.se > 1e-9]


@pytest.mark.parametrize("names", [("Binomial", "tokens"), ("Poisson", "VonMises"), ("zero-inflated", "Laplace")])
def test_estimates_are_within_their_standard_errors_and_unbiased(names):
    vae = model(*names, power=0.6)  # a guide that is too wide, so that weights are bounded
    x = mm.generate(vae, 70)
    mask, exact = holes(x), vae.fusion
    truth, alone = exact.log_prob(x, mask), exact.log_prob(x, mask, names[:1])
    found = {
        "importance": (mm.log_likelihood(vae, x, mask, num_particles=400), truth),
        "annealed": (mm.annealed_log_likelihood(vae, x, mask, chains=32, temperatures=10), truth),
        "conditional": (
            mm.conditional_log_likelihood(vae, x, mask, given=names[:1], targets=names[1:], num_particles=400),
            truth - alone,
        ),
    }
    for name, (estimate, value) in found.items():
        z = standardised(estimate, value)
        off = (estimate.value - value).exp() - 1  # of p(x), as log p(x) is biased
        off = z if name == "conditional" else off / off.std()
        assert abs(float(off.mean())) < 4 / len(off) ** 0.5, name
        sure = z[estimate.khat[estimate.se > 1e-9] < 0.3]  # where a standard error is to be believed
        assert float((sure**2).mean()) < 1.07 + 4 * (2 / len(sure)) ** 0.5, name  # Student's t of 31 degrees
    assert (mm.gaps(vae, x, mask, num_draws=400).log_likelihood - truth).abs().max() < 0.3


@pytest.mark.parametrize(
    ("power", "moved", "word"),
    [(1.0, 0.0, "pass"), (0.5, 0.0, "under-confident"), (2.0, 0.0, "over-confident"), (1.0, 0.3, "biased")],
)
def test_a_verdict_is_right_of_guides_that_are_no_normals(power, moved, word):
    vae = model("zero-inflated", "Bernoulli", power=power, moved=moved)
    assert verdict(mm.sbc(vae, ["zero-inflated", "Bernoulli"], rows=400, num_draws=99))[0] == word


def test_predictions_are_means_and_imputations_draws_of_the_posterior_predictive():
    vae = model("Normal", "Poisson")
    x, rows = mm.generate(vae, 40), 40
    hidden = {"Poisson": torch.zeros(rows, dtype=torch.bool)}
    weights, rate = vae.fusion.posterior(x, hidden), vae.fusion.curves["Poisson"].rate[:, 0, 0]
    mean = weights.T @ rate
    variance = weights.T @ (rate + rate**2) - mean**2
    drawn = mm.impute(vae, x, hidden, num_draws=2000)["Poisson"]
    z = (drawn.mean(0) - mean) / (variance / 2000).sqrt()
    assert float((z**2).mean()) < 1.6 and z.abs().max() < 4.5
    assert float((drawn.var(0) / variance).mean()) == pytest.approx(1, abs=0.05)
    around = (variance - mean) / 2000  # of the rates alone
    z = (mm.predict(vae, x, hidden, num_draws=2000)["Poisson"] - mean) / around.sqrt()
    assert float((z**2).mean()) < 1.6 and z.abs().max() < 4.5


def test_draws_that_are_given_do_not_score_higher_because_they_are_more():
    """A score is a lower bound that rises with the draws: unless asked, as many of those count as of the guide's."""
    vae = model("Normal, sharp", "Bernoulli")
    x, name = mm.generate(vae, 300), "Normal, sharp"
    hidden = {name: torch.zeros(300, dtype=torch.bool)}
    latents = mm.posterior_draws(vae, x, given=["Bernoulli"], method="guide", progress=False).latents
    told, hundred, thousand = (
        mm.imputation_error(vae, x, visible=hidden, latents=latents, num_draws=count)[name].log_score
        for count in (None, 100, 1000)
    )
    weights, logs = vae.fusion.posterior(x, hidden), vae.fusion.curves[name].log_prob(x[name].unsqueeze(1))
    exact = float((weights * logs.sum((2, 3)).exp()).sum(0).log().mean()) / 2
    assert told == hundred < thousand - 0.02 and thousand == pytest.approx(exact, abs=0.03)
