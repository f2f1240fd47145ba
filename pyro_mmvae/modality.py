"""What a modality is made of, and what was seen of it in a batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.accelerator import moved
from pyro_mmvae.arrays import positive, with_axes
from pyro_mmvae.checks import check_untouched, state_of
from pyro_mmvae.data import Batch

REMEDIES = {
    "more than 1 value per channel": "give another batch_size, or leave batch norm out",
    r"(?i)type.*\b(long|int)": "convert what it gets in its forward, as in x.float() or x.long()",
    "(?i)dtype|datatype|scalar type|have the type|type .*should be the same": "call vae.float() or vae.double()",
    'required "forward" function': "write its forward",
    "batched .*tensor but received": "give it three axes; mm.batched gives a decoder one leading axis",
    "Inference tensors": "compute what is frozen in torch.no_grad()",
    "not one tensor": "let it return one tensor",
}
"""What to do about errors that have nothing to do with sizes or values: pattern -> remedy."""


class Modality(nn.Module):
    """One data type: the networks that explain it and that look at it.

    Args:
        decoder: [z, w] (..., dim + private dim) -> p(x | z, w), any module that returns a Pyro distribution whose event
            is one entry of the data; wrap a network that wants one leading axis in `mm.batched`. None for a modality
            that is only looked at. Nothing checks that a density of your own integrates to one, as log p(x) needs.
        encoder: x (entry, *event), or the trunk's h -> q(z | x) with event (dim,); None for a modality that is only
            generated.
        private: x, or the trunk's h -> q(w | x): gives the modality a private code w of its own; not if repeated.
        trunk: x -> h, what encoder and private have in common. A `SeesHoles` trunk is told which single entries were
            observed; to any other, and to an encoder without a trunk, a hidden one is a zero.
        weight: multiplies the log-likelihood in the loss, and nowhere else.
        repeated: the modality may be measured several times a row: x is (row, repeat, *event), the mask (row, repeat).

    Limits: a `PyroParam` of a network is the model's own, as an `nn.Parameter` is, if it was there when the model was
    made; one of a network that was put in later lies in Pyro's store, where all of the same name are one.

    Raises:
        ValueError: a weight below zero.

    Example:
        >>> import pyro_mmvae as mm
        >>> sound = Modality(mm.NormalLikelihood(mm.mlp(16, 128, 40)), encoder=mm.encoder(40, 128, dim=16))
        >>> label = Modality(
        ...     mm.CategoricalLikelihood(mm.mlp(16, 64, 10)),
        ...     encoder=nn.Sequential(mm.OneHot(10), mm.encoder(10, 64, dim=16)),
        ...     weight=5.0,
        ... )
    """

    def __init__(
        self,
        decoder: nn.Module | None,
        encoder: nn.Module | None = None,
        private: nn.Module | None = None,
        trunk: nn.Module | None = None,
        weight: float = 1.0,
        repeated: bool = False,
    ):
        super().__init__()
        self.decoder, self.encoder, self.private, self.trunk = decoder, encoder, private, trunk
        self.weight, self.repeated = positive("weight", weight, zero=True), repeated


def check_modalities(
    modalities: Mapping[str, Modality], private: Collection[str], alone: bool, auxiliary: Collection[str] = ()
) -> None:
    """Refuses what makes no model: no modality, a taken name, a code without a prior or the reverse, none at all.

    Args:
        private: the names that have a prior of their private code.
        alone: whether there is no shared code.
        auxiliary: the names that have an auxiliary one.
    """
    if not modalities or not hasattr(modalities, "items"):
        raise ValueError("no modality: give at least one, such as {'image': mm.Modality(decoder, encoder)}")
    for name, modality in modalities.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"a modality is named {name!r}; name it by a string, such as 'image'")
        if not isinstance(modality, Modality):
            raise ValueError(f"modality {name!r} is a {type(modality).__name__}; give mm.Modality(decoder, encoder)")
        if name in ("z", "data") or "." in name:
            raise ValueError(f"modality {name!r}: 'z', 'data' and dots belong to the sites of programs; choose another")
        if hasattr(nn.ModuleDict(), name):
            raise ValueError(f"modality {name!r}: this name is taken by torch's modules; choose another")
        if modality.private is not None and name not in private:
            raise ValueError(f"modality {name!r} has a private code but no prior; name it in private_prior")
        if modality.private is not None and modality.repeated:
            raise ValueError(f"modality {name!r} is repeated and has a private code, which is not supported; drop one")
        if alone and modality.private is None and modality.decoder is not None:
            raise ValueError(f"modality {name!r} has no code at all; give a prior and a fusion of z, or private=...")
    for what, names in (("private_prior", private), ("auxiliary_prior", auxiliary)):
        for name in names:
            if name not in modalities or modalities[name].private is None:
                raise ValueError(f"{what} names {name!r}, which is no modality with a private code; drop it")


class Seen:
    """One modality of a batch in the layout of the programs.

    Args:
        x: (row, repeat, *event), zero where hidden.
        entries: bool (row, repeat), where anything was observed.
        flat: which of the row * repeat entries these are, (entry,); None = all.
        rows: the rows with an observed entry, (observed,); None = every row.
        elements: bool (row, repeat, *event) or coarser; None if entries are observed as a whole.
        dense: whether hidden entries are computed with as well, so that `flat` and `rows` are None; or would be, if by
            chance there are none.
        known: `entries` on the CPU, to be looked at without waiting for their device; None = they are only there.

    Attributes:
        whole: whether every entry is known to be observed, in this batch and in others of the same data.
    """

    def __init__(
        self,
        x: Tensor,
        entries: Tensor,
        flat: Tensor | None,
        rows: Tensor | None,
        elements: Tensor | None,
        dense: bool = False,
        known: Tensor | None = None,
    ):
        self.known = entries if known is None else known
        self.x, self.entries, self.flat, self.rows, self.elements, self.dense = x, entries, flat, rows, elements, dense
        self.whole = flat is None and not dense
        self._values: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, name: str, repeated: bool) -> Seen:
        x, mask = batch[name], batch.mask[name]
        if repeated and x.dim() < 2:
            raise ValueError(f"modality {name!r} is repeated and has no axis of repeats; give (row, repeat, *event)")
        if not repeated:
            x, mask = x.unsqueeze(1), mask.unsqueeze(1)
        elif mask.dim() == 1:
            mask = mask.unsqueeze(1).expand(x.shape[:2])
        if name in batch.complete:
            entries = mask if mask.dim() == 2 else mask.new_ones(()).expand(x.shape[:2])
            return cls(x, entries, None, None, None)
        entries = mask.flatten(2).any(-1) if mask.dim() > 2 else mask
        elements = mask if mask.dim() > 2 else None
        if not repeated and name in (batch.filled or ()):
            return cls(x, entries, None, None, elements)
        if batch.dense:
            return cls(x, entries, None, None, elements, dense=True)
        known = batch.known.get(name)
        if known is not None:
            known = known.reshape(len(known), -1)
            known = known.expand(entries.shape) if repeated else known.any(-1, keepdim=True)
        return cls.at(x, entries, elements, known, part=batch.filled is not None)

    @classmethod
    def at(
        cls, x: Tensor, entries: Tensor, elements: Tensor | None, known: Tensor | None = None, part: bool = False
    ) -> Seen:
        """What was seen at those entries.

        Args:
            known: the entries on the CPU, if they are there.
            part: whether they are a part of data with holes in this modality; if none is among them, that is by chance,
                and no random number depends on it.
        """
        where = entries if known is None else known
        flat = places(where.flatten(), x.device)
        rows = flat if entries.shape[1] == 1 else places(where.any(-1), x.device)
        return cls(x, entries, flat, rows, elements, dense=part and flat is None, known=known)

    @property
    def mask(self) -> Tensor | None:
        """What a likelihood of the decoded rows has to mask, bool (row, repeat) or finer; None = nothing."""
        if self.elements is not None:
            return self.elements
        picked = self.rows is not None and self.entries.shape[1] == 1  # then no hidden entry is decoded
        return None if self.whole or picked else self.entries

    def values(self) -> Tensor:
        """The seen entries of x, (entry, *event)."""
        if self._values is None:  # the encoder looks at them, and the likelihood does
            x = self.x.flatten(0, 1)
            self._values = x if self.flat is None else x.index_select(0, self.flat)
        return self._values

    def scatter(self, value: Tensor) -> Tensor:
        """From (entry, ...) to (row, repeat, ...), with the first entry's value where nothing was seen."""
        if self.flat is not None:
            # A seen entry's parameters are valid ones whatever the family; no gradient passes through the copies.
            full = value[:1].detach().expand(self.entries.numel(), *value.shape[1:])
            value = full.index_copy(0, self.flat, value)
        return value.reshape(*self.entries.shape, *value.shape[1:])

    def placed(self, value: Tensor) -> Tensor:
        """From (entry, ...) to (row, repeat, ...), zero where nothing was seen."""
        if self.flat is not None:
            value = value.new_zeros(self.entries.numel(), *value.shape[1:]).index_copy(0, self.flat, value)
        elif not self.whole:
            value = torch.where(with_axes(self.entries.flatten(), value.dim()), value, 0)
        return value.reshape(*self.entries.shape, *value.shape[1:])

    def summed(self, value: Tensor) -> Tensor:
        """From (entry, ...) to (row, 1, ...): the sum over the seen repeats of a row, zero where nothing was seen."""
        value = self.placed(value)
        return value if value.shape[1] == 1 else value.sum(1, keepdim=True)


