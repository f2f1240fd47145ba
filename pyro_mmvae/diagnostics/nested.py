"""Whether posteriors of nested subsets of modalities agree: what q(z | x_S) expects, and what q(z | x_S') finds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mmvae.arrays import counted, whole
from pyro_mmvae.checks import check_collection
from pyro_mmvae.data import Arrays
from pyro_mmvae.diagnostics.patterns import rows_with
from pyro_mmvae.distributions import drawn_part
from pyro_mmvae.errors import standard_error
from pyro_mmvae.modes import tool
from pyro_mmvae.programs import with_posterior
from pyro_mmvae.questions import known, opened
from pyro_mmvae.weights import parts


class Nested(NamedTuple):
    """q(z | x_S) against q(z | x_S'), S within S', over rows that have all of S'.

    Whoever sees more may change his mind, but not in a way that was foreseen: the mean of z given more is on average
    that given less, and its changes together with what is left uncertain make up what was uncertain before,
    Var(z | x_S) = E[Var(z | x_S')] + Var(E[z | x_S']).

    Attributes:
        rows: how many.
        gain: E KL(q(z | x_S'), q(z | x_S)), what the further modalities tell, in nats a row.
        shift, shift_se: (dim,), mean change of the mean, in standard deviations of q(z | x_S), and its standard error;
            0 if they agree.
        spread, spread_se: (dim,), the right side of the equation over the left, and its standard error: 1 if they
            agree; above, q(z | x_S) is too sure of itself; below, q(z | x_S') is, or q(z | x_S) is too wide.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = mm.consistency(vae, mm.generate(vae, 200), given=["a"], more=["a", "b"])
        >>> found.rows, found.spread.shape
        (200, torch.Size([2]))
    """

    rows: int
    gain: float
    shift: Tensor
    shift_se: Tensor
    spread: Tensor
    spread_se: Tensor

    def __repr__(self) -> str:
        far = int(self.shift.abs().argmax())
        low, high = int(self.spread.argmin()), int(self.spread.argmax())
        spreads = [f"{float(self.spread[d]):.3f} +- {float(self.spread_se[d]):.3f} (z[{d}])" for d in (low, high)]
        return (
            f"{counted(self.rows, 'row')}, of which the further modalities tell {self.gain:z.3f} nats a row\n"
            f"  largest shift {float(self.shift[far]):z.3f} +- {float(self.shift_se[far]):.3f} (z[{far}]) standard"
            f" deviations, 0 if they agree\n  spread from {spreads[0]} to {spreads[1]}, 1 if they agree"
        )


@tool
def consistency(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    given: Collection[str],
    more: Collection[str],
    num_draws: int = 200,
) -> Nested:
    """Do q(z | x_S) and q(z | x_S') agree, S within S'? On rows of the model they do if both are its posteriors.

    Args:
        vae: a `MultimodalVAE` with a z.
        x, mask: rows of the model's own, `mm.generate(vae, 1000)`: then a disagreement is the guide's. On rows of the
            data it may be the model's as well.
        given, more: S and S'.
        num_draws: draws a row, for the moments and the gain.

    Returns:
        `Nested`.

    Raises:
        ValueError: bad input, S not within S', or no row that has all of S'.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> consistency(vae, x, given=["a"], more=["a", "b"]).gain > 0
        True
    """
    check_collection(given)
    check_collection(more)
    num_draws = whole("num_draws", num_draws, 2)
    if not set(given) < set(more):
        raise ValueError(f"given {sorted(given)} is not within more {sorted(more)}; name a set and one that holds it")
    batch, vae = opened(vae, x, mask), with_posterior(vae)
    known(vae, more)
    complete = rows_with(batch, more)
    if not len(complete):
        raise ValueError(f"no row has all of {sorted(more)}; give rows that do")
    batch, found = batch.take(complete), []
    for part in parts(batch, num_draws):
        less, full = (drawn_part(vae.posterior(part, given=names)) for names in (given, more))  # without conditions
        before, after = less.sample((num_draws,)), full.sample((num_draws,))
        gain = (full.log_prob(after) - less.log_prob(after)).mean(0)
        found.append((after.mean(0) - before.mean(0), after.var(0), before.var(0), gain))
    moved, left, old, gain = (torch.cat(column) for column in zip(*found))
    # The variance of a mean of draws is taken off, so that few draws do not look like changes of mind.
    noise = (left + old) / num_draws
    shift, terms = moved / old.sqrt(), moved**2 - noise + left
    spread = terms.mean(0) / old.mean(0)
    residual = (terms - spread * old) / old.mean(0)
    shift_se, spread_se = map(standard_error, (shift, residual))
    return Nested(batch.rows, float(gain.mean()), shift.mean(0), shift_se, spread, spread_se)
