"""Finding the partner: which picture belongs to this sound?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor

from pyro_mmvae.arrays import tensor_of, whole, with_axes
from pyro_mmvae.checks import check_collection, first_row, seen_rows
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.distributions import drawn_part, feasible, masked, moments_of
from pyro_mmvae.modes import tool
from pyro_mmvae.programs import with_posterior
from pyro_mmvae.questions import known, nesting, opened
from pyro_mmvae.weights import parts, traces_of


class Retrieval(NamedTuple):
    """How high the right candidate ranks.

    Attributes:
        recall: k -> share of queries whose partner is among the k best.
        median_rank: of the partner, 1 is best; among ties it has the rank in their middle.
        candidates: how many there were; chance has recall k / candidates.

    Example:
        >>> retrieval(torch.eye(20)).recall[1]
        1.0
    """

    recall: dict[int, float]
    median_rank: float
    candidates: int


def retrieval(scores: Any, k: Sequence[int] = (1, 5, 10)) -> Retrieval:
    """Recall at k from a table of scores.

    Args:
        scores: (query, candidate), higher = more alike; the partner of query i is candidate i. Ties are broken by
            chance, and recall is the mean over that.
        k: how many of the best to look at.

    Raises:
        ValueError: a score is NaN, or there is no partner for every query.

    Example:
        >>> import torch
        >>> retrieval(torch.eye(20)).recall[1]
        1.0
    """
    scores = tensor_of("scores", scores).detach()
    if scores.dim() != 2 or not 0 < len(scores) <= scores.shape[1]:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}; give (query, candidate), with candidate i the partner of query i"
        )
    if bool(scores.isnan().any()):
        raise ValueError(f"{int(scores.isnan().sum())} of the scores are NaN; mend them, or leave their rows out")
    own = scores.diagonal().unsqueeze(1)
    better, alike = (scores > own).sum(1), (scores == own).sum(1)
    counts = [whole("k", n) for n in k]
    recall = {n: float(((n - better) / alike).clamp(0, 1).double().mean()) for n in counts}
    return Retrieval(recall, float((better + 0.5 * (alike + 1)).quantile(0.5)), scores.shape[1])


@tool
def latent_similarity(
    vae: Any, x: Arrays, mask: Arrays | None = None, *, query: Sequence[str], target: Sequence[str]
) -> Tensor:
    """Cosine between posterior means given the query modalities and given the target ones, (row, row).

    Every dimension is centred and scaled by its standard deviation over the rows first.

    Args:
        x, mask: as in `vae.model`; rows with something of the query and something of the target.
        query, target: names.

    Raises:
        ValueError: bad input, a row that has nothing of the query or of the target, or one row alone, which is like no
            other.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> scores = latent_similarity(vae, x, query=["a"], target=["b"])
        >>> scores.shape
        torch.Size([20, 20])
    """
    vae, sides = with_posterior(vae), []
    batch = opened(vae, x, mask)
    for given in (query, target):
        check_collection(given)
        known(vae, given)
        _refuse_blank(batch, given)
        mean, _ = moments_of(drawn_part(vae.posterior(batch, given=list(given))))
        if len(mean) < 2:
            raise ValueError(f"x has {len(mean)} row, and similarities are relative to other rows; give more of them")
        mean = (mean - mean.mean(0)) / mean.std(0).clamp(min=1e-12)
        sides.append(mean / mean.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    return sides[0] @ sides[1].T


@tool
def predictive_similarity(
    vae: Any, x: Arrays, mask: Arrays | None = None, *, query: Sequence[str], target: str, num_draws: int = 30
) -> Tensor:
    """log p(x_target of row j | x_query of row i), (i, j), in nats: each candidate's likelihood under each query.

    log 1/K sum_k p(x_target,j | z_k), z_k ~ q(z | x_query,i); less the log of its mean over the queries, which
    is about log p(x_target,j): pointwise mutual information, in which no candidate wins everywhere.

    Args:
        x, mask: as in `vae.model`; rows with something of the query, and of the target, whose hidden entries, such as
            padding, do not count.
        query: names of the modalities that are looked at.
        target: the modality whose entries are the candidates.
        num_draws: K.

    Raises:
        ValueError: a row lacks the target or has nothing of the query, or the target is looked at, or repeated, or the
            model does not explain it.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> scores = predictive_similarity(vae, x, query=["a"], target="b")
        >>> scores.shape
        torch.Size([20, 20])
    """
    num_draws = whole("num_draws", num_draws)
    batch, rows = opened(vae, x, mask), []
    check_collection(query)
    known(vae, query)
    known(vae, [target])
    if target in query:
        raise ValueError(
            f"modality {target!r} is the target and in query, and would find itself; leave it out of query"
        )
    _refuse_blank(batch, query)
    if target not in batch or not bool(seen_rows(batch.mask[target]).all()):
        raise ValueError(f"modality {target!r} is missing in some rows; give rows that have it")
    depth = nesting(vae, batch)
    with pyro.validation_enabled(False):
        for part in parts(batch, num_draws * 8):
            _, model = traces_of(vae, part.only(query), part.as_if_seen().only([target]), num_draws, depth)
            if target not in model.nodes:
                raise ValueError(
                    f"modality {target!r} has no decoder, so that it has no likelihood; give another target"
                )
            p = model.nodes[target]["fn"]
            if batch[target].dim() > 1 + len(p.event_shape):
                raise ValueError(f"modality {target!r} is repeated, so that no entry is the row's; give another target")
            entries = zip(batch[target], batch.mask[target])
            found = [_log_prob(p, *entry).reshape(num_draws, part.rows, -1).sum(-1) for entry in entries]
            rows.append(torch.stack(found, -1).logsumexp(0) - math.log(num_draws))
    scores = torch.cat(rows)
    return scores - (scores.logsumexp(0) - math.log(len(scores)))


def _refuse_blank(batch: Batch, names: Sequence[str]) -> None:
    """Raises ValueError if a row has nothing to ask by: its code is the prior's, and its rank that of chance."""
    seen = [seen_rows(batch.mask[name]) for name in names if name in batch]
    blank = ~torch.stack(seen).any(0) if seen else torch.ones(batch.rows, dtype=torch.bool)
    if names and bool(blank.any()):
        raise ValueError(f"row {first_row(blank)} has nothing of {', '.join(names)}; give rows that have some of it")


def _log_prob(p: Distribution, entry: Tensor, mask: Tensor) -> Tensor:
    """log p of one entry (*event) of a modality under every distribution of a batch, as far as it was seen."""
    if not bool(mask.all()):
        entry = torch.where(with_axes(mask, entry.dim()), entry, feasible(p, entry))
        p = masked(p, mask, mask.dim())
    lead = [1] * (len(p.batch_shape) + len(p.event_shape) - entry.dim())
    return p.log_prob(entry.reshape(*lead, *entry.shape))
