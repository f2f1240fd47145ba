"""Objectives = passes x bound, each a drop-in loss for stock SVI, for `mm.fit`, and in the ELBO-module style.

A pass says what the guide may look at and what the model must explain; the bound turns the weights of the draws of a
row into a number. All losses are sums over rows, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyro_mmvae.data import Batch
from pyro_mmvae.distributions import detached
from pyro_mmvae.vae import EVERYTHING, MultimodalVAE, View
from pyro_mmvae.weights import per_row, row_axis

Views = Callable[[Sequence[str]], Sequence[View]]


class Pass(NamedTuple):
    """A family of views of a batch, with weights.

    Attributes:
        views: the names that a batch has -> how to look at it, one after the other.
        beta: weight of the KL in this pass.
        weight: of the pass in the loss.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> from pyro_mmvae.objectives import joint, unimodal
        >>> loss = mm.Objective([joint, Pass(unimodal, beta=0.0, weight=0.5)])
        >>> history = mm.fit(vae, x, loss=loss, epochs=2, progress=False)
    """

    views: Views
    beta: float = 1.0
    weight: float = 1.0


def joint(names: Sequence[str]) -> list[View]:
    """The guide sees all, the model explains all."""
    return [EVERYTHING]


def unimodal(names: Sequence[str]) -> list[View]:
    """{m} -> {m} for every modality m."""
    return [View((name,), (name,)) for name in names]


def cross(names: Sequence[str]) -> list[View]:
    """{m} -> all for every modality m; private codes are inferred from their own modalities."""
    return [View((name,), None, tuple(names)) for name in names]


def random_subsets(count: int) -> Views:
    """`count` subsets of two or more modalities, but not all, drawn anew for each batch; S -> S."""

    def views(names: Sequence[str]) -> list[View]:
        family = [s for size in range(2, len(names)) for s in combinations(names, size)]
        chosen = torch.randperm(len(family), device="cpu")[:count].tolist()
        return [View(family[position], family[position]) for position in chosen]

    return views


def every_subset(names: Sequence[str]) -> list[View]:
    """S -> all for every subset S of the modalities, one or more of them."""
    return [View(s) for size in range(1, len(names) + 1) for s in combinations(names, size)]


def dropped(probability: float) -> Views:
    """The guide sees all; or, with the given probability, a random subset, one for the batch. All is explained."""

    def views(names: Sequence[str]) -> list[View]:
        if float(torch.rand((), device="cpu")) >= probability:
            return [EVERYTHING]
        family = every_subset(names)
        return [family[int(torch.randint(len(family), (), device="cpu"))]]

    return views


def strata(names: Sequence[str]) -> list[View]:
    """One pass for each component of a mixture of experts, weighted by its share of each row.

    Private codes of the other modalities come from the auxiliary prior.
    """
    return [View(private=(name,), stratum=position) for position, name in enumerate(names)]


def subset_strata(names: Sequence[str]) -> list[View]:
    """One pass for each component of a mixture over all subsets of the modalities, such as MoPoE's."""
    return [View(stratum=position) for position in range(2 ** len(names) - 1)]


class Bound(NamedTuple):
    """How the log weights (particle, row) of a row become its bound, and which gradient that has.

    Attributes:
        value: (particle, row) -> (row,).
        sticking: no gradient to the guide's parameters through its density, only through its draws.
        doubly: the gradient through a draw is multiplied by its normalised weight once more.
    """

    value: Callable[[Tensor], Tensor]
    sticking: bool = False
    doubly: bool = False


def _mean(log_weights: Tensor) -> Tensor:
    return log_weights.mean(0)


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(0) - math.log(len(log_weights))


elbo = Bound(_mean)
"""E log w."""
iwae = Bound(_log_mean)
"""log 1/K sum_k w_k of each row. Burda, Grosse and Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519"""
stl = Bound(_mean, sticking=True)
"""The ELBO with the gradient that sticks the landing: unbiased, and zero noise at an exact guide. Roeder, Wu and
Duvenaud, 2017, https://arxiv.org/abs/1703.09194"""
dreg = Bound(_log_mean, sticking=True, doubly=True)
"""The IWAE bound with the doubly reparameterised gradient. Unbiased where the K draws are those of the whole guide, of
a mixture too; with `strata` and K > 1 it is the published estimator of MMVAE, which is biased. Tucker, Lawson, Gu and
Maddison, 2019, https://arxiv.org/abs/1810.04152"""


