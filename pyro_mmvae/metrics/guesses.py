"""How far guesses of hidden entries are from their truth, beside a guess that looks at nothing."""

from __future__ import annotations

import math

import torch
from pyro.distributions import Distribution
from torch import Tensor

from pyro_mmvae.distributions import Columnwise
from pyro_mmvae.predictive import sides_of

Errors = tuple[float, float, float, float]
NONE: Errors = (math.nan,) * 4


def errors(truth: Tensor, mean: Tensor, hidden: Tensor, visible: Tensor, base: Distribution, categories: int) -> Errors:
    """rmse, that of the baseline, accuracy, that of the baseline; in a table of categories by column. Angles are as far
    apart as around the circle, and their baseline is the mean direction."""
    angles = _angles(base).to(truth.device)
    visible = torch.where(visible.any(0), visible, hidden)  # without one the guess is the best that looks at nothing
    if categories:
        frequent = _most_frequent(truth, visible, categories).expand_as(truth)
        return math.nan, math.nan, _mean((mean == truth)[hidden]), _mean((frequent == truth)[hidden])
    total = torch.where(visible, truth, 0).sum(0, dtype=torch.float64)  # of large numbers that differ by little
    middle, named = (total / visible.sum(0)).to(mean.dtype), torch.zeros_like(hidden)
    if bool(angles.any()):
        sides = (torch.where(visible, side, 0).sum(0) for side in (truth.sin(), truth.cos()))
        middle = torch.where(angles, torch.atan2(*sides), middle)
    for column in base.categories() if isinstance(base, Columnwise) else ():
        column_of = truth[..., column]
        named[..., column] = True
        middle[..., column] = _most_frequent(column_of, visible[..., column], int(column_of.max()) + 1).to(truth.dtype)
    squares = [_mean(_apart(truth, guess, angles)[hidden & ~named].double() ** 2) for guess in (mean, middle)]
    shares = [_mean((truth == guess)[hidden & named]) for guess in (mean, middle)]
    return math.sqrt(squares[0]), math.sqrt(squares[1]), shares[0], shares[1]


def _most_frequent(truth: Tensor, visible: Tensor, categories: int) -> Tensor:
    """The most frequent visible category of each entry."""
    entries = torch.arange(truth[0].numel(), device=truth.device).reshape(truth.shape[1:])
    votes = (entries * categories + truth.long())[visible].bincount(minlength=entries.numel() * categories)
    return votes.reshape(*truth.shape[1:], categories).argmax(-1)


def _mean(values: Tensor) -> float:
    """The mean; NaN of nothing."""
    return float(values.double().mean())


def _apart(truth: Tensor, guess: Tensor, angles: Tensor) -> Tensor:
    """How far the truth is from the guess."""
    way = truth - guess
    return torch.where(angles, torch.remainder(way + math.pi, math.tau) - math.pi, way)


def _angles(base: Distribution) -> Tensor:
    """Whether the entries are angles, bool () or (column,)."""
    parts = base.parts if isinstance(base, Columnwise) else None
    return torch.tensor(bool(sides_of(base)) if parts is None else [bool(sides_of(part)) for part in parts])
