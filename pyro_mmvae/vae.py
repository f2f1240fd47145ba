"""The two programs: the generative model and the amortised guide, as Pyro sees them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import Distribution, Independent
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.distributions import Rows, feasible, mapped, masked, stratum
from pyro_mmvae.fusion import Fusion
from pyro_mmvae.modality import Experts, Modality, Seen
from pyro_mmvae.programs import program, scaled


class View(NamedTuple):
    """One way of looking at a batch.

    Attributes:
        given: the modalities that the guide sees; None = all that were observed.
        targets: the modalities that the model explains; None = all that were observed.
        private: the modalities whose private codes are inferred from them; the others' come from the auxiliary prior,
            in model and guide alike. None = as given.
        stratum: which component of a mixture posterior to draw z from; None = as the mixture does.
    """

    given: Collection[str] | None = None
    targets: Collection[str] | None = None
    private: Collection[str] | None = None
    stratum: int | None = None


EVERYTHING = View()


def observe(name: str, modality: Modality, latent: Tensor, seen: Seen | None) -> None:
    """The likelihood plate of one modality: scores what was seen of it, or draws it if there is no data at all.

    Only the rows with an observed entry are decoded; their log-probabilities stand in the batch of all rows.

    Args:
        latent: (..., row, 1, dim), [z, w].
        seen: the data, or None to draw one entry a row.
    """
    if seen is None:
        with pyro.plate(f"{name}_plate", 1, dim=-1):
            pyro.sample(name, _decode(name, modality, latent))
        return
    rows, repeats = seen.entries.shape
    at = slice(None) if seen.rows is None else seen.rows
    if seen.rows is not None:
        latent = latent.index_select(-3, seen.rows)
    p = _decode(name, modality, latent)
    if p.event_shape != seen.x.shape[2:]:
        raise ValueError(
            f"modality {name!r} has entries of shape {tuple(seen.x.shape[2:])}, its decoder gives"
            f" {tuple(p.event_shape)}; reshape the data, or mend the decoder's last layer"
        )
    if repeats > 1:
        p = p.expand((*p.batch_shape[:-1], repeats))
    x = seen.x if seen.x.is_floating_point() else seen.x.to(latent.dtype)  # not every log_prob takes integers
    if seen.elements is not None:
        fine = seen.elements.reshape(*seen.elements.shape, *[1] * (x.dim() - seen.elements.dim()))
        x = torch.where(fine, x, torch.as_tensor(feasible(p), dtype=x.dtype, device=x.device))
        p = masked(p, seen.elements[at], seen.elements.dim() - 2)
    elif repeats > 1 and not seen.whole:
        fine = seen.entries.reshape(*seen.entries.shape, *[1] * (x.dim() - 2))
        x = torch.where(fine, x, torch.as_tensor(feasible(p), dtype=x.dtype, device=x.device))
        p = masked(p, seen.entries[at])
    if seen.rows is not None:
        p = Rows(p, seen.rows, rows)
    weight = nullcontext() if modality.weight == 1 else scaled({name: modality.weight})
    with pyro.plate(f"{name}_plate", repeats, dim=-1), weight:
        pyro.sample(name, p, obs=x)


def _decode(name: str, modality: Modality, latent: Tensor) -> Distribution:
    p = modality.decoder(latent)
    if not isinstance(p, Distribution):
        raise TypeError(f"the decoder of {name!r} returned {type(p).__name__}; it must return a Pyro distribution")
    if p.batch_shape != latent.shape[:-1]:
        raise ValueError(
            f"the decoder of {name!r} has batch {tuple(p.batch_shape)} and event {tuple(p.event_shape)} for codes"
            f" {tuple(latent.shape)}; it must have batch {tuple(latent.shape[:-1])}: add .to_event(k), or wrap the"
            " network in mm.batched"
        )
    return p


class MultimodalVAE(nn.Module):
    """A multimodal variational autoencoder p(z) prod_m p(x_m | z, w_m) with its guide q(z | x_S) prod_m q(w_m | x_m).

    `model` and `guide` are Pyro programs `(x, mask, view)`; with them stock Pyro does the rest:
    `SVI(vae.model, vae.guide, optim, Trace_ELBO())`, `Predictive(vae.model, ...)`, `AutoNormal(vae.model)`, `NUTS`.

    Args:
        modalities: name -> `Modality`. A name becomes a site, so it may not be "z" or "data".
        prior: of z: a module experts -> distribution with event (dim,), or any function, of the experts or of nothing.
        fusion: how the experts of the given modalities become one posterior.
        private_prior: name -> prior of w_m, for every modality with a private code.
        auxiliary_prior: name -> what w_m is drawn from where `View.private` does not name its modality; the private
            prior by default.

    Raises:
        ValueError: no modality, or a name that is taken.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        >>> vae = MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        >>> vae.posterior({"a": torch.zeros(5, 3)}).batch_shape
        torch.Size([5])
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        prior: Callable[..., Distribution],
        fusion: Fusion | Callable[[Experts], Distribution],
        private_prior: Mapping[str, Callable[..., Distribution]] | None = None,
        auxiliary_prior: Mapping[str, Callable[..., Distribution]] | None = None,
    ):
        super().__init__()
        if not modalities:
            raise ValueError("no modality: give at least one, such as {'image': mm.Modality(decoder, encoder)}")
        for name, modality in modalities.items():
            if name in ("z", "data") or "." in name:
                raise ValueError(f"modality {name!r}: this name is taken by a site of the programs; choose another")
            if modality.private is not None and name not in (private_prior or {}):
                raise ValueError(f"modality {name!r} has a private code but no prior; name it in private_prior")
        self.modalities: Mapping[str, Modality] = nn.ModuleDict(modalities)  # type: ignore[assignment]
        self.prior, self.fusion = _of_experts(prior), fusion
        self.private_prior = nn.ModuleDict({k: _of_experts(v) for k, v in (private_prior or {}).items()})
        self.auxiliary_prior = nn.ModuleDict({k: _of_experts(v) for k, v in (auxiliary_prior or {}).items()})

    @program
    def model(self, x: Arrays | None = None, mask: Arrays | None = None, view: View = EVERYTHING) -> Tensor:
        """p(z) prod_m p(x_m | z, w_m): scores the observed entries of x; without x it draws one row of everything.

        Args:
            x: name -> (row, *event), or (row, repeat, *event) if repeated. A name it lacks is missing on every row.
            mask: name -> bool, True = observed.
            view: what the guide saw (for priors that depend on the data) and what is to be explained.

        Returns:
            z, (..., row, 1, dim).
        """
        batch, seen = self._open(x, mask)
        with pyro.plate("data", batch.rows, dim=-2):
            z = pyro.sample("z", self.prior(self._experts(batch, seen, view)))
            for name, modality in self._explained(x, seen, view):
                latent = z
                if modality.private is not None:
                    w = pyro.sample(f"{name}.w", self._prior_of(name, view))
                    latent = torch.cat([z.expand(*w.shape[:-1], z.shape[-1]), w], -1)
                observe(name, modality, latent, seen.get(name))
        return z

    @program
    def guide(self, x: Arrays | None = None, mask: Arrays | None = None, view: View = EVERYTHING) -> Tensor:
        """q(z | x_S) prod_m q(w_m | x_m), S = the observed modalities of each row, or those of them in `view.given`.

        Args and Returns: as `model`.
        """
        batch, seen = self._open(x, mask)
        experts = self._experts(batch, seen, view)
        with pyro.plate("data", batch.rows, dim=-2):
            z = pyro.sample("z", _part(self.fusion(experts), view.stratum))
            above = getattr(self.prior, "guide", None)  # of a prior with latent sites of its own
            if above is not None:
                above(z)
            for name, modality in self._explained(x, seen, view):
                if modality.private is not None:
                    own = self._experts(batch, seen, View(view.given if view.private is None else view.private))
                    pyro.sample(f"{name}.w", own.private(name, self._prior_of(name, view)))
        return z

    def posterior(
        self, x: Arrays | None, mask: Arrays | None = None, given: Collection[str] | None = None
    ) -> Distribution:
        """q(z | x_S), batch (row,), event (dim,).

        Args:
            x, mask: as in `model`.
            given: S, the modalities to look at; None = all that are observed.
        """
        batch, seen = self._open(x, mask)
        self.check_names(given or ())
        q = self.fusion(self._experts(batch, seen, View(given)))
        return mapped(q.expand((batch.rows, 1)), lambda value, event_dims: value.squeeze(-1 - event_dims))

    def check(self, x: Arrays | None, mask: Arrays | None = None) -> Batch:
        """The batch that the tools work on, checked against the decoders, in the model's precision, on its device.

        Raises:
            ValueError: in one line, a modality that is unknown, of a wrong shape or dtype, or has values off the
                support of its likelihood.
        """
        batch = Batch.of(x, mask)
        self.check_names(batch)
        some = next((p for p in self.parameters() if p.is_floating_point()), None)
        if some is not None:
            batch = batch.to(some.dtype, some.device)
        if not batch.checked:
            with torch.no_grad():
                for name, p in self.likelihoods().items():
                    if name in batch:
                        _check_values(name, batch, p, self.modalities[name].repeated)
            batch.checked = True
        return batch

    def likelihoods(self) -> dict[str, Distribution]:
        """p(x_m | z, w_m) of one row at one draw from the prior, batch (1, 1): for shapes and supports."""
        training = self.training
        self.eval()
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                z = self._one_code().expand((1, 1)).sample()
                found = {}
                for name, modality in self.modalities.items():
                    codes = [z]
                    if modality.private is not None:
                        codes.append(self.private_prior[name](None).expand((1, 1)).sample())
                    found[name] = _decode(name, modality, torch.cat(codes, -1))
                return found
        finally:
            self.train(training)

    def check_names(self, names: Collection[str]) -> None:
        """Raises ValueError for a name that is no modality of this model."""
        for name in names:
            if name not in self.modalities:
                raise ValueError(f"unknown modality {name!r}; this model has {', '.join(self.modalities)}")

    def _one_code(self) -> Distribution:
        """Something to draw one z from: the prior, or N(0, I) of the right size for a prior that needs data."""
        if not isinstance(self.prior, Fusion):
            return self.prior(None)
        raise ValueError("a prior that depends on the data cannot be drawn from without; give the model another prior")

    def _open(self, x: Arrays | None, mask: Arrays | None) -> tuple[Batch, dict[str, Seen]]:
        """The checked batch, and of each modality with anything observed in it what was seen."""
        batch = Batch.of(x, mask)
        self.check_names(batch)
        if batch.seen is None:
            parts = {name: Seen.of(batch, name, self.modalities[name].repeated) for name in batch}
            batch.seen = {name: seen for name, seen in parts.items() if seen.rows is None or len(seen.rows)}
        return batch, batch.seen

    def _experts(self, batch: Batch, seen: Mapping[str, Seen], view: View) -> Experts:
        return Experts(self.modalities, seen, batch.rows, lambda: self.prior(None), view.given)

    def _prior_of(self, name: str, view: View) -> Distribution:
        """What the private code of a modality is held against: the auxiliary prior where it is not inferred."""
        borrowed = view.private is not None and name not in view.private and name in self.auxiliary_prior
        return (self.auxiliary_prior if borrowed else self.private_prior)[name](None)

    def _explained(self, x: Arrays | None, seen: Mapping[str, Seen], view: View) -> list[tuple[str, Modality]]:
        """The modalities that are scored, or drawn if there is no data."""
        names = self.modalities if x is None else seen
        wanted = names if view.targets is None else view.targets
        return [(name, modality) for name, modality in self.modalities.items() if name in names and name in wanted]


