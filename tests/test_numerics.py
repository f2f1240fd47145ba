"""Extreme numbers: training stays finite or stops with the modality's name; one that drowns the others is named."""

import math
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import DIM, LIKELIHOODS, From, data, modality, three, three_rows
from exact import LinearGaussian
from pyro import poutine
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.diagnostics import rungs
from pyro_mmvae.training.balance import pulls, warn_of_collapse, warn_of_drowning


def with_a_healthy_one(likelihood, factor):
    """A model whose modality x has its network's output multiplied by a factor, and one more modality."""
    part = modality(likelihood)
    if getattr(part.decoder, "net", None) is not None:
        part.decoder.net.register_forward_hook(lambda net, inputs, out: factor * out)
    fine = mm.Modality(mm.NormalLikelihood(mm.mlp(DIM, 8, 2)), mm.encoder(2, 8, dim=DIM))
    return mm.MultimodalVAE({"fine": fine, "x": part}, mm.StandardNormal(DIM), mm.PoE())


def finite_or_named(vae, x, **options):
    """Trains; whether it went through. All that is left is finite either way."""
    try:
        history = mm.fit(vae, x, epochs=2, batch_size=5, progress=False, **options)
    except FloatingPointError as error:
        assert "from modality 'x'" in str(error) or "of modality 'x'" in str(error), error
        assert "\n" not in str(error)
        stopped = True
    else:
        assert all(map(math.isfinite, history.loss))
        stopped = False
    assert all(bool(value.isfinite().all()) for value in vae.state_dict().values())
    return not stopped


