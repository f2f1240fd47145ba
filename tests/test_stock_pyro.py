"""Stock Pyro, unchanged, on the two programs."""

import gc
import importlib.util

import pyro
import pytest
import torch
from cases import three, three_holes, three_rows
from exact import LinearGaussian
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoNormal

import pyro_mmvae as mm

ROWS = 30


def gained(vae, step, steps=60):
    """How far the loss falls, on average over the first and last steps."""
    losses = [step() for _ in range(steps)]
    return sum(losses[:10]) / 10 - sum(losses[-10:]) / 10


OPTIMISERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 1e-2}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 1e-2}),
}
LOSSES = {
    "Trace_ELBO": lambda: Trace_ELBO(),
    "Trace_ELBO vectorised": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
    "TraceMeanField_ELBO": lambda: TraceMeanField_ELBO(),
    "TraceGraph_ELBO": lambda: TraceGraph_ELBO(),
    "RenyiELBO": lambda: RenyiELBO(alpha=0.0, num_particles=3, vectorize_particles=True),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fusion", ["PoE", "MoE", "MoPoE"])
def test_svi_trains_every_parameter(loss, optimiser, fusion):
    vae, x, mask = three(fusion=fusion), three_rows(ROWS), three_holes(ROWS)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    svi = SVI(vae.model, vae.guide, OPTIMISERS[optimiser](), LOSSES[loss]())
    assert gained(vae, lambda: svi.step(x, mask)) > 10
    assert all(not torch.equal(before[name], p) for name, p in vae.named_parameters())
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("fresh", [lambda: mm.optim({"lr": 1e-2}), OPTIMISERS["Adam"]], ids=["mm.optim", "pyro.optim"])
def test_a_handler_of_the_users_decides_what_is_trained(fresh):
    def held(site):
        return site["type"] == "param" and ".decoder." in site["name"]

    vae, x = three(), three_rows(ROWS)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    svi = SVI(poutine.block(vae.model, hide_fn=held), poutine.block(vae.guide, hide_fn=held), fresh(), Trace_ELBO())
    for _ in range(3):
        svi.step(x)
    for name, p in vae.named_parameters():
        assert torch.equal(before[name], p) == (".decoder." in name), name


@pytest.mark.parametrize("arguments", [1, 2])
def test_settings_of_an_optimiser_go_by_names(arguments):
    def settings(*title):
        assert title[0].partition(".")[0] == "vae"
        return {"lr": 0.0 if ".decoder." in title[-1] else 1e-2}

    vae, x = three(), three_rows(ROWS)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    optim = pyro.optim.Adam((lambda name: settings(name)) if arguments == 1 else lambda vae, name: settings(vae, name))
    SVI(vae.model, vae.guide, optim, Trace_ELBO()).step(x)
    for name, p in vae.named_parameters():
        assert torch.equal(before[name], p) == (".decoder." in name), name


RESUMED = {
    "pyro.optim": (OPTIMISERS["Adam"], OPTIMISERS["Adam"]),
    "mm.optim": (lambda: mm.optim({"lr": 1e-2}), lambda: mm.optim({"lr": 1e-2})),
    "mm.optim goes on": (OPTIMISERS["Adam"], lambda: mm.optim({"lr": 1e-2})),
    "pyro.optim goes on": (lambda: mm.optim({"lr": 1e-2}), OPTIMISERS["Adam"]),
}


@pytest.mark.parametrize("makes", RESUMED.values(), ids=RESUMED)
def test_an_optimiser_that_was_saved_goes_on_with_a_model_of_another_process(makes, tmp_path):
    x, mask = three_rows(ROWS), three_holes(ROWS)

    def train(vae, optim, seeds):
        svi = SVI(vae.model, vae.guide, optim, Trace_ELBO())
        for seed in seeds:
            pyro.set_rng_seed(seed)
            svi.step(x, mask)

    whole, optim = three(), makes[0]()
    train(whole, optim, range(3))
    optim.save(tmp_path / "optim")
    part = three()
    part.load_state_dict(whole.state_dict())
    train(whole, optim, range(3, 6))
    pyro.clear_param_store()
    optim = makes[1]()
    optim.load(tmp_path / "optim")
    train(part, optim, range(3, 6))
    for p, q in zip(whole.parameters(), part.parameters()):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)


