"""No step waits for an accelerator: the numbers that lie there are never read while it is under way.

Where there is none, tensors without numbers (`meta`) play it: whoever reads one fails. Where there is a GPU, all of it
runs there too.
"""

import warnings
from contextlib import contextmanager

import pyro
import pytest
import torch
from cases import (
    DIM,
    FUSIONS,
    LIKELIHOODS,
    PRIORS,
    RECIPES,
    data,
    modality,
    rows_of_tables,
    three,
    three_holes,
    three_rows,
)

import pyro_mmvae as mm
from pyro_mmvae import objectives as O
from pyro_mmvae.data import Batch
from pyro_mmvae.direct import direct
from pyro_mmvae.training.shares import Shares
from pyro_mmvae.training.step import Run

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["meta", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]
places = pytest.mark.parametrize("device", DEVICES)
autocast = torch.autocast


@contextmanager
def reading_is_an_error():
    """For whatever waits for a GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def train(monkeypatch):
    """Trains on a device, where a step that waits is an error: (device, vae, x, mask, loss)."""

    def on_gpu(vae, x, mask, loss):
        step = Run.step

        def watched(self, *args):
            with reading_is_an_error():
                return step(self, *args)

        monkeypatch.setattr(Run, "step", watched)
        mm.fit(vae.to("cuda"), x, mask, loss=loss, epochs=2, batch_size=7, progress=False)

    def without_numbers(vae, x, mask, loss):
        """As `fit` does on a GPU: the data are looked at once, masks stay on the CPU too, rows are taken by number."""
        for module in ("data", "objectives.objective", "training.step"):
            monkeypatch.setattr(f"pyro_mmvae.{module}.on_gpu", lambda device: device is not None)
        monkeypatch.setattr(torch, "autocast", lambda kind, **how: autocast("cpu", **how))  # it knows no meta
        here = Batch.of(x, mask)
        here.survey()
        there = Batch(
            *({k: v.to("meta") for k, v in part.items()} for part in (here, here.mask)), here.rows, here.complete
        )
        there.covered, there.filled, there.known = here.covered, here.filled, here.known
        parameters = [p for p in vae.to("meta").parameters() if p.requires_grad]
        run = Run(vae, direct(loss), mm.Adam(parameters), parameters, 1.0, [], [vae], None, None, Shares((), 0))
        run.advance = lambda: None  # torch has no fused optimiser for meta
        with pyro.validation_enabled(False):
            batch = there.take(torch.tensor([3, 1, 0, 5, 6]))
            batch.checked = vae
            run.step(batch, 1.0, 0.5)

    return lambda device, *args: without_numbers(*args) if device == "meta" else on_gpu(*args)


@places
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_whatever_the_fusion(train, device, fusion, holes):
    train(device, three(fusion=fusion), three_rows(20), three_holes(20) if holes else None, None)


@places
@pytest.mark.parametrize("prior", [name for name in PRIORS if not name.startswith("function")])
def test_whatever_the_prior(train, device, prior):
    train(device, three(prior=prior), three_rows(20), three_holes(20), None)


@places
@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS.keys() - {"tokens, recurrent"}))  # torch packs by lengths
def test_whatever_the_likelihood(train, device, likelihood):
    x = data(likelihood, 20)
    mask = {"x": torch.rand(x.shape) > 0.2 if x.dim() > 1 else torch.rand(20) > 0.2}
    vae = mm.MultimodalVAE({"x": modality(likelihood)}, mm.StandardNormal(DIM), mm.PoE())
    train(device, vae, {"x": x}, None if "tokens" in likelihood else mask, None)


@places
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_whatever_the_recipe(train, device, recipe, holes):
    (vae, loss), (x, mask) = RECIPES[recipe](), rows_of_tables()
    train(device, vae, x, mask if holes else None, loss)


VIEWS = [O.joint, O.unimodal, O.cross, O.every_subset, O.random_subsets(2), O.dropped(0.5), O.subset_strata]


@places
@pytest.mark.parametrize("bound", [O.elbo, O.iwae, O.dreg, O.stl])
@pytest.mark.parametrize("view", VIEWS)
def test_whatever_the_objective(train, device, view, bound):
    loss = mm.Objective([view], bound, num_particles=2)
    train(device, three(fusion="MoPoE"), three_rows(20), three_holes(20), loss)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("fusion", ["PoE", "MoPoE", "JointEncoder"])
def test_data_from_disk(train, fusion):
    train("cuda", three(fusion=fusion), mm.MultimodalDataset(three_rows(20), three_holes(20)), None, None)


def test_a_step_that_reads_a_number_fails(train):
    """Of a prior as a user may write it."""

    class Reads(mm.StandardNormal):
        def forward(self, experts=None):
            prior = super().forward(experts)
            assert not experts or bool(prior.mean.isfinite().all())
            return prior

    vae = three()
    vae.prior = Reads(DIM)
    with pytest.raises(RuntimeError, match="meta"):
        train("meta", vae, three_rows(20), None, None)
