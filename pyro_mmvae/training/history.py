"""What a training run was like, and how its learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

Schedule = Callable[[float], float]
FEWEST = 10
"""Epochs of which it is told what the later ones have gained."""


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

    The end of a curve does not tell whether the run was long enough: where the learning rate falls to zero, as it does
    by default, every curve ends flat. `gained` does.

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
        if self.best_epoch is not None:
            words += f"; kept epoch {self.best_epoch} (from 0), held out {self.validation[self.best_epoch]:.2f}"
        if self.gained >= 0.005:
            words += (
                f"\nit fell by {self.gained:.2f} in the second half of all learning: twice the epochs may gain as much"
            )
        return words

    @property
    def gained(self) -> float:
        """How much the loss fell, nats a row, from half of all learning (of the sum of the learning rates) to the end
        or the best epoch, held out if there is that: by a factor of two or three what a run of twice the length would
        gain. NaN of fewer than ten epochs."""
        curve = self.validation or self.loss
        end = len(curve) if self.best_epoch is None else self.best_epoch + 1
        if min(end, len(self.lr)) < FEWEST:
            return math.nan
        done = list(accumulate(self.lr[:end]))
        half = sum(learnt < done[-1] / 2 for learnt in done)
        near = end // FEWEST  # over a few epochs, as losses of single ones are noisy
        before, after = curve[max(0, half - near) : half + near + 1], curve[end - near : end]
        return sum(before) / len(before) - sum(after) / len(after)

    def summary(self) -> str:
        """The last epoch in a few words."""
        held_out = f", held out {self.validation[-1]:.2f}" if self.validation else ""
        return f"loss {self.loss[-1]:.2f}{held_out} nats a row"