@pytest.mark.filterwarnings("ignore:pyro.module data")  # of what was not yet substituted when the model refused
def test_handlers_that_give_parameters_other_values_are_refused_and_others_change_what_they_say():
    """Networks compute with the tensors that they hold, so that a lifted parameter would be a site of no effect."""
    vae, x = three().requires_grad_(False), three_rows(5)
    vae.modalities["body"].decoder.requires_grad_(True)
    names = [name for name, site in poutine.trace(vae.model).get_trace(x).nodes.items() if site["type"] == "param"]
    other = {names[-1]: torch.zeros(())}
    lifted = poutine.lift(vae.model, pyro.distributions.Normal(0.0, 1.0))
    for changed in (lifted, poutine.substitute(vae.model, other)):
        with pytest.raises(ValueError, match=r"gives 'modalities\.body\.decoder\..*' another value"):
            poutine.trace(changed).get_trace(x)
    vae, z = vae.requires_grad_(False), {"z": torch.zeros(5, 1, 2)}
    plain = poutine.trace(poutine.condition(vae.model, z)).get_trace(x).log_prob_sum()
    doubled = poutine.trace(poutine.scale(poutine.condition(vae.model, z), 2.0)).get_trace(x).log_prob_sum()
    assert float(doubled) == pytest.approx(2 * float(plain))
    masked = poutine.mask(poutine.condition(vae.model, z), torch.arange(5)[:, None] < 2)
    kept = float(poutine.trace(masked).get_trace(x).log_prob_sum())
    first = {name: value[:2] for name, value in x.items()}
    alone = poutine.trace(poutine.condition(vae.model, {"z": z["z"][:2]})).get_trace(first).log_prob_sum()
    assert kept == pytest.approx(float(alone))


def test_names_are_forgotten_with_their_model():
    vae = three()
    SVI(vae.model, vae.guide, OPTIMISERS["Adam"](), Trace_ELBO()).step(three_rows(3))
    first = next(vae.parameters())
    assert pyro.get_param_store().param_name(first) is not None
    del vae
    gc.collect()
    assert pyro.get_param_store().param_name(first) is None


def test_a_loss_that_torch_jit_traces_is_refused():
    vae = three()
    svi = SVI(vae.model, vae.guide, OPTIMISERS["Adam"](), JitTrace_ELBO())
    with pytest.raises(ValueError, match=r"look for parameters in Pyro's store.*; give Trace_ELBO\(\)"):
        svi.step(three_rows(3))


def test_one_optimiser_for_all_parameters_takes_the_steps_of_one_for_each():
    ends = []
    for fresh in (lambda: mm.optim({"lr": 1e-2}), OPTIMISERS["Adam"]):
        torch.manual_seed(0)
        vae, x = three(), three_rows(ROWS)
        svi = SVI(vae.model, vae.guide, fresh(), Trace_ELBO())
        torch.manual_seed(1)
        losses = [svi.step(x, three_holes(ROWS)) for _ in range(5)]
        ends.append((losses, [p.detach() for p in vae.parameters()]))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-9)
    for ours, theirs in zip(ends[0][1], ends[1][1]):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_second_model_trains_and_leaves_the_first_alone():
    first, x = three(), three_rows(ROWS)
    SVI(first.model, first.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    kept = {k: v.clone() for k, v in first.state_dict().items()}
    second = three()
    svi = SVI(second.model, second.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert gained(second, lambda: svi.step(x)) > 10
    assert all(torch.equal(kept[k], v) for k, v in first.state_dict().items())


def test_a_model_whose_state_was_just_loaded_trains():
    source, vae, x = three(), three(), three_rows(ROWS)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(x)
    vae.load_state_dict(source.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), vae.parameters()))
    assert gained(vae, lambda: svi.step(x)) > 10


def test_frozen_parameters_stay():
    vae, x = three(), three_rows(ROWS)
    vae.modalities["body"].requires_grad_(False)
    kept = {k: v.clone() for k, v in vae.modalities["body"].state_dict().items()}
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert gained(vae, lambda: svi.step(x)) > 5
    assert all(torch.equal(kept[k], v) for k, v in vae.modalities["body"].state_dict().items())


def test_a_hundred_models_leave_the_parameter_store_as_it_was():
    x = three_rows(3)
    for _ in range(100):
        vae = three()
        SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 1e-6}), Trace_ELBO()).step(x)
    assert len(pyro.get_param_store()) == 0


def test_the_elbo_module_style_with_a_torch_optimiser():
    vae, x, mask = three(), three_rows(ROWS), three_holes(ROWS)
    elbo = Trace_ELBO()(vae.model, vae.guide)
    assert {id(p) for p in elbo.parameters()} == {id(p) for p in vae.parameters()}
    optim = torch.optim.Adam(elbo.parameters(), lr=1e-2)

    def step():
        optim.zero_grad()
        loss = elbo(x, mask)
        loss.backward()
        optim.step()
        return loss.item()

    assert gained(vae, step) > 10


def test_predictive_in_parallel_and_in_a_loop():
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(4)
    parallel = Predictive(vae.model, guide=vae.guide, num_samples=3000, parallel=True)(x)
    assert parallel["z"].shape == (3000, 4, 1, 2)
    mean, _ = truth.posterior(x)
    assert (parallel["z"].mean(0).squeeze(1) - mean).abs().max() < 0.06
    assert Predictive(vae.model, guide=vae.guide, num_samples=5)(x)["z"].shape == (5, 4, 1, 2)
    free = Predictive(vae.model, num_samples=20_000, parallel=True)()
    assert free["a"].shape == (20_000, 1, 1, 4)
    assert (free["a"].mean((0, 1, 2)) - truth.offset["a"]).abs().max() < 0.05


