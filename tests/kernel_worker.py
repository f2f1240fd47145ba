"""Convolves pictures in batches of more sizes than oneDNN keeps kernels for, twice, after a fit or without.

Its arguments: what to do first, and the settings of oneDNN that are to be there afterwards.
"""

import os
import sys

import torch

import pyro_mmvae as mm


def main(how, *settings):
    x = {"a": torch.randn(4, 2)}
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
    if how == "fit":
        mm.fit(vae, x, epochs=1, progress=False)
    assert [name for name in os.environ if name.endswith("CACHE_CAPACITY")] == list(settings)
    convolution = torch.nn.Conv2d(3, 16, 3)
    for time in ("first time", "second time"):
        print(time, flush=True)
        for rows in range(2, 602):
            convolution(torch.zeros(rows, 3, 8, 8))


if __name__ == "__main__":
    main(*sys.argv[1:])
