"""What is there for speed alone says the same as what it stands in for."""

import gc
import os
import platform
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import RECIPES, SIZES, three, three_holes, three_rows
from pyro.infer import Trace_ELBO
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_mmvae as mm
from pyro_mmvae.direct import DirectELBO, direct
from pyro_mmvae.distributions import Normal, indicator
from pyro_mmvae.memory import keep_at_hand, keep_kernels
from pyro_mmvae.plates import plate
from pyro_mmvae.programs import scaled


@pytest.mark.parametrize("fusion", ["PoE", "MoE", "MoPoE", "CoDE"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_elbo_without_a_trace_is_trace_elbo(fusion, beta):
    """Loss and gradients of the same draws."""
    vae, x, mask = three(fusion=fusion), three_rows(20), three_holes(20)
    found = []
    for loss in (Trace_ELBO(), DirectELBO()):
        pyro.set_rng_seed(0)
        with scaled({"z": beta}):
            value = loss.differentiable_loss(vae.model, vae.guide, x, mask)
        found.append([value.detach(), *torch.autograd.grad(value, list(vae.parameters()))])
    for ours, theirs in zip(*found):
        assert torch.allclose(ours, theirs, atol=1e-9)


def test_draws_without_gradients_are_left_to_the_score_function():
    """A guide over a coin: the gradient of its logit needs REINFORCE."""
    logit = torch.zeros((), requires_grad=True)

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=logit))

    draws = [torch.autograd.grad(DirectELBO().differentiable_loss(model, guide), logit)[0] for _ in range(400)]
    draws = torch.stack(draws)
    # d/dl KL(q || p(z | x)) at l = 0 is p (1 - p) (l - log odds of the posterior), with log odds 1/2
    assert abs(draws.mean() + 0.125) < 4 * draws.std() / 400**0.5


def test_particles_are_left_to_trace_elbo():
    vae, x, found = three(), three_rows(10), []
    for loss in (Trace_ELBO, DirectELBO):
        pyro.set_rng_seed(0)
        elbo = loss(num_particles=5, vectorize_particles=True, max_plate_nesting=2)
        found.append(elbo.differentiable_loss(vae.model, vae.guide, x).item())
    assert found[0] == found[1]


def test_model_and_guide_that_subsample_take_the_same_rows():
    data, scale = torch.arange(100.0), torch.tensor(1.0)
    taken = []

    def program(kind):
        def run():
            with pyro.plate("data", 100, subsample_size=5) as rows:
                taken.append(rows)
                z = pyro.sample("z", dist.Normal(data[rows], scale))
                if kind == "model":
                    pyro.sample("x", dist.Normal(z, scale), obs=data[rows])

        return run

    pyro.set_rng_seed(3)
    DirectELBO().differentiable_loss(program("model"), program("guide"))
    assert torch.equal(*taken)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 1, 3)])
def test_a_normal_with_a_narrow_scale_is_the_normal(shape):
    loc, scale = torch.randn(4, 2, 3, requires_grad=True), (torch.rand(shape) + 0.5).requires_grad_()
    value = torch.randn(4, 2, 3)
    ours, theirs = Normal(loc, scale).to_event(1), dist.Normal(loc, scale).to_event(1)
    for one, other in ((ours, theirs), (ours.expand((5, 4, 2)), theirs.expand((5, 4, 2)))):
        assert torch.allclose(one.log_prob(value), other.log_prob(value))
        gradients = [torch.autograd.grad(q.log_prob(value).sum(), (loc, scale)) for q in (one, other)]
        assert all(torch.allclose(a, b) for a, b in zip(*gradients))
        assert torch.equal(one.variance, other.variance) and one.variance.shape == other.variance.shape


def test_a_plate_is_pyros_plate():
    """Same frames, shapes and densities, under particles too, and the same error for a wrong size."""
    found = []
    for kind in (pyro.plate, plate):

        def model(kind=kind):
            with kind("data", 4, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                with kind("repeat", 3, dim=-1):
                    pyro.sample("x", dist.Normal(z, 1.0).expand(z.shape), obs=torch.ones(4, 3))

        with pyro.plate("particles", 2, dim=-3):
            pyro.set_rng_seed(0)
            trace = pyro.poutine.trace(model).get_trace()
        frames = [trace.nodes[name]["cond_indep_stack"] for name in ("z", "x")]
        found.append((float(trace.log_prob_sum()), trace.nodes["z"]["value"].shape, frames))
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="Shape mismatch"), plate("data", 4, dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))


