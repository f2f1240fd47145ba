"""log p(x_T | x_S): the model's own, and what a guide makes of it. The two are not the same number."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_mmvae.arrays import whole
from pyro_mmvae.checks import check_collection
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.diagnostics.comparable import looks_at_data
from pyro_mmvae.diagnostics.refine import PARTICLES, fit_normal, marginal, moments, normal
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.diagnostics.witness import of_prior
from pyro_mmvae.errors import standard_error
from pyro_mmvae.evidence import LogLikelihood, estimate
from pyro_mmvae.modes import tool
from pyro_mmvae.psis import smooth
from pyro_mmvae.questions import known, nesting, opened
from pyro_mmvae.warn import warn
from pyro_mmvae.weights import chunks, draw, parts


@tool
def conditional_log_likelihood(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    given: Collection[str],
    targets: Collection[str],
    num_particles: int = 1000,
) -> LogLikelihood:
    """The model's log p(x_T | x_S) = log p(x_S, x_T) - log p(x_S), both from the same draws of one strong proposal.

    The proposal is a mixture in equal parts of three normals: two refined for each row, one for p(z | x_S), the other
    for p(z | x_S, x_T), and one with the moments of the prior, which reaches all of a posterior that knows little. So
    neither term is at the mercy of the guide, and their errors have the draws in common.

    Limits: where the prior looks at the data (`Pooled`, `DynamicPrior`, a fusion) the two terms have two priors, and
    their difference is no likelihood, of which a warning tells: probabilities of three labels summed to 0.4 to 2.6.

    Args:
        vae: a `MultimodalVAE`, or a `Pair` with continuous codes.
        x, mask: as in `vae.model`.
        given: S.
        targets: T, without S.
        num_particles: draws a row.

    Returns:
        `LogLikelihood`; its k-hat is the worse of the two terms'. A difference of two bounds is none. The third normal
        keeps most weights bounded, so that k-hat warns too often here: in ten likelihoods of one code whose truth is
        known it was bad for a third of the rows, of which 94 % lay within two standard errors, as of the others.
        Zero in a row that has nothing of T.

    Raises:
        ValueError: bad input, a name that is no modality, or in both lists, or a discrete code.

    Reference:
        Veach and Guibas, 1995, Optimally Combining Sampling Techniques for Monte Carlo Rendering,
        https://doi.org/10.1145/218380.218498

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> conditional_log_likelihood(vae, x, given=["a"], targets=["b"], num_particles=100).value.shape
        torch.Size([20])
    """
    num_particles = whole("num_particles", num_particles)
    batch, found = opened(vae, x, mask), []
    for names in (given, targets):
        check_collection(names)
        known(vae, names)
    _refuse_both(given, targets)
    batch = batch.only([*given, *targets])
    _warn_of_prior(vae, batch)
    depth = nesting(vae, batch)
    for part in parts(batch, PARTICLES):
        small, large = Target(vae, part.only(given), depth), Target(vae, part, depth)
        shared = large.columns(small.sites)
        first, second = fit_normal(small, full_rank=True), fit_normal(large, full_rank=True)
        normals = [_with(second, first, shared), second, moments(of_prior(large, 1000).z, full_rank=True)]
        proposal = _mixture(normals)
        z = proposal.sample((num_particles,))
        top = large.log_weights(z, proposal)
        bottom = small.log_weights(z[..., shared], _mixture([marginal(q, shared) for q in normals]))
        above, below = smooth(top), smooth(bottom)
        terms = (top - above.log_mean).exp() - (bottom - below.log_mean).exp()
        worse = torch.maximum(above.khat, below.khat)
        found.append(LogLikelihood(above.log_mean - below.log_mean, standard_error(terms), worse))
    return LogLikelihood(*(torch.cat(column) for column in zip(*found)))


def _refuse_both(given: Collection[str], targets: Collection[str]) -> None:
    for name in (name for name in given if name in targets):
        raise ValueError(
            f"modality {name!r} is in given and in targets, and what is given is not to be predicted; leave it out of"
            " one of them"
        )


def _warn_of_prior(vae: Any, batch: Batch) -> None:
    if looks_at_data(vae, batch):
        warn(
            "a prior of the model looks at the data that it explains, so that log p(x_T | x_S) is no likelihood; ask"
            " a model of the same parts with another prior, such as"
            " mm.MultimodalVAE(vae.modalities, mm.StandardNormal(2), vae.fusion)"
        )


def _with(q: MultivariateNormal, part: MultivariateNormal, columns: Tensor) -> MultivariateNormal:
    """q with some coordinates as in `part`, independent of the others."""
    inside = torch.zeros(q.loc.shape[-1], dtype=torch.bool, device=q.loc.device)
    inside[columns] = True
    loc = q.loc.index_copy(1, columns, part.loc)
    covariance = q.covariance_matrix.masked_fill(inside != inside.unsqueeze(-1), 0.0)
    covariance[:, columns.unsqueeze(-1), columns] = part.covariance_matrix
    return MultivariateNormal(loc, covariance, validate_args=False)


def _mixture(normals: Sequence[MultivariateNormal]) -> MixtureSameFamily:
    """The mixture of normals in equal parts, in every row."""
    loc, factors = torch.stack([q.loc for q in normals], 1), torch.stack([q.scale_tril for q in normals], 1)
    shares = torch.full_like(loc[..., 0], 1 / len(normals))
    return MixtureSameFamily(Categorical(shares, validate_args=False), normal(loc, factors), validate_args=False)


@tool
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

    Args: as `conditional_log_likelihood`, discrete codes as well.

    Returns:
        `LogLikelihood`, a lower bound of that in expectation; k-hat is that of the weights p(x_T | z).

    Raises:
        ValueError: bad input, or a name that is no modality.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = guide_predictive_log_likelihood(vae, x, given=["a"], targets=["b"], num_particles=100)
        >>> found.value.shape
        torch.Size([20])
    """
    num_particles = whole("num_particles", num_particles)
    batch, found = opened(vae, x, mask), []
    for names in (given, targets):
        check_collection(names)
        known(vae, names)
    depth = nesting(vae, batch)
    for part, sizes in chunks(batch, num_particles):
        drawn = [draw(vae, part, k, given=given, targets=targets, depth=depth).log_likelihood for k in sizes]
        zero = torch.zeros((), device=part.device)
        totals = [sum((one[n] for n in dict.fromkeys(targets) if n in one), zero) for one in drawn]
        found.append(estimate(torch.cat([total.expand(k, part.rows) for total, k in zip(totals, sizes)])))
    return LogLikelihood(*(torch.cat(column) for column in zip(*found)))
