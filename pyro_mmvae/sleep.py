"""Guides taught by the model: the sleep phase, which covers the posterior of every subset of the modalities."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_mmvae.arrays import with_axes
from pyro_mmvae.data import Batch
from pyro_mmvae.diagnostics.simulated import WholeMixtures, conditions, placed_in, simulate
from pyro_mmvae.objectives import Loss
from pyro_mmvae.programs import Pair
from pyro_mmvae.sites import per_row


class Sleep(Loss):
    """-E log q(z | x_S), z and x drawn from the model, S drawn for every row: forward KL to p(z | x_S), nats.

    The ELBO leaves out what q cannot reach without cost, and so its guides tend to be over-confident; with this loss
    they cover the posterior instead, for every S alike; weights of modalities are left aside. It teaches the guide
    alone: use it in a second phase, after `mm.objectives.encoders_only(vae)` or with another optimiser over the guide's
    own parameters, as the model learns nothing from its own dreams. Each modality of a simulated row has the single
    holes of a random row of the data that has it, and is hidden as a whole with probability `hide`, all but one where
    that would be all of them. What the model looks at and does not explain is as in rows of the data.

    Limits: the model must be one that can be drawn from without data; what it simulates is not the data, so a guide of
    a poor model is calibrated for that and may still serve real rows badly: look at k-hat.

    Args:
        hide: probability.

    Reference:
        Hinton, Dayan, Frey and Neal, 1995, The Wake-Sleep Algorithm for Unsupervised Neural Networks,
        https://doi.org/10.1126/science.7761831; Bornschein and Bengio, 2015, Reweighted Wake-Sleep,
        https://arxiv.org/abs/1406.2751

    Example:
        >>> import pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> history = mm.fit(vae, x, epochs=2, progress=False)
        >>> free = mm.objectives.encoders_only(vae)
        >>> history = mm.fit(vae, x, loss=Sleep(), epochs=2, progress=False)
    """

    def __init__(self, hide: float = 0.5):
        super().__init__(max_plate_nesting=2)
        self.hide = hide

    def __repr__(self) -> str:
        return f"Sleep(hide={self.hide:g})"

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of as many simulated rows as the batch `(x, mask)` has, a scalar that can be differentiated."""
        data, pair = Batch.of(*args, **kwargs), Pair(model, guide)
        looked = conditions(pair, data, data)
        simulated = simulate(pair, data.rows, data, looked)
        batch = self._hidden(simulated.batch, looked)
        with pyro.validation_enabled(False), WholeMixtures():
            trace = poutine.trace(poutine.condition(guide, placed_in(pair, simulated.truth, batch)))
            sites = trace.get_trace(batch, batch.mask).nodes
        logs = [per_row(sites[name], 1, batch.rows).sum() for name in simulated.truth if name in sites]
        return -torch.stack(logs).sum()

    def _hidden(self, batch: Batch, looked: Collection[str]) -> Batch:
        """With a random subset of the modalities of every row, and of what is only looked at all that there is."""
        names = [name for name in batch if name not in looked]
        chance = torch.rand(len(names), batch.rows, device=batch.device)
        kept = (chance >= self.hide) | (chance == chance.amax(0))
        keep = dict(zip(names, kept))
        mask = {k: old & with_axes(keep[k], old.dim()) if k in keep else old for k, old in batch.mask.items()}
        return Batch(dict(batch), mask, batch.rows, frozenset())
