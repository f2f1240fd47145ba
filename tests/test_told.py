"""Questions asked with codes that are known: trusted draws give trusted answers, each row its own, or say why not."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import DIM, SIZES, of_tables
from exact import LinearGaussian
from test_conditions import SHIFT, WEIGHT, X, exact_cvae
from test_gaps import broken
from test_priors import hierarchical

import pyro_mmvae as mm
from pyro_mmvae.questions import opened
from pyro_mmvae.told import Told, chosen

ROWS, DRAWS = 8, 4000


def oracle():
    return LinearGaussian(orthogonal=False)


@pytest.fixture
def case():
    """A guide off by a standard deviation and too narrow, data that lack c, and exact draws of their codes."""
    truth = oracle()
    x = truth.simulate(ROWS)
    mean, covariance = truth.posterior(x, subset=["a", "b"])
    z = dist.MultivariateNormal(mean, covariance).sample((DRAWS,))
    return broken(truth, 1, 0.4), {"a": x["a"], "b": x["b"], "c": x["c"]}, {"c": torch.zeros(ROWS).bool()}, {"z": z}


def predictive(x):
    """The mean and the standard deviation of p(x_c | x_a, x_b), (row, feature)."""
    truth = oracle()
    mean, covariance = truth.posterior(x, subset=["a", "b"])
    w = truth.loading["c"]
    spread = w @ covariance @ w.T + truth.noise["c"] ** 2 * torch.eye(len(w))
    return mean @ w.T + truth.offset["c"], spread.diagonal(dim1=1, dim2=2).sqrt()


def test_a_wrong_guide_answers_right_with_exact_codes(case):
    vae, x, mask, exact = case
    loc, sd = predictive(x)
    error = 4.5 * sd / DRAWS**0.5
    assert ((mm.predict(vae, x, mask, num_draws=DRAWS)["c"] - loc).abs() > error).any()
    assert ((mm.predict(vae, x, mask, latents=exact)["c"] - loc).abs() < error).all()
    for drawn in (mm.impute(vae, x, mask, latents=exact)["c"], mm.translate(vae, x, to="c", latents=exact)):
        assert ((drawn.mean(0) - loc).abs() < error).all()
        torch.testing.assert_close(drawn.std(0), sd, rtol=0.06, atol=0)


def test_the_draws_that_a_certificate_vouches_for_serve_as_they_come(case):
    vae, x, mask, _ = case
    loc, sd = predictive(x)
    for seen, hidden in ((x, mask), ({"a": x["a"], "b": x["b"]}, None)):
        found = mm.posterior_draws(vae, seen, hidden, num_draws=DRAWS, progress=False)
        assert "guide" not in found.method and found.certified.all()
        error = 4.5 * sd / found.ess.clamp(max=DRAWS).sqrt().unsqueeze(-1)
        assert ((mm.predict(vae, seen, hidden, latents=found.latents)["c"] - loc).abs() < error).all()


def test_hidden_entries_score_as_their_exact_density(case):
    truth, (vae, x, mask, exact) = oracle(), case
    scores = [
        mm.imputation_error(vae, x, visible=mask, num_draws=DRAWS)["c"],
        mm.imputation_error(vae, x, visible=mask, latents=exact)["c"],
    ]
    conditional = truth.log_prob(x) - truth.log_prob(x, subset=["a", "b"])
    assert abs(scores[1].log_score - float(conditional.sum()) / x["c"].numel()) < 0.005
    assert scores[0].log_score < scores[1].log_score - 0.01
    few, many = (mm.imputation_error(vae, x, visible=mask, latents=exact, num_draws=k)["c"] for k in (100, DRAWS))
    assert scores[1].log_score == few.log_score != many.log_score  # as many as of a guide, as a score rises with them
    loc, _ = predictive(x)
    rmse = float((x["c"] - loc).square().mean().sqrt())
    assert abs(scores[1].rmse - rmse) < 0.01 < abs(scores[0].rmse - rmse)


@pytest.mark.parametrize("at_once", [2**22, 5000, 1200])
def test_rows_and_draws_keep_their_order_in_chunks(case, at_once, monkeypatch):
    truth, (vae, x, mask, exact) = oracle(), case
    monkeypatch.setattr("pyro_mmvae.weights.NUMBERS_AT_ONCE", at_once)
    few = {"z": exact["z"][:3]}
    by_hand = few["z"].mean(0) @ truth.loading["c"].T + truth.offset["c"]
    torch.testing.assert_close(mm.predict(vae, x, mask, latents=few)["c"], by_hand)
    scale = dist.Normal(few["z"] @ truth.loading["c"].T + truth.offset["c"], truth.noise["c"])
    score = scale.log_prob(x["c"]).sum(-1).logsumexp(0) - torch.tensor(3.0).log()
    found = mm.imputation_error(vae, x, visible=mask, latents=few)["c"]
    torch.testing.assert_close(found.log_score, float(score.sum()) / x["c"].numel())
    torch.testing.assert_close(found.rmse, float((by_hand - x["c"]).square().mean().sqrt()))


def test_a_category_is_the_one_of_greatest_mean_probability_over_the_draws():
    """Two draws hold it for the first by a little, and a third for the last by far."""
    columns = [mm.RealColumn(), mm.CategoryColumn(3), mm.RealColumn()]
    part = mm.Modality(mm.TableLikelihood(torch.nn.Identity(), columns), mm.encoder(3, 8, dim=5))
    vae = mm.MultimodalVAE({"table": part}, mm.StandardNormal(5), mm.PoE())
    shares = torch.tensor([[0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [0.05, 0.05, 0.9]])
    others = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 7.0]])
    z = torch.stack([torch.cat([others[:, :1], p.log(), others[:, 1:]], 1) for p in (shares, shares.flip(1))], 1)
    found = mm.predict(vae, {"table": torch.zeros(2, 3)}, latents={"z": z})["table"]
    torch.testing.assert_close(found, torch.tensor([[2.0, 2.0, 3.0], [2.0, 0.0, 3.0]]))


def test_fewer_draws_are_taken_evenly(case):
    vae, x, mask, exact = case
    part = {"z": exact["z"][[0, 1333, 2666, 3999]]}
    whole, fewer = (mm.predict(vae, x, mask, latents=z, num_draws=4)["c"] for z in (part, exact))
    assert torch.equal(whole, fewer)


def test_private_codes_that_nobody_inferred_come_from_their_prior():
    vae, _ = mm.recipes.dmvae(of_tables(private=2), DIM, 2)
    x, mask = {name: torch.randn(ROWS, SIZES[name]) for name in "ab"}, {"b": torch.arange(ROWS) > 3}
    found = mm.posterior_draws(vae, x, mask, method="guide", num_draws=DRAWS, progress=False)
    lost = {**found.latents, "b.w": found.latents["b.w"].clone()}
    lost["b.w"][:, :4] = torch.nan
    torch.manual_seed(0)
    with_prior, with_nan = (mm.predict(vae, x, mask, latents=z)["b"] for z in (found.latents, lost))
    assert torch.equal(with_prior[4:], with_nan[4:])
    spread = mm.impute(vae, x, mask, latents=found.latents)["b"][:, :4].std(0)
    assert ((with_prior - with_nan)[:4].abs() < 4.5 * (2 / DRAWS) ** 0.5 * spread).all()
    alone = mm.posterior_draws(vae, {"a": x["a"]}, method="guide", num_draws=DRAWS, progress=False)
    assert set(alone.latents) == {"z", "a.w"}
    drawn = mm.translate(vae, {"a": x["a"]}, to="b", latents=alone.latents)
    assert ((drawn.mean(0)[:4] - with_prior[:4]).abs() < 4.5 * (2 / DRAWS) ** 0.5 * spread).all()


def test_a_code_that_is_not_known_is_drawn_each_time():
    known = torch.full((DRAWS, 2), torch.nan)
    known[:, 1] = 7
    with pyro.plate("draws", DRAWS, dim=-2), Told({"z": known}, depth=1), pyro.plate("data", 2, dim=-1):
        z = pyro.sample("z", dist.Normal(3.0, 2.0))
    assert (z[:, 1] == 7).all() and abs(float(z[:, 0].mean()) - 3) < 4.5 * 2 / DRAWS**0.5
    assert float(z[:, 0].std()) == pytest.approx(2, rel=0.06)


def test_codes_of_several_levels():
    x = {"a": torch.randn(ROWS, SIZES["a"])}
    vae = mm.MultimodalVAE(of_tables(), hierarchical(), mm.PoE())
    found = mm.posterior_draws(vae, {"a": x["a"]}, num_draws=50, progress=False)
    assert len(found.latents) == 2
    decoded = vae.modalities["b"].decoder(found.latents["z"].unsqueeze(-2)).mean.squeeze(-2)
    predicted = mm.predict(vae, {"a": x["a"]}, latents=found.latents)["b"]
    torch.testing.assert_close(predicted, decoded.mean(0).detach())


def test_programs_of_the_users_with_rows_on_the_right():
    x = {"n": torch.tensor([1.0, 4.0, 2.0])}

    def model(x, mask):
        with pyro.plate("data", len(x["n"]), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("n", dist.Normal(3 * z, 1.0), obs=x["n"])

    def guide(x, mask):
        with pyro.plate("data", len(x["n"]), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    z = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    assert mm.predict(mm.Pair(model, guide), x, latents={"z": z})["n"].tolist() == [3.0, 3.0, 3.0]


def test_plates_on_the_left_of_the_rows():
    """Three factors a row in a plate of their own, on the left: draws, rows and factors have their places."""
    x = {"n": torch.zeros(2)}

    def model(x, mask):
        with pyro.plate("data", len(x["n"]), dim=-1):
            with pyro.plate("factor", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            weights = torch.tensor([1.0, 10.0, 100.0]).unsqueeze(-1)
            pyro.sample("n", dist.Normal((weights * z).sum(-2, keepdim=True), 1.0), obs=x["n"])

    def guide(x, mask):
        with pyro.plate("data", len(x["n"]), dim=-1), pyro.plate("factor", 3, dim=-2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    z = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])  # (draw, row, factor)
    assert mm.predict(mm.Pair(model, guide), x, latents={"z": z})["n"].tolist() == [321.0, 654.0]


def test_what_a_program_makes_of_the_data_is_known_of_whole_rows_alone():
    """The model observes n and n squared, in single precision, and b hangs on them where both of n are there."""
    x = {"n": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), "b": torch.zeros(3)}
    mask = {"n": torch.tensor([[True, True], [True, False], [True, True]]), "b": torch.tensor([False, False, False])}
    said = []

    def model(x, mask):
        with pyro.plate("data", len(x["n"]), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            both = torch.cat([x["n"], x["n"] ** 2], -1)
            n = pyro.sample("n", dist.Normal(torch.zeros(4).float(), 1e-3).to_event(1), obs=both)
            said.append(n.dtype)
            pyro.sample("b", dist.Normal(n.sum(-1), 1.0).mask(mask["b"]), obs=x["b"])

    def guide(x, mask):
        with pyro.plate("data", len(x["n"]), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    predicted = mm.predict(mm.Pair(model, guide), x, mask, num_draws=1)["b"]
    torch.testing.assert_close(predicted.double(), torch.tensor([8.0, 0.0, 72.0]), rtol=0, atol=0.02)
    assert said[-1] == torch.float32


def test_conditions_beside_codes_are_those_that_the_model_is_given():
    vae, other = exact_cvae(), {"x": X["x"], "c": X["c"] + 1}
    z = mm.importance(vae, X, num_draws=5).latents
    expected = WEIGHT * z["z"][..., :1].mean(0) + SHIFT * other["c"]
    torch.testing.assert_close(mm.predict(vae, other, latents=z)["x"], expected)


def test_noise_of_a_guide_is_no_code_and_the_look_at_its_codes_draws_nothing(case):
    vae, x, mask, exact = case

    def guide(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-2):
            noise = pyro.sample("noise", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(noise, event_dim=1))

    before = torch.get_rng_state()
    found = chosen(mm.Pair(vae.model, guide), opened(vae, x, mask), exact, 3)
    assert found.keys() == {"z"} and torch.equal(found["z"], exact["z"][[0, 2000, 3999]])
    assert torch.equal(torch.get_rng_state(), before)


def test_predictive_draws_in_arviz_belong_to_their_codes(case):
    truth, (vae, x, _, exact) = oracle(), case
    x = {name: x[name] for name in "ab"}
    for latents in (None, {"z": exact["z"][:400]}):
        tree = mm.to_arviz(vae, x, num_draws=400, latents=latents)
        z = torch.from_numpy(tree["posterior"]["z"].to_numpy())[0]
        drawn = torch.from_numpy(tree["posterior_predictive"]["a"].to_numpy())[0]
        loc = z @ truth.loading["a"].T + truth.offset["a"]
        torch.testing.assert_close((drawn - loc).std(), torch.tensor(truth.noise["a"]), rtol=0.03, atol=0)
        density = dist.Normal(loc, truth.noise["a"]).log_prob(x["a"]).sum(-1)
        torch.testing.assert_close(torch.from_numpy(tree["log_likelihood"]["a"].to_numpy())[0], density)
        assert latents is None or torch.equal(z, latents["z"])
        assert ("sample_stats" in tree) == (latents is None)


def test_codes_keep_their_fractions_beside_labels_that_are_whole_numbers_and_take_the_precision_of_the_model():
    x = {"label": torch.arange(ROWS) % 3, "body": torch.randn(ROWS, 4)}
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
    z = torch.randn(1, ROWS, 2)
    by_hand = vae.modalities["body"].decoder(z.unsqueeze(-2)).mean.squeeze(-2)[0]
    torch.testing.assert_close(mm.predict(vae, x, latents={"z": z})["body"], by_hand.detach())
    found = mm.predict(vae.float(), x, latents={"z": z.numpy()})["body"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), by_hand.detach(), rtol=1e-4, atol=1e-4)


def outside(x, mask):
    pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x["a"]), dim=-2):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


BAD = {
    "missing": (lambda z: {"y": z}, {}, "latents have no 'z', which the guide infers from these data, but y; add it"),
    "nothing": (lambda z: {}, {}, "latents have no 'z', which the guide infers from these data, but nothing; add it"),
    "rows": (
        lambda z: {"z": z[:, :3]},
        {},
        r"latents have a 'z' of shape \(4000, 3, 2\) for data that take \(draw, 8, 2",
    ),
    "size": (
        lambda z: {"z": z[..., :1]},
        {},
        r"shape \(4000, 8, 1\) for data that take \(draw, 8, 2\); draw it for them",
    ),
    "one number": (lambda z: {"z": torch.tensor(1.0)}, {}, r"shape \(\) for data that take \(draw, 8, 2\)"),
    "unequal": (lambda z: {"z": z, "w": z[:5]}, {}, "latents have 5, 4000 draws by name; give as many of each"),
    "too few": (
        lambda z: {"z": z[:9]},
        {"num_draws": 10},
        "num_draws is 10, latents have 9; ask for fewer, or draw more",
    ),
    "no number": (lambda z: {"z": z}, {"num_draws": 0}, "num_draws is 0; give a whole number from 1 on"),
    "no draws": (lambda z: {"z": z[:0]}, {}, "num_draws is None, latents have 0; ask for fewer, or draw more"),
    "given": (
        lambda z: {"z": z},
        {"given": ["a"]},
        "latents stand in place of what the guide sees in given; leave one",
    ),
    "a tensor": (lambda z: z, {}, r"latents is .*; give a dictionary, such as mm.posterior_draws\(vae, x\).latents"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("ask", [mm.predict, mm.impute, mm.to_arviz])
def test_codes_that_do_not_fit_are_refused(case, what, ask):
    vae, x, mask, exact = case
    latents, more, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        ask(vae, x, mask, latents=latents(exact["z"]), **more)


def test_codes_that_hang_on_what_all_rows_share_are_refused(case):
    vae, x, mask, exact = case
    with pytest.raises(ValueError, match="site 'g' stands outside the plate 'data'"):
        mm.predict(mm.Pair(vae.model, outside), x, mask, latents=exact)


def test_a_prior_of_the_data_sees_no_more_of_them_than_the_guide():
    torch.manual_seed(0)
    vae, _ = mm.recipes.mmvm(of_tables())
    a, b = (torch.randn(ROWS, SIZES[name]) for name in "ab")
    odd = {"a": a, "b": b + 100}
    nothing = {"b": torch.zeros(ROWS).bool()}
    asked = [
        lambda x, mask: mm.translate(vae, x, mask, to="b", num_draws=9),
        lambda x, _: mm.translate(vae, x, to="b", num_draws=9),
        lambda x, _: mm.predict(vae, x, given=["a"])["b"],
        lambda x, mask: mm.predict(vae, x, mask and nothing)["b"],
    ]
    for ask in asked:
        found = []
        for x, mask in (({"a": a}, None), ({"a": a, "b": b}, nothing), (odd, nothing)):
            torch.manual_seed(1)
            found.append(ask(x, mask))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    z = vae.experts({"a": a}).private(None)["a"].sample((DRAWS,))  # the only one in the mixture
    likelihood = vae.modalities["b"].decoder(z)
    error = likelihood.mean.std(0).squeeze(1) * (2 / DRAWS) ** 0.5
    assert (
        (mm.predict(vae, odd, given=["a"], num_draws=DRAWS)["b"] - likelihood.mean.mean((0, 2))).abs() < 4.5 * error
    ).all()
    exact = likelihood.log_prob(b.unsqueeze(1)).logsumexp(0).squeeze(-1).detach() - math.log(DRAWS)
    guess = mm.guide_predictive_log_likelihood(vae, {"a": a, "b": b}, given=["a"], targets=["b"], num_particles=DRAWS)
    assert ((guess.value - exact).abs() < 4.5 * 2**0.5 * guess.se).all()
    score = mm.imputation_error(vae, {"a": a, "b": b}, visible=nothing, num_draws=DRAWS)["b"].log_score
    assert abs(score * b.numel() - float(exact.sum())) < 4.5 * 2**0.5 * float(guess.se.square().sum().sqrt())
