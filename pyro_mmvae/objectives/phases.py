"""What methods of two phases need for the second: a loss that teaches experts alone, and what to freeze."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.objectives.loss import Loss
from pyro_mmvae.vae import MultimodalVAE


class Match(Loss):
    """-sum_m E_{q(z | x)} log q_m(z | x_m): unimodal experts that learn to cover the joint posterior, which stays.

    Rows that lack a modality have no joint posterior to match and are left out. The experts of repeats are averaged.

    Args:
        vae: the model whose experts learn.

    Reference:
        Senellart, Chadebec and Allassonniere, 2023, https://arxiv.org/abs/2305.11832
    """

    def __init__(self, vae: MultimodalVAE):
        super().__init__(max_plate_nesting=2)
        self.vae = vae

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch `(x, mask)`, a scalar that can be differentiated."""
        experts = self.vae.experts(*args, **kwargs)
        # not under no_grad: what the fusion asks the experts is what they learn by below
        z = self.vae.fusion(experts).sample().squeeze(1)  # type: ignore[misc]
        whole = [given.any(-1) for given in experts.given.values()]
        looked_at = [name for name, modality in self.vae.modalities.items() if modality.encoder is not None]
        complete = torch.stack(whole).all(0) & (len(whole) == len(looked_at))
        total = z.new_zeros(())
        for name, given in experts.given.items():
            row = given.nonzero()[:, 0]
            log = experts.entries(name).log_prob(z[row]) / given.sum(-1)[row]
            total = total - torch.where(complete[row], log, 0).sum()
        return total


def encoders_only(vae: Any, names: Collection[str] | None = None) -> list[Tensor]:
    """Freezes all of a VAE but the encoders (of the named modalities) for a second phase; returns what stays free."""
    vae.requires_grad_(False)
    free = []
    for name, modality in vae.modalities.items():
        if modality.encoder is not None and (names is None or name in names):
            free += list(modality.encoder.requires_grad_(True).parameters())
    return free
