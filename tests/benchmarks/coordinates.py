"""What it takes to vouch for draws of many coordinates: `python -m tests.benchmarks.coordinates [--quick]`.

A mixture of products, trained on digits of 28 x 28, on noisy ones that are turned and mirrored, and on their names;
draws of twelve held-out rows from the model's own posterior given each of three subsets.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

import pyro
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import interpolate

import pyro_mmvae as mm

GIVEN = [["picture"], ["label"], ["picture", "turned"]]


def data() -> dict[str, torch.Tensor]:
    digits = load_digits()
    pictures = interpolate(torch.tensor(digits.images).float()[:, None] / 16, 28, mode="bilinear")[:, 0]
    turned = pictures.flip(-1).mT.flatten(1)
    noisy = turned + 0.1 * torch.randn(turned.shape)
    return {"picture": pictures.flatten(1), "turned": noisy, "label": torch.tensor(digits.target)}


def trained(x: dict[str, torch.Tensor], dim: int, epochs: int) -> mm.MultimodalVAE:
    parts = {
        name: mm.Modality(mm.NormalLikelihood(mm.mlp(dim, 512, 784)), mm.encoder(784, 512, dim=dim))
        for name in ("picture", "turned")
    }
    look = nn.Sequential(mm.OneHot(10), mm.encoder(10, 128, dim=dim))
    parts["label"] = mm.Modality(mm.CategoricalLikelihood(mm.mlp(dim, 128, 10)), look)
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(dim), mm.MoPoE())
    mm.fit(vae, {name: value[:1500] for name, value in x.items()}, epochs=epochs, progress=False)
    return vae


def main() -> None:
    quick = "--quick" in sys.argv
    pyro.set_rng_seed(0)
    x = data()
    few = {name: value[1500 : 1502 if quick else 1512] for name, value in x.items()}
    print("| coordinates | given | rows | certified | by | seconds |")
    print("|---|---|---|---|---|---|")
    for dim in (8,) if quick else (16, 32, 64):
        vae = trained(x, dim, 1 if quick else 15)
        for given in GIVEN[1:2] if quick else GIVEN:
            start = time.perf_counter()
            found = mm.posterior_draws(vae, few, given=given, progress=False)
            by = ", ".join(f"{count} {method}" for method, count in Counter(found.method).items())
            cells = dim, " + ".join(given), len(found.method), int(found.certified.sum()), by
            print(f"| {' | '.join(map(str, cells))} | {time.perf_counter() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
