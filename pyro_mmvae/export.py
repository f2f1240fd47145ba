"""What a model says of a data set, as named arrays for ArviZ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mmvae.arrays import with_axes
from pyro_mmvae.arviz_adapter import Variable, build
from pyro_mmvae.checks import check_members, check_named, kind_of, seen_rows
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.generation import joint_draws
from pyro_mmvae.modes import tool
from pyro_mmvae.predictive import predictive
from pyro_mmvae.psis import smooth
from pyro_mmvae.questions import opened
from pyro_mmvae.told import Latents, asked, told
from pyro_mmvae.weights import draw_in_parts

DRAWS = ("chain", "draw")


@tool
def to_arviz(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    given: Collection[str] | None = None,
    num_draws: int | None = None,
    latents: Latents | None = None,
    row_names: Sequence[Any] | None = None,
    feature_names: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Draws from the guide, or others that are given, and all that ArviZ has a group for.

    Groups: posterior (z and private codes), sample_stats (of the guide's draws: log_weight of each, khat of each row),
    posterior_predictive and log_likelihood of each modality at every draw of the posterior, prior and prior_predictive
    (where the model can be drawn from without data), observed_data, and constant_data (which rows have which modality).
    Dims: chain, draw, row, latent, <modality>_row, <modality>_feature. Each modality has a row dim of its own with its
    observed rows, so that no row of NaN is written; single hidden entries are NaN.

    Limits: `az.loo` and `az.waic` are wrong on this log_likelihood: z belongs to the row, and both become a harmonic
    mean. Compare models by `mm.log_likelihood`.

    Args:
        x, mask, given: as in `mm.log_likelihood`.
        num_draws: draws a row, and rows drawn from the prior; 200 by default, or as many as `latents` have.
        latents: draws of the codes of these rows in place of the guide's, as in `mm.impute`.
        row_names: labels of the rows, (row,); 0, 1, ... by default.
        feature_names: name -> labels of the modality's entries, flattened.

    Returns:
        `arviz.InferenceData` under ArviZ 0.x, `xarray.DataTree` under 1.x; either has `.to_netcdf(path)`.

    Raises:
        ValueError: bad input, as of `mm.impute`, or labels of another number than what they name, or of no modality.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = to_arviz(vae, x, num_draws=50)
        >>> dict(found["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 50, 'row': 20, 'latent': 2}
    """
    batch = opened(vae, x, mask)
    num_draws, latents = asked(vae, batch, num_draws, 200, given, latents)
    names = list(range(batch.rows)) if row_names is None else _listed(row_names)
    features = {} if feature_names is None else feature_names
    _check_names(vae, batch, names, features)
    handlers = None if latents is None else partial(told, latents)
    codes, log_weights, log_likelihood = draw_in_parts(vae, batch, num_draws, given=given, told=handlers)
    predicted = predictive(vae, batch, num_draws=num_draws, given=given, latents=codes, only=list(batch))
    by_modality = "posterior_predictive", "log_likelihood", "observed_data", "constant_data"
    groups = {
        **_latents(codes, log_weights if latents is None else None),
        **{group: {} for group in by_modality},
        **_prior(vae, num_draws),
    }
    coords: dict[str, Sequence[Any]] = {"row": names}
    for name in batch:
        seen = seen_rows(batch.mask[name])
        groups["constant_data"][f"{name}_observed"] = (("row",), seen.cpu().numpy())
        if not bool(seen.any()):
            continue
        for group, variable in _modality(name, batch, seen, predicted, log_likelihood).items():
            groups[group][name] = variable
        coords[f"{name}_row"] = [row for row, there in zip(names, seen.tolist()) if there]
        if name in features:
            coords[f"{name}_feature"] = list(features[name])
    return build(groups, coords)


def _check_names(vae: Any, batch: Batch, row_names: list[Any], feature_names: Mapping[str, Sequence[Any]]) -> None:
    check_named("feature_names", feature_names, "{'size': ['length', 'width']}")
    for name in {"draw", "chain", "row"}.intersection(batch):
        raise ValueError(f"modality {name!r} has the name of an axis in ArviZ; build the model with another name")
    _fits("row_names", row_names, batch.rows)
    check_members("feature_names", feature_names, getattr(vae, "modalities", batch))
    for name, labels in feature_names.items():
        if name in batch:
            _fits(f"feature_names[{name!r}]", labels, batch[name].shape[1:].numel())


def _modality(
    name: str, batch: Batch, seen: Tensor, predicted: Mapping[str, Tensor], log_likelihood: Mapping[str, Tensor]
) -> dict[str, Variable]:
    """Group -> what it holds of a modality in the rows `seen` (row,)."""
    axes = (f"{name}_row", f"{name}_feature")
    value = batch[name].double()
    value = torch.where(with_axes(batch.mask[name], value.dim()), value, torch.nan)[seen].reshape(int(seen.sum()), -1)
    found: dict[str, Variable] = {"observed_data": (axes, value.cpu().numpy())}
    if name in predicted:  # it may be one to look at alone
        drawn = predicted[name][:, seen]
        found["posterior_predictive"] = ((*DRAWS, *axes), _chain(drawn.reshape(len(drawn), *value.shape)))
        found["log_likelihood"] = ((*DRAWS, axes[0]), _chain(log_likelihood[name][:, seen]))
    return found


def _latents(latents: dict[str, Tensor], log_weights: Tensor | None) -> dict[str, dict[str, Variable]]:
    """The groups of the codes and their weights, if they have any."""
    posterior = {"posterior": {k: _code(k, v, "draw", "row") for k, v in latents.items()}}
    if log_weights is None:
        return posterior
    stats: dict[str, Variable] = {
        "log_weight": ((*DRAWS, "row"), _chain(log_weights)),
        "khat": (("row",), smooth(log_weights).khat.cpu().numpy()),
    }
    return {**posterior, "sample_stats": stats}


def _prior(vae: Any, num_draws: int) -> dict[str, dict[str, Variable]]:
    """The groups of draws from the model alone; none if it cannot be drawn from without data."""
    try:
        latents, drawn = joint_draws(vae, num_draws)
    except (ValueError, TypeError, AttributeError):
        return {}
    features = {k: v.reshape(num_draws, -1) for k, v in drawn.items()}
    return {
        "prior": {k: _code(k, v, "draw") for k, v in latents.items()},
        "prior_predictive": {k: ((*DRAWS, f"{k}_feature"), _chain(v)) for k, v in features.items()},
    }


def _code(name: str, value: Tensor, *axes: str) -> Variable:
    """A code (*axes, *event), its entries along one axis; a single number has none."""
    if value.dim() == len(axes):
        return ("chain", *axes), _chain(value)
    return ("chain", *axes, "latent" if name == "z" else f"{name}_latent"), _chain(value.flatten(len(axes)))


def _chain(value: Tensor) -> np.ndarray:
    """(draw, ...) as one chain, (1, draw, ...)."""
    return value.unsqueeze(0).cpu().numpy()


def _listed(labels: Any) -> list[Any]:
    if isinstance(labels, (str, type)) or not hasattr(labels, "__iter__"):
        raise ValueError(f"row_names is {kind_of(labels)}; give a list, one label a row")
    return list(labels)


def _fits(what: str, labels: Sequence[Any], size: int) -> None:
    if len(labels) != size:
        raise ValueError(f"{what} has {len(labels)} labels for {size} entries; give one for each")
