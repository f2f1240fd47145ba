"""A model that is changed after it was made: other parts, more or fewer modalities, frozen ones, copies and files."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

import pyro_mmvae as mm


def wide_prior():
    return dist.Normal(torch.zeros(2), 2.0).to_event(1)


def of_the_prior(experts):
    return experts.prior


def part(size: int, private: int = 0) -> mm.Modality:
    own = mm.encoder(size, 4, dim=private) if private else None
    return mm.Modality(mm.NormalLikelihood(mm.mlp(2 + private, 4, size)), mm.encoder(size, 4, dim=2), private=own)


def test_a_prior_and_a_guide_that_are_put_in_later_may_be_functions():
    """log p(x) under N(0, 4 I) by hand, from a product of experts with that prior, which is exact."""
    truth = LinearGaussian()
    x, vae = truth.simulate(20), truth.vae()
    vae.prior = wide_prior
    loading = torch.cat(list(truth.loading.values()))
    noise = torch.cat([torch.full((len(truth.loading[name]),), truth.noise[name]) for name in x])
    p = dist.MultivariateNormal(torch.cat(list(truth.offset.values())), 4 * loading @ loading.T + noise.square().diag())
    exact = p.log_prob(torch.cat(list(x.values()), 1))
    torch.testing.assert_close(mm.log_likelihood(vae, x).value, exact)
    assert not torch.allclose(exact, truth.log_prob(x), atol=0.1)

    vae.fusion = of_the_prior
    assert torch.equal(vae.posterior(x).variance, torch.full((20, 2), 4.0)) and "fusion" not in dict(
        vae.named_modules()
    )
    vae.prior, vae.fusion = mm.StandardNormal(2), mm.PoE()
    torch.testing.assert_close(mm.log_likelihood(vae, x).value, truth.log_prob(x))


WRONG = {
    "prior is the class StandardNormal; give an object": lambda vae: setattr(vae, "prior", mm.StandardNormal),
    "fusion is the class PoE; give an object": lambda vae: setattr(vae, "fusion", mm.PoE),
    "prior is a distribution, .*; give a function": lambda vae: setattr(vae, "prior", wide_prior()),
    "give both a prior and a fusion of z": lambda vae: setattr(vae, "fusion", None),
    "'z': .* belong to the sites of programs": lambda vae: vae.modalities.update({"z": part(3)}),
    "'raw' is a Sequential; give mm.Modality": lambda vae: vae.modalities.update({"raw": mm.mlp(2, 3)}),
    "'own' has a private code but no prior; name it": lambda vae: vae.modalities.update({"own": part(3, private=1)}),
}


@pytest.mark.parametrize("says", WRONG)
@pytest.mark.parametrize("ask", [mm.log_likelihood, mm.fit])
def test_what_makes_no_model_is_refused_also_when_it_is_put_in_later(says, ask):
    truth = LinearGaussian()
    x, vae = truth.simulate(5), truth.vae()
    with pytest.raises(ValueError, match=says) as error:
        WRONG[says](vae)
        ask(vae, x)
    assert "\n" not in str(error.value)


class Pyros(PyroModule):
    def __init__(self, size):
        super().__init__()
        self.net, self.scale = mm.mlp(2, size), PyroParam(torch.ones(()), constraint=constraints.positive)

    def forward(self, z):
        return dist.Normal(self.net(z), self.scale).to_event(1)


class Scaled(PyroModule):
    """A prior whose scale is learnt as Pyro has it."""

    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.ones(()), constraint=constraints.positive)

    def forward(self, experts):
        return dist.Normal(torch.zeros(2), self.scale).to_event(1)


def test_a_pyro_param_of_a_prior_that_is_put_in_later_is_its_models_own():
    """Two models whose data differ by a factor of ten: in Pyro's store their priors would be one."""
    x, scales = LinearGaussian().simulate(20), []
    for size in (0.1, 1.0):
        vae = LinearGaussian().vae()
        vae.prior = Scaled()
        svi = SVI(vae.model, vae.guide, mm.optim({"lr": 0.1}), Trace_ELBO())
        losses = [svi.step({name: size * value for name, value in x.items()}) for _ in range(10)]
        scales.append(vae.prior.scale.item())
        assert {"prior.scale_unconstrained"} <= {name for name, _ in vae.named_parameters()} and losses[-1] < losses[0]
    assert scales[0] < scales[1] and len(pyro.get_param_store()) == 0