def test_fit_takes_the_elbo_without_a_trace(monkeypatch):
    def traced(*args):
        raise AssertionError("a trace was built")

    vae, x = three(), three_rows(20)
    monkeypatch.setattr(Trace_ELBO, "_get_trace", traced)
    mm.fit(vae, x, epochs=1, progress=False)


@pytest.mark.parametrize("passes", [[mm.objectives.strata], [mm.objectives.cross, mm.objectives.joint]])
@pytest.mark.parametrize("bound", [mm.objectives.elbo, mm.objectives.dreg])
def test_rows_that_a_pass_multiplies_by_zero_are_not_decoded(passes, bound, monkeypatch):
    """Loss and gradients are those with every row decoded, and fewer rows are."""
    vae, x, mask = three(fusion="MoE"), three_rows(40), three_holes(40)
    decoded, found = [], []
    part = next(iter(vae.modalities.values()))
    part.decoder.register_forward_hook(lambda module, inputs, output: decoded.append(inputs[0].shape[-3]))
    for every in (False, True):
        if every:
            monkeypatch.setattr(mm.objectives.objective, "_that_count", lambda *args: None)
        pyro.set_rng_seed(0)
        loss = mm.Objective(passes, bound, num_particles=2).differentiable_loss(vae.model, vae.guide, x, mask)
        found.append([loss.detach(), *torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)])
        found[-1].append(torch.tensor(float(sum(decoded))))
        decoded.clear()
    *ours, few = found[0]
    *theirs, many = found[1]
    assert few < many
    for one, other in zip(ours, theirs):
        assert (one is None and other is None) or torch.allclose(one, other, atol=1e-9)


def test_rows_that_a_pass_does_not_look_at_are_not_decoded_on_an_accelerator_either(monkeypatch):
    """Which they are is read from the masks on the CPU there."""
    vae, x, mask, decoded = three(), three_rows(40), three_holes(40), []
    body = vae.modalities["body"].decoder
    body.register_forward_hook(lambda module, inputs, output: decoded.append(inputs[0].shape[-3]))
    found = []
    for place in ("cpu", "accelerator"):
        if place == "accelerator":
            monkeypatch.setattr(mm.data, "on_gpu", lambda device: True)
            monkeypatch.setattr(mm.objectives.objective, "on_gpu", lambda device: True)
        batch = vae.check(x, mask)
        batch.survey()
        assert bool(batch.known) == (place == "accelerator")
        pyro.set_rng_seed(0)
        loss = mm.Objective([mm.objectives.cross]).differentiable_loss(vae.model, vae.guide, batch, batch.mask)
        found.append((float(loss.detach()), tuple(decoded)))
        decoded.clear()
    assert found[0] == found[1]


@pytest.mark.parametrize("given", [["label"], ["body", "label", "counts"]])
def test_a_question_decodes_no_more_at_once_than_a_chunk_holds_and_not_much_less(given, monkeypatch):
    """What is decoded counts, seen or not: a translation draws a modality that it is not given."""
    vae, x, numbers = three(), three_rows(60), 600 * 20
    sizes = []
    vae.modalities["body"].decoder.register_forward_hook(lambda _, z, out: sizes.append(z[0].shape[:-1].numel()))
    monkeypatch.setattr(mm.weights, "NUMBERS_AT_ONCE", numbers)
    monkeypatch.setattr(mm.weights, "size_of", lambda batch: 20 + sum(len(batch[n][0].flatten()) * 20 for n in batch))
    mm.predict(vae, {name: x[name] for name in given}, num_draws=10)
    whole = 20 + 20 * 7  # body and counts of three entries each, and a label
    assert max(sizes) == numbers // (whole * 10) * 10


