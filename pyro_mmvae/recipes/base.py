"""What all recipes share."""

from __future__ import annotations

from collections.abc import Mapping

from pyro.distributions import Distribution
from pyro.infer import Trace_ELBO

from pyro_mmvae.arrays import whole
from pyro_mmvae.checks import check_made_for, check_members, check_named
from pyro_mmvae.distributions import by_component
from pyro_mmvae.experts import Experts
from pyro_mmvae.fusion import Fusion
from pyro_mmvae.modality import Modality
from pyro_mmvae.objectives import Objective
from pyro_mmvae.vae import MultimodalVAE

Modalities = Mapping[str, Modality]
Ready = tuple[MultimodalVAE, Objective | Trace_ELBO]


def check_sizes(sizes: Mapping[str, int], modalities: Modalities, what: str = "sizes") -> None:
    """Refuses sizes of what is no modality, or none for one that is looked at.

    Args:
        what: the name of the argument.
    """
    check_named("modalities", modalities, "{'image': mm.Modality(decoder, encoder)}")
    check_named(what, sizes, "{'image': 128, 'sound': 40}")
    check_members(what, sizes, modalities)
    for name in sizes:
        whole(f"{what}[{name!r}]", sizes[name])
    looked = [name for name, modality in modalities.items() if modality.encoder is not None]
    check_made_for(looked, sizes, f"size; add it to {what}")


class ByComponent(Fusion):
    """A fusion whose mixture is scored by the component that each draw came from: the bound of MoPoE and mmJSD.

    A row with nothing given has the model's prior, whole: it costs nothing.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), ByComponent(mm.MoE()))
        >>> type(vae.posterior(x)).__name__
        'Mixture'
    """

    def __init__(self, fusion: Fusion):
        super().__init__()
        self.fusion = fusion

    def fuse(self, experts: Experts) -> Distribution:
        return by_component(self.fusion.fuse(experts))
