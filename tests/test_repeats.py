"""Modalities measured several times a row, against the linear-Gaussian oracle."""

from functools import partial

import pytest
import torch
from cases import DIM, NAMES, SIZES, for_target, joint_net, of_tables
from exact import LinearGaussian
from pyro.infer import RenyiELBO, Trace_ELBO

import pyro_mmvae as mm

ROWS, REPEATS = 20, 3


def setting(holes):
    truth = LinearGaussian(repeated=["b"])
    x = truth.simulate(ROWS, repeats=REPEATS)
    mask = {"b": torch.rand(ROWS, REPEATS) > 0.5, "c": torch.rand(ROWS) > 0.4} if holes else {}
    if holes:
        mask["b"][0], mask["c"][0] = False, True
    return truth, truth.vae(), x, mask


@pytest.mark.parametrize("holes", [False, True], ids=["complete", "holes"])
def test_posterior_elbo_and_log_likelihood_are_exact(holes):
    truth, vae, x, mask = setting(holes)
    mean, covariance = truth.posterior(x, mask)
    q = vae.posterior(x, mask)
    torch.testing.assert_close(q.mean, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(q.variance, covariance.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=1e-10)
    exact = truth.log_prob(x, mask)
    assert -Trace_ELBO().loss(vae.model, vae.guide, x, mask) == pytest.approx(exact.sum().item(), abs=1e-6)
    renyi = RenyiELBO(alpha=0.0, num_particles=4, vectorize_particles=True, max_plate_nesting=2)
    assert -renyi.loss(vae.model, vae.guide, x, mask) == pytest.approx(exact.sum().item(), abs=1e-6)
    torch.testing.assert_close(mm.log_likelihood(vae, x, mask, num_particles=50).value, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("fusion", [mm.MoE, mm.MoPoE])
def test_mixtures_count_every_repeat(fusion):
    truth, _, x, mask = setting(True)
    vae = truth.vae(fusion(), expert="posterior")
    found = mm.log_likelihood(vae, x, mask, num_particles=20_000)
    assert (found.value - truth.log_prob(x, mask)).mean().abs() < 0.01


def test_a_mask_of_rows_hides_all_repeats_and_hidden_ones_change_nothing():
    _, vae, x, _ = setting(False)
    whole = {"b": torch.rand(ROWS) > 0.5}
    fine = {"b": whole["b"].unsqueeze(1).expand(ROWS, REPEATS)}
    z = torch.randn(ROWS, 2)
    assert torch.equal(vae.posterior(x, whole).log_prob(z), vae.posterior(x, fine).log_prob(z))
    some = {"b": torch.rand(ROWS, REPEATS) > 0.5}
    other = {**x, "b": torch.where(some["b"].unsqueeze(-1), x["b"], torch.nan)}
    assert torch.equal(vae.posterior(x, some).log_prob(z), vae.posterior(other, some).log_prob(z))
    losses = []
    for data in ((x, some), (other,)):
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(vae.model, vae.guide, *data))
    assert losses[0] == losses[1]


def test_the_order_of_repeats_does_not_matter():
    _, vae, x, mask = setting(True)
    turned = {**x, "b": x["b"][:, [2, 0, 1]]}, {**mask, "b": mask["b"][:, [2, 0, 1]]}
    z = torch.randn(ROWS, 2)
    torch.testing.assert_close(
        vae.posterior(x, mask).log_prob(z), vae.posterior(*turned).log_prob(z), rtol=1e-12, atol=0
    )


def test_missing_repeats_are_imputed_from_the_others():
    truth, vae, x, mask = setting(True)
    drawn = mm.impute(vae, x, mask, num_draws=8000)["b"]
    assert drawn.shape == (8000, ROWS, REPEATS, 3)
    seen = mask["b"].unsqueeze(-1).expand(x["b"].shape)
    assert torch.equal(drawn[:, seen], x["b"][seen].expand(8000, -1))
    mean, covariance = truth.posterior(x, mask)
    w = truth.loading["b"]
    loc = (mean @ w.T + truth.offset["b"]).unsqueeze(1).expand(x["b"].shape)
    sd = (
        ((w @ covariance @ w.T).diagonal(dim1=1, dim2=2) + truth.noise["b"] ** 2)
        .sqrt()
        .unsqueeze(1)
        .expand(x["b"].shape)
    )
    assert ((drawn.mean(0) - loc).abs() < 4.5 * sd / 8000**0.5)[~seen].all()
    torch.testing.assert_close(drawn.std(0)[~seen], sd[~seen], rtol=0.04, atol=0)


def test_one_repeat_keeps_its_axis_and_is_scored_as_none():
    once, never = LinearGaussian(repeated=["b"]).vae(), LinearGaussian().vae()
    x, visible = LinearGaussian().simulate(ROWS), {"b": torch.arange(ROWS) > 3}
    one = {**x, "b": x["b"].unsqueeze(1)}
    ask = {
        "predict": lambda vae, x: mm.predict(vae, x)["b"],
        "impute": lambda vae, x: mm.impute(vae, x, {"b": visible["b"]})["b"],
        "translate": lambda vae, x: mm.translate(vae, x, to="b"),
    }
    for question in ask.values():
        torch.manual_seed(0)
        found = question(once, one)
        torch.manual_seed(0)
        torch.testing.assert_close(found, question(never, x).unsqueeze(-2), rtol=1e-12, atol=1e-12)
    torch.manual_seed(0)
    found = mm.imputation_error(once, one, visible=visible)["b"]
    torch.manual_seed(0)
    exact = mm.imputation_error(never, x, visible=visible)["b"]
    assert (found.entries, found.rmse, found.log_score) == pytest.approx((exact.entries, exact.rmse, exact.log_score))


def test_it_trains_and_generates_one_entry_a_row():
    _, vae, x, mask = setting(True)
    before = vae.modalities["b"].decoder.net.weight.clone()
    mm.fit(vae, x, mask, epochs=3, lr=1e-2, batch_size=7, progress=False)
    assert not torch.equal(before, vae.modalities["b"].decoder.net.weight)
    assert mm.generate(vae, 5)["b"].shape == (5, 3)
    assert mm.translate(vae, {"a": x["a"]}, to="b", num_draws=2).shape == (2, ROWS, 3)


def test_experts_that_match_the_joint_posterior_are_averaged_over_the_repeats_that_were_seen():
    repeated = mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 4, dim=2), repeated=True)
    single = mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 4, dim=2))
    vae = mm.MultimodalVAE({"a": repeated, "b": single}, mm.StandardNormal(2), mm.PoE())
    x = {"a": torch.randn(4, 3, 3), "b": torch.randn(4, 3)}
    seen = torch.tensor([[True, False, False], [True, True, True], [False, True, True], [False, True, False]])
    torch.manual_seed(0)
    found = mm.objectives.Match(vae).differentiable_loss(vae.model, vae.guide, x, {"a": seen})
    torch.manual_seed(0)
    experts = vae.experts(x, {"a": seen})
    z = vae.fusion(experts).sample()
    a = (experts["a"].log_prob(z) * seen).sum(1) / seen.sum(1)
    wanted = -(a + experts["b"].log_prob(z).squeeze(1)).sum()
    parameters = [*repeated.encoder.parameters(), *single.encoder.parameters()]
    slopes = [torch.autograd.grad(value, parameters) for value in (found, wanted)]
    torch.testing.assert_close((found, slopes[0]), (wanted, slopes[1]))  # the joint posterior does not move to them


