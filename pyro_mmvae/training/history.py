"""What a training run was like, and how its learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

Schedule = Callable[[float], float]


def cosine(progress: float) -> float:
    """A learning-rate factor that falls from 1 to 0 as half a cosine while progress goes from 0 to 1.

    Example:
        >>> cosine(0.0), round(cosine(0.5), 3), cosine(1.0)
        (1.0, 0.5, 0.0)
    """
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def constant(progress: float) -> float:
    """A factor of 1, for the learning rate or the KL.

    Example:
        >>> constant(0.7)
        1.0
    """
    return 1.0


class Pace(NamedTuple):
    """How the learning rate and the KL's weight go.

    Attributes:
        steps: how many an epoch has, 0 if that is not known; then both change from epoch to epoch.
    """

    schedule: Schedule
    epochs: int
    warmup: int
    beta: Schedule
    steps: int

    @property
    def total(self) -> float:
        """How many steps there will be, as far as that is known."""
        return self.epochs * self.steps if self.steps else math.inf

    def __call__(self, epoch: int, step: int) -> tuple[float, float]:
        """The factor of the learning rate and the KL's weight at a step."""
        done = epoch + (step / self.steps if self.steps else 0.0)
        rise = min(1.0, done / self.warmup) if self.warmup else 1.0
        return self.schedule(done / self.epochs), rise * self.beta(done / self.epochs)


@dataclass(repr=False)
class History:
    """What `fit` saw, one entry an epoch; `mm.plot_history` draws it.

    Attributes:
        loss: mean training loss, nats a row, as weighted in the loss. One row far out may carry it, of a kind that
            the held-out ones lack.
        validation: the same on held-out rows, with the KL at its own weight; empty without validation data. Of passes
            that are drawn at random, such as `random_subsets`, it has the same ones in every epoch, and may so stay
            above or below the training loss.
        lr: the learning rate at the end of the epoch.
        seconds: wall time since the start.
        best_epoch: the epoch (from 0) whose weights were kept; None without validation data.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> history = mm.fit(vae, x, validation={"a": torch.randn(10, 3)}, epochs=3, progress=False)
        >>> len(history.loss), len(history.validation)
        (3, 3)
    """

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None

    def __repr__(self) -> str:
        if not self.loss:
            return "no epoch"
        words = f"{len(self.loss)} epoch{'s' * (len(self.loss) > 1)} in {self.seconds[-1]:.1f} s: {self.summary()}"
        if self.best_epoch is None:
            return words
        return f"{words}; kept epoch {self.best_epoch} (from 0), held out {self.validation[self.best_epoch]:.2f}"

    def summary(self) -> str:
        """The last epoch in a few words."""
        held_out = f", held out {self.validation[-1]:.2f}" if self.validation else ""
        return f"loss {self.loss[-1]:.2f}{held_out} nats a row"
