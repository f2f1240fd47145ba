"""Where the codes of a site stand among the real coordinates of a row, and how they get there."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.distributions import Distribution, SineBivariateVonMises, SineSkewed, TransformedDistribution, VonMises
from torch import Tensor
from torch.distributions import Transform, biject_to
from torch.distributions.constraints import Constraint, independent, interval

from pyro_mmvae.distributions import plain_support
from pyro_mmvae.sites import around, besides, row_axis

ANGLES = VonMises, SineBivariateVonMises, SineSkewed
WRAPPED = "base_dist", "component_distribution", "components"


class Coordinates(NamedTuple):
    """Where the codes of one site stand among the real coordinates of a row.

    Attributes:
        columns: of the coordinates.
        transform: reals -> the support of the site.
        real, inner: shape of one row's value in the reals and on the support, plates besides "data" first.
        left: plates on the left of the rows.
        shape: of one row's value as `mm.importance` gives it.
    """

    columns: slice
    transform: Transform
    real: torch.Size
    inner: torch.Size
    left: int
    shape: list[int]


def coordinates(name: str, site: Any, start: int, depth: int) -> Coordinates:
    """Those of one site, from column `start` on.

    Raises:
        ValueError: the site is discrete, torch has no transform to its support, or that hangs on rows or other codes.
    """
    support = support_of(site)
    if support.is_discrete:
        raise ValueError(
            f"the site {name!r} is discrete; only continuous codes can be refined, sum it out in the model"
        )
    axis, event = row_axis(site), site["fn"].event_shape
    assert axis is not None
    support = _with_bounds_of_all(name, support, len(event))
    left, right = around(site["fn"].batch_shape, axis, depth)
    try:
        transform = biject_to(support)
    except NotImplementedError:
        kind = f"{type(site['fn']).__name__} has support {support}"
        raise ValueError(f"the site {name!r} cannot be refined: its {kind}, which torch has no transform to") from None
    real, inner = (torch.Size([*left, *right, *own]) for own in (transform.inverse_shape(event), event))
    columns = slice(start, start + real.numel())
    return Coordinates(columns, transform, real, inner, len(left), [*besides(left, right), *event])


def support_of(site: Any) -> Constraint:
    """Where a site has its values; of angles the circle, cut open opposite to zero: along the line that torch names as
    their support their densities go round and round, and have no integral."""
    return interval(-math.pi, math.pi) if of_angles(site["fn"]) else plain_support(site["fn"].support)


def of_angles(p: Distribution) -> bool:
    """Whether the values are angles, which are the same a turn further on."""
    while not isinstance(p, (*ANGLES, TransformedDistribution)) and any(hasattr(p, name) for name in WRAPPED):
        p = next(getattr(p, name) for name in WRAPPED if hasattr(p, name))
    return isinstance(p, ANGLES)


def bounds_of(support: Constraint) -> dict[str, Any]:
    """The bounds of a support, if it has some and they are tensors, by name."""
    while isinstance(support, independent):
        support = support.base_constraint
    bounds = {name: getattr(support, name) for name in ("lower_bound", "upper_bound") if hasattr(support, name)}
    return bounds if any(isinstance(bound, Tensor) for bound in bounds.values()) else {}


def _with_bounds_of_all(name: str, support: Constraint, events: int) -> Constraint:
    """The support with one set of bounds, of an event; raises ValueError if not all draws and rows have the same."""
    if isinstance(support, independent):
        inner = _with_bounds_of_all(name, support.base_constraint, events)
        return independent(inner, support.reinterpreted_batch_ndims)
    found = {}
    for bound, value in bounds_of(support).items():
        value = torch.as_tensor(value)
        found[bound] = value[(0,) * (value.dim() - events)]
        if not bool((value == found[bound]).all()):
            raise ValueError(
                f"the site {name!r} cannot be refined: its bounds hang on the row, or on other codes; let the model"
                f" draw where it stands between them, dist.Uniform(0.0, 1.0), and compute {name!r} from that"
            )
    return type(support)(**found) if found else support