def test_entries_without_an_axis_of_repeats_are_refused_in_a_line():
    for event in (3, None):
        decoder = mm.NormalLikelihood(mm.mlp(2, event)) if event else mm.CategoricalLikelihood(mm.mlp(2, 5))
        parts = {"a": mm.Modality(decoder, mm.encoder(3, 8, dim=2), repeated=True)}
        vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        x = torch.ones(4, event) if event else torch.ones(4)
        for ask in (mm.impute, mm.log_likelihood, lambda vae, x: vae.posterior(x)):
            with pytest.raises(ValueError, match=r"^modality 'a' .*\(row, repeat, \*event\)"):
                ask(vae, {"a": x})


@pytest.mark.parametrize(
    ("recipe", "parts_of"), [(mm.recipes.jnf, of_tables), (partial(mm.recipes.cvae, target="a"), for_target)]
)
def test_recipes_that_build_modalities_anew_keep_what_is_repeated(recipe, parts_of):
    x, means = {name: torch.randn(ROWS, size) for name, size in SIZES.items()}, []
    for repeated in (False, True):
        torch.manual_seed(0)
        parts, data = parts_of(), {**x}
        parts["b"].repeated = repeated
        vae = recipe(parts, DIM, net=joint_net(), sizes=SIZES)[0]
        if repeated:  # the same three times, which the joint encoder averages
            data["b"] = x["b"].unsqueeze(1).expand(-1, REPEATS, -1)
        means.append(vae.posterior(data).mean)
        assert mm.log_likelihood(vae, data, num_particles=5).value.isfinite().all()
    torch.testing.assert_close(*means, rtol=1e-10, atol=1e-10)


def test_recipes_that_give_every_modality_a_private_code_refuse_a_repeated_one():
    parts = of_tables()
    parts["b"].repeated = True
    for make in (mm.recipes.mmvm, lambda parts: mm.recipes.nexus(parts, DIM, dict.fromkeys(NAMES, DIM))):
        with pytest.raises(ValueError, match=r"^modality 'b' is repeated and has a private code"):
            make(parts)
