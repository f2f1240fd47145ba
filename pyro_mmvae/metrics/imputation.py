"""How well hidden entries are filled in, against their truth and against a guess that looks at nothing."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor

from pyro_mmvae.arrays import counted, with_axes
from pyro_mmvae.checks import check_index, check_mapping
from pyro_mmvae.contract import refuse_unmasked
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.metrics.guesses import NONE, errors
from pyro_mmvae.modes import tool
from pyro_mmvae.predictive import NoMean, innermost, mean_of, predictive
from pyro_mmvae.programs import library_of
from pyro_mmvae.questions import nesting, opened
from pyro_mmvae.sites import per_row, scored_at, value_of
from pyro_mmvae.told import Latents, asked, told
from pyro_mmvae.warn import warn
from pyro_mmvae.weights import chunks, rows_at_once, traces_of

DRAWS = 100


class ImputationError(NamedTuple):
    """The error in the hidden entries of one modality.

    Attributes:
        entries: how many were hidden.
        rmse: root of the mean squared distance to the posterior predictive mean, in the units of the data; of a table
            without its columns of categories, NaN where nothing else is hidden; of angles (VonMises) the way around.
            NaN, and so the next three, with a warning, where the likelihood knows no mean.
        baseline_rmse: the same of the mean of the visible entries of the same column, or, where none is visible, of the
            hidden ones: then no constant does better.
        accuracy: how often the most probable category is the true one, of a table in its columns of categories; NaN
            for numbers.
        baseline_accuracy: the same of the most frequent category of the same column, visible or hidden in the same way.
        log_score: log p(hidden entries of a row | visible ones), z from the guide or as given, nats an entry; higher is
            better. A lower bound in expectation, which rises with the draws: compare at as many.
        log_score_se: its standard error, of the choice of rows; NaN for a single one.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = mm.imputation_error(vae, x, visible={"b": torch.arange(20) < 5})
        >>> found["b"].entries
        30
    """

    entries: int
    rmse: float
    baseline_rmse: float
    accuracy: float
    baseline_accuracy: float
    log_score: float
    log_score_se: float

    def __repr__(self) -> str:
        found = [counted(self.entries, "entry", "entries")]
        if not math.isnan(self.rmse):
            found.append(f"rmse {self.rmse:.4g} for {self.baseline_rmse:.4g} of the baseline")
        if not math.isnan(self.accuracy):
            found.append(f"accuracy {self.accuracy:.1%} for {self.baseline_accuracy:.1%} of the baseline")
        found.append(f"log score {self.log_score:z.3f} +- {self.log_score_se:.3f} nats an entry")
        return f"ImputationError({', '.join(found)})"


@tool
def imputation_error(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    visible: Arrays,
    num_draws: int | None = None,
    latents: Latents | None = None,
) -> dict[str, ImputationError]:
    """Hides entries, fills them in, and compares with what was hidden.

    Args:
        vae: a `MultimodalVAE` or a `Pair`.
        x, mask: held-out data.
        visible: name -> bool, what the model may see of it: (row,) as from `mm.hide`, or single entries. What is
            observed and not visible is scored; a name that is left out is visible as far as it is observed.
        num_draws: draws of z a row; 100 by default, of `latents` as well (or all, if they have fewer).
        latents: draws of the codes of these rows given what is visible in place of the guide's, as in `mm.impute`.

    Returns:
        name -> `ImputationError`, for the modalities with hidden entries. For a modality whose columns have different
        units (a table) the rmse is that of the largest ones: scale them, or give them modalities of their own.

    Raises:
        ValueError: bad input, nothing is hidden, or something that the model only looks at.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(50, 3)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = imputation_error(vae, x, visible={"a": torch.rand(50, 3) > 0.2})
        >>> found["a"].rmse > 0
        True
    """
    check_mapping("visible", visible)
    batch = opened(vae, x, mask)
    check_index(x, visible, "visible")
    shown = Batch.of(dict(batch), {**batch.mask, **dict(visible)}).mask
    seen = opened(vae, dict(batch), {name: _both(batch.mask[name], shown[name]) for name in batch})
    wanted = opened(vae, dict(batch), {name: _both(batch.mask[name], ~shown[name]) for name in batch})
    hidden, looked = ({name: _fine(batch, name, part.mask[name]) for name in batch} for part in (wanted, seen))
    names = [name for name in batch if bool(hidden[name].any())]
    if not names:
        raise ValueError("no entry is hidden: visible holds all that is observed; hide some, such as by mm.hide")
    count, latents = asked(vae, seen, num_draws, DRAWS, None, latents)
    if num_draws is None and count > DRAWS:  # of more draws the score would be higher, whoever drew them
        count, latents = asked(vae, seen, DRAWS, DRAWS, None, latents)
    guesses, labels, bases, unknown = _guesses(vae, seen, names, count, latents or {})
    for error in unknown.values():
        warn(f"{error}; it is judged by its log score alone")
    scores = _log_scores(vae, seen, wanted, names, count, latents or {})
    return {
        name: ImputationError(
            int(hidden[name].sum()),
            *(
                NONE
                if name in unknown
                else errors(batch[name], guesses[name], hidden[name], looked[name], bases[name], labels.get(name, 0))
            ),
            *_ratio(scores[name], hidden[name].reshape(batch.rows, -1).sum(1)),
        )
        for name in names
    }


def _guesses(
    vae: Any, seen: Batch, names: list[str], num_draws: int, latents: Latents
) -> tuple[dict[str, Tensor], dict[str, int], dict[str, Distribution], dict[str, NoMean]]:
    """The best guess (row, *event) of each modality, of those of categories how many there are, the likelihood of
    single entries of some rows (probabilities of all rows at once might be thousands of times as many numbers), and why
    there is no guess of a modality: then there are zeros."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    labels, bases = dict[str, int](), dict[str, Distribution]()
    unknown = dict[str, NoMean]()

    def read(site: Any, draws: int, rows: int) -> Tensor:
        bases[site["name"]] = innermost(site["fn"])
        try:
            return mean_of(site, draws, rows)
        except NoMean as error:
            unknown[site["name"]] = error
            return torch.zeros_like(value_of(site, draws, rows)[:1])

    for rows in torch.arange(seen.rows, device="cpu").split(rows_at_once(seen, 1)):
        part, codes = seen.take(rows), {site: value[:, rows] for site, value in latents.items()}
        means = predictive(vae, part, read=read, num_draws=num_draws, latents=codes, only=names)
        for name in names:
            if name not in means:
                raise ValueError(f"modality {name!r} has no decoder, so that nothing fills it in; leave it visible")
            mean = means[name].squeeze(0)
            if mean.dim() > part[name].dim():
                labels[name], mean = mean.shape[-1], mean.argmax(-1)
            found[name].append(mean)
    return {name: torch.cat(parts) for name, parts in found.items()}, labels, bases, unknown


