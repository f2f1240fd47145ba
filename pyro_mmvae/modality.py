"""What a modality is made of, and how its networks are asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.announce import take_from_store
from pyro_mmvae.arrays import positive
from pyro_mmvae.checks import check_untouched, state_of

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

    Limits: a `PyroParam` of a network is the model's own, as an `nn.Parameter` is, also if that is put in later, as in
    `vae.modalities["sound"].decoder = other`; one that is later put into a network lies in Pyro's store, where all of
    the same name are one.

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

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            take_from_store(value)
        super().__setattr__(name, value)


def check_modalities(modalities: Mapping[str, Modality], private: Collection[str], prior: Any, fusion: Any) -> None:
    """Refuses what makes no model: no modality, a taken name, a code without a prior, or none at all.

    Args:
        private: the names that have a prior of their private code.
        prior, fusion: of z, or None.
    """
    if not modalities or not hasattr(modalities, "items"):
        raise ValueError("no modality: give at least one, such as {'image': mm.Modality(decoder, encoder)}")
    if (prior is None) != (fusion is None):
        raise ValueError("give both a prior and a fusion of z, or None for both: a model of private codes alone")
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
        if prior is None and modality.private is None and modality.decoder is not None:
            raise ValueError(f"modality {name!r} has no code at all; give a prior and a fusion of z, or private=...")


def check_priors(modalities: Mapping[str, Modality], private: Collection[str], auxiliary: Collection[str]) -> None:
    """Refuses priors, and auxiliary ones, of private codes that there are not."""
    for what, names in (("private_prior", private), ("auxiliary_prior", auxiliary)):
        for name in names:
            if name not in modalities or modalities[name].private is None:
                raise ValueError(f"{what} names {name!r}, which is no modality with a private code; drop it")


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
