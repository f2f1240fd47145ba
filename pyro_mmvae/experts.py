"""What the encoders say of the rows where they saw something: the unimodal posteriors that a fusion combines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, NoReturn

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution, Independent
from torch import Tensor, nn

from pyro_mmvae.arrays import counted, with_axes
from pyro_mmvae.checks import distribution
from pyro_mmvae.distributions import Normal, Switch, drawn_part, is_correlated, is_normal, like, mapped
from pyro_mmvae.modality import Modality, ask
from pyro_mmvae.networks import SeesHoles
from pyro_mmvae.seen import Seen
from pyro_mmvae.stack import Stack


class Experts(Mapping[str, Distribution]):
    """Unimodal posteriors q(z | x_m), batch (row, repeat), event (dim,): encoded on first access, seen entries only.

    Where nothing was seen, an expert stands with neutral parameters; `given` says where.

    Attributes:
        rows: the number of rows.
        modalities: the modalities, by name.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> experts = vae.experts(x, {"b": torch.arange(20) < 5})
        >>> experts["a"].batch_shape, int(experts.given["b"].sum())
        (torch.Size([20, 1]), 5)
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        seen: Mapping[str, Seen],
        rows: int,
        prior: Callable[[Experts], Distribution],
        names: Collection[str] | None = None,
        head: str = "encoder",
        memory: dict[str, dict[Any, Any]] | None = None,
        covered: bool | None = None,
    ):
        self.modalities, self.rows, self._prior, self._head = modalities, rows, prior, head
        self._all, self._names, self._covered = seen, names, covered
        self._memory = {} if memory is None else memory
        self._features: dict[str, Tensor] = self._memory.setdefault("trunk", {})  # a trunk is run once
        self._entries: dict[str, Distribution] = self._memory.setdefault(head, {})

    @cached_property
    def seen(self) -> dict[str, Seen]:
        """name -> the data behind the experts."""
        return {k: v for k, v in self._all.items() if self._names is None or k in self._names}

    @cached_property
    def given(self) -> dict[str, Tensor]:
        """name -> bool (row, repeat), which entries the encoder saw."""
        return {k: v.entries for k, v in self.seen.items() if getattr(self.modalities[k], self._head) is not None}

    def __getitem__(self, name: str) -> Distribution:
        seen, q = self.seen[name], self.entries(name)
        try:
            return mapped(q, partial(_laid_out, seen))
        except (TypeError, NotImplementedError) as error:
            raise TypeError(
                f"the expert of {name!r} is {_title(q)}, which cannot be laid out by row; give the encoder a"
                " NormalHead, or another family of densities, such as dist.Laplace"
            ) from error

    def entries(self, name: str) -> Distribution:
        """q(z | x_m) of the seen entries alone, batch (entry,)."""
        if name not in self._entries:
            self._entries[name] = self._encode(name, getattr(self.modalities[name], self._head))
        return self._entries[name]

    def only(self, names: Collection[str]) -> Experts:
        """The experts of some of the modalities."""
        return self._like([name for name in names if name in self.seen], self._head, self._prior)

    def against(self, prior: Callable[[Experts], Distribution]) -> Experts:
        """The same with another prior, for a row with nothing given and for a prior expert."""
        return self._like(self._names, self._head, prior)

    def private(self, names: Collection[str] | None) -> Experts:
        """q(w_m | x_m) in the same rows, from the named modalities, whatever was named for z; None = all."""
        return self._like(names, "private", unit_normal)

    def _like(self, names: Collection[str] | None, head: str, prior: Callable[[Experts], Distribution]) -> Experts:
        return Experts(self.modalities, self._all, self.rows, prior, names, head, self._memory, self._covered)

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)

    def __repr__(self) -> str:
        return f"Experts({counted(self.rows, 'row')}, {', '.join(self) or 'none'})"

    def __contains__(self, name: object) -> bool:
        return name in self.given  # without encoding it

    @property
    def prior(self) -> Distribution:
        """The model's own prior of z, batch (row, 1)."""
        return self.plain_prior.expand((self.rows, 1))

    @property
    def plain_prior(self) -> Distribution:
        """The model's own prior of z, without conditions beside it, of a batch that broadcasts to (row, 1)."""
        prior = drawn_part(self._prior(self))
        for name, q in self._entries.items() if self._head == "encoder" else ():
            check_size(f"the encoder of {name!r} gives", q.event_shape, prior)
        return prior

    @property
    def device(self) -> torch.device | None:
        """Where the modalities are, if they have parameters."""
        return next((p.device for m in self.modalities.values() for p in m.parameters()), None)

    def features(self, name: str) -> Tensor:
        """What the modality's trunk says of its seen entries, (entry, ...)."""
        if name not in self._features:
            seen, trunk = self.seen[name], self.modalities[name].trunk
            x = seen.values()
            holes = [_holes(x, seen)] if isinstance(trunk, SeesHoles) else []
            h = x if trunk is None else ask("trunk", name, trunk, x, *holes)
            if not isinstance(h, Tensor):
                raise ValueError(f"the trunk of {name!r} gives a {type(h).__name__}; let it return one tensor")
            self._features[name] = h
        return self._features[name]

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for all the fusions that look at this batch within one loss."""
        made = self._memory.setdefault("once", {})
        if key not in made:
            made[key] = make()
        return made[key]

    def where_seen(self, name: str, prior: Distribution) -> Distribution:
        """q of one modality, batch (row, 1), and the prior where that was not seen."""
        if name not in self:
            return prior.expand((self.rows, 1))
        if self.seen[name].whole:
            return self[name]
        return otherwise(self.given[name], self[name], prior)

    def everywhere(self) -> bool:
        """Whether the guide saw something in every row; where that is known of a whole data set, no batch is asked."""
        seen = [self.seen[name] for name in self.given]
        if any(s.whole for s in seen):
            return True
        if self._covered is None:
            return bool(self.any().all())
        return self._covered and len(seen) == len(self._all)

    def apart(self) -> Iterator[tuple[str, Distribution, Tensor]]:
        """Every expert alone, repeat by repeat: the name, q with batch (row, 1), and where it was given (row, 1)."""
        for name, seen in self.given.items():
            q = self[name]
            for repeat in range(seen.shape[1]):
                yield name, _column(q, repeat), seen[:, repeat : repeat + 1]

    def any(self) -> Tensor:
        """Where the guide saw anything, bool (row, 1)."""
        seen = [given.any(-1, keepdim=True) for given in self.given.values()]
        return torch.stack(seen).any(0) if seen else torch.zeros(self.rows, 1, dtype=torch.bool, device=self.device)

    def stack(self) -> Stack:
        """All experts as normals in one stack; raises as `normals`."""
        return Stack(self.normals(), self.seen)

    def normals(self) -> dict[str, dist.Normal]:
        """name -> the normals (entry, dim) of its seen entries.

        Raises:
            TypeError: an expert is no diagonal normal.
        """
        normals = {}
        for name in self.given:
            expert = self.entries(name)
            normals[name] = expert.base_dist if is_normal(expert) else not_normal(name, expert)
        return normals

    def _encode(self, name: str, head: nn.Module) -> Distribution:
        features = self.features(name)
        q = distribution(f"the encoder of {name!r}", ask("encoder", name, head, features))
        if len(q.batch_shape) != 1:
            raise ValueError(
                f"the encoder of {name!r} has batch {tuple(q.batch_shape)} for {tuple(features.shape)};"
                " it must have batch (entry,) and event (dim,): check its input size, or add .to_event(1)"
            )
        for other, p in self._entries.items() if self._head == "encoder" else ():
            if p.event_shape != q.event_shape:
                raise ValueError(
                    f"the encoder of {name!r} gives codes {tuple(q.event_shape)}, that of {other!r}"
                    f" {tuple(p.event_shape)}; give all of them the size of z"
                )
        return q


def check_size(what: str, found: torch.Size, prior: Distribution) -> None:
    """Refuses codes of another size than the prior's: those of size one would broadcast without a word."""
    if found != prior.event_shape:
        raise ValueError(f"{what} codes {tuple(found)}, the prior {tuple(prior.event_shape)}; give both the size of z")


