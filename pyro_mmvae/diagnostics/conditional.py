"""log p(x_T | x_S): the model's own, and what a guide makes of it. The two are not the same number."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch

from pyro_mmvae.data import Arrays
from pyro_mmvae.inference import LogLikelihood, log_likelihood
from pyro_mmvae.psis import smooth
from pyro_mmvae.weights import chunks, draw, nesting, opened


def conditional_log_likelihood(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    given: Collection[str],
    targets: Collection[str],
    num_particles: int = 1000,
) -> LogLikelihood:
    """The model's log p(x_T | x_S) = log p(x_S, x_T) - log p(x_S), each by importance sampling from its own guide.

    Args:
        given: S.
        targets: T, without S.
        num_particles: draws for each of the two terms.

    Returns:
        `LogLikelihood`; its k-hat is the worse of the two.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> conditional_log_likelihood(vae, x, given=["a"], targets=["b"], num_particles=100).value.shape
        torch.Size([20])
    """
    both = [*given, *(name for name in targets if name not in given)]
    whole = log_likelihood(vae, x, mask, num_particles=num_particles, targets=both)
    part = log_likelihood(vae, x, mask, num_particles=num_particles, targets=list(given))
    se = (whole.se**2 + part.se**2).sqrt()
    return LogLikelihood(whole.value - part.value, se, torch.maximum(whole.khat, part.khat))


@torch.no_grad()
def guide_predictive_log_likelihood(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    given: Collection[str],
    targets: Collection[str],
    num_particles: int = 1000,
) -> LogLikelihood:
    """log E_{z ~ q(z | x_S)} p(x_T | z): how well the *guide* predicts, which other libraries print as conditional
    likelihood. It is the model's log p(x_T | x_S) only if q(z | x_S) is the model's posterior.

    Args and Returns: as `conditional_log_likelihood`.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = guide_predictive_log_likelihood(vae, x, given=["a"], targets=["b"], num_particles=100)
        >>> found.value.shape
        torch.Size([20])
    """
    batch, found = opened(vae, x, mask), []
    depth = nesting(vae, batch)
    for part, sizes in chunks(batch, num_particles):
        drawn = [draw(vae, part, k, given=given, targets=targets, depth=depth).log_likelihood for k in sizes]
        weights = torch.cat([torch.stack([one[name] for name in targets if name in one]).sum(0) for one in drawn])
        value = weights.logsumexp(0) - math.log(num_particles)
        se = (weights - value).exp().std(0) / math.sqrt(num_particles)
        found.append((value, se, smooth(weights).khat))
    return LogLikelihood(*(torch.cat(column) for column in zip(*found)))