def counted(seen: Mapping[str, Seen], rows: Tensor | None) -> Mapping[str, Seen]:
    """What was seen in the rows (row,) that count, modality by modality; all of it if rows is None."""
    if rows is None:
        return seen
    parts = {}
    for name, s in seen.items():
        entries = s.entries & moved(rows, s.entries.device).unsqueeze(-1)
        known = rows.unsqueeze(-1).expand(entries.shape) if s.whole else s.known & rows.to(s.known.device).unsqueeze(-1)
        parts[name] = Seen.at(s.x, entries, s.elements, known)
    return {name: s for name, s in parts.items() if s.rows is None or len(s.rows)}


def places(seen: Tensor, device: torch.device | None) -> Tensor | None:
    """The places of True in (place,), on that device; None = everywhere."""
    found = seen.nonzero().squeeze(-1)
    return None if len(found) == len(seen) else moved(found, device)


def ask(what: str, name: str, network: Callable[..., Any], x: Tensor, *more: Tensor) -> Any:
    """What a network says of x.

    Raises:
        ValueError: it fails, or writes into x; in one line that says whose it is.
    """
    state = state_of(x)
    try:
        found = network(x, *more)
    except (ValueError, RuntimeError, IndexError, AssertionError) as error:
        raise _failure(what, name, x, error) from error
    check_untouched(what, name, x, state)
    return found


def _failure(what: str, name: str, value: Tensor, error: Exception) -> Exception:
    """What a network raised, in one line that says whose network it is, and what it was called with."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return error
    largest = f"{float(value.detach().float().abs().max()):g}" if value.numel() else "nothing"
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
    found = (remedy for known, remedy in REMEDIES.items() if re.search(known, reason))
    remedy = next(found, "mend its sizes, or standardise the data")
    return ValueError(
        f"the {what} of {name!r} fails on {tuple(value.shape)} with values up to {largest}: {reason}; {remedy}"
    )