def unit_normal(experts: Experts) -> Distribution:
    """N(0, I) of the size of the experts' codes, of a batch that broadcasts."""
    if not experts.given:
        raise ValueError(
            "the prior of a private code depends on the data and cannot be drawn from without; give x, or another prior"
        )
    q = experts.entries(next(iter(experts)))
    return Normal(like(q).new_zeros(q.event_shape), like(q).new_ones(q.event_shape)).to_event(1)


def _holes(x: Tensor, seen: Seen) -> Tensor:
    """Which elements of the seen entries x (entry, *event) were observed, bool, of the same shape."""
    if seen.elements is None:
        return torch.ones_like(x, dtype=torch.bool)
    mask = seen.elements.flatten(0, 1)
    mask = mask if seen.flat is None else mask.index_select(0, seen.flat)
    return with_axes(mask, x.dim()).expand(x.shape)


def _laid_out(seen: Seen, value: Tensor, event_dims: int) -> Tensor:
    """From (..., entry, *event) to (..., row, repeat, *event): a mixture has its components in front."""
    axis = value.dim() - event_dims - 1
    return seen.scatter(value.movedim(axis, 0)).movedim((0, 1), (axis, axis + 1))


def _column(q: Distribution, repeat: int) -> Distribution:
    return mapped(q, lambda value, event_dims: value.narrow(value.dim() - event_dims - 1, repeat, 1))


def otherwise(where: Tensor, q: Distribution, prior: Distribution) -> Distribution:
    """q where `where` (row, 1) holds and the prior elsewhere; one diagonal normal if both are."""
    shape = torch.broadcast_shapes(q.batch_shape, prior.batch_shape)
    prior, where = prior.expand(shape), where.expand(shape)
    if is_normal(q) and is_normal(prior):
        fine = where.unsqueeze(-1)
        loc = torch.where(fine, q.base_dist.loc, prior.base_dist.loc)
        return Normal(loc, torch.where(fine, q.base_dist.scale, prior.base_dist.scale)).to_event(1)
    return Switch(where, q, prior)


def not_normal(name: str, q: Distribution) -> NoReturn:
    """Raises the TypeError for an expert that a fusion cannot multiply."""
    kind, other = ("diagonal normals", "PoE()") if is_correlated(q) else ("normals", "MoE()")
    raise TypeError(
        f"the expert of {name!r} is {_title(q)}, but this fusion multiplies {kind};"
        f" give the encoder a NormalHead, or use {other}"
    )


def _title(q: Distribution) -> str:
    return type(q.base_dist if isinstance(q, Independent) else q).__name__
