"""Smoothed weights of ours, for `arviz1.py` to hold against arviz-stats: `python tests/psis_rows.py FILE.npz`."""

import sys

import numpy as np
import torch

from pyro_mmvae.psis import smooth

DRAWS = (100, 200, 1000, 1003, 2000)


def rows(draws):
    """Log weights (draw, row) with tails from light to hopeless."""
    generator = torch.Generator().manual_seed(draws)
    normal = torch.randn(draws, 4, generator=generator, dtype=torch.float64) * torch.tensor([0.1, 1.0, 2.0, 4.0])
    pareto = -torch.rand(draws, 3, generator=generator, dtype=torch.float64).log() * torch.tensor([0.3, 0.7, 1.2])
    return torch.cat([normal, pareto, normal[:, :1] - 700.0], 1)


if __name__ == "__main__":
    found = {}
    for draws in DRAWS:
        raw = rows(draws)
        smoothed = smooth(raw)
        found |= {f"raw{draws}": raw, f"log_weights{draws}": smoothed.log_weights, f"khat{draws}": smoothed.khat}
    np.savez(sys.argv[1], **{name: value.numpy() for name, value in found.items()})
