"""Adam takes the steps of torch's fused Adam, to the last bit, and its state is torch's."""

import copy

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.optim.optimizer import register_optimizer_step_pre_hook

import pyro_mmvae as mm


def weights():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (5,), (), (2, 2, 2))]


def teach(parameters, step, absent=()):
    """Gradients of a step, none for the parameters that the batch did not reach."""
    generator = torch.Generator().manual_seed(step)
    for k, p in enumerate(parameters):
        p.grad = None if k in absent else torch.randn(p.shape, generator=generator)


def torchs(parameters, **options):
    return torch.optim.Adam(parameters, fused=True, **options)


def walk(make, parameters, steps=range(6), optim=None, how="step", **options):
    """Trains, where the third step does not reach the second parameter and the fifth none at all."""
    optim = optim or make(parameters, **options)
    for step in steps:
        teach(parameters, step, {2: (1,), 4: range(4)}.get(step, ()))
        getattr(optim, how)()
        optim.zero_grad()
        assert all(p.grad is None for p in parameters)
    return optim


@pytest.mark.parametrize("how", ["step", "quick_step"])
@pytest.mark.parametrize(
    "options", [{"lr": 0.1}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.2}], ids=["plain", "all"]
)
def test_steps_are_those_of_torch(options, how):
    ours, theirs = weights(), weights()
    first, second = walk(mm.Adam, ours, how=how, **options), walk(torchs, theirs, **options)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert first.state_dict().keys() == second.state_dict().keys()
    for k, state in second.state_dict()["state"].items():
        assert all(torch.equal(first.state_dict()["state"][k][name], value) for name, value in state.items())


SLICES = {
    "columns": lambda base: base[:, :2],
    "one column": lambda base: base[:, 1],
    "every other row": lambda base: base[::2],
    "transposed": lambda base: base.t(),
    "transposed part": lambda base: base[1:, 1:].t(),
}


@pytest.mark.parametrize("slice", SLICES.values(), ids=SLICES)
def test_a_slice_of_another_tensor_learns_as_a_tensor_of_its_own(slice):
    """torch's fused kernels go by places in memory, and mix its numbers up."""
    base = torch.randn(5, 4)
    whole, part = base.clone(), slice(base)
    alone, view = torch.nn.Parameter(part.clone().contiguous()), torch.nn.Parameter(part)
    target = torch.randn(part.shape)
    for p, make in ((alone, torchs), (view, mm.Adam)):
        optim = make([p], lr=0.1)
        for _ in range(4):
            optim.zero_grad()
            ((p - target) ** 4).sum().backward()
            optim.step()
    assert torch.equal(alone, view)
    assert (base != whole).sum() == part.numel()  # and nothing beside it


def test_a_gradient_that_lies_otherwise_is_taken_number_by_number():
    (p, *_), (q, *_) = weights(), weights()
    gradient = torch.randn(p.shape)
    p.grad, q.grad = gradient, gradient.t().contiguous().t()
    torchs([p], lr=0.1).step(), mm.Adam([q], lr=0.1).step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("options", [{"lr": 0.1}, {"lr": 0.1, "amsgrad": True}])
def test_stock_svi_trains_a_decoder_that_begins_with_a_part_of_a_pca(options):
    x, losses = torch.randn(40, 6), []
    for keep in (torch.Tensor.contiguous, torch.Tensor.detach):
        components = torch.linalg.svd(x, full_matrices=False)[2].t()
        pyro.set_rng_seed(0)
        net = torch.nn.Linear(2, 6)
        net.weight = torch.nn.Parameter(keep(components[:, :2]))
        vae = mm.MultimodalVAE(
            {"x": mm.Modality(mm.NormalLikelihood(net), mm.encoder(6, 8, dim=2))}, mm.StandardNormal(2), mm.PoE()
        )
        svi = SVI(vae.model, vae.guide, mm.optim(options), Trace_ELBO())
        losses.append([svi.step({"x": x}) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_groups_keep_their_own_settings():
    ours, theirs = weights(), weights()
    for make, some in ((mm.Adam, ours), (torchs, theirs)):
        optim = make([{"params": some[:2], "lr": 0.3}, {"params": some[2:]}], lr=0.01)
        walk(make, some, range(2), optim)
        optim.param_groups[0]["lr"] = 0.5  # as a schedule does
        walk(make, some, range(2, 6), optim)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("makes", [(mm.Adam, torchs), (torchs, mm.Adam)], ids=["torch goes on", "ours goes on"])
def test_one_goes_on_where_the_other_stopped(makes):
    whole, parts = weights(), weights()
    walk(torchs, whole, lr=0.1)
    first = walk(makes[0], parts, range(3), lr=0.1)
    second = makes[1](parts, lr=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    walk(makes[1], parts, range(3, 6), second)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts))


def test_a_closure_and_hooks_are_run_once():
    (p, *_), calls = weights(), []
    optim = mm.Adam([p], lr=0.1)
    optim.register_step_post_hook(lambda *_: calls.append("hook"))

    def closure():
        calls.append("closure")
        optim.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    before = float(p.detach().square().sum())
    assert optim.step(closure).item() == pytest.approx(before)
    assert calls == ["closure", "hook"]
    assert float(p.detach().square().sum()) < before


def test_a_quick_step_runs_hooks_and_has_its_label_where_somebody_looks():
    (p, *_), calls = weights(), []
    p.grad = torch.ones_like(p)
    own, every = mm.Adam([p], lr=0.1), mm.Adam([p], lr=0.1)
    handle = register_optimizer_step_pre_hook(lambda *_: calls.append("every"))
    every.quick_step()
    handle.remove()
    own.register_step_post_hook(lambda *_: calls.append("own"))
    own.quick_step()
    every.quick_step()
    assert calls == ["every", "own"]
    with torch.profiler.profile() as seen:
        every.quick_step()
    assert "Optimizer.step#Adam.step" in {event.key for event in seen.key_averages()}


@pytest.mark.filterwarnings("error")
def test_a_schedule_of_torch_sees_the_steps_of_optim():
    p = torch.nn.Parameter(torch.ones(3))
    optim = mm.optim({"lr": 0.1})
    p.grad = torch.ones(3)
    optim([p])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optim.single, 0.5)
    p.grad = torch.ones(3)
    optim([p])
    schedule.step()  # warns of no step before its own
    assert schedule.get_last_lr() == [0.05]


