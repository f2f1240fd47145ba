"""What test_dataset.py runs under a memory limit: `python memory_worker.py FILE MEGABYTES`; prints what it found.

Once everything is imported, and a first short training has made its buffers and its thread, the process may take
MEGABYTES more of memory and no more: for a NumPy file, which is mapped, of private memory (RLIMIT_DATA; mapped pages
belong to the file, and the kernel takes them back when it likes); for an HDF5 file, of address space (RLIMIT_AS).
"""

import json
import resource
import sys

import numpy as np
import torch

import pyro_mmvae as mm

FEATURES, BATCH = 2000, 32


def status(key):
    """A line of /proc/self/status, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))


def opened(path):
    """The array on disk, a function that loads all of it, and what to limit."""
    if path.endswith(".npy"):
        return np.load(path, mmap_mode="r"), lambda: np.load(path), (resource.RLIMIT_DATA, "VmData")
    import h5py

    array = h5py.File(path, "r")["x"]
    return array, lambda: array[...], (resource.RLIMIT_AS, "VmSize")


def main():
    path, megabytes = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    array, load, (kind, key) = opened(path)
    net = mm.NormalLikelihood(mm.mlp(2, 16, FEATURES), 1.0)
    vae = mm.MultimodalVAE({"x": mm.Modality(net, mm.encoder(FEATURES, 16, dim=2))}, mm.StandardNormal(2), mm.PoE())
    mm.fit(vae, mm.MultimodalDataset({"x": array}, rows=range(1024)), epochs=2, batch_size=BATCH, progress=False)
    before = status(key)
    resource.setrlimit(kind, (before + megabytes * 2**20, resource.RLIM_INFINITY))
    try:
        load()
        refused = False
    except MemoryError:
        refused = True
    history = mm.fit(vae, mm.MultimodalDataset({"x": array}), epochs=1, batch_size=BATCH, progress=False)
    print(json.dumps({"loss": history.loss[0], "refused": refused, "before": before, "after": status(key)}))


if __name__ == "__main__":
    main()
