"""What a certificate costs, and where it goes: `python -m tests.benchmarks.certificate [--quick] [folder]`.

Writes certificate.json and certificate.md into the folder (the present one by default). The model is that of the
demonstration, untrained: three modalities (8 x 8, 32 x 32, a label), z of 16, 7 subsets, 500 rows.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

import torch

import pyro_mmvae as mm
from pyro_mmvae import demo
from pyro_mmvae.datasets import digits_and_voices

MODELS = {"mopoe": mm.MoPoE, "poe": mm.PoE}


def measured(function):
    """Wall seconds and CPU seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main():
    quick = "--quick" in sys.argv
    folder = Path(next((a for a in sys.argv[1:] if not a.startswith("-")), "."))
    torch.set_num_threads(2)
    rows = 100 if quick else 500
    x = {name: value[:rows] for name, value in digits_and_voices().test.items()}
    found = {"rows": len(x["label"]), "load": os.getloadavg()[0], "threads": 2, "arms": {}}
    for name, fusion in MODELS.items():
        torch.manual_seed(0)
        vae = mm.MultimodalVAE(demo.digit_modalities(), mm.StandardNormal(16), fusion())
        arms = {
            "whole": {},
            "without taking the gap apart": {"gap_rows": 0},
            "calibration alone": {"gap_rows": 0, "num_particles": 2},
        }
        for arm, options in arms.items():
            found["arms"][f"{name}, {arm}"] = measured(lambda: mm.certify(vae, x, rows=rows, progress=False, **options))
    found["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = [f"{rows} rows, 7 subsets, 2 threads, load {found['load']:.1f}, peak {found['peak MB']:.0f} MB", ""]
    lines += ["| certificate | wall, s | CPU, s |", "|---|---|---|"]
    lines += [f"| {arm} | {t['wall']:.1f} | {t['cpu']:.1f} |" for arm, t in found["arms"].items()]
    print("\n".join(lines))
    (folder / "certificate.json").write_text(json.dumps(found, indent=2))
    (folder / "certificate.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