def test_parameters_of_two_precisions_and_a_learning_rate_in_a_tensor():
    ours, theirs = ([p if k % 2 else torch.nn.Parameter(p.float()) for k, p in enumerate(weights())] for _ in range(2))
    for make, some in ((mm.Adam, ours), (torchs, theirs)):
        optim = make(some, lr=0.1)
        for step in range(4):
            for p, gradient in zip(some, weights()):
                p.grad = gradient.detach().to(p.dtype) * (step + 1)
            optim.step()
            optim.param_groups[0]["lr"] = torch.tensor(0.05)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("forget", [lambda optim: optim.state.clear(), lambda optim: optim.state.pop(optim.first)])
def test_moments_that_somebody_took_away_begin_anew(forget):
    ours, theirs = weights(), weights()
    for make, some in ((mm.Adam, ours), (torchs, theirs)):
        optim = make(some, lr=0.1)
        optim.first = some[0]
        for step in range(4):
            teach(some, step)
            optim.step()
            if step == 1:
                forget(optim)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_gradients_can_be_set_to_zero_instead():
    parameters = weights()
    teach(parameters, 0)
    mm.Adam(parameters).zero_grad(set_to_none=False)
    assert all(float(p.grad.abs().sum()) == 0 for p in parameters)


def test_a_scaler_of_gradients_is_heeded():
    ours, theirs = weights(), weights()
    for make, some in ((mm.Adam, ours), (torchs, theirs)):
        optim = make(some, lr=0.1)
        for step, lost in enumerate((0.0, 1.0, 0.0)):  # an infinity was found in the second step
            teach(some, step)
            optim.grad_scale, optim.found_inf = (torch.tensor(v, dtype=torch.float32) for v in (4.0, lost))
            optim.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert optim.state[theirs[0]]["step"] == 2


def test_sparse_gradients_are_refused():
    table = torch.nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        mm.Adam(table.parameters()).step()


def test_optim_takes_the_options_that_ours_lacks():
    p = torch.nn.Parameter(torch.zeros(2))
    for options, kind in (({"lr": 0.1}, mm.Adam), ({"lr": 0.1, "amsgrad": True}, torch.optim.Adam)):
        optim = mm.optim(options)
        p.grad = torch.ones(2)
        optim([p])
        assert type(optim.single) is kind
        assert optim.single.param_groups[0]["amsgrad"] == ("amsgrad" in options)
    assert p.detach().tolist() == pytest.approx([-0.2, -0.2])


@pytest.mark.parametrize("option", ["maximize", "amsgrad"])
def test_adam_refuses_options_that_it_lacks(option):
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=option):
        mm.Adam([{"params": [weight], option: True}], lr=0.1)
    theirs = torch.optim.Adam([weight], lr=0.1, **{option: True})
    with pytest.raises(ValueError, match=option):
        mm.Adam([weight], lr=0.1).load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("wrong", [1e-3, lambda name: {"lr": 1e-3}, None])
def test_optim_wants_named_settings(wrong):
    with pytest.raises(ValueError, match=r"optim_args is .*; give keyword arguments such as {'lr': 1e-3}"):
        mm.optim(wrong)


def test_an_optimiser_of_a_model_of_other_sizes_is_refused(tmp_path):
    x, optim = {"a": torch.randn(5, 3)}, mm.optim({"lr": 1e-2})
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
    SVI(vae.model, vae.guide, optim, Trace_ELBO()).step(x)
    optim.save(tmp_path / "optim")
    vae.modalities["a"].encoder = mm.encoder(3, 8, dim=2)  # 128 before
    again = mm.optim({"lr": 1e-2})
    again.load(tmp_path / "optim")
    with pytest.raises(ValueError, match=r"saved with 'vae\$\$\$modalities.a.encoder.*of shape .*128.*, which has .*8"):
        SVI(vae.model, vae.guide, again, Trace_ELBO()).step(x)