class Objective(ELBO):
    """A loss made of passes and a bound: minus the weighted sum over passes, views and rows, in nats.

    Args:
        passes: views or `Pass`es, such as `[joint, unimodal]` or `[Pass(unimodal, beta=0.0)]`.
        bound: `elbo`, `iwae`, `stl` or `dreg`.
        num_particles: draws a row and view, all at once.
        beta: weight of all KLs; may be set anew between steps.

    Limits: the programs must take a view as third argument unless all passes are `joint`; sites outside the plate
    "data" do not enter a bound.

    Example:
        >>> import torch, pyro, pyro_mmvae as mm
        >>> from pyro.infer import SVI
        >>> parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        >>> vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Objective([joint], iwae, num_particles=5))
        >>> svi.step({"a": torch.zeros(4, 3)}) > 0
        True
    """

    def __init__(
        self,
        passes: Sequence[Views | Pass] = (joint,),
        bound: Bound = elbo,
        *,
        num_particles: int = 1,
        beta: float = 1.0,
        max_plate_nesting: int = 2,
    ):
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting, vectorize_particles=True)
        self.passes = [p if isinstance(p, Pass) else Pass(p) for p in passes]
        self.bound, self.beta = bound, beta

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch `(x, mask)`, a scalar that can be differentiated."""
        batch = Batch.of(*args, **kwargs).remembering()
        names = [name for name in batch if bool(batch.mask[name].any())]
        total = torch.zeros((), device=batch.device)
        for part in self.passes:
            for view in part.views(names):
                total = total - part.weight * self._bound(model, guide, batch, view, self.beta * part.beta)
        return total

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss of a batch; leaves its gradients in the parameters, as stock SVI wants it."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss of a batch."""
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("an Objective traces its own passes")  # Pyro's class asks for one

    def _bound(self, model: Any, guide: Any, batch: Batch, view: View, beta: float) -> Tensor:
        """The sum over rows of one view's bound, each row by the share that its stratum has."""
        args = (batch, batch.mask) if view == EVERYTHING else (batch, batch.mask, view)
        particles, weight = self.num_particles, _Weight(self.num_particles, batch.rows)
        with pyro.plate("particles", particles, dim=-1 - self.max_plate_nesting):
            q = poutine.trace(guide).get_trace(*args)
            share = getattr(q.nodes["z"]["fn"], "share", None) if "z" in q.nodes else None
            rows = _that_count(batch, view, share)
            args = args if rows is None else (batch, batch.mask, view._replace(rows=rows))
            p = poutine.trace(poutine.replay(model, q)).get_trace(*args)
        codes = [name for name in p.stochastic_nodes if name in q.nodes and row_axis(p.nodes[name]) is not None]
        doubled = _Doubled(particles, batch.rows)
        zero = torch.zeros((), device=batch.device)
        log_w = sum((weight(p.nodes[name]) for name in p.observation_nodes if name in batch), zero)
        for name in codes if beta else ():
            site = q.nodes[name]
            if self.bound.doubly and site["value"].requires_grad:
                site["value"].register_hook(doubled.hook(row_axis(site), len(site["fn"].event_shape)))
            if self.bound.sticking:
                site = {**site, "fn": detached(site["fn"])}
            log_w = log_w + beta * (weight(p.nodes[name]) - weight(site))
        log_w = log_w.expand(particles, batch.rows)
        value = self.bound.value(log_w)
        if self.bound.doubly:
            doubled.weights = log_w.detach().softmax(0)
            surrogate = (doubled.weights * log_w).sum(0)
            value = surrogate + (value - surrogate).detach()
        if view.given is not None:  # a row with nothing to look at has no part in a pass that is about looking
            value = torch.where(_any_of(batch, view.given), value, 0)
        if isinstance(share, torch.Tensor):  # (row, 1); one number for all rows if there is no mixture
            share = share.expand(batch.rows, 1).squeeze(-1).to(value.dtype)
        return value.sum() if share is None else (share * value).sum()


def _that_count(batch: Batch, view: View, share: Tensor | None) -> Tensor | None:
    """The rows of a pass whose bound is not multiplied by zero, bool (row,); None = all. The rest need no decoder."""
    if len(batch.complete) == len(batch):
        return None
    counts = [] if view.given is None else [_any_of(batch, view.given)]
    if isinstance(share, Tensor) and share.dim():
        counts.append(share.squeeze(-1) > 0)
    rows = torch.stack(counts).all(0) if counts else None
    return None if rows is None or bool(rows.all()) else rows


def _any_of(batch: Batch, names: Collection[str]) -> Tensor:
    """The rows that have one of the named modalities, bool (row,)."""
    seen = [batch.mask[name].reshape(batch.rows, -1).any(-1) for name in names if name in batch]
    return torch.stack(seen).any(0) if seen else torch.zeros(batch.rows, dtype=torch.bool, device=batch.device)


class Match(ELBO):
    """-sum_m E_{q(z | x)} log q_m(z | x_m): unimodal experts that learn to cover the joint posterior, which stays.

    Rows that lack a modality have no joint posterior to match and are left out.

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
        with torch.no_grad():
            z = self.vae.fusion(experts).sample()  # type: ignore[misc]
        whole = [experts.given[name].any(-1) for name in experts]
        complete = torch.stack(whole).all(0) & (len(whole) == len(self.vae.modalities))
        logs = torch.stack([experts[name].log_prob(z).mean(-1) for name in experts]).sum(0)
        return -torch.where(complete, logs, 0).sum()

    loss_and_grads = Objective.loss_and_grads
    loss = Objective.loss
    _get_trace = Objective._get_trace


class _Weight(NamedTuple):
    """A site's log-probability of each draw and row, with the scale that handlers gave it."""

    particles: int
    rows: int

    def __call__(self, site: Any) -> Tensor:
        return site["scale"] * per_row(site, self.particles, self.rows)


class _Doubled:
    """Multiplies the gradient of a draw by its normalised weight, known only after the forward pass."""

    weights: Tensor

    def __init__(self, particles: int, rows: int):
        self.shape = (particles, rows)

    def hook(self, axis: int | None, events: int) -> Callable[[Tensor], Tensor]:
        assert axis is not None
        right = -axis - 1 + events

        def multiply(gradient: Tensor) -> Tensor:
            middle = [1] * (gradient.dim() - 2 - right)
            return gradient * self.weights.reshape(self.shape[0], *middle, self.shape[1], *[1] * right)

        return multiply


def encoders_only(vae: Any, names: Collection[str] | None = None) -> list[Tensor]:
    """Freezes all of a VAE but the encoders (of the named modalities) for a second phase; returns what stays free."""
    vae.requires_grad_(False)
    free = []
    for name, modality in vae.modalities.items():
        if modality.encoder is not None and (names is None or name in names):
            free += list(modality.encoder.requires_grad_(True).parameters())
    return free
