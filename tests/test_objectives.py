"""Passes and bounds: values against the oracle, gradients against plain ones, and the ways an objective is used."""

import pyro
import pytest
import torch
from cases import RECIPES, rows_of_tables, three, three_holes, three_rows
from exact import LinearGaussian
from pyro.infer import SVI, RenyiELBO, Trace_ELBO

import pyro_mmvae as mm
from pyro_mmvae import objectives as ob
from pyro_mmvae.diagnostics.patterns import chosen_subsets
from pyro_mmvae.recipes.base import ByComponent
from pyro_mmvae.view import subsets_of

MASK = {"a": torch.arange(40) % 3 > 0, "b": torch.arange(40) % 4 > 0}


def exact_vae():
    truth = LinearGaussian()
    return truth, truth.vae(), truth.simulate(40)


@pytest.mark.parametrize("bound", ["elbo", "iwae", "stl", "dreg"])
@pytest.mark.parametrize("mask", [None, MASK])
def test_every_bound_of_an_exact_guide_is_log_p(bound, mask):
    truth, vae, x = exact_vae()
    loss = ob.Objective([ob.joint], getattr(ob, bound), num_particles=3).loss(vae.model, vae.guide, x, mask)
    assert -loss == pytest.approx(truth.log_prob(x, mask).sum().item(), abs=1e-6)


def test_passes_explain_what_they_say():
    truth, vae, x = exact_vae()
    single = sum(truth.log_prob({k: v}, MASK if k in MASK else None, [k]).sum() for k, v in x.items()).item()
    whole = truth.log_prob(x, MASK).sum().item()
    assert -ob.Objective([ob.unimodal]).loss(vae.model, vae.guide, x, MASK) == pytest.approx(single, abs=1e-6)
    both = ob.Objective([ob.joint, ob.Pass(ob.unimodal, weight=0.5)])
    assert -both.loss(vae.model, vae.guide, x, MASK) == pytest.approx(whole + 0.5 * single, abs=1e-6)
    pairs = -ob.Objective([ob.random_subsets(3)]).loss(vae.model, vae.guide, x, MASK)
    expected = sum(truth.log_prob(x, MASK, pair).sum() for pair in (["a", "b"], ["a", "c"], ["b", "c"])).item()
    assert pairs == pytest.approx(expected, abs=1e-6)
    assert [len(ob.random_subsets(count)(["a", "b", "c"])) for count in (2, 9)] == [2, 3]  # and not more than there are


def test_cross_is_the_elbo_of_everything_with_a_guide_that_sees_one():
    """Closed form: E log p(x | z) - KL for a normal q in a linear-Gaussian model."""
    truth, vae, x = exact_vae()
    expected = 0.0
    for name in x:
        q = vae.posterior(x, given=[name])
        expected -= torch.distributions.kl_divergence(q, vae.prior(None)).sum().item()
        for other, value in x.items():
            w, noise = truth.loading[other], truth.noise[other]
            p = torch.distributions.Normal(q.mean @ w.T + truth.offset[other], noise)
            expected += p.log_prob(value).sum().item() - 0.5 * ((q.variance @ (w.T**2)) / noise**2).sum().item()
    cross = ob.Objective([ob.cross], num_particles=4000)
    assert -cross.loss(vae.model, vae.guide, x) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("mask", [None, MASK])
def test_strata_are_the_mixture_with_less_noise(mask):
    truth = LinearGaussian()
    vae, x = truth.vae(mm.MoE(), expert="posterior"), truth.simulate(40)
    x = {k: v[3:] for k, v in x.items()}
    mask = mask and {k: v[3:] for k, v in mask.items()}
    plain, layered = ob.Objective([ob.joint]), ob.Objective([ob.strata])
    a = torch.tensor([plain.loss(vae.model, vae.guide, x, mask) for _ in range(200)])
    b = torch.tensor([layered.loss(vae.model, vae.guide, x, mask) for _ in range(200)])
    assert (a.mean() - b.mean()).abs() < 4 * ((a.var() + b.var()) / 200).sqrt()
    assert b.var() < 0.7 * a.var()


def test_iwae_is_per_row_and_agrees_with_renyi():
    vae, x, mask = three(fusion="MoE"), three_rows(30), three_holes(30)
    ours, stock = (
        ob.Objective([ob.joint], ob.iwae, num_particles=20),
        RenyiELBO(alpha=0.0, num_particles=20, vectorize_particles=True, max_plate_nesting=2),
    )
    a = torch.tensor([ours.loss(vae.model, vae.guide, x, mask) for _ in range(60)])
    b = torch.tensor([float(stock.loss(vae.model, vae.guide, x, mask)) for _ in range(60)])
    assert (a.mean() - b.mean()).abs() < 4 * ((a.var() + b.var()) / 60).sqrt()
    assert a.mean() < torch.tensor([Trace_ELBO().loss(vae.model, vae.guide, x, mask) for _ in range(60)]).mean()


