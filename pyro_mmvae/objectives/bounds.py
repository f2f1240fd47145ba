"""Bounds: what the log weights of a row become, and which gradient that has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Bound(NamedTuple):
    """How the log weights (particle, row) of a row become its bound, and which gradient that has.

    Attributes:
        value: (particle, row) -> (row,).
        sticking: no gradient to the guide's parameters through its density, only through its draws.
        doubly: the gradient through a draw is multiplied by its normalised weight once more.
        name: by which it is shown.
    """

    value: Callable[[Tensor], Tensor]
    sticking: bool = False
    doubly: bool = False
    name: str = ""


def _mean(log_weights: Tensor) -> Tensor:
    return log_weights.mean(0)


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(0) - math.log(len(log_weights))


elbo = Bound(_mean, name="elbo")
"""E log w."""
iwae = Bound(_log_mean, name="iwae")
"""log 1/K sum_k w_k of each row. Burda, Grosse and Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519"""
stl = Bound(_mean, sticking=True, name="stl")
"""The ELBO with the gradient that sticks the landing: unbiased, and zero noise at an exact guide, but for one with
learnt transforms or with codes in levels. Roeder, Wu and Duvenaud, 2017, https://arxiv.org/abs/1703.09194"""
dreg = Bound(_log_mean, sticking=True, doubly=True, name="dreg")
"""The IWAE bound with the doubly reparameterised gradient. Unbiased where the K draws are those of the whole guide, of
a mixture too, and whatever beta is; with `strata` and K > 1 it is the published estimator of MMVAE, which is biased.
Refused for codes that hang on other draws, in levels too, learnt transforms, and draws without gradient or density,
whose gradient would be another one. Tucker, Lawson, Gu and Maddison, 2019, https://arxiv.org/abs/1810.04152"""
