"""The importance-weighted bound over the number of particles: how far log p(x_S) is from being reached."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mmvae.arrays import counted, shown, whole
from pyro_mmvae.data import Arrays
from pyro_mmvae.errors import error_of_mean, standard_error
from pyro_mmvae.modes import tool
from pyro_mmvae.questions import nesting, opened
from pyro_mmvae.weights import chunks, draw


class IWAECurve(NamedTuple):
    """The bound for each number of particles.

    Attributes:
        num_particles: K, ascending.
        value: (K, row), E log 1/K sum_k w_k, in nats; it rises with K, from the ELBO towards log p(x_S).
        se: (K, row), Monte-Carlo standard error, in nats; NaN for one particle from one draw.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> mm.iwae_curve(vae, x, num_particles=[1, 10]).value.shape
        torch.Size([2, 20])
    """

    num_particles: list[int]
    value: Tensor
    se: Tensor

    def __repr__(self) -> str:
        rows = counted(self.value.shape[1], "row")
        lines = [f"mean bound of {rows}, nats a row, +- Monte-Carlo standard error of the mean"]
        for count, value, se in zip(self.num_particles, self.value, self.se):
            word = "particle" if count == 1 else "particles"
            lines.append(f"  {count:7d} {word:9} {float(value.mean()):z10.3f} +- {error_of_mean(se):.3f}")
        return "\n".join(lines)


@tool
def iwae_curve(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    given: Collection[str] | None = None,
    num_particles: Sequence[int] = (1, 10, 100, 1000),
) -> IWAECurve:
    """The importance-weighted bound of every row for several K, from one set of draws of the guide.

    As many draws as the largest K asks for are taken, and cut into groups of K: the bound is the mean over groups. A
    curve that still rises at its end says that log p(x_S) has not been reached.

    Args:
        vae: a `MultimodalVAE`, or a `Pair`.
        x, mask: as in `vae.model`.
        given: S; None = all that is observed.
        num_particles: the values of K.

    Returns:
        `IWAECurve`.

    Raises:
        ValueError: bad input, or no K of one or more.

    Reference:
        Burda, Grosse and Salakhutdinov, 2016, Importance Weighted Autoencoders, https://arxiv.org/abs/1509.00519

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> curve = iwae_curve(vae, x)
        >>> bool((curve.value.mean(1).diff() > 0).all())
        True
    """
    if isinstance(num_particles, str) or not isinstance(num_particles, Collection):
        raise ValueError(f"num_particles is {shown(num_particles)}; give a list of numbers, such as [1, 10, 100]")
    counts = sorted({whole("num_particles", k) for k in num_particles})
    if not counts:
        raise ValueError("num_particles is empty; give at least one number, such as [1, 10, 100]")
    batch, found = opened(vae, x, mask, given), []
    depth = nesting(vae, batch)
    for part, sizes in chunks(batch, counts[-1]):
        drawn = [draw(vae, part, k, depth=depth).log_weights for k in sizes]
        found.append([_bound(torch.cat(drawn), k) for k in counts])
    value, se = (torch.stack([torch.cat([part[k][i] for part in found]) for k in range(len(counts))]) for i in (0, 1))
    return IWAECurve(counts, value, se)


def _bound(log_weights: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
    """The bound of each row and its standard error: over groups, or for a single one from the weights in it."""
    groups = len(log_weights) // num_particles
    parts = log_weights[: groups * num_particles].unflatten(0, (groups, num_particles))
    bounds = parts.logsumexp(1) - math.log(num_particles)
    if groups > 1:
        return bounds.mean(0), standard_error(bounds)
    return bounds[0], standard_error((log_weights[:num_particles] - bounds[0]).exp())
