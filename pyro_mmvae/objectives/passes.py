"""Passes: what the guide may look at, and what the model must explain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import torch

from pyro_mmvae.view import EVERYTHING, View

Views = Callable[[Sequence[str]], Sequence[View]]


class Pass(NamedTuple):
    """A family of views of a batch, with weights.

    Attributes:
        views: the names that a batch has -> how to look at it, one after the other.
        beta: weight of the KL in this pass.
        weight: of the pass in the loss.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> from pyro_mmvae.objectives import joint, unimodal
        >>> loss = mm.Objective([joint, Pass(unimodal, beta=0.0, weight=0.5)])
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """

    views: Views
    beta: float = 1.0
    weight: float = 1.0


def joint(names: Sequence[str]) -> list[View]:
    """The guide sees all, the model explains all."""
    return [EVERYTHING]


def unimodal(names: Sequence[str]) -> list[View]:
    """{m} -> {m} for every modality m."""
    return [View((name,), (name,)) for name in names]


def cross(names: Sequence[str]) -> list[View]:
    """{m} -> all for every modality m; private codes are inferred from their own modalities."""
    return [View((name,), None, tuple(names)) for name in names]


def random_subsets(count: int) -> Views:
    """`count` subsets of two or more modalities, but not all, drawn anew for each batch; S -> S."""

    def views(names: Sequence[str]) -> list[View]:
        if not count:
            return []
        family = [s for size in range(2, len(names)) for s in combinations(names, size)]
        chosen = [int(position) for position in torch.randperm(len(family), device="cpu")[:count]]
        return [View(family[position], family[position]) for position in chosen]

    return views


def every_subset(names: Sequence[str]) -> list[View]:
    """S -> all for every subset S of the modalities, one or more of them."""
    return [View(s) for size in range(1, len(names) + 1) for s in combinations(names, size)]


def dropped(probability: float) -> Views:
    """The guide sees all; or, with the given probability, a random subset, one for the batch. All is explained."""

    def views(names: Sequence[str]) -> list[View]:
        if float(torch.rand((), device="cpu")) >= probability:
            return [EVERYTHING]
        family = every_subset(names)
        return [family[int(torch.randint(len(family), (), device="cpu"))]]

    return views


def strata(names: Sequence[str]) -> list[View]:
    """One pass for each modality's component of a mixture of experts, weighted by its share of each row.

    Private codes of the other modalities come from the auxiliary prior. Of a modality with repeats each draw chooses
    one. A prior expert is a component that no modality stands for: a model with it is refused, and has the joint pass.
    """
    return [View(private=(name,), stratum=place, strata=tuple(names)) for place, name in enumerate(names)]


def subset_strata(names: Sequence[str]) -> list[View]:
    """One pass for each component of a mixture over all subsets of the modalities, such as MoPoE's."""
    count = 2 ** len(names) - 1
    return [View(stratum=place, strata=count) for place in range(count)]
