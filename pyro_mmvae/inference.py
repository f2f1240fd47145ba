"""Questions to a trained model about rows of data: fill in, predict, translate."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Categorical, Distribution, Independent, MaskedDistribution, VonMises
from torch import Tensor

from pyro_mmvae.arrays import with_axes
from pyro_mmvae.checks import refuse
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.distributions import Columnwise, numbers_of
from pyro_mmvae.modes import tool
from pyro_mmvae.programs import library_of, silent
from pyro_mmvae.sites import rows_first, value_of
from pyro_mmvae.told import Latents, asked, told
from pyro_mmvae.weights import known, nesting, opened, rows_at_once


@tool
def impute(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    num_draws: int | None = None,
    given: Collection[str] | None = None,
    latents: Latents | None = None,
) -> dict[str, Tensor]:
    """Draws of every missing entry from p(x_missing | x_S), with z ~ q(z | x_S); observed entries come back untouched.

    All in the precision of the model: where that is float32, whole numbers above 2^24 and float64 are rounded.

    Limits: the parameters of the model stay as they were learnt. As multiple imputations the draws lack what those are
    uncertain by, and pooled standard errors come out too small where rows are few; for proper ones fit a model to a
    bootstrap sample of the rows for each imputation.

    Args:
        x, mask: as in `vae.model`; modalities that x lacks are drawn on every row.
        num_draws: draws a row; 1 by default, or as many as `latents` have. Fewer than those are taken evenly.
        given: what the guide may look at; None = all that is observed.
        latents: draws of the codes of these rows in place of the guide's, site -> (draw, row, *event), such as
            `mm.posterior_draws(vae, x, mask).latents` or `mm.importance(vae, x, mask).resample(100)`.

    Returns:
        name -> (draw, row, *event), for every modality of the model; (draw, row, repeat, *event) of a repeated one that
        x has, one entry a row of one that it lacks.

    Raises:
        ValueError: bad input, a name that is no modality, latents of other rows, of too few draws or beside `given`, or
            a row with draws that are not finite.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> filled = impute(vae, x, {"b": torch.arange(20) < 5}, num_draws=10)
        >>> filled["b"].shape, bool((filled["b"][:, :5] == x["b"][:5]).all())
        (torch.Size([10, 20, 2]), True)
    """
    batch = opened(vae, x, mask)
    num_draws, latents = asked(vae, batch, num_draws, 1, given, latents)
    drawn = _explain(vae, batch, num_draws, given, latents, value_of)
    found = {}
    for name, value in drawn.items():
        if name in batch:
            own = batch[name].to(value.dtype)
            value = torch.where(with_axes(batch.mask[name], own.dim()), own, value.reshape(-1, *own.shape))
        found[name] = value
    return found


@torch.no_grad()
def predictive_draws(
    vae: Any,
    batch: Batch,
    *,
    num_draws: int,
    given: Collection[str] | None = None,
    latents: Latents | None = None,
    only: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Draws from p(x_m | x_S) of every entry, observed ones as well; name -> (draw, row, *event)."""
    return _explain(vae, batch, num_draws, given, latents, value_of, only)


@tool
def predict(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    num_draws: int | None = None,
    given: Collection[str] | None = None,
    latents: Latents | None = None,
) -> dict[str, Tensor]:
    """Posterior predictive means E[x_m | x_S] over draws of z ~ q(z | x_S), observed entries predicted as well.

    Args: as `impute`, with 30 draws by default.

    Returns:
        name -> (row, *event), repeats as in `impute`; for a categorical modality the probabilities
        (row, *event, categories), for a column of categories in a table the most probable one; of an angle (VonMises)
        the mean direction, between -pi and pi.

    Raises:
        ValueError: as `impute`, or a likelihood that knows no mean.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> predict(vae, {"a": x["a"]})["b"].shape
        torch.Size([20, 2])
    """
    batch = opened(vae, x, mask)
    num_draws, latents = asked(vae, batch, num_draws, 30, given, latents)
    return {k: v.squeeze(0) for k, v in _explain(vae, batch, num_draws, given, latents, _mean_of).items()}


@tool
def translate(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    to: str,
    num_draws: int | None = None,
    latents: Latents | None = None,
) -> Tensor:
    """Draws of one modality given others: sound in, picture out.

    Args:
        x, mask: the given modalities.
        to: the modality to draw; what x may hold of it is not looked at.
        num_draws, latents: as in `impute`; the latents should not have seen `to` either.

    Returns:
        (draw, row, *event), repeats as in `impute`.

    Raises:
        ValueError: bad input, `to` is no modality of the model, one that it only looks at, or, of a `Pair`, one that x
            lacks, or a row with draws that are not finite.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> translate(vae, {"a": x["a"]}, to="b", num_draws=10).shape
        torch.Size([10, 20, 2])
    """
    known(vae, [to])
    batch = opened(vae, x, mask)
    if to not in batch and library_of(vae) is None:
        raise ValueError(
            f"x lacks {to!r}, and programs of the user's do not say what its entries look like; give an array of it in"
            " x, of any values"
        )
    seen = batch.only([name for name in batch if name != to])
    num_draws, latents = asked(vae, seen, num_draws, 1, None, latents)
    drawn = _explain(vae, seen, num_draws, None, latents, value_of, only=[to])
    if to not in drawn:
        raise ValueError(f"modality {to!r} is only looked at, the model has no decoder of it; give another to draw")
    return drawn[to]


