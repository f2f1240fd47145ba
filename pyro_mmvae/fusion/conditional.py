"""Parts that look at some of the modalities alone, and codes that carry what is conditioned on beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from pyro.distributions import Distribution
from torch import nn

from pyro_mmvae.checks import check_collection, check_members
from pyro_mmvae.distributions import Beside, like
from pyro_mmvae.experts import Experts, otherwise
from pyro_mmvae.fusion.base import Fusion
from pyro_mmvae.fusion.learned import features_beside

Lazy = Callable[..., Distribution]


class Conditioned(nn.Module):
    """[z, c] in place of z: c holds the features of the modalities that are conditioned on, and which are there.

    Wraps a prior and a fusion alike; both carry the same c, so that it cancels from the bound, and decoders take
    dim + sum(sizes) + len(sizes) numbers. Without data all conditions count as missing. What the same rows would be
    under other conditions: `mm.predict(vae, {**x, "label": other}, latents=mm.posterior_draws(vae, x).latents)`.

    Args:
        part: the prior or the fusion of z.
        sizes: name -> number of features that the trunk gives, or the data has where there is no trunk.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> Conditioned(mm.StandardNormal(4), {"label": 10})(None).event_shape
        torch.Size([15])
    """

    def __init__(self, part: Lazy, sizes: Mapping[str, int]):
        super().__init__()
        self.part, self.sizes = part, dict(sizes)

    def forward(self, experts: Experts | None) -> Distribution:
        if experts is None:
            part = self.part(None)
            return Beside(part, like(part).new_zeros(sum(self.sizes.values()) + len(self.sizes)))
        return Beside(self.part(experts), features_beside(experts, self.sizes).unsqueeze(1))


class LooksAt(nn.Module):
    """A prior or a fusion that is shown the named modalities alone.

    Args:
        names: of the modalities.
        part: the prior or the fusion.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), LooksAt(["a"], mm.PoE()))
        >>> bool((vae.posterior(x).mean == vae.posterior(x, given=["a"]).mean).all())
        True
    """

    def __init__(self, names: Collection[str], part: Lazy):
        super().__init__()
        check_collection(names)
        self.names, self.part = tuple(names), part

    def forward(self, experts: Experts | None) -> Distribution:
        if experts is None:
            return self.part(None)
        check_members("LooksAt", self.names, experts.modalities)
        return self.part(experts.only(self.names))


class WhereGiven(nn.Module):
    """A fusion in the rows that have the named modality, and a prior in all others.

    Args:
        name: of the modality.
        fusion: for the rows that have it.
        prior: for the rest.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x, prior = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}, mm.StandardNormal(2)
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), prior, WhereGiven("a", mm.PoE(), prior))
        >>> vae.posterior(x, given=["b"]).mean.abs().max()
        tensor(0.)
    """

    def __init__(self, name: str, fusion: Fusion, prior: Lazy):
        super().__init__()
        self.name, self.fusion, self.prior = name, fusion, prior

    def forward(self, experts: Experts) -> Distribution:
        prior = self.prior(experts).expand((experts.rows, 1))
        if self.name not in experts:
            check_members("WhereGiven", [self.name], experts.modalities)
            return prior
        where = experts.given[self.name].any(-1, keepdim=True)
        fused = self.fusion.fuse(experts)
        return fused if experts.seen[self.name].whole else otherwise(where, fused, prior)
