"""The two programs: the generative model and the amortised guide, as Pyro sees them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor

from pyro_mmvae.assembly import Assembly
from pyro_mmvae.chance import devices_of, undisturbed
from pyro_mmvae.checks import refuse
from pyro_mmvae.codes import beside, fused, one_code, own_of, posterior_of, sampled
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.distributions import mapped, numbers_of
from pyro_mmvae.experts import Experts
from pyro_mmvae.modality import check_modalities
from pyro_mmvae.modes import at_rest
from pyro_mmvae.observe import decode, observe
from pyro_mmvae.plates import plate, shared_plate
from pyro_mmvae.programs import alone, program
from pyro_mmvae.seen import seen_in
from pyro_mmvae.storage import save
from pyro_mmvae.support import check_values
from pyro_mmvae.view import EVERYTHING, View


class MultimodalVAE(Assembly):
    """A multimodal variational autoencoder p(z) prod_m p(x_m | z, w_m) with its guide q(z | x_S) prod_m q(w_m | x_m).

    `model` and `guide` are Pyro programs `(x, mask, view)`; with them stock Pyro does the rest:
    `SVI(vae.model, vae.guide, optim, Trace_ELBO())`, `Predictive(vae.model, ...)`, `AutoNormal(vae.model)`, `NUTS`.

    Args:
        modalities: name -> `Modality`. A name becomes a site, so it may not be "z" or "data", nor have a dot.
        prior: of z: a module experts -> distribution with event (dim,), or any function, of the experts or of nothing;
            what is to be learnt of it belongs to a module, as nothing else is trained.
        fusion: how the experts of the given modalities become one posterior. Without prior and fusion (None) there is
            no z, and every modality has its private code alone.
        private_prior: name -> prior of w_m, for every modality with a private code; one that depends on data gets the
            experts of the private codes.
        auxiliary_prior: name -> what w_m is drawn from where `View.private` does not name its modality; the private
            prior by default.

    Raises:
        ValueError: no modality, a name that is taken, a code without a prior, or a class in place of an object.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        >>> vae = MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        >>> vae.posterior({"a": torch.zeros(5, 3)}).batch_shape
        torch.Size([5])
    """

    @program
    def model(self, x: Arrays | None = None, mask: Arrays | None = None, view: View = EVERYTHING) -> Tensor | None:
        """p(z) prod_m p(x_m | z, w_m): scores the observed entries of x; without x it draws one row of everything.

        Args:
            x: name -> (row, *event), or (row, repeat, *event) if repeated. A name it lacks is missing on every row.
            mask: name -> bool, True = observed.
            view: what the guide saw (for priors that depend on the data) and what is to be explained.

        Returns:
            z, (..., row, 1, dim), or None in a model of private codes alone.
        """
        batch, seen = self.open(x, mask)
        experts = self._experts(batch, seen, view)
        with shared_plate("data", batch.rows, dim=-2):
            z = [] if self.prior is None else [sampled(self.prior(experts))]
            data = seen_in(seen, view.rows)
            for name, modality in self.explained(x, data, view):
                has = modality.private is not None
                w = [pyro.sample(f"{name}.w", self._prior_of(name, view, experts))] if has else []
                observe(name, modality, beside([*z, *w]), data.get(name))
        return z[0] if z else None

    @program
    def guide(self, x: Arrays | None = None, mask: Arrays | None = None, view: View = EVERYTHING) -> Tensor | None:
        """q(z | x_S) prod_m q(w_m | x_m), S = the observed modalities of each row, or those of them in `view.given`.

        Args and Returns: as `model`.
        """
        batch, seen = self.open(x, mask)
        experts = self._experts(batch, seen, view)
        with plate("data", batch.rows, dim=-2):
            z = None
            if self.fusion is not None:
                q, told = posterior_of(self.fusion, experts, view)
                z = pyro.sample("z", q, infer=told)
            above = getattr(self.prior, "guide", None)  # of a prior with latent sites of its own
            if above is not None:
                above(z)
            for name, modality in self.explained(x, seen, view):
                if modality.private is not None:
                    prior = self._prior_of(name, view, experts)
                    pyro.sample(f"{name}.w", own_of(experts, view).where_seen(name, prior))
        return z

    def posterior(
        self, x: Arrays | None, mask: Arrays | None = None, given: Collection[str] | None = None
    ) -> torch.distributions.Distribution:
        """q(z | x_S), batch (row,), event (dim,), from the networks in the mode that they are in (see `eval`).

        Args:
            x, mask: as in `model`.
            given: S, the modalities to look at; None = all that are observed.

        Raises:
            ValueError: bad input, a name that is no modality, or a row whose posterior mean is not finite.
        """
        batch, seen = self.open(x, mask)
        self.check(batch)
        self.check_names(() if given is None else given)
        if self.fusion is None:
            raise ValueError("this model has no shared code z; ask mm.importance for the draws of the private ones")
        q = fused(self.fusion, self._experts(batch, seen, View(given))).expand((batch.rows, 1))
        with torch.no_grad(), suppress(NotImplementedError):  # a flow knows no mean
            refuse(batch, q.mean.isfinite().all(-1), "the mean of z")
        return mapped(q, lambda value, event_dims: value.squeeze(-1 - event_dims))

    def experts(self, x: Arrays | None, mask: Arrays | None = None) -> Experts:
        """The unimodal posteriors of a batch, each encoded when it is asked for; raises ValueError for bad input."""
        batch, seen = self.open(x, mask)
        self.check(batch)
        return self._experts(batch, seen, EVERYTHING)

    def check(
        self, x: Arrays | None, mask: Arrays | None = None, likelihoods: Mapping[str, Distribution] | None = None
    ) -> Batch:
        """The batch that the tools work on, checked against the decoders, in the model's precision, on its device.

        Args:
            x, mask: as in `model`.
            likelihoods: what `likelihoods` said before, so that no network runs for this batch.

        Raises:
            ValueError: in one line, a modality that is unknown, of a wrong shape or dtype, or has values off the
                support of its likelihood.
        """
        # which it may have got, or lost, since it was made
        check_modalities(self.modalities, self.private_prior.keys(), self.prior, self.fusion)
        batch = Batch.of(x, mask).detached()
        self.check_names(batch)
        batch = self._as_parameters(batch)
        if batch.checked is not self or batch.judges != self.decoders:
            with torch.no_grad():
                known = self.likelihoods(batch) if likelihoods is None else likelihoods
                for name, p in known.items():
                    if name in batch:
                        check_values(name, batch, p, self.modalities[name].repeated)
            batch.checked, batch.judges = self, self.decoders
            batch.numbers = {name: numbers_of(p) for name, p in known.items()}
        return batch

    def likelihoods(self, batch: Batch | None = None) -> dict[str, torch.distributions.Distribution]:
        """p(x_m | z, w_m) of one row at one code, batch (1, 1): for shapes and supports.

        Args:
            batch: what a prior that depends on data may look at.
        """
        with alone(), at_rest([self]), undisturbed(devices_of(self.parameters())), torch.no_grad():
            experts = None if batch is None else self._some(batch.few())
            own = None if experts is None else experts.private(None)
            z = [] if self.prior is None else [one_code(self.prior, experts)]
            found = {}
            for name, modality in self.modalities.items():
                if modality.decoder is not None:
                    w = [] if modality.private is None else [one_code(self.private_prior[name], own)]
                    found[name] = decode(name, modality, beside([*z, *w]))
            return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the parameters to a file, for `mm.load(path, vae)`: whole or not at all; nothing in it is code."""
        save(self, path)

    def _some(self, few: Batch) -> Experts:
        """The experts of a batch, or, if there are none, those of its zeros: they have the same shapes."""
        experts = self._experts(*self.open(few, None), EVERYTHING)
        if not experts and not experts.private(None) and few:
            experts = self._experts(*self.open(few.as_if_seen(), None), EVERYTHING)
        return experts
