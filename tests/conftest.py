"""What every test runs under: float64, validation on, one seed, and an empty parameter store."""

import warnings

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def settled():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    with pyro.validation_enabled(True), warnings.catch_warnings():
        yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def single(settled):
    """In float32, as users are."""
    torch.set_default_dtype(torch.float32)
