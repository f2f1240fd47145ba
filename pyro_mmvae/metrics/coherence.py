"""Do generated modalities show what they should, in the eyes of a classifier?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.arrays import percent, whole
from pyro_mmvae.checks import check_named
from pyro_mmvae.data import Arrays
from pyro_mmvae.diagnostics.draws import Method
from pyro_mmvae.diagnostics.escalation import codes_by
from pyro_mmvae.diagnostics.patterns import MOST, rows_with, titles
from pyro_mmvae.generation import generate
from pyro_mmvae.metrics.given import whole_labels
from pyro_mmvae.modes import at_rest, tool
from pyro_mmvae.predictive import predictive
from pyro_mmvae.questions import known, opened
from pyro_mmvae.view import subsets_of

Classifiers = Mapping[str, Callable[[Tensor], Tensor]]
ACROSS = 90
"""Letters of the shares in one line of a table."""
JUDGES = "{'image': mm.Judge(images, labels)}"


@dataclass(frozen=True, repr=False)
class Coherence:
    """Conditional coherence: how often a modality drawn from others shows their label.

    Attributes:
        share: (given, target) -> share of draws with the right label, between 0 and 1.
        rows: how many rows were looked at.
        counts: given -> how many of them have all of it.
        method: whose codes these are, "guide" or a method of `mm.posterior_draws`.
        certified: given -> the share of its rows whose codes that vouches for; empty of the guide's.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> sign = lambda value: (value[:, 0] > 0).long()
        >>> found = mm.coherence(vae, x, sign(x["a"]), {"a": sign, "b": sign})
        >>> found.rows, found.counts
        (20, {('a',): 20, ('b',): 20})
    """

    share: dict[tuple[tuple[str, ...], str], float]
    rows: int
    counts: dict[tuple[str, ...], int]
    method: Method = "guide"
    certified: dict[tuple[str, ...], float] = field(default_factory=dict)

    @property
    def by_size(self) -> dict[int, float]:
        """Number of given modalities -> mean share over all such subsets and their targets."""
        found: dict[int, list[float]] = {}
        for (given, _), share in self.share.items():
            found.setdefault(len(given), []).append(share)
        return {size: sum(shares) / len(shares) for size, shares in sorted(found.items())}

    def __repr__(self) -> str:
        names = dict(zip(self.counts, titles(list(self.counts)[:MOST])))
        width = max(5, *map(len, names.values()))
        lines = [f"{'given':{width}}  {'rows':>6}  {'+-':>5}  share of draws with the right label"]
        shares: dict[tuple[str, ...], list[str]] = {given: [] for given in self.counts}
        for (given, target), share in self.share.items():
            shares[given].append(f"{target}\0{share:.1%}")  # a name and its number stay in one line
        for given, name in names.items():
            rows = self.counts[given]
            first, *others = wrap(", ".join(shares[given]), ACROSS, break_on_hyphens=False) or [""]
            lines.append(f"{name:{width}}  {rows:6d}  {0.5 / math.sqrt(rows):5.1%}  {first}")
            lines += [" " * (width + 17) + other for other in others]
        if more := len(self.counts) - len(names):
            lines.append(f"and {more:,} more subsets, all of them in .share")
        sizes = ", ".join(f"{size} given {share:.1%}" for size, share in self.by_size.items())
        lines += wrap(f"mean: {sizes}; +-: the largest standard error of a share of so many rows", width + 17 + ACROSS)
        if self.certified:
            least = min(self.certified.values())
            lines.append(f"codes from the model's own posterior ({self.method}; at least {percent(least)} certified)")
        return "\n".join(lines).replace("\0", " ")


@tool
def coherence(
    vae: Any,
    x: Arrays,
    labels: Any,
    classifiers: Classifiers,
    mask: Arrays | None = None,
    *,
    most_given: int | None = None,
    method: Method = "guide",
) -> Coherence:
    """Conditional coherence for every subset S of the modalities and every other modality.

    x_m is drawn from p(x_m | x_S), z from the guide, once a row, and the classifier of m says what it shows. Where that
    is low, the guide of S may be to blame and the model know better: `method` asks the model's own posterior.

    Args:
        vae: a `MultimodalVAE` or a `Pair`.
        x, mask: held-out data; of each subset the rows count that have all of it.
        labels: (row,) whole numbers, the right answers.
        classifiers: target modality -> function (row, *event) -> labels (row,); `mm.Judge` is one.
        most_given: the most modalities to draw from; None = all but one modality, up to sixteen of them.
        method: who draws the codes: the guide, or a method of `mm.posterior_draws`.

    Returns:
        `Coherence`.

    Raises:
        ValueError: no classifier, or one of a modality that the model only looks at, labels that are not one whole
            number a row, nothing to draw from, more than 65,535 subsets, or an unknown method.

    Reference:
        Shi, Siddharth, Paige and Torr, 2019, Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
        Generative Models, https://arxiv.org/abs/1911.03393

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> sign = lambda value: (value[:, 0] > 0).long()
        >>> found = coherence(vae, x, sign(x["a"]), {"b": sign}, most_given=1)
        >>> list(found.share)
        [(('a',), 'b')]
    """
    batch = opened(vae, x, mask)
    right = whole_labels("labels", labels, batch.rows).cpu()
    check_named("classifiers", classifiers, JUDGES)
    if not classifiers:
        raise ValueError(f"no classifier; give at least one, such as {JUDGES}")
    known(vae, classifiers)
    most = len(batch) - 1 if most_given is None else whole("most_given", most_given)
    share, counts, certified = {}, {}, {}
    for given in subsets_of(batch, most, what="too many; give a smaller most_given, such as 1"):
        there = rows_with(batch, given)
        targets = [name for name in classifiers if name not in given]
        if len(there) and targets:
            rows = batch.take(there)
            latents, sure = codes_by(method, vae, rows.only(given), 1)
            if latents is not None:
                certified[given] = sure
            drawn = predictive(vae, rows, num_draws=1, given=given, latents=latents, only=targets)
            drawn = {name: value[0] for name, value in drawn.items()}
            for name in targets:
                said = _said(name, classifiers[name], drawn)
                share[given, name] = float((said == right[there]).double().mean())
            counts[given] = len(there)
    if not share:
        raise ValueError(
            f"no row of x has another modality to draw {', '.join(classifiers)} from, which the classifiers are of;"
            " give rows with two modalities"
        )
    return Coherence(share, batch.rows, counts, method, certified)


def _said(name: str, classifier: Callable[[Tensor], Tensor], drawn: Mapping[str, Tensor]) -> Tensor:
    """What a classifier says of every row; a module in eval mode, as the networks of the model are asked."""
    if name not in drawn:
        raise ValueError(
            f"modality {name!r} has no decoder, so that no classifier sees a draw of it; leave that one out"
        )
    with at_rest([classifier] if isinstance(classifier, nn.Module) else []):
        return whole_labels(f"labels by the classifier of {name!r}", classifier(drawn[name]), len(drawn[name])).cpu()


@tool
def joint_coherence(vae: Any, classifiers: Classifiers, *, num_draws: int = 1000) -> float:
    """How often all modalities of a row drawn from the model's own prior show the same label.

    Args:
        classifiers: modality -> function (row, *event) -> labels (row,), two or more.
        num_draws: rows to draw.

    Returns:
        A share between 0 and 1.

    Raises:
        ValueError: fewer than two classifiers, or a model that cannot be drawn from without data.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> sign = lambda value: (value[:, 0] > 0).long()
        >>> 0.0 <= joint_coherence(vae, {"a": sign, "b": sign}) <= 1.0
        True
    """
    check_named("classifiers", classifiers, JUDGES)
    if len(classifiers) < 2:
        raise ValueError(
            f"joint coherence compares modalities, and there is {'one' if classifiers else 'no'} classifier; give two"
        )
    known(vae, classifiers)
    drawn = generate(vae, num_draws)
    said = torch.stack([_said(name, see, drawn) for name, see in classifiers.items()])
    return float((said == said[0]).all(0).double().mean())
