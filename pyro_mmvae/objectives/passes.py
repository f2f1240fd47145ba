"""Passes: what the guide may look at, and what the model must explain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from pyro_mmvae.view import EVERYTHING, View, subsets_of

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

    def __repr__(self) -> str:
        name = getattr(self.views, "__qualname__", repr(self.views))
        return name if self[1:] == (1.0, 1.0) else f"Pass({name}, beta={self.beta:g}, weight={self.weight:g})"


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
        chosen: dict[tuple[str, ...], View] = {}
        family = 2 ** len(names) - len(names) - 2
        while len(chosen) < min(count, family):
            members = _random_subset(names)
            if 1 < len(members) < len(names):
                chosen[members] = View(members, members)
        return list(chosen.values())

    views.__qualname__ = f"random_subsets({count})"
    return views


def every_subset(names: Sequence[str]) -> list[View]:
    """S -> all for every subset S of the modalities, one or more of them."""
    return [View(s) for s in subsets_of(names, what="as many passes a step; take random_subsets(2)")]


def dropped(probability: float) -> Views:
    """The guide sees all; or, with the given probability, a random subset, one for the batch. All is explained."""

    def views(names: Sequence[str]) -> list[View]:
        if float(torch.rand((), device="cpu")) >= probability:
            return [EVERYTHING]
        members: tuple[str, ...] = ()
        while not members:
            members = _random_subset(names)
        return [View(members)]

    views.__qualname__ = f"dropped({probability:g})"
    return views


def _random_subset(names: Sequence[str]) -> tuple[str, ...]:
    """A subset, the empty one included, all of them as likely as each other."""
    kept = (torch.rand(len(names), device="cpu") < 0.5).tolist()
    return tuple(name for name, there in zip(names, kept, strict=True) if there)


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
