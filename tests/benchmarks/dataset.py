"""fit on rows on disk over fit in memory: `python -m tests.benchmarks.dataset [--quick] [--out FILE.json]`.

The same rows in the same order to the same weights, so that only reading differs. Files are in the page cache of the
system as far as that reaches. Printed are medians over rounds, arms in random order, of the throughput (rows a second)
relative to memory in the same round, with quartiles.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
import zarr

import pyro_mmvae as mm
from tests.benchmarks.workloads import BATCH, WORKLOADS, build, data

CHUNK = 512  # zarr reads a whole chunk for each row of a batch that lies in it


def stored(x, folder):
    """name of a store -> dataset."""
    arrays = {name: value.numpy() for name, value in x.items()}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    mapped = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}
    file = h5py.File(folder / "rows.h5", "w")
    hdf5 = {name: file.create_dataset(name, data=array) for name, array in arrays.items()}
    chunked = {}
    for name, array in arrays.items():
        chunks = (CHUNK, *array.shape[1:])
        chunked[name] = zarr.create_array(
            folder / f"{name}.zarr", shape=array.shape, dtype=array.dtype, chunks=chunks, compressors=None
        )
        chunked[name][:] = array
    return {
        "numpy.memmap": mm.MultimodalDataset(mapped),
        "HDF5": mm.MultimodalDataset(hdf5),
        f"zarr, chunks of {CHUNK} rows": mm.MultimodalDataset(chunked),
    }


def measure(name, rounds):
    """Seconds of each arm and round, and the rows of a round."""
    base, (x, _) = build(name), data(name, 0.0)
    x = {key: value.repeat(3, *[1] * (value.dim() - 1)) for key, value in x.items()}
    with tempfile.TemporaryDirectory() as folder:
        arms = {"memory": x, **stored(x, Path(folder))}
        seconds = {arm: [] for arm in arms}
        for turn in range(rounds + 1):
            for arm in random.sample(list(arms), len(arms)):
                vae = copy.deepcopy(base)
                start = time.perf_counter()
                mm.fit(vae, arms[arm], epochs=1, batch_size=BATCH, progress=False)
                if turn:  # the first is to warm up
                    seconds[arm].append(time.perf_counter() - start)
    return seconds, len(next(iter(x.values())))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of small, to see that it runs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table, rounds = {}, 1 if options.quick else options.rounds
    print(
        f"threads {options.threads}, load {os.getloadavg()[0]:.2f}, {rounds} rounds of an epoch, batches of {BATCH}\n"
    )
    print("| workload | store | rows a second in memory | throughput over memory [quartiles] |\n|---|---|---|---|")
    for name in ["small"] if options.quick else [options.only] if options.only else list(WORKLOADS):
        seconds, rows = measure(name, rounds)
        memory = seconds.pop("memory")
        for arm, own in seconds.items():
            ratios = [a / b for a, b in zip(memory, own)]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            table[f"{name} {arm}"] = {"median": middle, "quartiles": [low, high]}
            speed = rows / statistics.median(memory)
            print(f"| {name} | {arm} | {speed:.0f} | {middle:.2f} [{low:.2f}, {high:.2f}] |", flush=True)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(table, file, indent=2)


if __name__ == "__main__":
    main()
