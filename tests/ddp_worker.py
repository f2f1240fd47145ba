"""What one of two processes does in test_processes.py, started by torchrun: steps on its share of the rows.

Every row has its own noise, the same wherever it lies. Process 0 writes how far DistributedDataParallel's gradients,
and the weights after all steps, are from those of one process with all the rows.
"""

import contextlib
import copy
import json
import math
import sys

import torch
import torch.distributed
from cases import three, three_holes, three_rows
from pyro.infer import Trace_ELBO
from torch.nn.parallel import DistributedDataParallel

import pyro_mmvae as mm
from pyro_mmvae.objectives import dreg, joint, unimodal

ROWS = 12
# rows of process 0 and of process 1, and the modalities that each of them lacks
STEPS = [
    ((7, 5), (), ()),
    ((11, 1), (), ("counts",)),
    ((2, 4), ("label",), ("body", "counts")),
    ((5, 7), ("label",), ("label",)),
    ((3, 3), ("body", "label", "counts"), ()),
    ((6, 6), (), ("body", "label", "counts")),
]


class WithNoise(contextlib.AbstractContextManager):
    """Normal draws of the named rows from one table."""

    def __init__(self, rows):
        self.rows, self.table = rows, torch.randn(3, ROWS, 1, 2, generator=torch.Generator().manual_seed(7))

    def __enter__(self):
        self.old = torch.distributions.normal._standard_normal
        torch.distributions.normal._standard_normal = self.draw

    def draw(self, shape, dtype, device):
        return self.table[: math.prod(shape[:-3]), self.rows].reshape(shape)

    def __exit__(self, *_):
        torch.distributions.normal._standard_normal = self.old


def batches(step):
    """x and mask of all rows of a step, and the row numbers of each process."""
    (first, second), *lacking = STEPS[step]
    torch.manual_seed(step)
    rows = torch.arange(first + second).split([first, second])
    x, mask = three_rows(first + second), three_holes(first + second)
    for names, own in zip(lacking, rows):
        for name in names:
            mask[name][own] = False
    return x, mask, rows


LOSSES = {
    "Trace_ELBO": (mm.MeanLoss, Trace_ELBO),
    "joint and unimodal": (mm.MeanLoss, lambda: mm.Objective([joint, unimodal])),
    "dreg of 3": (mm.MeanLoss, lambda: mm.Objective([joint], dreg, num_particles=3)),
    "ELBO module": (None, Trace_ELBO),
    "ELBO module of an objective": (None, lambda: mm.Objective([joint, unimodal])),
}


def difference(ours, theirs):
    """The largest between gradients; none is as good as zero."""
    found = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.grad is not None or b.grad is not None:
            a, b = (torch.zeros_like(p) if p.grad is None else p.grad for p in (a, b))
            found = max(found, float((a - b).abs().max()))
    return found


def compare(wrap, make):
    """The largest differences of gradients, and of the weights after the last step."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    alone = three()
    vae, loss = copy.deepcopy(alone), make()
    module = wrap(vae, loss) if wrap else loss(vae.model, vae.guide)
    ddp = DistributedDataParallel(module, find_unused_parameters=True)
    optims = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (vae, alone)]
    gradients, sizes = [], []
    for step in range(len(STEPS) if wrap else 4):  # by hand, something must be observed
        x, mask, rows = batches(step)
        own = rows[rank]
        for optim in optims:
            optim.zero_grad()
        with WithNoise(own):
            value = ddp({k: v[own] for k, v in x.items()}, {k: v[own] for k, v in mask.items()})
        (value if wrap else value * world / len(mask["label"])).backward()
        with WithNoise(torch.cat(rows)):
            (loss.differentiable_loss(alone.model, alone.guide, x, mask) / len(mask["label"])).backward()
        gradients.append(difference(vae.parameters(), alone.parameters()))
        sizes.append(max(float(p.grad.abs().max()) for p in vae.parameters() if p.grad is not None))
        for optim in optims:
            optim.step()
    weights = max(float((a - b).detach().abs().max()) for a, b in zip(vae.parameters(), alone.parameters()))
    return {"gradients": gradients, "weights": weights, "sizes": sizes}


def main():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    found = {name: compare(*case) for name, case in LOSSES.items()}
    if torch.distributed.get_rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(found, file)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
