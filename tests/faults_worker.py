"""Prints how many page faults it takes to ask for 4 MB and give them back, a hundred times, without and with help."""

import resource

import torch

from pyro_mmvae.memory import keep_freed_memory


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        blocks = [torch.ones(2**18) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


torch.set_num_threads(1)
first = faults()
keep_freed_memory()
faults()
print(first, faults())