def test_categories_count_for_the_room_that_they_take(monkeypatch):
    """A label of a thousand categories is one number of the data, and a thousand wherever it is decoded."""
    net, column, sizes = mm.mlp(2, 1000), mm.CategoryColumn(1000), []
    net.register_forward_hook(lambda _, z, out: sizes.append(out.numel()))
    look = mm.encoder(2, 4, dim=2)
    parts = {
        "label": mm.Modality(mm.CategoricalLikelihood(net)),
        "table": mm.Modality(mm.TableLikelihood(net, [column])),
        "seen": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 2)), look),
    }
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    x = {"label": torch.arange(60), "table": torch.arange(60.0).unsqueeze(1), "seen": torch.zeros(60, 2)}
    monkeypatch.setattr(mm.weights, "NUMBERS_AT_ONCE", 100_000)
    mm.predict(vae, {"seen": x["seen"]})
    mm.log_likelihood(vae, x, num_particles=70)
    mm.leave_one_out(vae, x, num_draws=19)
    mm.imputation_error(vae, x, visible={"label": torch.arange(60) < 9}, num_draws=19)
    assert 20_000 < max(sizes) <= 100_000


def test_predictions_are_made_without_drawing_the_data(monkeypatch):
    """Counts of many genes take ten times as long to draw as to predict."""
    monkeypatch.setattr(mm.distributions.NegativeBinomial, "sample", None)
    part = mm.Modality(mm.NegativeBinomialLikelihood(mm.mlp(2, 3)), mm.encoder(3, 4, dim=2))
    vae = mm.MultimodalVAE({"rna": part}, mm.StandardNormal(2), mm.PoE())
    assert mm.predict(vae, {"rna": torch.ones(5, 3)}, num_draws=2)["rna"].shape == (5, 3)


def test_what_is_hidden_takes_no_room_in_a_chunk():
    batch = mm.Batch.of({"small": torch.zeros(4, 3), "large": torch.zeros(4, 1000)})
    assert mm.weights.size_of(batch) == 512 + 1003
    assert mm.weights.size_of(batch.only(["small"])) == 512 + 3
    parts = list(mm.weights.chunks(batch.only(["small"]), 10**6))
    most = mm.weights.NUMBERS_AT_ONCE // 515
    assert all(sum(sizes) == 10**6 and max(sizes) * part.rows <= most for part, sizes in parts)
    assert sum(part.rows for part, _ in parts) == 4


@pytest.mark.parametrize("given", [None, ["body"], ["body", "label", "counts"]])
def test_encoders_run_once_for_all_the_draws_of_a_part(given, monkeypatch):
    """And what they say is taken for all of them: the same values as when they run for each."""
    vae, x, found, rows = three(), three_rows(40), [], []
    vae.modalities["body"].encoder.register_forward_hook(lambda _, __, q: rows.append(q.batch_shape[0]))
    monkeypatch.setattr(mm.weights, "NUMBERS_AT_ONCE", 40 * 600 * 25)  # the draws of a part are two chunks
    for _ in range(2):
        torch.manual_seed(0)
        found.append((mm.log_likelihood(vae, x, given=given, targets=given, num_particles=50).value, rows.copy()))
        rows.clear()
        monkeypatch.setattr(mm.Batch, "remembering", lambda batch: batch)
    assert torch.equal(found[0][0], found[1][0])
    assert sum(found[0][1][1:]) == 40 and sum(found[1][1][1:]) == 80  # but for a call that asks for the plates


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_and_not_given_back():
    assert output_of("heap_worker.py").split() == ["False", "True"]


def output_of(worker, *arguments, **variables):
    """What a script beside this file prints, in a process of its own with these environment variables."""
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(here / worker), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env | variables).stdout


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize(
    "how, variables, kept",
    [
        ("fit", {}, True),
        ("nothing", {}, False),
        ("fit", {"DNNL_PRIMITIVE_CACHE_CAPACITY": "1"}, False),
    ],
)
def test_compiled_kernels_are_kept_for_more_sizes_than_onednn_would_keep(how, variables, kept):
    """Or as many as the user said; and the environment is what it was."""
    said = output_of("kernel_worker.py", how, *variables, ONEDNN_VERBOSE="profile_create", **variables)
    first, again = said.split("first time")[1].split("second time")
    assert first.count("create:cache_miss") > 1024
    assert (again.count("create:cache_miss") == 0) is kept


@pytest.mark.parametrize("ask", [mm.log_likelihood, lambda vae, x: mm.fit(vae, x, epochs=1, progress=False)])
def test_who_starts_with_what_is_kept(ask):
    keep_at_hand.cache_clear()
    ask(three(), three_rows(4))
    assert keep_at_hand.cache_info().currsize == 1


