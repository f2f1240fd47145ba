"""A loss made of passes and a bound."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_mmvae.accelerator import on_gpu
from pyro_mmvae.arrays import positive, shown, whole
from pyro_mmvae.checks import seen_rows
from pyro_mmvae.data import Batch
from pyro_mmvae.distributions import detached
from pyro_mmvae.objectives.bounds import Bound, elbo
from pyro_mmvae.objectives.doubled import Doubled, check_doubles
from pyro_mmvae.objectives.loss import Loss
from pyro_mmvae.objectives.passes import Pass, Views, joint
from pyro_mmvae.programs import Program, guide_on
from pyro_mmvae.sites import auxiliary, counts, per_row, row_axis
from pyro_mmvae.view import EVERYTHING, View


class Objective(Loss):
    """A loss made of passes and a bound: minus the weighted sum over passes, views and rows, in nats.

    Args:
        passes: views or `Pass`es, such as `[joint, unimodal]` or `[Pass(unimodal, beta=0.0)]`.
        bound: `elbo`, `iwae`, `stl` or `dreg`.
        num_particles: draws a row and view, all at once.
        beta: weight of all KLs; may be set anew between steps.

    A term of your own, such as a contrastive one, goes into `differentiable_loss` of a subclass, as a sum over rows. In
    `mm.fit` its x is checked and free of NaN, and `warmup` and `beta` weigh sites of the programs alone.

    Draws that carry no gradient, such as those of categories, have that of the score function, as in Pyro's losses. A
    program that takes no view as third argument finds missing what it is not to look at, or to explain.

    Limits: sites outside the plate "data" are refused, as no row's bound has them.

    Example:
        >>> import torch, pyro, pyro_mmvae as mm
        >>> from pyro.infer import SVI
        >>> parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        >>> vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        >>> loss = Objective([mm.objectives.joint], mm.objectives.iwae, num_particles=5)
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
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
        num_particles = whole("num_particles", num_particles)
        beta = beta if isinstance(beta, Tensor) else positive("beta", beta, zero=True)
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting, vectorize_particles=True)
        self.passes = [p if isinstance(p, Pass) else Pass(p) for p in _listed(passes)]
        self.bound, self.beta = bound, beta

    def __repr__(self) -> str:
        passes, bound = ", ".join(map(repr, self.passes)), self.bound.name or self.bound
        return f"{type(self).__name__}([{passes}], {bound}, num_particles={self.num_particles}, beta={self.beta:g})"

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch `(x, mask)`, a scalar that can be differentiated."""
        batch = Batch.of(*args, **kwargs).remembering()
        names = [name for name in batch if batch.dense or not batch.lacks(name)]
        total = torch.zeros((), device=batch.device)
        for part in self.passes:
            for view in part.views(names):
                total = total - part.weight * self._bound(model, guide, batch, view, self.beta * part.beta)
        return total

    def _bound(self, model: Any, guide: Any, batch: Batch, view: View, beta: float) -> Tensor:
        """The sum over rows of one view's bound, each row by the share that its stratum has."""
        q, p, share = self._traces(model, guide, batch, view)
        doubled = Doubled(self.num_particles, batch.rows)
        log_w = self._log_weights(q, p, batch, beta, doubled)
        value = self.bound.value(log_w)
        if self.bound.doubly:
            doubled.weights = log_w.detach().softmax(0)
            surrogate = (doubled.weights * log_w).sum(0)
            value = surrogate + (value - surrogate).detach()
        value = value + self._by_score(q, log_w.detach(), batch)
        if view.given is not None:  # a row with nothing to look at has no part in a pass that is about looking
            value = torch.where(_any_of(batch.mask, view.given, batch), value, 0)
        if isinstance(share, torch.Tensor):  # (row, 1); one number for all rows if there is no mixture
            share = share.expand(batch.rows, 1).squeeze(-1).to(value.dtype)
        return value.sum() if share is None else (share * value).sum()

    def _traces(self, model: Any, guide: Any, batch: Batch, view: View) -> tuple[Trace, Trace, Any]:
        """Guide and model of one view, and the share of its stratum: (row, 1), one number, or None for the whole."""
        viewed = view != EVERYTHING and not _viewless(view, guide=guide, model=model)
        seen = batch if viewed else batch.only(view.given)
        with pyro.plate("draws", self.num_particles, dim=-1 - self.max_plate_nesting):
            q = poutine.trace(guide).get_trace(seen, seen.mask, view) if viewed else guide_on(guide, seen)
            share = q.nodes["z"]["infer"].get("share") if "z" in q.nodes else None
            rows = _that_count(batch, view, share) if viewed else None
            told = batch if viewed else batch.only(view.targets).after(seen)
            view = view if rows is None else view._replace(rows=rows)
            p = poutine.trace(poutine.replay(model, q)).get_trace(told, told.mask, *[view] * viewed)
        return q, p, share

    def _log_weights(self, q: Trace, p: Trace, batch: Batch, beta: float, doubled: Doubled) -> Tensor:
        """log p(x | codes) + beta (log p(codes) - log q(codes)), (particle, row), with the bound's gradient.

        Factors count as in Pyro's losses: those of the model for the bound, those of the guide against it.
        """

        def weight(site: Any) -> Tensor:
            return site["scale"] * per_row(site, self.num_particles, batch.rows)

        zero = torch.zeros((), device=batch.device)
        seen, own = ([site for site in map(t.nodes.get, t.observation_nodes) if counts(site)] for t in (p, q))
        log_w = sum((weight(site) for site in seen), zero) - sum(weight(site) for site in own)
        codes = [name for name in p.stochastic_nodes if name in q.nodes and counts(p.nodes[name])]
        if self.bound.doubly:
            check_doubles([q.nodes[name] for name in codes])
        for name in codes if beta else ():
            site = q.nodes[name]
            if self.bound.doubly and site["value"].requires_grad:
                hook = doubled.hook(row_axis(site), len(site["fn"].event_shape), beta * site["scale"])
                site["value"].register_hook(hook)
            if self.bound.sticking:
                site = {**site, "fn": detached(site["fn"])}
            log_w = log_w + beta * (weight(p.nodes[name]) - weight(site))
        for site in auxiliary(q, p) if beta else ():
            log_w = log_w - beta * weight(site)
        return log_w.expand(self.num_particles, batch.rows)

    def _by_score(self, q: Trace, log_w: Tensor, batch: Batch) -> Tensor | float:
        """Zero, with the gradient that draws without one, such as those of categories, have by their density.

        What a draw is worth is the bound with it less that without it.
        """
        sites = [site for site in map(q.nodes.get, q.stochastic_nodes) if row_axis(site) and not site["fn"].has_rsample]
        if not sites:
            return 0.0
        score = torch.stack([per_row(site, self.num_particles, batch.rows) for site in sites]).sum(0)
        worth = self.bound.value(log_w).expand_as(score)
        if self.num_particles > 1:
            others = [torch.cat([log_w[:k], log_w[k + 1 :]]) for k in range(self.num_particles)]
            worth = worth - torch.stack([self.bound.value(rest) for rest in others])
        surrogate = (worth * score).sum(0)
        return surrogate - surrogate.detach()


