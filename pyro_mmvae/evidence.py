"""How likely a row is: log p(x_S) by importance sampling from the guide."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mmvae.arrays import counted, percent, whole
from pyro_mmvae.checks import refuse
from pyro_mmvae.data import Arrays
from pyro_mmvae.errors import error_of_mean, standard_error
from pyro_mmvae.modes import tool
from pyro_mmvae.psis import LARGEST, UNTOLD, smooth
from pyro_mmvae.questions import known, nesting, opened
from pyro_mmvae.weights import chunks, draw


class LogLikelihood(NamedTuple):
    """log p(x_S) of every row by importance sampling.

    Attributes:
        value: (row,), in nats; a lower bound in expectation. Zero in a row that has nothing of what is asked for.
        se: (row,), its Monte-Carlo standard error in nats, to be believed where k-hat is below 0.3. Up to the limit it
            is on the small side, as the weights that were drawn tell too little of those that were not: of rows whose
            truth is known one in five lay beyond two of them, and with diagonal guides of thin posteriors (counts of
            thousands) most did; the ones of `mm.gaps(full_rank=True)` were right there.
        khat: (row,), the Pareto shape of the weights' tail; good below `mm.khat_limit(num_particles)`. Infinite below
            25 draws, which cannot tell it, and -inf where all weights are the same.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = mm.log_likelihood(vae, x, num_particles=100)
        >>> found.value.shape, found.se.shape, found.khat.shape
        (torch.Size([20]), torch.Size([20]), torch.Size([20]))
    """

    value: Tensor
    se: Tensor
    khat: Tensor

    def __repr__(self) -> str:
        rows, mean, se = counted(len(self.value), "row"), float(self.value.mean()), error_of_mean(self.se)
        bad = float((self.khat > LARGEST).double().mean())
        trust = f"k-hat is above {LARGEST}, not to be trusted at any number of draws, for {percent(bad)} of them"
        if bool(self.khat.isposinf().all()):
            trust = UNTOLD
        whose = "(Monte-Carlo standard error of the mean)"
        return f"log-likelihood of {rows}, {mean:z.3f} +- {se:.3f} nats a row {whose}\n{trust}"


@tool
def log_likelihood(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    num_particles: int = 1000,
    given: Collection[str] | None = None,
    targets: Collection[str] | None = None,
) -> LogLikelihood:
    """log p(x_S), S = what is observed in each row (or `targets` of it), in chunks that keep memory bounded.

    log p(x_S) ~ log 1/K sum_k p(x_S, z_k) / q(z_k | x_S), z_k ~ q(z | x_S).

    Where k-hat is bad, `mm.gaps(vae, x, full_rank=True)` has a tighter `log_likelihood`, by a proposal of its own for
    each row, and `mm.annealed_log_likelihood` checks both.

    Limits: where the prior looks at the data (`Pooled`, `DynamicPrior`, a fusion; as in MVTCAE, JMVAE, CRMVAE, mmJSD
    and alignment) this is no likelihood of x, and is not to be compared with one; nor is it with a `pyro.factor` in a
    model of the user's, which counts.

    Args:
        vae: a `MultimodalVAE` or a `Pair`.
        x, mask: as in `vae.model`.
        num_particles: K.
        given: what the guide may look at, when the proposal is to differ from the targets. Beside
            targets, conditions (`mm.Conditioned`) have to be in it, or they count as missing.
        targets: the modalities whose likelihood is asked for; None = all that are observed. What is neither here nor
            in `given` is not looked at.

    Returns:
        `LogLikelihood`; modality weights do not enter it.

    Raises:
        ValueError: bad input, or a row whose log p(x_S) is not finite.

    Reference:
        Burda, Grosse and Salakhutdinov, 2016, Importance Weighted Autoencoders, https://arxiv.org/abs/1509.00519

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> alone, both = log_likelihood(vae, x, targets=["a"]), log_likelihood(vae, x)
        >>> both.value.shape
        torch.Size([20])
    """
    num_particles = whole("num_particles", num_particles)
    batch, found = opened(vae, x, mask), []
    known(vae, given)
    known(vae, targets)
    depth = nesting(vae, batch)
    for part, sizes in chunks(batch if targets is None else batch.only({*targets, *(given or ())}), num_particles):
        logs = [draw(vae, part, k, given=given, targets=targets, depth=depth).log_weights for k in sizes]
        found.append(estimate(torch.cat(logs)))
    result = LogLikelihood(*(torch.cat(column) for column in zip(*found)))
    refuse(batch, result.value.isfinite(), "log p(x)")
    return result


def estimate(log_weights: Tensor) -> LogLikelihood:
    """The logarithm of the mean of weights, given by their logarithms (draw, row)."""
    smoothed = smooth(log_weights)
    se = standard_error((log_weights - smoothed.log_mean).exp())
    return LogLikelihood(smoothed.log_mean, se, smoothed.khat)
