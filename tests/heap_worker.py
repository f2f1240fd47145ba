"""Prints whether glibc takes a block of 24 MiB from its heap, which it keeps, without and with help."""

import ctypes

import torch

from pyro_mmvae.memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p


def in_heap():
    block = torch.empty(24 * 2**20, dtype=torch.uint8)
    return block.data_ptr() < libc.sbrk(0)


before = in_heap()
keep_freed_memory()
print(before, in_heap())