@pytest.mark.parametrize("prefix", ["ONEDNN", "DNNL"])
def test_a_setting_of_the_users_stays(prefix, monkeypatch):
    monkeypatch.setenv(f"{prefix}_PRIMITIVE_CACHE_CAPACITY", "1")
    keep_kernels()
    assert {k: v for k, v in os.environ.items() if "CACHE_CAPACITY" in k} == {f"{prefix}_PRIMITIVE_CACHE_CAPACITY": "1"}


def left_over(step):
    """How many objects of a step only the garbage collector can free: tensors among them pile up until it runs."""
    step()
    gc.collect()
    gc.disable()
    try:
        step()
        return gc.collect()
    finally:
        gc.enable()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_loss_leaves_nothing_to_the_garbage_collector(recipe):
    vae, loss = RECIPES[recipe]()
    batch = vae.check(*mm.hide({name: torch.randn(40, size) for name, size in SIZES.items()}, share=0.4))
    loss = loss or DirectELBO()
    assert left_over(lambda: loss.differentiable_loss(vae.model, vae.guide, batch, batch.mask).backward()) == 0


@pytest.mark.parametrize("fusion", ["PoE", "MoPoE"])
def test_tools_leave_nothing_to_the_garbage_collector(fusion):
    vae, x, mask = three(fusion=fusion), three_rows(20), three_holes(20)
    svi = pyro.infer.SVI(vae.model, vae.guide, mm.optim({"lr": 1e-3}), Trace_ELBO())
    for step in (
        lambda: svi.step(x, mask),
        lambda: mm.fit(vae, x, mask, epochs=1, progress=False),
        lambda: mm.log_likelihood(vae, x, mask, num_particles=10),
        lambda: mm.importance(vae, x, mask, num_draws=10),
        lambda: vae.posterior(x, mask).sample(),
    ):
        assert left_over(step) == 0


def test_a_step_of_svi_leaves_no_gradients_to_fill_with_zeros():
    vae = three()
    svi = pyro.infer.SVI(vae.model, vae.guide, mm.optim({"lr": 1e-2}), Trace_ELBO())
    svi.step(three_rows(10))
    assert all(p.grad is None for p in vae.parameters())


def test_which_modality_is_in_which_subset_is_made_on_the_device_that_asks():
    assert indicator(5, torch.device("meta")).is_meta
    table = indicator(5)
    assert table.device.type == "cpu"
    assert [[m for m in range(5) if row[m]] for row in table.tolist()] == [
        list(s) for size in range(1, 6) for s in combinations(range(5), size)
    ]


@pytest.mark.parametrize("recipe", ["mmvm", "cvae", "nexus", "mvtcae"])
def test_an_encoder_runs_once_in_a_loss_whoever_asks_for_what_it_says(recipe):
    """Guide and prior, bottom and top, pass after pass."""
    vae, loss = RECIPES[recipe]()
    calls = dict.fromkeys(SIZES, 0)

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    for name, part in vae.modalities.items():
        part.trunk = torch.nn.Identity()
        part.trunk.register_forward_hook(count(name))
    x = {name: torch.randn(8, size) for name, size in SIZES.items()}
    batch = vae.check(x)
    calls.update(dict.fromkeys(calls, 0))
    direct(loss).differentiable_loss(vae.model, vae.guide, batch, batch.mask).backward()
    assert calls == dict.fromkeys(SIZES, 1)


def test_a_chain_drawn_without_gradients_is_scored_with_them():
    prior = mm.Ladder([2, 2], 4)
    q = prior(None)
    with torch.no_grad():
        value = q.rsample((5,))
    q.log_prob(value).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prior.parameters())


@pytest.mark.parametrize("fusion", ["PoE", "GeometricMean"])
def test_experts_with_holes_are_laid_out_once_for_all_modalities(fusion):
    class Written(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    torch.manual_seed(0)
    vae, names = three(fusion=fusion), []
    experts = vae.experts(three_rows(20), three_holes(20))
    experts.normals()  # the networks have run
    with Written():
        vae.fusion(experts)
    assert sum(name in ("index_copy", "index_add", "scatter", "index_put") for name in names) == 2  # precision, shift
