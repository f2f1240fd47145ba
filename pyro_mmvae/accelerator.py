"""What a device that computes beside the program asks for: numbers are read late, and sent without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def on_gpu(device: torch.device | None) -> bool:
    """Whether a device is a GPU, which computes beside the program: whoever reads a number of it waits for it."""
    return device is not None and device.type == "cuda"


def moved(value: Tensor, device: torch.device | None) -> Tensor:
    """The tensor on that device (None = where it is); nobody waits for the copy if it comes from the CPU."""
    if device is None or value.device == device:
        return value
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