def _log_scores(
    vae: Any, seen: Batch, hidden: Batch, names: list[str], num_draws: int, latents: Latents
) -> dict[str, Tensor]:
    """log 1/K sum_k p(hidden entries | z_k) of each row (row,) on the CPU, for each modality, in nats."""
    depth, found, at = nesting(vae, seen), {name: list[Tensor]() for name in names}, 0
    with pyro.validation_enabled(False):
        for wanted, sizes in chunks(hidden, num_draws):
            rows, at = torch.arange(at, at + wanted.rows, device="cpu"), at + wanted.rows
            part, logs = seen.take(rows), {name: list[Tensor]() for name in names}
            for draws in torch.arange(num_draws, device="cpu").split(sizes):
                known = {site: value[draws] for site, value in latents.items()}
                _, model = traces_of(vae, part, wanted, len(draws), depth, told(known, rows, depth, but=hidden))
                here = [name for name in names if name in model]
                scores = {k: per_row(model.nodes[scored_at(model, k)], len(draws), part.rows) for k in here}
                if library_of(vae) is None:
                    refuse_unmasked(scores, wanted)
                for name, score in scores.items():
                    logs[name].append(score)
            for name, draws_of in logs.items():
                score = torch.cat(draws_of).logsumexp(0) - math.log(num_draws) if draws_of else torch.zeros(part.rows)
                found[name].append(score.double().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def _ratio(total: Tensor, entries: Tensor) -> tuple[float, float]:
    """The mean over entries of what rows (row,) have in all of theirs, and its standard error (linearised)."""
    entries = entries.to(total)
    rows = int((entries > 0).sum())
    mean = total.sum() / entries.sum()
    spread = (total - mean * entries).square().sum().sqrt() / entries.sum()
    return float(mean), float(spread) * math.sqrt(rows / (rows - 1)) if rows > 1 else math.nan


def _both(mask: Tensor, other: Tensor) -> Tensor:
    """Where both are true, no finer than they are: not all programs and likelihoods know masks of single entries."""
    deep = max(mask.dim(), other.dim())
    return with_axes(mask, deep) & with_axes(other, deep)


def _fine(batch: Batch, name: str, mask: Tensor) -> Tensor:
    """One truth value an entry."""
    return with_axes(mask, batch[name].dim()).expand(batch[name].shape)
