"""Models side by side on the same rows: paired differences of held-out log-likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from pyro_mmvae.arrays import percent
from pyro_mmvae.checks import check_named
from pyro_mmvae.data import Arrays
from pyro_mmvae.diagnostics.comparable import explained_by, kinds_of, looks_at_data, warn_of_kinds
from pyro_mmvae.diagnostics.gaps import gaps
from pyro_mmvae.diagnostics.patterns import column, titles
from pyro_mmvae.errors import standard_error
from pyro_mmvae.evidence import log_likelihood
from pyro_mmvae.psis import share_good
from pyro_mmvae.questions import opened


class Compared(NamedTuple):
    """One model.

    Attributes:
        name: of the model.
        log_likelihood: mean log p(x_S), nats a row.
        difference: to the best model (after `Comparison.against`, to that one), nats a row; above zero may be what is
            not to be compared.
        se: standard error of the difference over rows, from pairs of the same row.
        good_khat: share of rows with a good k-hat; where it is low, the log-likelihood is a bound that may be loose.
        looks: whether its prior looks at the data that it explains; then that is no likelihood, and never the best.
        fewer: whether it explains fewer modalities of x than all models together, as `mm.recipes.cvae` does; then that
            is the likelihood of less, and never the best.
    """

    name: str
    log_likelihood: float
    difference: float
    se: float
    good_khat: float
    looks: bool = False
    fewer: bool = False

    @property
    def mark(self) -> str:
        """What stands behind its name if it is not to be compared."""
        return " *" if self.looks else " +" if self.fewer else ""


@dataclass(repr=False)
class Comparison:
    """The models, the best first; `print` shows a table, `mm.plot_compare` a picture.

    Attributes:
        rows: the models.
        refined: whether proposals were refined row by row.
        values: name -> log p(x_S) of each row (row,), nats, for questions of your own.
        reference: the name of the model that differences are to; None for the best.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> comparison = mm.compare({"one": vae}, x, num_particles=100)
        >>> comparison.rows[0].difference
        0.0
    """

    rows: list[Compared]
    refined: bool = False
    values: Mapping[str, Tensor] = field(default_factory=dict)
    reference: str | None = None

    def against(self, reference: str) -> Comparison:
        """The same models, with differences to that one in place of the best, from pairs of the same row.

        Raises:
            ValueError: there is no such model.
        """
        if reference not in self.values:
            raise ValueError(f"there is no model {reference!r}; there are {', '.join(self.values) or 'none'}")
        pairs = {row.name: _paired(self.values[row.name], self.values[reference]) for row in self.rows}
        rows = [row._replace(difference=pairs[row.name][0], se=pairs[row.name][1]) for row in self.rows]
        return replace(self, rows=rows, reference=reference)

    def __repr__(self) -> str:
        cut = titles([[row.name] for row in self.rows], 30)
        names = {row.name: name + row.mark for row, name in zip(self.rows, cut)}
        width = max(5, *map(len, names.values()))
        columns = [
            [f"{name:{width}}" for name in ("model", *names.values())],
            column(["log p(x)", *(f"{r.log_likelihood:z.3f}" for r in self.rows)], 10),
            column(["difference", *(f"{r.difference:z.3f}" for r in self.rows)], 10),
            column(["+-", *(f"{r.se:.3f}" for r in self.rows)], 5),
            column(["good k-hat", *(percent(r.good_khat) for r in self.rows)], 10),
        ]
        return "\n".join([*map("  ".join, zip(*columns)), "", *self._foot(names)])

    def _foot(self, names: Mapping[str, str]) -> list[str]:
        """What the numbers are, and which are not to be compared."""
        foot = [
            "log p(x) of the same rows by importance sampling, nats a row; difference to the best model, +- one",
            "standard error of the paired difference: below twice that the two cannot be told apart. Good k-hat: share",
            "of rows where the estimate can be trusted; where that is low, log p(x) is a lower bound and may be loose.",
        ]
        if self.reference is not None:
            foot[0] = foot[0].replace("the best model", names[self.reference])
        if not self.refined and any(row.good_khat < 0.9 for row in self.rows):
            foot.append(
                "Here differences may be those of the guides: refined=True looks for better proposals, row by row."
            )
        if any(row.looks for row in self.rows):
            foot += [
                "* Its prior looks at the data that it explains (mm.Pooled, mm.DynamicPrior, a fusion): this is no",
                "likelihood, and not to be compared. Compare a mm.MultimodalVAE of its parts with another prior.",
            ]
        if any(row.mark == " +" for row in self.rows):
            foot += [
                "+ It explains fewer of the modalities than others do: this is the likelihood of less data, and not to",
                "be compared. mm.conditional_log_likelihood asks the others for the same.",
            ]
        return foot


def compare(
    vaes: Mapping[str, Any], x: Arrays, mask: Arrays | None = None, *, num_particles: int = 1000, refined: bool = False
) -> Comparison:
    """Held-out log-likelihoods of several models on the same rows, with paired standard errors.

    A model whose prior looks at the data (as in MVTCAE, JMVAE, CRMVAE, mmJSD, MMVM and alignment) has no likelihood of
    them: it comes last, with a star. One that explains fewer of the modalities than others do, such as a CVAE, comes
    before those, with a cross. A `Pair` is not looked into.

    A modality that has probabilities in one model (counts, categories) and a density in another (real numbers) is named
    in a warning: a density is per unit of the data, and another unit adds any number to its logarithm.

    A likelihood belongs to the model alone, its estimate to the guide as well: where k-hat is bad, the model with the
    better guide may look like the better model.

    Args:
        vaes: name -> `MultimodalVAE` or `Pair`.
        x, mask: held-out data.
        num_particles: draws a row.
        refined: whether to look for a better proposal than the guide, row by row, as `mm.gaps` does: some tens of
            milliseconds a row.

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
    found = {name: _estimate(vae, x, mask, num_particles, refined) for name, vae in vaes.items()}
    batches = {name: opened(vae, x, mask) for name, vae in vaes.items()}
    looks = {name: looks_at_data(vae, batches[name]) for name, vae in vaes.items()}
    explained = {name: explained_by(vae, batches[name]) for name, vae in vaes.items()}
    warn_of_kinds({name: kinds_of(vae, batches[name]) for name, vae in vaes.items()})
    every = frozenset[str]().union(*explained.values())
    fewer = {name: bool(names) and names < every for name, names in explained.items()}
    best = max(found, key=lambda name: (not looks[name], not fewer[name], float(found[name][0].mean())))
    rows = []
    for name, (value, khat) in found.items():
        difference, se = _paired(value, found[best][0])
        rows.append(
            Compared(
                name, float(value.mean()), difference, se, share_good(khat, num_particles), looks[name], fewer[name]
            )
        )
    rows.sort(key=lambda row: (row.looks, row.fewer, -row.log_likelihood))
    return Comparison(rows, refined, {name: value for name, (value, _) in found.items()})


def _paired(value: Tensor, reference: Tensor) -> tuple[float, float]:
    """The mean difference over rows (row,) and its standard error; NaN for a single row."""
    pairs = value - reference
    return float(pairs.mean()), float(standard_error(pairs))


def _estimate(vae: Any, x: Arrays, mask: Arrays | None, num_particles: int, refined: bool) -> tuple[Tensor, Tensor]:
    """log p(x_S) and its k-hat, (row,) each."""
    if refined:
        better = gaps(vae, x, mask, full_rank=True, num_draws=num_particles)
        return better.log_likelihood, better.khat
    found = log_likelihood(vae, x, mask, num_particles=num_particles)
    return found.value, found.khat