def gradients(vae, objective, x, repeats):
    found = []
    for _ in range(repeats):
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(vae.parameters()))]))
    return torch.stack(found)


def smooth_model(fusion):
    net = {"activation": torch.nn.Tanh}
    parts = {n: mm.Modality(mm.NormalLikelihood(mm.mlp(2, 4, 2, **net), 0.8), mm.encoder(2, 4, dim=2)) for n in "ab"}
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), fusion)


@pytest.mark.parametrize("fusion", [mm.PoE, mm.MoE], ids=["PoE", "MoE"])
@pytest.mark.parametrize("beta", [1.0, 2.5])
@pytest.mark.parametrize("pair", [("elbo", "stl", 1), ("elbo", "stl", 4), ("iwae", "dreg", 4)], ids=str)
def test_stl_and_dreg_have_the_plain_gradient_on_average(fusion, pair, beta):
    """Unbiased also for a mixture, and whatever the KL weighs: |z| < 4.5 for every parameter."""
    plain, special, particles = pair
    vae = smooth_model(fusion())
    x = {name: torch.randn(2, 2).repeat(30, 1) for name in "ab"}  # the same two rows often: the mean of 30 a pass
    a = gradients(vae, ob.Objective([ob.joint], getattr(ob, plain), num_particles=particles, beta=beta), x, 60)
    b = gradients(vae, ob.Objective([ob.joint], getattr(ob, special), num_particles=particles, beta=beta), x, 60)
    se = ((a.var(0) + b.var(0)) / 60).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() <= 4.5 * se + 1e-8).all()


def test_sticking_the_landing_has_no_noise_at_an_exact_guide():
    _, vae, x = exact_vae()
    encoders = [p for name, p in vae.named_parameters() if "encoder" in name]
    noise = {}
    for name in ("elbo", "stl"):
        loss = ob.Objective([ob.joint], getattr(ob, name)).differentiable_loss(vae.model, vae.guide, x)
        noise[name] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, encoders)]).abs().max()
    assert noise["stl"] < 1e-9 < 0.1 < noise["elbo"]


def test_dreg_refuses_codes_in_levels_within_one_site():
    """The networks between the levels kept their score: the gradient was half of what it should be."""
    vae, _ = RECIPES["mhvae"]()
    x, _ = rows_of_tables()
    with pytest.raises(ValueError, match=r"draws of 'z' hang on other draws, .*dreg would be wrong"):
        ob.Objective(bound=ob.dreg, num_particles=2).loss(vae.model, vae.guide, x)


def test_the_published_dreg_of_strata_is_biased_and_says_so():
    """With K > 1 and one stratum a pass: the mean gradient differs from the plain one's."""
    vae = smooth_model(mm.MoE())
    x = {name: 1.5 * torch.randn(2, 2).repeat(60, 1) for name in "ab"}
    a = gradients(vae, ob.Objective([ob.strata], ob.iwae, num_particles=5), x, 80)
    b = gradients(vae, ob.Objective([ob.strata], ob.dreg, num_particles=5), x, 80)
    z = (a.mean(0) - b.mean(0)).abs() / ((a.var(0) + b.var(0)) / 80).sqrt().clamp(min=1e-12)
    assert z.max() > 6
    decoder = torch.cat([torch.full((p.numel(),), "decoder" in n) for n, p in vae.named_parameters()])
    assert (z[decoder] < 4.5).all()  # the model's gradient is right


def test_value_and_gradients_are_those_of_the_loss_and_data_may_come_by_name():
    vae, data = three(), {"x": three_rows(12), "mask": three_holes(12)}
    objective, values = ob.Objective([ob.joint, ob.unimodal]), []
    for ask in (objective.differentiable_loss, objective.loss_and_grads, objective.loss):
        torch.manual_seed(1)
        values.append(ask(vae.model, vae.guide, **data))
    wanted = torch.autograd.grad(values[0], list(vae.parameters()))
    assert values[1:] == [values[0].item()] * 2
    torch.testing.assert_close([p.grad for p in vae.parameters()], list(wanted))


def test_a_loss_is_measured_without_a_graph_and_a_frozen_model_has_one_too():
    vae, x, graphs = three(), three_rows(12), []
    net = vae.modalities["body"].decoder.net
    net.register_forward_hook(lambda net, given, out: graphs.append(out.requires_grad))
    objective, values = ob.Objective(), []
    for ask in (objective.loss, objective.loss_and_grads):
        torch.manual_seed(1)
        values.append(ask(vae.model, vae.guide, x))
        vae.requires_grad_(False)
    assert values[0] == values[1] and graphs == [False, False]


