"""Importance weights of every row: how far a guide can be trusted, and what repairs it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mmvae.arrays import counted, percent, tensor_of, whole, with_axes
from pyro_mmvae.checks import refuse
from pyro_mmvae.data import Arrays
from pyro_mmvae.modes import tool
from pyro_mmvae.psis import UNTOLD, khat_limit, resampled, share_good, smooth
from pyro_mmvae.questions import opened
from pyro_mmvae.weights import draw_in_parts


class Importance(NamedTuple):
    """Weighted draws of the latents of every row.

    Attributes:
        latents: site -> (draw, row, *event). The private code of a modality that a row lacks is drawn from its prior,
            and NaN where no row nearby has that modality.
        log_weights: (draw, row), Pareto-smoothed, each row normalised to sum to one.
        khat: (row,); good below `mm.khat_limit(draws)`.
        ess: (row,), effective number of draws, 1 / sum of squared weights.
        raw: (draw, row), log p(x, z) - log q(z | x), in nats.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = mm.importance(vae, x, num_draws=100)
        >>> found.mean().shape, found.resample(10)["z"].shape
        (torch.Size([20, 2]), torch.Size([10, 20, 2]))
    """

    latents: dict[str, Tensor]
    log_weights: Tensor
    khat: Tensor
    ess: Tensor
    raw: Tensor

    def __repr__(self) -> str:
        draws, rows = self.log_weights.shape
        good, limit = share_good(self.khat, draws), khat_limit(draws)
        whose = f"{', '.join(self.latents)} for {'each of ' * (rows != 1)}{counted(rows, 'row')}"
        trust = f"k-hat is good, below {limit:.2f}, for {percent(good)} of them"
        if bool(self.khat.isposinf().all()):
            trust = UNTOLD
        return (
            f"{counted(draws, 'weighted draw')} of {whose}\n{trust}; effective draws:"
            f" {float(self.ess.median()):.0f} in the median row, {float(self.ess.min()):.0f} in the worst"
        )

    def expectation(self, function: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """Self-normalised E[f(codes) | x_S], (row, ...).

        Args:
            function: of the codes by site, (draw, row, *event) each; returns (draw, row, ...).

        Raises:
            ValueError: it returns something else, such as a mean over draws, which would be taken without weights.
        """
        value = tensor_of("what the function returned", function(self.latents))
        if value.shape[:2] != self.log_weights.shape:
            draws, rows = self.log_weights.shape
            raise ValueError(
                f"the function returned shape {tuple(value.shape)}; give one value for each of {draws} draws of {rows}"
                f" rows, ({draws}, {rows}, ...), without a mean over draws"
            )
        return (with_axes(self.log_weights.exp(), value.dim()) * value).sum(0)

    def mean(self, site: str = "z") -> Tensor:
        """Self-normalised posterior mean, (row, *event); raises ValueError if there is no code of that name."""
        if site not in self.latents:
            raise ValueError(f"no code {site!r} was drawn; there is {', '.join(self.latents) or 'none'}")
        return self.expectation(lambda latents: latents[site])

    def sd(self, site: str = "z") -> Tensor:
        """Self-normalised posterior standard deviation, (row, *event)."""
        mean = self.mean(site)
        return self.expectation(lambda latents: (latents[site] - mean) ** 2).sqrt()

    def resample(self, num_draws: int) -> dict[str, Tensor]:
        """Unweighted draws of every site, (draw, row, *event): each row draws from its own, with replacement."""
        index = resampled(self.log_weights, whole("num_draws", num_draws))
        row = torch.arange(index.shape[1], device=index.device)
        return {name: value[index, row] for name, value in self.latents.items()}


@tool
def importance(
    vae: Any,
    x: Arrays,
    mask: Arrays | None = None,
    *,
    given: Collection[str] | None = None,
    num_draws: int = 1000,
) -> Importance:
    """Draws of z ~ q(z | x_S), weighted towards p(z | x_S).

    Args:
        vae: a `MultimodalVAE`, or a `Pair` of any model and guide; sites outside the plate "data" are drawn, and the
            weights are conditional on them.
        x, mask: as in `vae.model`.
        given: S; None = all that is observed. Guide and model both look at S alone.
        num_draws: draws a row.

    Returns:
        `Importance`.

    Raises:
        ValueError: bad input, a name that is no modality, or a row whose weights are not finite.

    Reference:
        Vehtari, Simpson, Gelman, Yao and Gabry, 2024, Pareto Smoothed Importance Sampling,
        https://arxiv.org/abs/1507.02646

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = importance(vae, x, given=["a"], num_draws=100)
        >>> bool((found.ess <= 100.001).all())
        True
    """
    num_draws = whole("num_draws", num_draws)
    batch = opened(vae, x, mask, given)
    latents, raw, _ = draw_in_parts(vae, batch, num_draws)
    refuse(batch, raw.logsumexp(0).isfinite(), "the sum of the weights")
    smoothed = smooth(raw)
    return Importance(latents, smoothed.log_weights, smoothed.khat, smoothed.ess, raw)
