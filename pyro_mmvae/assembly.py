"""The parts of a model, put together or replaced later, and how data come to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pyro.distributions import Distribution
from torch import nn

from pyro_mmvae.announce import once_a_step, take_from_store
from pyro_mmvae.arrays import shown
from pyro_mmvae.checks import check_collection, refuse_made
from pyro_mmvae.codes import own_of
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.experts import Experts
from pyro_mmvae.fusion import Fusion
from pyro_mmvae.modality import Modality, check_modalities, check_priors
from pyro_mmvae.priors.plain import of_experts
from pyro_mmvae.seen import Seen
from pyro_mmvae.view import EVERYTHING, View


class Assembly(nn.Module):
    """Abstract: modalities, priors and a fusion; see `MultimodalVAE`, which has the programs."""

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        prior: Callable[..., Distribution] | None,
        fusion: Fusion | Callable[[Experts], Distribution] | None,
        private_prior: Mapping[str, Callable[..., Distribution]] | None = None,
        auxiliary_prior: Mapping[str, Callable[..., Distribution]] | None = None,
    ):
        super().__init__()
        check_modalities(modalities, private_prior or {}, prior, fusion)
        check_priors(modalities, private_prior or {}, auxiliary_prior or {})
        self.modalities: Mapping[str, Modality] = nn.ModuleDict(modalities)  # type: ignore[assignment]
        own = {f"private_prior[{name!r}]": part for name, part in (private_prior or {}).items()}
        own |= {f"auxiliary_prior[{name!r}]": part for name, part in (auxiliary_prior or {}).items()}
        refuse_made(own)
        self.prior: nn.Module | None = prior  # type: ignore[assignment]
        self.fusion = fusion
        self.private_prior = nn.ModuleDict({k: of_experts(v) for k, v in (private_prior or {}).items()})
        self.auxiliary_prior = nn.ModuleDict({k: of_experts(v) for k, v in (auxiliary_prior or {}).items()})
        take_from_store(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("prior", "fusion") and value is not None:  # now or later, a plain function too
            refuse_made({name: value})
            value = of_experts(value) if name == "prior" else value
            if isinstance(value, nn.Module):
                take_from_store(value)
            else:  # which torch would not put in the place of a module
                self._modules.pop(name, None)
        super().__setattr__(name, value)

    def check_names(self, names: Collection[str]) -> None:
        """Raises ValueError for a name that is no modality of this model, and for what is no collection of names."""
        check_collection(names)
        for name in names:
            if not isinstance(name, str) or name not in self.modalities:
                raise ValueError(f"unknown modality {shown(name)}; this model has {', '.join(self.modalities)}")

    @property
    def decoders(self) -> list[nn.Module | None]:
        """Of the modalities, in their order."""
        return [modality.decoder for modality in self.modalities.values()]

    def open(self, x: Arrays | None, mask: Arrays | None) -> tuple[Batch, dict[str, Seen]]:
        """The checked batch, and of each modality with anything observed in it what was seen."""
        batch = x if isinstance(x, Batch) else once_a_step(self, x, mask, lambda: self._opened(x, mask))
        if batch.seen is None or batch.seen[0] is not self:
            if batch.checked is not self:
                self.check_names(batch)
            data = batch if batch.checked is self else self._as_parameters(batch)
            parts = {name: Seen.of(data, name, self.modalities[name].repeated) for name in batch}
            batch.seen = self, {name: seen for name, seen in parts.items() if seen.rows is None or len(seen.rows)}
        return batch, batch.seen[1]

    def _opened(self, x: Arrays | None, mask: Arrays | None) -> Batch:
        batch = Batch.of(x, mask)
        self.check_names(batch)
        return self._as_parameters(batch)

    def _as_parameters(self, batch: Batch) -> Batch:
        """The batch in the model's precision, on its device; not in that of a network in half precision, which may have
        been trained by others and take its input so, unless there is no other."""
        real = (p for p in self.parameters() if p.is_floating_point())
        some = next(real, None)
        if some is not None and some.is_meta and batch.device != some.device:  # both may lie there to be traced
            raise ValueError("the model is on the device 'meta', which holds no values; build it on another one")
        if some is not None and some.dtype.itemsize < 4:
            some = next((p for p in real if p.dtype.itemsize >= 4), some)
        return batch if some is None else batch.to(some.dtype, some.device)

    def _experts(self, batch: Batch, seen: Mapping[str, Seen], view: View) -> Experts:
        if batch.shown is not None:
            batch, seen = self.open(batch.shown, None)
        if view is not EVERYTHING:
            for names in (view.given, view.targets, view.private):
                self.check_names(() if names is None else names)
        memory = None if batch.encoded is None else batch.encoded.setdefault(id(self), {})
        prior: Callable[[Experts], Distribution] = lambda _: self.prior(None)  # type: ignore[misc]  # noqa: E731
        return Experts(self.modalities, seen, batch.rows, prior, view.given, memory=memory, covered=batch.covered)

    def _prior_of(self, name: str, view: View, experts: Experts) -> Distribution:
        """What the private code of a modality is held against: the auxiliary prior where it is not inferred."""
        borrowed = view.private is not None and name not in view.private and name in self.auxiliary_prior
        return (self.auxiliary_prior if borrowed else self.private_prior)[name](own_of(experts, view))

    def explained(self, x: Arrays | None, seen: Mapping[str, Seen], view: View) -> list[tuple[str, Modality]]:
        """The modalities that are scored, or drawn if there is no data."""
        names = self.modalities if x is None else seen
        wanted = names if view.targets is None else view.targets
        every = self.modalities.items()
        return [(name, m) for name, m in every if name in names and name in wanted and m.decoder is not None]