def test_nuts_on_z_finds_the_posterior():
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(4)
    vae.requires_grad_(False)
    kernel = NUTS(vae.model, jit_compile=False)
    mcmc = MCMC(kernel, num_samples=400, warmup_steps=200, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"].squeeze(2)
    mean, covariance = truth.posterior(x)
    sd = covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert ((z.mean(0) - mean).abs() < 0.3 * sd).all()
    torch.testing.assert_close(z.std(0), sd, rtol=0.3, atol=0)


def test_autonormal_of_the_model_finds_the_posterior():
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(4)
    vae.requires_grad_(False)
    guide = AutoNormal(vae.model)
    svi = SVI(
        vae.model,
        guide,
        pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.995}),
        Trace_ELBO(num_particles=8, vectorize_particles=True),
    )
    for _ in range(800):
        svi.step(x)
    mean, covariance = truth.posterior(x)
    assert (guide.locs.z.squeeze(1) - mean).abs().max() < 0.05
    torch.testing.assert_close(guide.scales.z.squeeze(1), covariance.diagonal(dim1=1, dim2=2).sqrt(), rtol=0.1, atol=0)


@pytest.mark.skipif(importlib.util.find_spec("graphviz") is None, reason="the extra graphviz is not installed")
def test_render_model_shows_every_site_and_plate():
    vae, x = three(), three_rows(3)
    graph = pyro.render_model(vae.model, model_args=(x,))
    for word in ("z", "body", "label", "counts", "data", "body_plate"):
        assert word in graph.source


def test_programs_and_elbo_modules_are_pickled_with_their_model(tmp_path):
    vae, x = three(), three_rows(ROWS)
    torch.save(Trace_ELBO()(vae.model, vae.guide), tmp_path / "elbo")
    found = torch.load(tmp_path / "elbo", weights_only=False)
    assert found.model.vae is found.guide.vae is not vae
    losses = []
    for elbo in (found, Trace_ELBO()(vae.model, vae.guide)):
        pyro.set_rng_seed(1)
        losses.append(elbo(x).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("make", [OPTIMISERS["Adam"], lambda: mm.optim({"lr": 1e-2})], ids=["pyro.optim", "mm.optim"])
def test_an_optimiser_knows_what_was_put_into_a_model_and_what_was_renamed(make):
    """In the midst of other parts, where the first and the last parameter stay the same."""
    vae, x, optim = three(), three_rows(ROWS), make()
    svi = SVI(vae.model, vae.guide, optim, Trace_ELBO())
    for steps in (4, 2):
        for _ in range(steps):
            svi.step(x)
        other, old = three().modalities["label"], list(vae.modalities["label"].parameters())
        vae.modalities["label"] = other
    svi.step(x)
    steps = {name: state["state"][0]["step"].item() for name, state in optim.get_state().items() if name}
    assert steps.keys() == {f"vae$$${name}" for name, _ in vae.named_parameters()}
    assert {value for name, value in steps.items() if "label" in name} == {1.0} and set(steps.values()) == {1.0, 7.0}
    assert all(pyro.get_param_store().param_name(p) is None for p in old)

    vae.modalities["word"] = vae.modalities.pop("label")
    svi.step({("word" if name == "label" else name): value for name, value in x.items()})
    steps = {name: state["state"][0]["step"].item() for name, state in optim.get_state().items() if name}
    assert steps.keys() == {f"vae$$${name}" for name, _ in vae.named_parameters()} and set(steps.values()) == {2.0, 8.0}


def test_settings_of_an_optimiser_go_by_the_names_of_what_was_put_in():
    vae, x = three(), three_rows(ROWS)
    optim = pyro.optim.Adam(lambda name: {"lr": 1e-2 if ".label." in name else 0.0})
    svi = SVI(vae.model, vae.guide, optim, Trace_ELBO())
    svi.step(x)
    vae.modalities["label"] = three().modalities["label"]
    kept = {name: value.clone() for name, value in vae.state_dict().items()}
    svi.step(x)
    moved = {name for name, value in vae.state_dict().items() if not torch.equal(value, kept[name])}
    assert moved == {f"modalities.label.{name}" for name, _ in vae.modalities["label"].named_parameters()}


def test_what_two_models_share_keeps_a_name_when_one_of_them_gives_it_up():
    first, second, x = three(), three(), three_rows(ROWS)
    second.modalities["label"] = shared = first.modalities["label"]
    steps = [SVI(vae.model, vae.guide, mm.optim({"lr": 1e-2}), Trace_ELBO()) for vae in (first, second)]
    for svi in steps:
        svi.step(x)
    first.modalities["label"] = three().modalities["label"]
    for svi in steps:
        svi.step(x)
    assert {pyro.get_param_store().param_name(p) for p in shared.parameters()} == {
        f"vae$$$modalities.label.{name}" for name, _ in shared.named_parameters()
    }
    assert len(steps[1].optim.get_state()) == len(list(second.parameters()))
