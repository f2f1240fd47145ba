"""Models side by side on the same rows: paired differences of held-out log-likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyro_mmvae.checks import check_named
from pyro_mmvae.data import Arrays
from pyro_mmvae.diagnostics.patterns import title
from pyro_mmvae.evidence import log_likelihood
from pyro_mmvae.psis import khat_limit


class Compared(NamedTuple):
    """One model.

    Attributes:
        name: of the model.
        log_likelihood: mean log p(x_S), nats a row.
        difference: to the best model, nats a row, zero or less.
        se: standard error of the difference over rows, from pairs of the same row.
        good_khat: share of rows with a good k-hat; where it is low, the log-likelihood is a bound that may be loose.
    """

    name: str
    log_likelihood: float
    difference: float
    se: float
    good_khat: float


@dataclass
class Comparison:
    """The models, the best first; `print` shows a table, `mm.plot_compare` a picture.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> comparison = mm.compare({"one": vae}, x, num_particles=100)
        >>> comparison.rows[0].difference
        0.0
    """

    rows: list[Compared]

    def __str__(self) -> str:
        names = {row.name: title([row.name], 30) for row in self.rows}
        width = max(5, *map(len, names.values()))
        lines = [f"{'model':{width}}  {'log p(x)':>10}  {'difference':>10} {'+-':>6}  good k-hat"]
        for r in self.rows:
            numbers = f"{r.log_likelihood:10.3f}  {r.difference:10.3f} {r.se:6.3f}  {r.good_khat:10.0%}"
            lines.append(f"{names[r.name]:{width}}  {numbers}")
        foot = [
            "log p(x) of the same rows by importance sampling, nats a row; difference to the best model, +- one",
            "standard error of the paired difference: below twice that the two cannot be told apart. Good k-hat: share",
            "of rows where the estimate can be trusted; where that is low, log p(x) is a lower bound and may be loose.",
        ]
        return "\n".join([*lines, "", *foot])


def compare(vaes: Mapping[str, Any], x: Arrays, mask: Arrays | None = None, *, num_particles: int = 1000) -> Comparison:
    """Held-out log-likelihoods of several models on the same rows, with paired standard errors.

    Args:
        vaes: name -> `MultimodalVAE` or `Pair`.
        x, mask: held-out data.
        num_particles: draws a row.

    Returns:
        `Comparison`.

    Raises:
        ValueError: no model to compare, one without a name, or bad input.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> other = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.MoPoE())
        >>> sorted(row.name for row in compare({"poe": vae, "mopoe": other}, x, num_particles=100).rows)
        ['mopoe', 'poe']
    """
    check_named("vaes", vaes, "{'poe': vae}")
    if not vaes:
        raise ValueError("no model to compare; give at least one, such as {'poe': vae}")
    found = {name: log_likelihood(vae, x, mask, num_particles=num_particles) for name, vae in vaes.items()}
    best = max(found, key=lambda name: float(found[name].value.mean()))
    rows = []
    for name, one in found.items():
        pairs = one.value - found[best].value
        se = float(pairs.std()) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
        good = (one.khat < khat_limit(num_particles)).double().mean()
        rows.append(Compared(name, float(one.value.mean()), float(pairs.mean()), se, float(good)))
    return Comparison(sorted(rows, key=lambda row: -row.log_likelihood))
