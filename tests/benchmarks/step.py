"""A training step over hand-written torch: `python -m tests.benchmarks.step [--quick] [--rounds N] [--out FILE.json]`.

All arms run in one process on copies of the same weights, in random order, one untimed run first; printed are medians
over the rounds of the ratio to the floor in the same round, with quartiles.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import time

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO

import pyro_mmvae as mm
from tests.benchmarks.workloads import BATCH, WORKLOADS, Floor, build, data


def svi_epochs(vae, optimiser, x, mask, epochs):
    """Stock SVI over batches by index."""
    svi = SVI(vae.model, vae.guide, optimiser, Trace_ELBO())
    rows = len(next(iter(x.values())))
    for _ in range(epochs):
        for index in torch.randperm(rows).split(BATCH):
            svi.step({k: v[index] for k, v in x.items()}, {k: v[index] for k, v in mask.items()})


def arms(name, x, mask, epochs):
    """name -> function that trains for so many epochs on a copy of the same weights."""
    base = build(name)
    copies = {arm: copy.deepcopy(base) for arm in ("floor", "fit", "svi + mm.optim", "svi + pyro.optim")}
    floor = Floor(copies["floor"])
    fused, stock = mm.optim({"lr": 1e-3}), pyro.optim.Adam({"lr": 1e-3})
    agree(base, x, mask)
    return {
        "floor": lambda: floor.epochs(x, mask, epochs),
        "fit": lambda: mm.fit(copies["fit"], x, mask, epochs=epochs, batch_size=BATCH, progress=False),
        "svi + mm.optim": lambda: svi_epochs(copies["svi + mm.optim"], fused, x, mask, epochs),
        "svi + pyro.optim": lambda: svi_epochs(copies["svi + pyro.optim"], stock, x, mask, epochs),
    }


@torch.no_grad()
def agree(vae, x, mask):
    """The floor's loss and ours are one within their Monte-Carlo error; else there is nothing to compare."""
    x, mask = {k: v[:BATCH] for k, v in x.items()}, {k: v[:BATCH] for k, v in mask.items()}
    floor, elbo = Floor(vae), Trace_ELBO()
    ours = torch.tensor([elbo.loss(vae.model, vae.guide, x, mask) for _ in range(30)])
    theirs = torch.tensor([floor.loss(x, mask).item() for _ in range(30)])
    se = ((ours.var() + theirs.var()) / 30).sqrt()
    assert (ours.mean() - theirs.mean()).abs() < 5 * se, (ours.mean(), theirs.mean(), se)


def measure(name, missing, rounds, epochs):
    """Seconds a step for each arm and round."""
    x, mask = data(name, missing)
    steps = epochs * -(-len(next(iter(x.values()))) // BATCH)
    running = arms(name, x, mask, epochs)
    for run in running.values():
        run()
    seconds = {arm: [] for arm in running}
    for _ in range(rounds):
        for arm in random.sample(list(running), len(running)):
            start = time.perf_counter()
            running[arm]()
            seconds[arm].append((time.perf_counter() - start) / steps)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of small, to see that it runs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ["small"] if options.quick else [options.only] if options.only else list(WORKLOADS)
    table = {}
    print(f"threads {options.threads}, load {os.getloadavg()[0]:.2f}; median ratio to the floor [quartiles]\n")
    print(
        "| workload | missing | floor, ms a step | fit | svi + mm.optim | svi + pyro.optim |\n|---|---|---|---|---|---|"
    )
    for name in names:
        for missing in (0.0,) if options.quick else (0.0, 0.5, 0.8):
            epochs = 1 if options.quick or name != "small" else 3
            seconds = measure(name, missing, 1 if options.quick else options.rounds, epochs)
            cells = []
            for arm in ("fit", "svi + mm.optim", "svi + pyro.optim"):
                ratios = [a / b for a, b in zip(seconds[arm], seconds["floor"])]
                low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
                cells.append(f"{middle:.2f} [{low:.2f}, {high:.2f}]")
                table[f"{name} {missing:.0%} {arm}"] = {"median": middle, "quartiles": [low, high]}
            floor = statistics.median(seconds["floor"]) * 1e3
            print(f"| {name} | {missing:.0%} | {floor:.2f} | {' | '.join(cells)} |", flush=True)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(table, file, indent=2)


if __name__ == "__main__":
    main()