def test_a_pyro_param_that_is_put_in_later_is_its_models_own():
    truth = LinearGaussian()
    x = truth.simulate(20)
    vae, other = truth.vae(), truth.vae()
    for model in (vae, other):
        model.modalities["a"].decoder = Pyros(4)
        model.modalities["d"] = mm.Modality(Pyros(3), mm.encoder(3, 4, dim=2))
        SVI(model.model, model.guide, mm.optim({"lr": 0.1}), Trace_ELBO()).step({**x, "d": 5 * x["b"]})
        mm.fit(model, {**x, "d": 50 * x["b"]}, epochs=3, progress=False)
    scales = [model.modalities[name].decoder.scale.item() for model in (vae, other) for name in ("a", "d")]
    assert len(set(scales)) == 4 and len(pyro.get_param_store()) == 0


def test_a_vamp_prior_of_encoders_that_are_no_longer_the_models_is_refused():
    """They would not be trained, and the model that comes out of a file would have another prior."""
    x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
    parts = {"a": part(3), "b": part(2)}
    pseudo = {name: value[:4] for name, value in x.items()}
    vae = mm.MultimodalVAE(parts, mm.VampPrior(2, parts, mm.PoE(), pseudo), mm.PoE())
    vae.modalities["a"].encoder = mm.encoder(3, 4, dim=2)  # which the prior looks through as well
    vae.modalities["c"] = vae.modalities.pop("b")  # under another name it is still the same
    mm.fit(vae, {"a": x["a"], "c": x["b"]}, epochs=1, progress=False)
    for spoil in (
        lambda: vae.modalities.update({"a": part(3).requires_grad_(False)}),
        lambda: setattr(vae, "prior", mm.VampPrior(2, parts, mm.GeneralizedPoE(["b"], 2), {"b": x["b"][:4]})),
    ):
        spoil()
        with pytest.raises(ValueError, match=r"'prior' looks through networks that are not the model's own.*; make it"):
            mm.fit(vae, {"a": x["a"], "c": x["b"]}, epochs=1, progress=False)


@pytest.mark.parametrize("later", [False, True])
def test_experts_learn_the_joint_posterior_beside_a_modality_that_nobody_looks_at(later):
    x, losses = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}, []
    for told in ({}, {"c": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 4)))}):
        torch.manual_seed(0)
        parts, net = {"a": part(3), "b": part(2)}, mm.encoder(3 + 2 + 2, 8, dim=2)
        vae, _, second = mm.recipes.jnf(parts | ({} if later else told), 2, net, {"a": 3, "b": 2})
        vae.modalities.update(told if later else {})
        rows = {**x, **{name: torch.randn(20, 4) for name in told}}
        torch.manual_seed(1)
        losses.append(second().loss(vae.model, vae.guide, rows))
    assert losses[0] > 0 and losses[1] == losses[0]


def test_what_is_frozen_after_a_run_stays_in_the_next_one_whatever_the_optimiser_holds():
    truth = LinearGaussian()
    x, vae = truth.simulate(20), mm.MultimodalVAE({"a": part(4), "b": part(3)}, mm.StandardNormal(2), mm.PoE())
    x = {name: x[name] for name in "ab"}
    mm.fit(vae, x, epochs=1, progress=False)
    vae.modalities["a"].requires_grad_(False)
    kept = {name: value.clone() for name, value in vae.state_dict().items()}
    mm.fit(vae, x, epochs=1, progress=False, optimizer=lambda _, lr: torch.optim.AdamW(vae.parameters(), lr))
    moved = {name for name, value in vae.state_dict().items() if not torch.equal(value, kept[name])}
    assert moved == {f"modalities.b.{name}" for name, _ in vae.modalities["b"].named_parameters()}


