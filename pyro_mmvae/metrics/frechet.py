"""The distance between two sets of pictures, sounds or anything else, in the features of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.metrics.given import finite


def frechet_distance(features: Any, others: Any) -> float:
    """The squared Fréchet distance between normals with the means and covariances of two samples.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), in double precision, the root by eigenvalues of a symmetric
    matrix.

    Args:
        features, others: (row, feature) of either sample, such as `judge.features(pictures)`; as many rows of each, and
            many more rows than features: the distance of two samples of one distribution is above zero by about
            feature (feature + 5) / (2 row) for features of unit variance.

    Raises:
        ValueError: NaN or an infinity, other than two dimensions, different features, or fewer than two rows.

    Reference:
        Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter, 2017, GANs Trained by a Two Time-Scale Update Rule
        Converge to a Local Nash Equilibrium, https://arxiv.org/abs/1706.08500

    Example:
        >>> import torch
        >>> a = torch.randn(100, 3)
        >>> round(frechet_distance(a, a + 2), 6)
        12.0
    """
    a, b = (finite(name, x).double() for name, x in (("features", features), ("others", others)))
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; give (row, feature) of both, two rows or more"
        )
    first, second = _covariance(a), _covariance(b)
    root = _root(first)
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    moved = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return max(0.0, float(moved + first.trace() + second.trace() - 2 * cross))


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def _root(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
