"""How cost grows: modalities, particles, rows; and MoPoE over PoE. `python -m tests.benchmarks.scaling [--quick]`."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time

import torch
from pyro.infer import Trace_ELBO

import pyro_mmvae as mm


def model(modalities, fusion):
    torch.manual_seed(0)
    parts = {
        f"m{i}": mm.Modality(mm.NormalLikelihood(mm.mlp(16, 128, 64), 1.0), mm.encoder(64, 128, dim=16))
        for i in range(modalities)
    }
    return mm.MultimodalVAE(parts, mm.StandardNormal(16), fusion)


def step(vae, batch, particles=1):
    """Seconds of one forward and backward pass, the least of three."""
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=2)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        elbo.differentiable_loss(vae.model, vae.guide, batch, batch.mask).backward()
        times.append(time.perf_counter() - start)
        vae.zero_grad(set_to_none=True)
    return min(times)


def batch_of(vae, rows):
    return vae.check({name: torch.randn(rows, 64) for name in vae.modalities})


def kept_for_backward(vae, batch):
    """Bytes that autograd keeps of one forward pass, parameters and data apart."""
    own = {p.untyped_storage().data_ptr() for p in vae.parameters()} | {
        v.untyped_storage().data_ptr() for v in batch.values()
    }
    kept = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, batch, batch.mask)
    found = sum(kept.values())
    del loss
    return found


def exponent(sizes, seconds):
    """The slope of log seconds over log size."""
    a, b = [math.log(s) for s in sizes], [math.log(t) for t in seconds]
    ma, mb = statistics.mean(a), statistics.mean(b)
    return sum((x - ma) * (y - mb) for x, y in zip(a, b)) / sum((x - ma) ** 2 for x in a)


def main():
    quick = "--quick" in sys.argv
    torch.set_num_threads(2)
    torch.distributions.Distribution.set_default_validate_args(False)
    rounds = 1 if quick else 7
    print(f"load {os.getloadavg()[0]:.2f}; medians over {rounds} rounds\n")
    print("| modalities | MoPoE / PoE, step | MoPoE / PoE, memory kept for backward |\n|---|---|---|")
    for count in (3, 5) if quick else (3, 5, 6, 8, 10):
        product, mixture = model(count, mm.PoE()), model(count, mm.MoPoE())
        batch = batch_of(product, 128)
        ratios = [step(mixture, batch) / step(product, batch) for _ in range(rounds)]
        memory = kept_for_backward(mixture, batch) / kept_for_backward(product, batch)
        print(f"| {count} | {statistics.median(ratios):.2f} | {memory:.2f} |", flush=True)
    print("\n| growth of a PoE step | exponent |\n|---|---|")
    sizes = (2, 4, 8, 16)

    def product(count):
        vae = model(count, mm.PoE())
        return step(vae, batch_of(vae, 512))

    print(f"| modalities {sizes} | {exponent(sizes, [product(m) for m in sizes]):.2f} |")
    vae, sizes = model(3, mm.PoE()), (4, 16, 64)
    print(f"| particles {sizes} | {exponent(sizes, [step(vae, batch_of(vae, 128), k) for k in sizes]):.2f} |")
    sizes = (512, 2048, 8192)
    print(f"| rows {sizes} | {exponent(sizes, [step(vae, batch_of(vae, n)) for n in sizes]):.2f} |")


if __name__ == "__main__":
    main()
