"""What every test runs under: float64, validation on, one seed, and an empty parameter store."""

import builtins
import errno
import io
import os
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


class Filling(io.FileIO):
    """A file on a disk that is full after so many bytes."""

    left = 0

    def write(self, data):
        part = memoryview(data)[: self.left]
        if not len(part):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= len(part)
        return super().write(part)


@pytest.fixture
def full_disk(monkeypatch):
    """A function that makes the disk full for the next file that is written, after so many bytes of it."""
    real, budgets = builtins.open, []

    def fuller(file, mode="r", *args, **kwargs):
        if not budgets or mode not in ("wb", "xb"):
            return real(file, mode, *args, **kwargs)
        raw = Filling(file, mode)
        raw.left = budgets.pop(0)
        return io.BufferedWriter(raw)

    monkeypatch.setattr("pyro_mmvae.storage.open", fuller, raising=False)
    return budgets.append
