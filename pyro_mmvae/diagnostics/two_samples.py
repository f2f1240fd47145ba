"""Can a classifier tell draws of the guide from draws of the posterior?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mmvae.arrays import tensor_of, whole
from pyro_mmvae.chance import seeded

WAVES, MOST_SQUARES = 100, 32


class TwoSamples(NamedTuple):
    """A classifier two-sample test.

    Attributes:
        accuracy: cross-validated; 0.5 if the samples cannot be told apart.
        p: how probable so high an accuracy is if they come from one distribution.

    Example:
        >>> found = c2st(torch.randn(200, 2), torch.randn(200, 2) + 3.0)
        >>> found.accuracy > 0.9
        True
    """

    accuracy: float
    p: float


@torch.no_grad()
def c2st(
    draws: Any,
    reference: Any,
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    folds: int = 5,
    permutations: int = 199,
    seed: int = 0,
) -> TwoSamples:
    """Classifier two-sample test, exact at any size: the p-value comes from permuted labels.

    The classifier is linear in features of the draws, fitted by regularised least squares, so that all permutations
    cost one matrix product. For several rows the draws of each are centred and scaled by its own mean and standard
    deviation over both samples, and labels are permuted within the row and the fold.

    Args:
        draws: of the guide, (draw, dim), or (draw, row, dim) as in `mm.importance(...).latents`.
        reference: as many independent draws from the posterior: exact, from `mm.posterior_draws`, or thinned NUTS.
        features: (point, dim) -> (point, feature); None = the draws, their squares and products (up to 32 dimensions),
            and 100 random waves, which see any difference if there are draws enough.
        folds: of the cross-validation.
        permutations: the smallest p-value is 1 / (permutations + 1).
        seed: of folds, waves and permutations.

    Raises:
        ValueError: samples of different shapes, numbers that are not finite, or fewer draws than folds.

    Reference:
        Lopez-Paz and Oquab, 2017, Revisiting Classifier Two-Sample Tests, https://arxiv.org/abs/1610.06545; Rahimi and
        Recht, 2007, Random Features for Large-Scale Kernel Machines.

    Example:
        >>> import torch
        >>> a, b = torch.randn(300, 2), torch.randn(300, 2)
        >>> c2st(a, b + 1).p, c2st(a, b + 1).accuracy > 0.6
        (0.005, True)
    """
    folds, permutations = whole("folds", folds, 2), whole("permutations", permutations)
    draws, reference = tensor_of("draws", draws), tensor_of("the reference", reference)
    if draws.shape != reference.shape or draws.dim() not in (2, 3):
        raise ValueError(
            f"draws have shape {tuple(draws.shape)}, the reference {tuple(reference.shape)}; give (draw, dim) or"
            " (draw, row, dim), as many of each"
        )
    for what, values in (("draws", draws), ("the reference", reference)):
        if not bool(values.isfinite().all()):
            raise ValueError(
                f"{int((~values.isfinite()).sum())} of the numbers in {what} are not finite; leave them out"
            )
    if len(draws) < folds:
        raise ValueError(f"{len(draws)} draws are too few for {folds} folds; give more draws")
    z = torch.stack([draws, reference])  # (sample, draw, [row,] dim)
    z = (z.cpu() if features is None else z).double()
    z = z if z.dim() == 4 else z.unsqueeze(2)
    z = (z - z.mean((0, 1))) / z.std((0, 1)).clamp(min=1e-12)
    with seeded(seed):
        seen = (features or _features)(z.flatten(0, 2)).cpu().double().unflatten(0, z.shape[:3])
        fold = _folds(len(draws), folds)
        labels = _labels(fold, z.shape[2], permutations)
        fold = fold.unsqueeze(-1).expand(-1, -1, z.shape[2])
        accuracy = _accuracy(seen.flatten(0, 2), labels.flatten(0, 2), fold.flatten())
    beaten = int((accuracy[1:] >= accuracy[0] - 1e-12).sum())
    return TwoSamples(float(accuracy[0]), (1 + beaten) / (1 + permutations))


def _folds(draws: int, folds: int) -> Tensor:
    """The fold of each point, (sample, draw), as many of both samples in each."""
    return torch.stack([torch.randperm(draws) for _ in range(2)]) % folds


def _labels(fold: Tensor, rows: int, permutations: int) -> Tensor:
    """+-1, (sample, draw, row, 1 + permutations): the true ones, then permuted ones, as many of each in every row.

    They change places within a fold alone: one that has more of a sample than the others is learnt the wrong way round,
    which would happen to permuted labels and never to the true ones.
    """
    true = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(fold.shape).flatten()
    order = (fold.flatten() + torch.rand(1 + permutations, rows, fold.numel(), dtype=torch.float64)).argsort(-1)
    labels = torch.empty_like(order, dtype=torch.float64)
    labels.scatter_(-1, order, true[fold.flatten().argsort()].expand(order.shape))
    labels[0] = true
    return labels.permute(2, 1, 0).unflatten(0, fold.shape)


def _accuracy(x: Tensor, labels: Tensor, fold: Tensor) -> Tensor:
    """Cross-validated accuracy for every column of the labels."""
    right = torch.zeros(labels.shape[1], dtype=torch.float64)
    x = torch.cat([(x - x.mean(0)) / x.std(0).clamp(min=1e-12), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    ridge = torch.eye(x.shape[1], dtype=torch.float64)
    for one in fold.unique():
        here = fold == one
        train, asked = x[~here], x[here]
        weights = torch.linalg.solve(train.T @ train + x.shape[1] * ridge, train.T @ labels[~here])
        right += ((asked @ weights).sign() == labels[here]).double().sum(0)
    return right / len(x)


def _features(z: Tensor) -> Tensor:
    """The coordinates, their squares and products, and cosines in random directions."""
    dim = z.shape[1]
    first, second = torch.triu_indices(dim, dim) if dim <= MOST_SQUARES else torch.arange(dim).expand(2, -1)
    waves = z @ torch.randn(dim, WAVES, dtype=z.dtype) * (2.0 / dim**0.5)
    return torch.cat([z, z[:, first] * z[:, second], (waves + 6.2831853 * torch.rand(WAVES, dtype=z.dtype)).cos()], 1)
