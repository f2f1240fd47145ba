"""Every recipe fits the built-in data: written, spoken and named digits, a third of the modalities missing."""

import math

import pytest
import torch
from digits import RECIPES

import pyro_mmvae as mm
from pyro_mmvae.datasets import digits_and_voices


@pytest.fixture(scope="module")
def rows():
    torch.set_default_dtype(torch.float32)
    train, _ = digits_and_voices(copies=1)
    few = {name: value[:256] for name, value in train.items()}
    return mm.hide(few, share=0.3)


def test_there_is_one_of_every_recipe():
    assert set(RECIPES) == {name for name in mm.recipes.__all__ if name.islower()}


@pytest.mark.parametrize("name", RECIPES)
def test_it_fits_the_built_in_digits(name, rows):
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    vae, loss, *more = RECIPES[name]()
    for phase, objective in enumerate([loss, *more]):
        objective = objective() if phase else objective
        history = mm.fit(vae, *rows, loss=objective, epochs=4, batch_size=64, lr=3e-3, progress=False)
        assert all(map(math.isfinite, history.loss)) and history.loss[-1] < history.loss[0] - 1
    found = mm.log_likelihood(vae, *rows, num_particles=20)
    assert found.value.isfinite().all() and found.value.mean() > -6000