def test_a_joint_encoder_of_a_modality_that_was_taken_out_is_refused():
    """No row would be complete any more, and the other fusion would answer for all of them."""
    truth = LinearGaussian()
    sizes = {name: len(truth.loading[name]) for name in "ab"}
    net = mm.encoder(sum(sizes.values()) + 2, 8, dim=2)
    vae = truth.vae(mm.JointEncoder(net, sizes, otherwise=mm.PoE()))
    del vae.modalities["a"], vae.modalities["c"]
    with pytest.raises(ValueError, match="sizes names 'a', which is no modality; there is b: mend it"):
        vae.posterior({"b": truth.simulate(5)["b"]})


def test_a_file_of_two_networks_is_not_loaded_into_a_model_that_has_one_for_both(tmp_path):
    def built(first, second):
        return mm.MultimodalVAE({"a": first, "b": second}, mm.StandardNormal(2), mm.PoE())

    x, shared, path = {"a": torch.randn(5, 3), "b": torch.randn(5, 3)}, part(3), tmp_path / "vae.pt"
    twins = built(shared, shared)
    twins.save(path)
    for other in (built(part(3), part(3)), built(*[part(3)] * 2)):
        assert torch.equal(mm.load(path, other).posterior(x).mean, twins.posterior(x).mean)
    built(part(3), part(3)).save(path)
    with pytest.raises(ValueError, match=r"'modalities.a.decoder.*' and 'modalities.b.decoder.*' differ there and are"):
        mm.load(path, twins)


@pytest.mark.parametrize("recipe", [mm.recipes.mmvae, mm.recipes.alignment])
def test_a_loss_over_the_components_of_a_mixture_is_refused_for_another_guide(recipe):
    """Every stratum would count as the whole: the loss would be as many times too large."""
    x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
    vae, loss = recipe({"a": part(3), "b": part(2)}, 2)
    mm.fit(vae, x, loss=loss, epochs=1, progress=False)
    for vae.fusion in (mm.PoE(), mm.Flow(mm.MoE(), [dist.transforms.AffineTransform(0.0, 2.0, event_dim=1)])):
        with pytest.raises(ValueError, match=r"the posterior is no mixture and the loss has 2 strata.*give") as error:
            mm.fit(vae, x, loss=loss, epochs=1, progress=False)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", ["ac", "cd"])
def test_what_nobody_looks_at_is_no_stratum_of_a_posterior_that_is_no_mixture(names):
    """Neither beside one modality that is looked at, nor where the code is drawn from the prior."""
    parts = {"a": part(3), **{name: mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3), 2.0)) for name in "cd"}}
    vae, x = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE()), {name: torch.randn(20, 3) for name in names}
    losses = []
    for views in (mm.objectives.joint, mm.objectives.strata):
        pyro.set_rng_seed(0)
        losses.append(mm.Objective([views], num_particles=4000).loss(vae.model, vae.guide, x))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_a_batch_is_checked_anew_against_a_likelihood_that_was_put_in():
    truth = LinearGaussian()
    x, vae = mm.Batch.of(truth.simulate(5)), truth.vae()
    torch.testing.assert_close(mm.log_likelihood(vae, x).value, truth.log_prob(x))
    vae.modalities["a"].decoder = mm.BernoulliLikelihood(mm.mlp(2, 4))
    with pytest.raises(ValueError, match=r"modality 'a' has the value .* off the support of its likelihood Bernoulli"):
        mm.log_likelihood(vae, x)


def test_a_modality_of_two_levels_needs_its_code_in_both():
    def lower(size):
        return mm.Modality(mm.NormalLikelihood(mm.mlp(2, 4, size)), mm.encoder(size, 4, dim=2))

    x = {"a": torch.randn(10, 3), "b": torch.randn(10, 2)}
    vae, loss = mm.recipes.nexus({"a": lower(3), "b": lower(2)}, 2, {"a": 2, "b": 2}, 6, 5)
    vae.bottom.modalities["c"], vae.bottom.private_prior["c"] = vae.modalities["b"], mm.StandardNormal(2)
    with pytest.raises(ValueError, match="modality 'c' has no code in the top model; add it to top"):
        mm.fit(vae, {**x, "c": x["b"]}, loss=loss, epochs=1, progress=False)
    for parts in (vae.top.modalities, vae.top.fusion.embed):
        parts["c"] = parts["b"]
    mm.fit(vae, {**x, "c": x["b"]}, loss=loss, epochs=1, progress=False)
