"""How cost grows with modalities, particles and rows; and MoPoE over PoE, time of a step and memory kept for backward.

`python -m tests.benchmarks.scaling [--quick] [--clock cpu] [--plot FILE.png] [--out FILE.json]`
"""

from __future__ import annotations

import math
import statistics

import pyro
import torch
from pyro.infer import Trace_ELBO

import pyro_mmvae as mm
from pyro_mmvae.direct import DirectELBO
from tests.benchmarks import timing


def model(modalities, fusion):
    torch.manual_seed(0)
    parts = {
        f"m{i}": mm.Modality(mm.NormalLikelihood(mm.mlp(16, 128, 64), 1.0), mm.encoder(64, 128, dim=16))
        for i in range(modalities)
    }
    return mm.MultimodalVAE(parts, mm.StandardNormal(16), fusion)


def several(vae, batch, count, particles=1):
    """So many forward and backward passes."""
    elbo = DirectELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=2)
    with pyro.validation_enabled(False):
        for _ in range(count):
            elbo.differentiable_loss(vae.model, vae.guide, batch, batch.mask).backward()
            vae.zero_grad(set_to_none=True)


def step(vae, batch, particles=1, clock="wall"):
    """Seconds of one forward and backward pass, the least of five after an untimed one."""
    return min(timing.paired({"": lambda n: several(vae, batch, n, particles)}, 1, 1, 5, clock)[""])


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


def growth(quick, clock):
    """what -> (sizes, a function of the size that measures a PoE step)."""

    def modalities(count):
        vae = model(count, mm.PoE())
        return step(vae, batch_of(vae, 512), clock=clock)

    vae = model(3, mm.PoE())
    sizes = {
        "modalities": ((2, 4, 8, 16), modalities),
        "particles": ((4, 16, 64), lambda k: step(vae, batch_of(vae, 128), k, clock)),
        "rows": ((512, 2048, 8192), lambda n: step(vae, batch_of(vae, n), clock=clock)),
    }
    return {what: (few[:2] if quick else few, measure) for what, (few, measure) in sizes.items()}


def plot(found, path):
    """Cost over size on two logarithmic axes, with the fitted exponent, beside a dashed line of exponent 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(4 * len(found), 3), layout="constrained")
    for ax, (what, entry) in zip(axes, found.items()):
        sizes, cost = entry["sizes"], [1e3 * s for s in entry["seconds"]]
        ax.loglog(sizes, cost, "o-", sizes, [cost[-1] * size / sizes[-1] for size in sizes], "k--", linewidth=1)
        ax.set(xlabel=what, ylabel="ms a step", title=f"exponent {entry['exponent']:.2f}")
        ax.set_xticks(sizes, labels=[str(size) for size in sizes])
        ax.set_yticks(cost, labels=[f"{ms:.0f}" for ms in cost])
        ax.minorticks_off()
    figure.savefig(path)


def main():
    given = timing.options(__doc__, 7, "--plot")
    torch.distributions.Distribution.set_default_validate_args(False)
    table = {}
    timing.heading("modalities", "MoPoE / PoE, step", "MoPoE / PoE, memory kept for backward")
    for count in (3, 6) if given.quick else (3, 5, 6, 8, 10):
        vaes = {"PoE": model(count, mm.PoE()), "MoPoE": model(count, mm.MoPoE())}
        batch = batch_of(vaes["PoE"], 128)
        arms = {name: lambda n, v=vae: several(v, batch, n) for name, vae in vaes.items()}
        seconds = timing.paired(arms, 5, 1, given.rounds, given.clock)
        memory = kept_for_backward(vaes["MoPoE"], batch) / kept_for_backward(vaes["PoE"], batch)
        table[f"MoPoE {count}"] = {**timing.ratio(seconds, "MoPoE", "PoE"), "memory": memory}
        timing.line(count, timing.shown(table[f"MoPoE {count}"]), f"{memory:.2f}")
    print()
    timing.heading("growth of a PoE step with", "sizes", "ms", "exponent")
    grown = {}
    for what, (sizes, measure) in growth(given.quick, given.clock).items():
        seconds = [measure(size) for size in sizes]
        grown[what] = {"sizes": sizes, "seconds": seconds, "exponent": exponent(sizes, seconds)}
        timing.line(what, sizes, ", ".join(f"{1e3 * s:.1f}" for s in seconds), f"{grown[what]['exponent']:.2f}")
    if given.plot:
        plot(grown, given.plot)
    timing.write(given.out, {**table, **grown})


if __name__ == "__main__":
    main()
