"""A training step over hand-written torch: `python -m tests.benchmarks.step [--quick] [--only small] [--device cuda]`.

All arms run in one process on copies of the same weights and batches of the same rows, in random order, one untimed
step before each slot; printed are medians over the rounds of the ratio to the floor in the same round, with quartiles.
"""

from __future__ import annotations

import copy
import statistics

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO

import pyro_mmvae as mm
from tests.benchmarks import timing
from tests.benchmarks.workloads import BATCH, WORKLOADS, Floor, build, data, order

EPOCHS = 2
"""In every slot, so that what `fit` does once a run counts as what it is in a short run."""
ARMS = (
    "fit",
    "fit, traced",
    "fit, compiled",
    "fit, bfloat16",
    "svi + mm.optim, validation off",
    "svi + mm.optim",
    "svi + pyro.optim",
)


def svi_epochs(vae, optimiser, x, mask, validation=True):
    """Stock SVI over batches by index."""
    with pyro.validation_enabled(validation):
        _svi_epochs(vae, optimiser, x, mask)


def _svi_epochs(vae, optimiser, x, mask):
    svi = SVI(vae.model, vae.guide, optimiser, Trace_ELBO())
    for _ in range(EPOCHS):
        for index in order(x):
            svi.step({k: v[index] for k, v in x.items()}, {k: v[index] for k, v in mask.items()})


def arms(name, x, mask, compiled):
    """name -> function that trains over that many rows, on a copy of the same weights."""
    base = build(name).to(next(iter(x.values())).device)
    copies = {arm: copy.deepcopy(base) for arm in ("floor", *ARMS)}
    floor = Floor(copies["floor"])
    off = "svi + mm.optim, validation off"
    bare, fused, stock = mm.optim({"lr": 1e-3}), mm.optim({"lr": 1e-3}), pyro.optim.Adam({"lr": 1e-3})
    agree(base, x, mask)

    def part(rows):
        return {k: v[:rows] for k, v in x.items()}, {k: v[:rows] for k, v in mask.items()}

    def fit(arm, **options):
        return lambda rows: mm.fit(copies[arm], *part(rows), epochs=EPOCHS, batch_size=BATCH, progress=False, **options)

    def graph(arm, backend):
        def run(rows):  # without the first epoch, in which the graph is made
            x, mask = part(rows)
            options = {"epochs": EPOCHS + 1, "batch_size": BATCH, "progress": False, "compile": backend}
            seconds = mm.fit(copies[arm], x, mask, **options).seconds
            return seconds[-1] - seconds[0]

        return run

    graphs = {}
    if compiled:
        graphs = {"fit, traced": graph("fit, traced", "eager"), "fit, compiled": graph("fit, compiled", "inductor")}
    halved = {"fit, bfloat16": fit("fit, bfloat16", autocast=torch.bfloat16)} if name == "conv" else {}
    return {
        "floor": lambda rows: floor.epochs(*part(rows), EPOCHS),
        "fit": fit("fit"),
        **graphs,
        **halved,
        off: lambda rows: svi_epochs(copies[off], bare, *part(rows), validation=False),
        "svi + mm.optim": lambda rows: svi_epochs(copies["svi + mm.optim"], fused, *part(rows)),
        "svi + pyro.optim": lambda rows: svi_epochs(copies["svi + pyro.optim"], stock, *part(rows)),
    }


def agree(vae, x, mask):
    few = {k: v[:BATCH] for k, v in x.items()}, {k: v[:BATCH] for k, v in mask.items()}
    floor, elbo = Floor(vae), Trace_ELBO()
    timing.agree("floor", lambda: elbo.loss(vae.model, vae.guide, *few), lambda: floor.loss(*few), draws=30)


def main():
    given = timing.options(__doc__, 7, "--only", "--arms")
    names = ["small"] if given.quick else [given.only] if given.only else list(WORKLOADS)
    table = {}
    timing.heading("workload", "missing", "floor, ms a step", *ARMS)
    for name in names:
        for missing in (0.0,) if given.quick else (0.0, 0.5, 0.8):
            x, mask = ({k: v.to(given.device) for k, v in part.items()} for part in data(name, missing))
            rows = BATCH if given.quick else WORKLOADS[name].rows
            compiled = (name != "conv" or given.device.type == "cuda") and timing.compiles(given)
            every = arms(name, x, mask, compiled)
            if given.arms:
                every = {arm: run for arm, run in every.items() if arm in ("floor", *given.arms.split("; "))}
            seconds = timing.paired(every, rows, BATCH, given.rounds, given.clock, given.device)
            found = {arm: timing.ratio(seconds, arm, "floor") for arm in ARMS if arm in seconds}
            floor = statistics.median(seconds["floor"]) / (EPOCHS * rows / BATCH) * 1e3
            table[f"{name} {missing:.0%}"] = {"floor, ms a step": floor, **found}
            timing.line(
                name,
                f"{missing:.0%}",
                f"{floor:.2f}",
                *(timing.shown(found[arm]) if arm in found else "" for arm in ARMS),
            )
    timing.write(given.out, table, given.device)


if __name__ == "__main__":
    main()
