"""Two models, one above the other: the codes of the lower are the data of the upper."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.checks import check_made_for, seen_rows
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.experts import Experts
from pyro_mmvae.objectives import Loss, Objective, Pass, dropped
from pyro_mmvae.observe import observe
from pyro_mmvae.plates import plate, shared_plate
from pyro_mmvae.programs import program
from pyro_mmvae.storage import save
from pyro_mmvae.vae import MultimodalVAE
from pyro_mmvae.view import EVERYTHING, View


class TwoLevels(nn.Module):
    """p(z) prod_m p(w_m | z) p(x_m | w_m): a top model over the codes of a bottom model, as one model and guide.

    The guide's z sees the means of q(w_m | x_m); the code of a missing modality is drawn from p(w_m | z). Every tool
    that takes a `MultimodalVAE` takes this one.

    Args:
        bottom: a model of private codes alone.
        top: a model whose modalities, of the same names, are those codes.
    """

    def __init__(self, bottom: MultimodalVAE, top: MultimodalVAE):
        super().__init__()
        self.bottom, self.top = bottom, top
        self.modalities = bottom.modalities

    @program
    def model(self, x: Arrays | None = None, mask: Arrays | None = None, view: View = EVERYTHING) -> Tensor:
        """As in `MultimodalVAE`."""
        batch, seen = self.bottom.open(x, mask)
        with shared_plate("data", batch.rows, dim=-2):
            z = pyro.sample("z", self.top.prior(None))  # type: ignore[misc]
            for name, modality in self.bottom.explained(x, seen, view):
                w = pyro.sample(f"{name}.w", self._below(name, z))
                observe(name, modality, w, seen.get(name))
        return z

    @program
    def guide(self, x: Arrays | None = None, mask: Arrays | None = None, view: View = EVERYTHING) -> Tensor:
        """As in `MultimodalVAE`."""
        batch, seen = self.bottom.open(x, mask)
        own = self._codes(x, mask, view.given)
        with plate("data", batch.rows, dim=-2):
            z = pyro.sample("z", self.top.fusion(self._messages(own)))  # type: ignore[misc]
            for name, _ in self.bottom.explained(x, seen, view):
                pyro.sample(f"{name}.w", own.where_seen(name, self._below(name, z)))
        return z

    def posterior(
        self, x: Arrays | None, mask: Arrays | None = None, given: Collection[str] | None = None
    ) -> Distribution:
        """q(z | x_S), batch (row,), event (dim,)."""
        self.check_names(() if given is None else given)
        return self.top.posterior(self._means(self._codes(x, mask, given)))

    @property
    def prior(self) -> Callable[..., Distribution]:
        """Of z."""
        return self.top.prior  # type: ignore[return-value]

    def experts(self, x: Arrays | None, mask: Arrays | None = None) -> Experts:
        """What the fusion of the top looks at: the codes that were seen; for what asks a prior for its distribution."""
        return self._messages(self._codes(x, mask, None))

    def check(
        self, x: Arrays | None, mask: Arrays | None = None, likelihoods: Mapping[str, Distribution] | None = None
    ) -> Batch:
        """As in `MultimodalVAE`."""
        above = self.top.modalities.keys()
        check_made_for(self.bottom.modalities.keys(), above, "code in the top model; add it to top.modalities too")
        return self.bottom.check(x, mask, likelihoods)

    def check_names(self, names: Collection[str]) -> None:
        """As in `MultimodalVAE`."""
        self.bottom.check_names(names)

    def likelihoods(self, batch: Batch | None = None) -> dict[str, Distribution]:
        """As in `MultimodalVAE`."""
        return self.bottom.likelihoods(batch)

    def save(self, path: str | os.PathLike[str]) -> None:
        """As in `MultimodalVAE`."""
        save(self, path)

    def _below(self, name: str, z: Tensor) -> Distribution:
        """p(w_m | z)."""
        decoder = self.top.modalities[name].decoder
        assert decoder is not None
        return decoder(z)

    def _codes(self, x: Arrays | None, mask: Arrays | None, given: Collection[str] | None) -> Experts:
        return self.bottom.experts(x, mask).private(given)

    def _means(self, own: Experts) -> Batch:
        """The means of the codes that were seen, as data of the top; no modality at all if nothing was."""
        x, mask = {n: own[n].mean.squeeze(1) for n in own}, {n: own.given[n].squeeze(1) for n in own}
        codes = Batch(x, mask, own.rows, frozenset())
        # means of the bottom's own are real numbers of the right shape
        codes.checked, codes.judges = self.top, self.top.decoders
        return codes

    def _messages(self, own: Experts) -> Experts:
        return self.top.experts(self._means(own))


class TwoLevelLoss(Loss):
    """The bottom's ELBO, and the top's on codes drawn from the bottom's guide, with no gradient between them.

    Args:
        dropout: probability that the top's guide sees a random subset of the modalities of a batch.
        beta: weight of the top's KL.
    """

    def __init__(self, dropout: float, beta: float = 1.0):
        super().__init__(max_plate_nesting=2)
        self.bottom, self.top = Objective(), Objective([Pass(dropped(dropout), beta=beta)])

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch `(x, mask)`."""
        levels, batch = guide.vae, Batch.of(*args, **kwargs).remembering()
        below = self.bottom.differentiable_loss(levels.bottom.model, levels.bottom.guide, batch)
        with torch.no_grad():
            drawn = poutine.trace(levels.bottom.guide).get_trace(batch, batch.mask)
        codes = {n: drawn.nodes[f"{n}.w"]["value"].squeeze(1) for n in batch if f"{n}.w" in drawn.nodes}
        seen = {n: seen_rows(batch.mask[n]) for n in codes}
        above = Batch(codes, seen, batch.rows, batch.complete & codes.keys())
        above.known = {n: batch.known[n] for n in codes if n in batch.known}
        above.filled = None if batch.filled is None else batch.filled & codes.keys()
        above.covered = batch.covered if len(codes) == len(batch) else above.covered
        return below + self.top.differentiable_loss(levels.top.model, levels.top.guide, above)