def test_counts_are_named_that_only_a_pass_of_their_own_or_the_sum_over_rows_cannot_hold():
    """The joint encoder's code is fine; of the expert's each row has a log-probability, and all together have none."""

    def says(loc):
        return From(lambda h: dist.Normal(torch.full((len(h), 1), loc), torch.tensor([1e-3])).to_event(1))

    counts = mm.Modality(mm.PoissonLikelihood(From(lambda z: 900 * z)), says(1.0))
    fine = mm.Modality(mm.NormalLikelihood(mm.mlp(1, 2)), mm.encoder(2, 8, dim=1))
    fusion = mm.JointEncoder(says(0.0), {"fine": 2, "x": 1}, otherwise=mm.PoE())
    vae = mm.MultimodalVAE({"fine": fine, "x": counts}, mm.StandardNormal(1), fusion)
    x, loss = {"fine": torch.zeros(4, 2), "x": torch.zeros(4, 1)}, mm.Objective([mm.objectives.unimodal])
    with pytest.raises(FloatingPointError, match=r"the loss is inf .* from modality 'x'; .*counts see log\(1 \+ x\)"):
        mm.fit(vae, x, loss=loss, epochs=1, progress=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_of_a_rate_that_is_too_small_for_a_number_have_a_density_and_its_gradient(dtype):
    log_rate = torch.tensor([-800.0, -800.0, -90.0, 2.0], dtype=dtype, requires_grad=True)
    count = torch.tensor([0.0, 3.0, 40.0, 5.0], dtype=dtype)
    p = mm.PoissonLikelihood(From(lambda z: log_rate.expand(len(z), 4)))(torch.zeros(1, 2, dtype=dtype))
    rate = math.exp(2.0)
    expected = -2400 - math.log(6) - 3600 - math.lgamma(41) + 10 - rate - math.lgamma(6)
    assert p.log_prob(count).item() == pytest.approx(expected, rel=1e-6)
    (slope,) = torch.autograd.grad(p.log_prob(count).sum(), log_rate)
    assert slope.tolist() == pytest.approx([0.0, 3.0, 40.0, 5 - rate], rel=1e-6)
    assert p.mean[0, 3].item() == pytest.approx(rate, rel=1e-6)
    spread = p.expand((2, 1))
    assert spread.log_prob(count).flatten().tolist() == pytest.approx([expected] * 2, rel=1e-6)
    few = spread.sample((1000,))
    assert few[..., :2].eq(0).all() and few[..., 3].mean().item() == pytest.approx(rate, abs=0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_whatever_a_network_gives_the_loss_is_finite_or_the_modality_is_named(likelihood, dtype):
    x = {"fine": torch.randn(10, 2), "x": data(likelihood, 10)}
    torch.set_default_dtype(dtype)
    through = [finite_or_named(with_a_healthy_one(likelihood, factor), x) for factor in (1.0, 1e2, 1e4, 1e12, 1e30)]
    assert through[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_counts_and_scales_at_their_ends_are_finite(dtype):
    """Each log-probability in its closed form: sure and wrong, sure and right, the top count, the smallest scale."""
    torch.set_default_dtype(dtype)
    z = torch.zeros(1, 2)

    def of(number):
        net = nn.Linear(2, 1)
        nn.init.constant_(net.bias, number)
        return net

    wrong = mm.BernoulliLikelihood(of(-1e6))(z).log_prob(torch.ones(1, 1))
    right = mm.BernoulliLikelihood(of(1e6))(z).log_prob(torch.ones(1, 1))
    assert wrong.item() == -1e6 and right.item() == 0
    top = mm.BinomialLikelihood(of(1e4), 2**16)(z)
    assert top.log_prob(torch.full((1, 1), 2.0**16)).item() == pytest.approx(0, abs=0.1)
    assert top.log_prob(torch.zeros(1, 1)).item() == pytest.approx(-1e4 * 2**16, rel=1e-6)
    narrow = mm.NormalLikelihood(of(0.0), mm.Positive(of(-1e4)))(z).log_prob(torch.ones(1, 1))
    assert narrow.item() == pytest.approx(-0.5e10 + math.log(1e5) - 0.5 * math.log(2 * math.pi), rel=1e-4)
    many = mm.PoissonLikelihood(of(math.log(1e6)))(z).log_prob(torch.full((1, 1), 1e6))
    assert many.item() == pytest.approx(-0.5 * math.log(2 * math.pi * 1e6), abs=1.5 if dtype == torch.float32 else 1e-5)
    spread = mm.NegativeBinomialLikelihood(of(math.log(1e6)), 1e-3)(z).log_prob(torch.full((1, 1), 1e6))
    assert math.isfinite(spread.item()) and spread.item() < 0


@pytest.mark.parametrize("count, nats", [(1e3, 0.002), (1e5, 0.3), (1e6, 3.0)])
@pytest.mark.parametrize("dispersion", [1e-3, 1.0, 1e3])
def test_counts_in_single_precision_err_as_their_docstrings_say(count, nats, dispersion):
    log_rate = torch.linspace(math.log(count / 2), math.log(2 * count), 2000, dtype=torch.float32).unsqueeze(1)
    counts = (count * torch.linspace(0.9, 1.1, 2000, dtype=torch.float64)).round().unsqueeze(1)

    def errors(head):
        single, double = (
            head.to(d)(log_rate.to(d)).log_prob(counts.to(d)).double() for d in (torch.float32, torch.float64)
        )
        return float((single - double).abs().max())

    assert errors(mm.NegativeBinomialLikelihood(nn.Identity(), dispersion)) < nats
    assert errors(mm.PoissonLikelihood(nn.Identity())) < {1e3: 0.002, 1e5: 0.2, 1e6: 2.0}[count]


class Cusp(nn.Module):
    """Gives what the network gives; its gradient is not a number."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z):
        out = self.net(z)
        return out + (0 * out).sqrt() if self.training else out


def test_a_gradient_that_is_not_a_number_is_found_in_the_step_that_ends_an_epoch():
    vae, x = three(), three_rows(10)
    vae.modalities["counts"].decoder.net = Cusp(vae.modalities["counts"].decoder.net)
    before = [p.detach().clone() for p in vae.parameters()]
    with pytest.raises(FloatingPointError, match=r"weights are no longer finite in epoch 0.* of modality 'counts'"):
        mm.fit(vae, x, epochs=1, batch_size=10, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters()))
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 0, step 1, from .* of modality 'counts'"):
        mm.fit(vae, x, epochs=1, batch_size=5, progress=False)


def two_tables(scale, weight=1.0):
    """Two tables that say the same of a code; the numbers of the second are `scale` times as large."""
    z = torch.randn(200, 2)
    x = {"a": z @ torch.randn(2, 5), "b": scale * (z @ torch.randn(2, 5))}
    x = {name: value + 0.5 * value.std() * torch.randn(200, 5) for name, value in x.items()}
    parts = {k: mm.Modality(mm.NormalLikelihood(mm.mlp(2, 16, 5)), mm.encoder(5, 16, dim=2)) for k in x}
    parts["b"].weight = weight
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE()), x


def test_pulls_are_the_slopes_of_the_log_likelihoods():
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(20)
    vae.modalities["b"].weight = 3.0
    batch = vae.check(x, {"a": torch.arange(20) < 15})
    state = torch.get_rng_state()
    found = pulls(vae.model, batch)
    torch.set_rng_state(state)
    z = poutine.trace(vae.model).get_trace(batch, batch.mask).nodes["z"]["value"].squeeze(1)
    for name, rows in (("a", 15), ("b", 20), ("c", 20)):
        w, noise = truth.loading[name], truth.noise[name]
        slope = (x[name] - z @ w.T - truth.offset[name]) @ w / noise**2
        expected = slope[:rows].norm(dim=-1).mean() * (3 if name == "b" else 1)
        assert found[name] == pytest.approx(expected.item(), rel=1e-10)


def test_a_modality_does_not_pull_at_a_code_that_it_does_not_look_at():
    """Two codes, each of two modalities: the first pulls at one of them, by 3 (0 - 3 z)."""
    codes, x = dist.Normal(torch.zeros(5, 1), 1.0).to_event(1), {name: torch.zeros(5) for name in "abc"}

    def model(x, mask):
        with pyro.plate("data", 5):
            z, v = (pyro.sample(name, codes).squeeze(-1) for name in "zv")
            for name, mean in (("a", 3 * z), ("b", z + v), ("c", v)):
                pyro.sample(name, dist.Normal(mean, 1.0), obs=x[name])

    state = torch.get_rng_state()
    found = pulls(model, mm.Batch.of(x))
    torch.set_rng_state(state)
    assert found["a"] == pytest.approx(9 * float(codes.sample().abs().mean()), rel=1e-10)


def test_pulls_are_at_codes_that_are_real_and_shared_and_of_modalities_that_look_at_one():
    """Besides z a category, a code of one modality alone, and a modality of no code."""
    x = {name: torch.zeros(5) for name in "abc"}

    def model(x, mask):
        with pyro.plate("data", 5):
            z, w = (pyro.sample(name, dist.Normal(torch.zeros(5), 1.0)) for name in "zw")
            k = pyro.sample("k", dist.Categorical(torch.ones(3)))
            for name, mean in (("a", 2 * z + w + 0 * k), ("b", z), ("c", 0.0)):
                pyro.sample(name, dist.Normal(mean, 1.0), obs=x[name])

    state = torch.get_rng_state()
    found = pulls(model, mm.Batch.of(x))
    torch.set_rng_state(state)
    z, w = torch.randn(5), torch.randn(5)
    expected = {"a": float((2 * (2 * z + w)).abs().mean()), "b": float(z.abs().mean())}
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "found, says",
    [
        ({"a": 301.0, "b": 1.0}, "'a' pulls at the shared code 301 times as hard as 'b'"),
        ({"a": 299.0, "b": 1.0}, None),
        ({"a": math.inf, "b": 1.0, "c": 2.0}, None),
        ({"a": 0.0, "b": 1.0, "c": 2.0}, None),
        ({"a": 1.0}, None),
        ({}, None),
    ],
)
def test_what_pulls_three_hundred_times_as_hard_is_named(found, says, monkeypatch):
    monkeypatch.setattr("pyro_mmvae.training.balance.pulls", lambda *_: found)
    with nullcontext() if says is None else pytest.warns(UserWarning, match=says):
        warn_of_drowning(None, None)


@pytest.mark.parametrize(
    "far, says", [(0.1, r"KL from guide to prior is 0\.00[3-7] nats a row"), (0.2, None), (None, None)]
)
def test_a_hundredth_of_a_nat_a_row_is_a_collapse_whatever_all_rows_share(far, says):
    """KL(N(far, 1), N(0, 1)) = far^2 / 2, beside a global code of which much is known; and programs without a code."""

    def program(loc, mean):
        pyro.sample("g", dist.Normal(mean, 0.1 if mean else 1.0))
        with pyro.plate("data", 3000):
            if far is not None:
                pyro.sample("z", dist.Normal(loc, 1.0))

    batch = mm.Batch.of({"a": torch.zeros(3000)})
    pair = mm.Pair(lambda x, mask: program(0.0, 0.0), lambda x, mask: program(far, 5.0))
    with nullcontext() if says is None else pytest.warns(UserWarning, match=says):
        warn_of_collapse(pair, batch)


def test_a_modality_in_units_a_million_times_smaller_is_named_with_the_factor_and_a_remedy():
    vae, x = two_tables(1e6)
    with pytest.warns(UserWarning, match=r"'b' pulls .* times as hard as 'a', which will hardly be learnt") as caught:
        mm.fit(vae, x, epochs=50, batch_size=100, progress=False)
    assert 3e5 < float(str(caught[0].message).split("code ")[1].split(" times")[0].replace(",", "")) < 3e6
    assert all(bool(p.isfinite().all()) for p in vae.parameters())


@pytest.mark.parametrize(("scale", "weight"), [(1.0, 1.0), (30.0, 1.0), (1e6, 1e-6)])
def test_tables_in_like_units_and_a_weight_that_makes_up_for_them_are_no_warning(scale, weight):
    vae, x = two_tables(scale, weight)
    mm.fit(vae, x, epochs=50, batch_size=100, progress=False)  # a warning would be an error here


def test_the_look_at_the_balance_leaves_no_trace(monkeypatch):
    """The same losses and weights to the bit, dropout included; and only runs of a hundred steps are looked at."""
    looked, outcomes = [], []
    real = mm.training.epochs.warn_of_drowning
    for look in (lambda *a: looked.append(real(*a)), lambda *a: None):
        monkeypatch.setattr("pyro_mmvae.training.epochs.warn_of_drowning", look)
        torch.manual_seed(3)
        vae, x = two_tables(1.0)
        vae.modalities["a"].trunk = nn.Dropout(0.5)
        history = mm.fit(vae, x, epochs=34, batch_size=70, lr=1e-2, progress=False)
        outcomes.append([history.loss, *(p.tolist() for p in vae.parameters())])
    assert looked == [None] and outcomes[0] == outcomes[1]
    monkeypatch.setattr("pyro_mmvae.training.epochs.warn_of_drowning", lambda *a: looked.append(a))
    mm.fit(vae, x, epochs=33, batch_size=70, progress=False)
    assert looked == [None]


def test_a_posterior_that_has_collapsed_is_named_and_one_that_has_not_is_no_warning():
    """Features that have nothing in common leave nothing to a code; those of one factor do."""
    factor = torch.randn(500, 1)
    for share in (0.0, 0.7):
        x = {"a": share**0.5 * factor + (1 - share) ** 0.5 * torch.randn(500, 3)}
        part = mm.Modality(mm.NormalLikelihood(mm.mlp(2, 8, 3)), mm.encoder(3, 8, dim=2))
        vae = mm.MultimodalVAE({"a": part}, mm.StandardNormal(2), mm.PoE())
        with nullcontext() if share else pytest.warns(UserWarning, match=r"collapsed: KL from guide to prior is 0\.00"):
            mm.fit(vae, x, epochs=40, batch_size=50, lr=1e-2, progress=False)
        assert (mm.usage(vae, x).kl > 0.2) == bool(share)


def few_draws(vae, x, method):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rungs, "FEWEST", 50)
        patched.setattr(rungs, "APART", (1,))
        return mm.posterior_draws(vae, x, num_draws=400, method=method, progress=False).latents["z"].mean(0)


IN_A_MODELS_PRECISION = {
    "log_likelihood": lambda vae, x: mm.log_likelihood(vae, x, num_particles=50).value,
    "importance": lambda vae, x: mm.importance(vae, x, num_draws=2000).mean(),
    "conditional": lambda vae, x: (
        mm.conditional_log_likelihood(vae, x, given=["a"], targets=["b"], num_particles=500).value
    ),
    "guide's conditional": lambda vae, x: (
        mm.guide_predictive_log_likelihood(vae, x, given=["a"], targets=["b"], num_particles=9000).value
    ),
    "annealed": lambda vae, x: mm.annealed_log_likelihood(vae, x, chains=16, temperatures=10).value,
    "gaps": lambda vae, x: mm.gaps(vae, x, num_draws=100, steps=20).log_likelihood,
    "hmc": lambda vae, x: few_draws(vae, x, "hmc"),
    "nuts": lambda vae, x: few_draws(vae, x, "nuts"),
}


@pytest.mark.parametrize("question", IN_A_MODELS_PRECISION)
def test_a_model_is_asked_in_its_own_precision_whatever_the_default(question):
    truth = LinearGaussian({"a": 4, "b": 3})
    vae, x, ask = truth.vae(), truth.simulate(2), IN_A_MODELS_PRECISION[question]
    exact = ask(vae, x)
    torch.set_default_dtype(torch.float32)
    double = ask(vae, x)
    torch.set_default_dtype(torch.float64)
    single = ask(vae.float(), x)
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    for found in (double, single):
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=0.15)


def test_losses_and_pairs_take_data_of_another_precision_as_stock_pyro_does():
    torch.set_default_dtype(torch.float32)
    vae, x = LinearGaussian().vae().float(), LinearGaussian().simulate(5)
    asked = {
        "objective": lambda x: mm.Objective().differentiable_loss(vae.model, vae.guide, x),
        "sleep": lambda x: mm.Sleep().differentiable_loss(vae.model, vae.guide, x),
        "pair": lambda x: mm.log_likelihood(mm.Pair(vae.model, vae.guide), x, num_particles=9).value,
    }
    for ask in asked.values():
        found = []
        for dtype in (torch.float64, torch.float32):
            torch.manual_seed(0)
            found.append(ask({name: value.to(dtype) for name, value in x.items()}))
        assert found[0].dtype == torch.float32 and torch.equal(*found)


def test_fusions_and_priors_of_repeats_keep_the_precision_of_the_experts():
    truth = LinearGaussian({"a": 4, "b": 3}, repeated=["b"])
    x = truth.simulate(5, repeats=3)
    for fusion, prior in (("GeometricMean", None), ("PoE", mm.Pooled(mm.StandardNormal(2), 0.3))):
        vae = truth.vae(getattr(mm, fusion)(), prior).float()
        assert vae.posterior(x).log_prob(torch.zeros(5, 2, dtype=torch.float32)).dtype == torch.float32
        assert mm.log_likelihood(vae, x, num_particles=10).value.dtype == torch.float32
        mm.compare({"one": vae}, x, num_particles=10)
