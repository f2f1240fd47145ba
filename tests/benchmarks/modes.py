"""How often what is certified has missed a mode: `python -m tests.benchmarks.modes [--quick]`.

Posteriors that are mixtures of two or three normals of known shares (`tests/exact.py`), of which the guide knows one.
The means of certified draws are held against the exact ones, and log p(x) with a good k-hat against its value.
"""

from __future__ import annotations

import sys

import pyro
import torch

import pyro_mmvae as mm
from tests.exact import Modes

SHAPES = [(2, 6, 3, 0.1), (2, 8, 2, 0.1), (3, 4, 2, 0.1), (3, 6, 3, 0.1), (3, 6, 3, 0.01), (3, 8, 2, 0.01)]


def counts(shape: tuple[int, int, int, float], seed: int) -> torch.Tensor:
    """Rows; certified ones, and those with a mean off by 0.3 sd; rows with a good k-hat, and log p off by 0.2 nats."""
    truth = Modes(*shape, seed=seed)
    pyro.set_rng_seed(seed)
    x = truth.simulate()
    mean, sd, log_prob = truth.moments(x["a"])
    pair = mm.Pair(truth.model, truth.guide)
    found = mm.posterior_draws(pair, x, max_nuts_rows=0, seconds=0, progress=False)
    away = ((found.latents["z"].mean(0) - mean) / sd).abs().amax(-1) > 0.3
    gaps = mm.gaps(pair, x, full_rank=True)
    good, off = gaps.khat < mm.khat_limit(1000), (gaps.log_likelihood - log_prob).abs() > 0.2
    return torch.stack([torch.ones_like(away), found.certified, found.certified & away, good, good & off]).sum(1)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    quick = "--quick" in sys.argv
    print("| components, dim, seen, noise | rows | certified | mean off by 0.3 sd | good k-hat | log p off by 0.2 |")
    print("|---|---|---|---|---|---|")
    total = torch.zeros(5, dtype=torch.long)
    for shape in SHAPES[:1] if quick else SHAPES:
        found = sum((counts(shape, seed) for seed in range(1 if quick else 4)), torch.zeros(5, dtype=torch.long))
        total += found
        print(f"| {', '.join(map(str, shape))} | {' | '.join(map(str, found.tolist()))} |", flush=True)
    print(f"| all | {' | '.join(map(str, total.tolist()))} |")


if __name__ == "__main__":
    main()