def _listed(passes: Any) -> Sequence[Views | Pass]:
    for p in passes if isinstance(passes, Sequence) and not isinstance(passes, (View, Pass)) else [None]:
        if not callable(p.views if isinstance(p, Pass) else p):
            raise ValueError(
                f"passes is {shown(passes)}; give a list of functions from names to views, such as"
                " [mm.objectives.joint, lambda names: [mm.View(given=names[:1])]]"
            )
    found: Sequence[Views | Pass] = passes
    return found


def _viewless(view: View, **programs: Any) -> bool:
    """Whether one of the two takes no view: then what it is not to look at is missing from its data.

    Raises:
        ValueError: the view says more than that.
    """
    for name, program in programs.items():
        try:
            if not isinstance(program, Program):  # which takes one, and whose signature takes long to look up
                inspect.signature(program).bind(None, None, view)
        except TypeError:
            if view._replace(given=None, targets=None) != EVERYTHING:
                raise ValueError(
                    f"the {name} takes no view, which passes over private codes or strata need; let it take one, as in"
                    f" def {name}(x=None, mask=None, view=mm.EVERYTHING), or take passes such as joint and unimodal"
                ) from None
            return True
    return False


def _that_count(batch: Batch, view: View, share: Tensor | None) -> Tensor | None:
    """The rows of a pass whose bound is not multiplied by zero, bool (row,); None = all. The rest need no decoder."""
    if batch.dense or len(batch.complete) == len(batch):
        return None
    counts = []
    if view.given is not None and not batch.complete.intersection(view.given):
        counts.append(_any_of({**batch.mask, **batch.known}, view.given, batch))
    if isinstance(share, Tensor) and share.dim() and not on_gpu(share.device):  # looking costs more than decoding there
        counts.append(share.squeeze(-1) > 0)
    rows = torch.stack(counts).all(0) if counts else None
    return None if rows is None or bool(rows.all()) else rows


def _any_of(masks: Mapping[str, Tensor], names: Collection[str], batch: Batch) -> Tensor:
    """The rows of a batch that have one of the named modalities, bool (row,)."""
    seen = [seen_rows(masks[name]) for name in names if name in masks]
    return torch.stack(seen).any(0) if seen else torch.zeros(batch.rows, dtype=torch.bool, device=batch.device)
