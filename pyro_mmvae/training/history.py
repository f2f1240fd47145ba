"""What a training run was like, and how its learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

Schedule = Callable[[float], float]


def cosine(progress: float) -> float:
    """A learning-rate factor that falls from 1 to 0 as half a cosine while progress goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def constant(progress: float) -> float:
    """A learning-rate factor of 1."""
    return 1.0


@dataclass
class History:
    """What `fit` saw, one entry an epoch; `mm.plot_history` draws it.

    Attributes:
        loss: mean training loss, nats a row, as weighted in the loss.
        validation: the same on held-out rows, empty without validation data.
        lr: the learning rate at the end of the epoch.
        seconds: wall time since the start.
        best_epoch: the epoch (from 0) whose weights were kept; None without validation data.
    """

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None