def _mean_of(site: Any, num_draws: int, rows: int) -> Tensor:
    """The mean over the draws, (1, row, *event)."""
    p: Distribution = site["fn"]
    if isinstance(p, MaskedDistribution):  # as programs of the user's may have it
        p = p.base_dist
    base = p.base_dist if isinstance(p, Independent) else p
    try:
        value = base.probs if isinstance(base, Categorical) else p.mean
    except NotImplementedError as error:
        raise ValueError(
            f"the likelihood of {site['name']!r}, a {type(base).__name__}, knows no mean; take that of draws, such as"
            f" mm.translate(vae, x, to={site['name']!r}, num_draws=100).mean(0)"
        ) from error
    events = value.dim() - len(p.batch_shape)
    if isinstance(base, VonMises):  # an angle has no mean on the line, but (cos, sin) has, and that a direction
        length = 1 - base.variance
        sides = (rows_first(site, length * side, events, num_draws, rows) for side in (base.loc.sin(), base.loc.cos()))
        return torch.atan2(*(side.mean(0, keepdim=True) for side in sides))
    value = rows_first(site, value, events, num_draws, rows).mean(0, keepdim=True)
    if isinstance(base, Columnwise):
        for column, categories in base.categories().items():
            probs = rows_first(site, categories, 1, num_draws, rows).mean(0, keepdim=True)
            value[..., column] = probs.argmax(-1)
    return value


def _explain(
    vae: Any,
    batch: Batch,
    num_draws: int,
    given: Collection[str] | None,
    latents: Latents | None,
    read: Callable[[Any, int, int], Tensor],
    only: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """What `read` makes of the likelihood site of each modality, z known or drawn from the guide, in chunks of rows."""
    depth, wanted = nesting(vae, batch), complete(vae, batch, only)
    found: dict[str, Tensor] = {}
    unseen = read is _mean_of and library_of(vae) is not None  # in a model of ours nothing hangs on what is drawn of x
    model = vae.model if unseen else poutine.uncondition(vae.model)

    def explained(rows: Tensor) -> dict[str, Tensor]:
        seen, full = batch.take(rows).only(given), wanted.take(rows)
        full = full.after(seen)
        with pyro.plate("draws", num_draws, dim=-1 - depth):
            guide = poutine.trace(vae.guide).get_trace(seen, seen.mask)
            knowing = told(latents or {}, rows, depth, but=full)(poutine.replay(model, guide))
            trace = poutine.trace(knowing).get_trace(full, full.mask)
        sites = {n: trace.nodes[n] for n in full if n in trace.nodes and (only is None or n in only)}
        return {n: _with_axes_of(batch, read(site, num_draws, full.rows), site) for n, site in sites.items()}

    with silent(), pyro.validation_enabled(True):  # what a network says of odd rows may be NaN
        for rows in torch.arange(batch.rows, device="cpu").split(rows_at_once(wanted, num_draws)):
            for name, value in explained(rows).items():
                if name not in found:  # at once for all rows: pieces of it would lie scattered among what is freed
                    found[name] = value.new_empty(len(value), batch.rows, *value.shape[2:])
                found[name][:, rows] = value
    for name, value in found.items():
        refuse(batch, value.isfinite().transpose(0, 1).reshape(batch.rows, -1).all(1), f"what is drawn of {name!r}")
    return found


def _with_axes_of(batch: Batch, value: Tensor, site: Any) -> Tensor:
    """(draw, row, ...) with the axes of repeats that the data have, where those are 1 and so were taken out."""
    name = site["name"]
    repeats = batch[name].shape[1 : batch[name].dim() - len(site["fn"].event_shape)] if name in batch else ()
    return value.reshape(*value.shape[:2], *repeats, *value.shape[2:]) if set(repeats) == {1} else value


def complete(vae: Any, batch: Batch, only: Collection[str] | None = None) -> Batch:
    """A batch of the same rows in which everything counts as observed, so that the model can be made to draw it."""
    ours = library_of(vae)
    x = {name: batch[name] for name in batch if ours is None or only is None or name in only}  # others may need all
    likelihoods = {} if ours is None else ours.likelihoods(batch)
    for name, p in likelihoods.items():
        if name not in x and (only is None or name in only):
            repeat = [1] if ours is not None and ours.modalities[name].repeated else []
            x[name] = torch.zeros((), device=batch.device).expand(batch.rows, *repeat, *p.event_shape)
    mask = {name: torch.ones(batch.rows, dtype=torch.bool, device=value.device) for name, value in x.items()}
    whole = Batch(x, mask, batch.rows, frozenset(x))
    whole.numbers = {name: numbers_of(p) for name, p in likelihoods.items()}
    return whole