def test_beta_weighs_the_kl():
    truth, vae, x = exact_vae()
    kl = torch.distributions.kl_divergence(vae.posterior(x), vae.prior(None)).sum().item()
    losses = [
        ob.Objective([ob.joint], beta=beta, num_particles=3000).loss(vae.model, vae.guide, x) for beta in (0.0, 2.0)
    ]
    assert (losses[1] - losses[0]) / 2 == pytest.approx(kl, rel=0.02)
    assert sum(losses) / 2 == pytest.approx(-truth.log_prob(x).sum().item(), rel=2e-3)


def test_stock_svi_the_module_style_and_fit_all_take_an_objective():
    x, mask = three_rows(40), three_holes(40)
    make = lambda: ob.Objective([ob.joint, ob.unimodal])  # noqa: E731
    vae = three()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), make())
    losses = [svi.step(x, mask) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 100
    vae = three()
    module = make()(vae.model, vae.guide)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    before = module(x, mask).item()
    for _ in range(60):
        optimiser.zero_grad()
        module(x, mask).backward()
        optimiser.step()
    assert module(x, mask).item() < before - 10
    history = mm.fit(three(), x, mask, loss=make(), epochs=40, lr=1e-2, warmup=5, progress=False)
    assert history.loss[-1] < history.loss[6]


def test_modality_weights_enter_the_loss():
    _, vae, x = exact_vae()
    whole = ob.Objective([ob.joint], num_particles=2000).loss(vae.model, vae.guide, x)
    vae.modalities["a"].weight = 0.0
    less = ob.Objective([ob.joint], num_particles=2000).loss(vae.model, vae.guide, x)
    vae.modalities["a"].weight = 2.0
    more = ob.Objective([ob.joint], num_particles=2000).loss(vae.model, vae.guide, x)
    assert more - whole == pytest.approx(whole - less, rel=0.02)
    assert Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=2).loss(
        vae.model, vae.guide, x
    ) == pytest.approx(more, rel=0.01)


MIXED = {
    "MoE": mm.MoE,
    "MoE by component": lambda: ByComponent(mm.MoE()),
    "MoPoE by component": lambda: ByComponent(mm.MoPoE()),
    "PoE": mm.PoE,
}


def generated_as_well(fusion):
    """A model with a mixture for a prior, and a modality "c" that no encoder looks at."""
    parts = {name: mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, dim=2)) for name in "ab"}
    parts["c"] = mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)))
    return mm.MultimodalVAE(parts, mm.GaussianMixture(2, components=3), MIXED[fusion]())


@pytest.mark.parametrize("fusion", MIXED)
def test_a_batch_in_which_nothing_was_seen_costs_nothing_under_a_mixture_prior(fusion):
    vae, x = generated_as_well(fusion), {name: torch.full((4, 3), torch.nan) for name in "ab"}
    for loss in (Trace_ELBO(), ob.Objective([ob.joint]), ob.Objective([ob.strata]), ob.Objective(bound=ob.iwae)):
        assert loss.loss(vae.model, vae.guide, x) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("fusion", MIXED)