def _part(q: Distribution, index: int | None) -> Distribution:
    """One component of a mixture, with its weight in `share` for the objective that asked for it."""
    if index is None:
        return q
    q, share = stratum(q, index)
    q.share = share
    return q


def _check_values(name: str, batch: Batch, p: Distribution, repeated: bool) -> None:
    x, mask = batch[name], batch.mask[name]
    event = x.shape[2 if repeated else 1 :]
    if event != p.event_shape:
        raise ValueError(
            f"modality {name!r} has entries of shape {tuple(event)}, its decoder gives {tuple(p.event_shape)};"
            " reshape the data, or mend the decoder's last layer"
        )
    support = p.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if not repeated:  # the support's bounds have the batch axes (row, repeat) of a likelihood
        x, mask = x.unsqueeze(1), mask.unsqueeze(1)
    try:
        fits = support.check(x)
    except (NotImplementedError, ValueError):  # a support that cannot be asked
        return
    fine = mask.reshape(*mask.shape, *[1] * (fits.dim() - mask.dim()))
    if not bool((fits | ~fine).all()):
        where = (~fits & fine).nonzero()[0].tolist()
        raise ValueError(
            f"modality {name!r} has the value {x[tuple(where)].item():g} in row {where[0]}, off the support of its"
            f" likelihood {_family(p)} ({support}); mend or mask it, or use another likelihood"
        )


def _family(p: Distribution) -> str:
    return type(p.base_dist if isinstance(p, Independent) else p).__name__


class Function(nn.Module):
    """A plain function as a module: a prior that takes the experts, or nothing."""

    def __init__(self, function: Callable[..., Distribution]):
        super().__init__()
        self.function = function
        self.bare = not inspect.signature(function).parameters

    def forward(self, experts: Experts | None = None) -> Distribution:
        return self.function() if self.bare else self.function(experts)


def _of_experts(prior: Callable[..., Distribution]) -> nn.Module:
    return prior if isinstance(prior, nn.Module) else Function(prior)
