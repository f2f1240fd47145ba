"""Devices: a model on an accelerator makes no tensor on the CPU, and draws from its own generators.

Where there is no accelerator a stand-in plays one; where there is, all of it runs there too.
"""

from contextlib import contextmanager

import pyro
import pytest
import torch
from cases import (
    DIM,
    FUSIONS,
    LIKELIHOODS,
    OF_EXPERTS,
    PRIORS,
    RECIPES,
    data,
    modality,
    rows_of_tables,
    three,
    three_holes,
    three_rows,
)
from killed import ending
from pyro.infer import Trace_ELBO
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

import pyro_mmvae as mm
from pyro_mmvae import objectives as O


class Elsewhere(TorchFunctionMode):
    """Plays an accelerator without one: model and data are on the CPU, and a tensor made without a word on its device
    is not: it has no storage, so that the first operation which brings the two together fails, as on a GPU.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        placed = kwargs.get("device") is not None or kwargs.get("generator") is not None
        follows = function is torch.as_tensor and isinstance(args[0], torch.Tensor)  # as_tensor(tensor) stays there
        if function in _device_constructors() and not placed and not follows:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["stand-in", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]
places = pytest.mark.parametrize("device", DEVICES)


@contextmanager
def on(device, vae):
    """The model on that device, for what runs inside; the data are on the CPU."""
    if device == "stand-in":
        with Elsewhere():
            yield
    else:
        vae.to(device)
        yield


def everything(vae, x, mask, loss=None):
    """Training, with a validation set, and the questions that are asked of a model."""
    mm.fit(vae, x, mask, epochs=1, batch_size=7, loss=loss, validation=(x, mask), progress=False)
    mm.log_likelihood(vae, x, mask, num_particles=10)
    mm.impute(vae, x, mask, num_draws=2)
    mm.predict(vae, x, mask)
    mm.importance(vae, x, mask, num_draws=10)
    vae.posterior(x, mask).sample()


def test_the_stand_in_finds_a_tensor_made_on_the_wrong_device():
    """Of a prior as a user may write it, and of numbers that an operation would silently have moved."""
    vae, x = three(prior="function"), three_rows(4)
    with Elsewhere(), pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        mm.fit(vae, x, epochs=1, progress=False)
    with Elsewhere(), pytest.raises(RuntimeError, match="meta"):
        torch.zeros_like(x["body"]) + torch.zeros(())


@places
@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_fusion_makes_a_tensor_on_the_cpu(fusion, device):
    vae, x, mask = three(fusion=fusion), three_rows(20), three_holes(20)
    with on(device, vae):
        everything(vae, x, mask)


@places
@pytest.mark.parametrize("prior", [name for name in PRIORS if not name.startswith("function")])
def test_no_prior_makes_a_tensor_on_the_cpu(prior, device):
    vae, x, mask = three(prior=prior), three_rows(20), three_holes(20)
    with on(device, vae):
        everything(vae, x, mask)
        if prior not in OF_EXPERTS:
            mm.generate(vae, 3)


@places
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_no_likelihood_makes_a_tensor_on_the_cpu(likelihood, device):
    x = data(likelihood, 20)
    mask = {"x": torch.rand(x.shape) > 0.2 if x.dim() > 1 else torch.rand(20) > 0.2}
    if "tokens" in likelihood:
        mask = None
    vae = mm.MultimodalVAE({"x": modality(likelihood)}, mm.StandardNormal(DIM), mm.PoE())
    with on(device, vae):
        everything(vae, {"x": x}, mask)


@places
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_makes_a_tensor_on_the_cpu(recipe, device):
    vae, loss = RECIPES[recipe]()
    x, mask = rows_of_tables()
    with on(device, vae):
        mm.fit(vae, x, mask, epochs=1, batch_size=7, loss=loss, progress=False)
        mm.log_likelihood(vae, x, mask, num_particles=10)


VIEWS = [O.joint, O.unimodal, O.cross, O.every_subset, O.random_subsets(2), O.dropped(0.5), O.subset_strata]


@places
@pytest.mark.parametrize("bound", [O.elbo, O.iwae, O.dreg])
def test_no_objective_makes_a_tensor_on_the_cpu(bound, device):
    vae, x, mask = three(fusion="MoPoE"), three_rows(9), three_holes(9)
    with on(device, vae):
        for view in VIEWS:
            loss = mm.Objective([view], bound, num_particles=2)
            mm.fit(vae, x, mask, epochs=1, batch_size=9, loss=loss, progress=False)


@places
def test_no_certificate_makes_a_tensor_on_the_cpu(device):
    vae, x, mask = three(fusion="MoPoE"), three_rows(20), three_holes(20)
    few = {name: value[:3] for name, value in x.items()}
    with on(device, vae):
        mm.certify(vae, x, mask, rows=40, num_particles=20)
        mm.conditional_log_likelihood(vae, x, mask, given=["body"], targets=["label"])
        mm.gaps(vae, few, num_draws=20, steps=5)
        mm.sandwich(vae, given=["body"], rows=3, chains=2, temperatures=5)
        mm.to_arviz(vae, x, mask)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("fusion", ["PoE", "MoPoE", "Attention"])
def test_on_a_gpu_it_learns_as_on_the_cpu_and_leaves_both_generators_alone(fusion):
    x, mask, losses = three_rows(200), three_holes(200), []
    for device in ("cpu", "cuda"):
        pyro.set_rng_seed(1)
        vae = three(fusion=fusion).to(device)
        before = torch.get_rng_state(), torch.cuda.get_rng_state()
        many = Trace_ELBO(num_particles=20, vectorize_particles=True)
        losses.append(mm.fit(vae, x, mask, epochs=20, lr=1e-2, loss=many, progress=False).loss[-1])
        assert torch.equal(before[0], torch.get_rng_state()) and torch.equal(before[1], torch.cuda.get_rng_state())
        everything(vae, x, mask)
    assert losses[0] == pytest.approx(losses[1], abs=0.15)


@needs_gpu
@pytest.mark.gpu
def test_on_a_gpu_a_run_goes_on_bit_by_bit_and_a_model_comes_back_on_the_cpu(tmp_path):
    x, mask = three_rows(50), three_holes(50)

    def run(path, stop):
        pyro.set_rng_seed(1)
        vae, optimizer = three().to("cuda"), ending(stop, KeyboardInterrupt)
        mm.fit(vae, x, mask, epochs=3, batch_size=9, optimizer=optimizer, checkpoint=path, every=0.0, progress=False)
        return vae

    whole = run(None, 999)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.pt", 8)
    again = run(tmp_path / "run.pt", 999)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
    whole.save(tmp_path / "vae.pt")
    here = mm.load(tmp_path / "vae.pt", three)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(whole.parameters(), here.parameters()))