def test_components_of_the_prior_are_no_strata(fusion):
    """Only "c" is there, which the guide does not see: all draws are the prior's, and each row counts once."""
    vae, x = generated_as_well(fusion), {"c": torch.randn(4, 3)}
    losses = []
    for views in (ob.joint, ob.strata):
        pyro.set_rng_seed(0)
        losses.append(ob.Objective([views], num_particles=3).loss(vae.model, vae.guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_strata_leave_no_component_out():
    """A modality that no encoder looks at is none of them; a prior expert is one more than the strata."""
    vae, x = generated_as_well("MoE"), {name: torch.randn(4, 3) for name in "abc"}
    plain, layered = (ob.Objective([views], num_particles=4000) for views in (ob.joint, ob.strata))
    a, b = (loss.loss(vae.model, vae.guide, x) for loss in (plain, layered))
    assert a == pytest.approx(b, rel=0.01)
    more = mm.MultimodalVAE(dict(vae.modalities.items()), mm.StandardNormal(2), mm.MoE(prior_expert=True))
    del x["c"]
    with pytest.raises(ValueError, match=r"a mixture of 3 components and the loss has 2 strata; .*give"):
        layered.loss(more.model, more.guide, x)
    del x["b"]
    with pytest.raises(ValueError, match="a mixture of 2 components and the loss has 1 strata"):
        ob.Objective([ob.subset_strata]).loss(more.model, more.guide, x)


def test_strata_of_subsets_are_the_mixture_of_their_products():
    truth = LinearGaussian()
    vae, x = truth.vae(mm.MoPoE(), expert="posterior"), {k: 2 * v for k, v in truth.simulate(4).items()}
    mask, losses = {"a": torch.arange(4) > 0, "b": torch.arange(4) > 1}, []
    for views, particles in ((ob.joint, 8000), (ob.subset_strata, 2000)):
        losses.append(ob.Objective([views], num_particles=particles).loss(vae.model, vae.guide, x, mask))
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@pytest.mark.parametrize("fusion", ["MoE", "MoE by component"])
def test_the_stratum_of_a_modality_has_all_of_its_repeats(fusion):
    vae = generated_as_well(fusion)
    vae.modalities["a"].repeated = True
    x = {"a": 2 * torch.randn(4, 3, 3), "b": torch.randn(4, 3), "c": torch.randn(4, 3)}
    mask = {"a": torch.tensor([[True] * 3, [True, False, True], [False] * 3, [False] * 3])}
    mask["b"] = torch.tensor([True, True, True, False])
    ways = [(views, bound) for views in (ob.joint, ob.strata) for bound in (ob.elbo, ob.stl)]
    losses = [
        ob.Objective([views], bound, num_particles=4000).loss(vae.model, vae.guide, x, mask) for views, bound in ways
    ]
    assert losses[1:] == pytest.approx([losses[0]] * 3, rel=0.01)


def test_strata_and_private_codes_belong_together_whatever_comes_first():
    """The stratum of a modality has its private code, also if one that no encoder looks at is listed before."""
    parts = {
        name: mm.Modality(mm.NormalLikelihood(mm.mlp(4, 3), 0.3), mm.encoder(3, dim=2), private=mm.encoder(3, dim=2))
        for name in "ab"
    }
    parts["c"] = mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)))
    prior, auxiliary = ({name: mm.LearnedNormal(2) for name in "ab"} for _ in range(2))
    x, losses = {name: 2 * torch.randn(4, 3) for name in "abc"}, []
    for order in ("abc", "cab"):
        modalities = {name: parts[name] for name in order}
        vae = mm.MultimodalVAE(modalities, mm.StandardNormal(2), mm.MoE(), prior, auxiliary)
        loss = ob.Objective([ob.strata], num_particles=4000)
        losses.append(loss.loss(vae.model, vae.guide, {name: x[name] for name in order}))
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_experts_match_the_joint_posterior_on_complete_rows_alone():
    truth = LinearGaussian({"a": 4, "b": 3})
    x, vae, there = truth.simulate(5), truth.vae(), torch.tensor([True, False, True, True, False])
    match = mm.objectives.Match(vae)
    torch.manual_seed(0)
    found = match.differentiable_loss(vae.model, vae.guide, x, {"b": there})
    torch.manual_seed(0)
    experts = vae.experts(x, {"b": there})
    z = vae.fusion(experts).sample()
    each = experts["a"].log_prob(z).squeeze(1) + experts["b"].log_prob(z).squeeze(1)
    torch.testing.assert_close(found, -each[there].sum())
    assert match.differentiable_loss(vae.model, vae.guide, {"a": x["a"]}) == 0


def test_thirty_modalities_are_never_enumerated():
    names = [f"m{i}" for i in range(30)]
    drawn = [view.given for _ in range(50) for view in ob.random_subsets(4)(names)]
    assert len(drawn) == 200 and sum(map(len, drawn)) / 200 == pytest.approx(15, abs=1)
    assert min(map(len, drawn)) >= 2 and max(map(len, drawn)) < 30
    alone = [view.given for _ in range(300) for view in ob.dropped(1.0)(["a", "b"])]
    assert [alone.count(given) for given in [("a",), ("b",), ("a", "b")]] == pytest.approx([100] * 3, abs=35)
    assert {*ob.dropped(1.0)(["a", "b"])} <= {*ob.every_subset(["a", "b"])}  # which explain all
    with pytest.raises(ValueError, match=r"30 modalities have 1,073,741,823 subsets .* take random_subsets\(2\)"):
        ob.every_subset(names)
    assert len(ob.every_subset(names[:16])) == 2**16 - 1 and len(subsets_of(names, 2, what="few")) == 30 + 435
    with pytest.raises(ValueError, match="17 modalities have 131,071 subsets"):
        ob.every_subset(names[:17])
    few = {name: torch.zeros(3, 1) for name in names}
    with pytest.raises(ValueError, match="give subsets a number"):
        chosen_subsets(mm.Batch.of(few), "all")
    part = mm.Modality(mm.NormalLikelihood(mm.mlp(1, 1)), mm.encoder(1, 2, dim=1))
    vae = mm.MultimodalVAE(dict.fromkeys(names, part), mm.StandardNormal(1), mm.PoE())
    with pytest.raises(ValueError, match="give a smaller most_given"):
        mm.coherence(vae, few, torch.zeros(3), {"m0": lambda value: value[:, 0]})
