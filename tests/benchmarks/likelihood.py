"""log_likelihood over decoding alone, and importing over importing Pyro: `python -m tests.benchmarks.likelihood`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import torch

import pyro_mmvae as mm
from pyro_mmvae.inference import chunks
from tests.benchmarks.workloads import WORKLOADS, build, data


@torch.no_grad()
def decode_alone(vae, batch, draws, dim):
    """Every decoder on as many codes, and the log-probability of the data: what no estimator can do without."""
    for part, sizes in chunks(vae, batch, draws):
        for size in sizes:
            z = torch.randn(size, part.rows, 1, dim)
            for name, modality in vae.modalities.items():
                modality.decoder(z).log_prob(part[name].unsqueeze(1))


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    quick = "--quick" in sys.argv
    torch.set_num_threads(2)
    torch.distributions.Distribution.set_default_validate_args(False)
    rounds, rows, draws = (1, 20, 100) if quick else (7, 200, 1000)
    print(f"load {os.getloadavg()[0]:.2f}; median over {rounds} paired rounds\n\n| what | ratio |\n|---|---|")
    for name in ("small", "medium"):
        vae = build(name).eval()
        x, _ = data(name, 0.0)
        x = {k: v[:rows] for k, v in x.items()}
        batch = vae.check(x)
        decode_alone(vae, batch, draws, WORKLOADS[name].dim)
        ratios = []
        for _ in range(rounds):
            whole = seconds(lambda: mm.log_likelihood(vae, x, num_particles=draws))
            ratios.append(whole / seconds(lambda: decode_alone(vae, batch, draws, WORKLOADS[name].dim)))
        print(f"| log_likelihood / decoding, {name}, {rows} rows x {draws} draws | {statistics.median(ratios):.2f} |")
    extra = []
    for _ in range(1 if quick else 5):
        times = [
            seconds(lambda m=m: subprocess.run([sys.executable, "-c", f"import {m}"], check=True))
            for m in ("pyro", "pyro_mmvae")
        ]
        extra.append(times[1] - times[0])
    print(f"| import pyro_mmvae - import pyro, seconds | {statistics.median(extra):.2f} |")


if __name__ == "__main__":
    main()
