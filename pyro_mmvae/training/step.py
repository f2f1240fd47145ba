"""One step of the optimiser, one measurement of the loss, and what there is to train."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_mmvae.accelerator import on_gpu
from pyro_mmvae.chance import seed_generators, undisturbed
from pyro_mmvae.checks import kind_of
from pyro_mmvae.contract import refusing_writes
from pyro_mmvae.data import Batch
from pyro_mmvae.memory import laid_like
from pyro_mmvae.modes import at_rest
from pyro_mmvae.optim import Adam, step_of
from pyro_mmvae.owners import refuse_hidden
from pyro_mmvae.programs import short_errors, silent, weighted_kl
from pyro_mmvae.questions import check_guide
from pyro_mmvae.sites import traced
from pyro_mmvae.training.compiled import Compiled
from pyro_mmvae.training.shares import Shares

T = TypeVar("T")


class Run:
    """One step of the optimiser, and one measurement of the loss.

    Attributes:
        taught: whether some step had a gradient.
        late: whether the losses of steps may be read later. On an accelerator nothing waits for them then: after one
            that is not finite it is the optimiser there that takes no step any more.
    """

    def __init__(
        self,
        vae: Any,
        loss: Any,
        optim: torch.optim.Optimizer,
        parameters: list[Tensor],
        clip: float | None,
        devices: Sequence[torch.device],
        modules: Sequence[nn.Module],
        backend: str | None,
        rows: int | None,
        shares: Shares,
    ):
        self.model, self.guide, self.shares = vae.model, vae.guide, shares
        self.rates = [group["lr"] for group in optim.param_groups]
        self.loss, self.optim, self.parameters, self.clip, self.beta = loss, optim, parameters, clip, 1.0
        self.advance = step_of(optim)
        self.devices, self.modules = devices, modules
        self.differentiable, self.taught = hasattr(loss, "differentiable_loss"), False
        places = {p.device for p in parameters}
        self.late = self.differentiable and type(optim) is Adam and len(places) == 1 and on_gpu(*places)
        self.doubt = parameters[0].new_zeros((), dtype=torch.float32)  # 0, and NaN after a loss that is not finite
        self.compiled: Compiled | None = None
        if backend is not None:
            if not self.differentiable:
                raise ValueError(
                    f"compile: {type(loss).__name__} has no differentiable_loss to trace; leave compile out"
                )
            self.compiled = Compiled(self._loss, modules, parameters, devices, backend, rows)

    def _loss(self, batch: Batch) -> Tensor:
        loss: Tensor = self._of(self.loss.differentiable_loss, batch)
        return loss

    def _of(self, function: Callable[..., Any], batch: Batch) -> Any:
        with self.shares.of(batch):
            return function(self.model, self.guide, batch, batch.mask)

    def _weighted(self, function: Callable[..., Any], batch: Batch) -> Any:
        with nullcontext() if self.beta == 1 else weighted_kl(self.beta):
            return self._of(function, batch)

    def step(self, batch: Batch, rate: float, beta: float) -> Tensor:
        """One gradient step; the loss summed over the rows of the batch, a scalar. Takes no step if it is not finite.

        Args:
            rate: factor of the learning rate that each group began with.
            beta: weight of the KL.
        """
        for group, first in zip(self.optim.param_groups, self.rates, strict=True):
            group["lr"] = first * rate
        self.beta = beta
        for p in self.parameters:  # of which the optimiser may have a part
            p.grad = None
        loss, fine = self._teach(batch, beta)
        self.taught = self.taught or any(p.grad is not None for p in self.parameters)
        if not fine:
            return loss
        if self.late:
            self.doubt += 0 * loss
            self.optim.found_inf = self.doubt.isnan().float()  # type: ignore[attr-defined]
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.advance()
        return loss

    def _teach(self, batch: Batch, beta: float) -> tuple[Tensor, bool]:
        """The loss summed over the rows, and whether every parameter got its gradient of the mean: not if the loss is
        known not to be finite."""
        if self.compiled is not None and self.compiled.fits(batch):
            loss, gradients = self.compiled(batch, beta)
            for p, gradient in zip(self.parameters, gradients, strict=True):
                p.grad = None if gradient is None else laid_like(gradient, p)
            return loss, self._fine(loss)
        if self.differentiable:
            with silent():
                loss = self._weighted(self.loss.differentiable_loss, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ValueError(
                    f"{type(self.loss).__name__}.differentiable_loss returned {_told(loss)}; it must return one number"
                    " as a tensor, a sum over the rows"
                )
            fine = self._fine(loss.detach())
            if loss.requires_grad and fine:  # a batch in which nothing was observed teaches nothing
                (loss / batch.rows).backward()
            return loss.detach(), fine
        value = self._weighted(self.loss.loss_and_grads, batch)  # Renyi's and score-function ELBOs run backward
        for p in self.parameters:
            if p.grad is not None:
                p.grad /= batch.rows
        loss = torch.as_tensor(value, dtype=torch.float64)
        return loss, self._fine(loss)

    def _fine(self, loss: Tensor) -> bool:
        return self.late or math.isfinite(float(loss))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A look at the model that leaves no trace: in eval mode, with the generators as before."""
        with at_rest(self.modules), undisturbed(self.devices), silent():
            seed_generators(self.devices, 0)
            yield

    @torch.no_grad()
    def validate(self, batch: Batch, batch_size: int) -> float:
        """The loss in nats a row, always with the same random numbers."""
        enumerates = isinstance(self.loss, TraceEnum_ELBO)  # which raises for a loss that has no gradient
        with self.aside(), torch.set_grad_enabled(enumerates):
            function = self.loss.differentiable_loss if self.differentiable else self.loss.loss
            parts = batch.split(max(batch_size, 512))
            losses = (self._of(function, part) for part in parts)
            total = sum(float(loss.detach() if enumerates else loss) for loss in losses)
        return total / batch.rows

    def culprit(self, batch: Batch) -> str:
        """Which site of the programs has a log-probability, summed, that is not finite: given all, or one modality."""
        with torch.no_grad(), silent():
            try:
                for part in (batch, *(batch.only([name]) for name in batch)):
                    guide, model = traced(self, part)
                    for name, site in [*model.nodes.items(), *guide.iter_stochastic_nodes()]:
                        if site["type"] == "sample" and not site["fn"].log_prob(site["value"]).sum().isfinite():
                            return f"modality {name!r}" if name in batch else f"the site {name!r}"
            except ValueError as error:
                return str(error).splitlines()[0]
        return "no single site"


def _told(loss: Any) -> str:
    return f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else kind_of(loss)


def not_finite(values: Mapping[str, Tensor]) -> str | None:
    """Whose weights an earlier gradient has spoilt, if any are.

    A gradient that is not finite reaches the decoder that it comes from and every encoder, but no other decoder.
    """
    real = {name: value.detach() for name, value in values.items() if value.requires_grad}  # and no buffers
    sums = [value.sum() for value in real.values()]  # one pass over the weights, where isfinite takes several
    sums = [s.abs() if s.is_complex() else s for s in sums]
    if all(math.isfinite(s) for s in torch.stack([s.to(sums[0].device, torch.float32) for s in sums]).tolist()):
        return None
    lost = [name for name, value in real.items() if not bool(value.isfinite().all())]
    if not lost:
        return None
    part = re.search(r"modalities\.([^.]+)\.", next((name for name in lost if ".decoder." in name), lost[0]))
    return f"the gradient of modality {part[1]!r}" if part else f"the gradient of {lost[0]!r}"


def inventory(
    vae: Any, batch: Batch, devices: Sequence[torch.device], modules: Sequence[nn.Module]
) -> dict[str, Tensor]:
    """The tensors to train, by name."""
    with at_rest(modules):
        check_guide(vae, batch)
    with (
        short_errors(),
        at_rest(modules),
        poutine.trace(param_only=True) as capture,
        undisturbed(devices),
        refusing_writes(batch),
    ):
        guide = poutine.trace(vae.guide).get_trace(batch, batch.mask)
        poutine.replay(vae.model, guide)(batch, batch.mask)
    unique: dict[int, tuple[str, Tensor]] = {}
    for site, node in capture.trace.nodes.items():
        value = node["value"].unconstrained()
        unique.setdefault(id(value), (site, value))
    if not unique:
        raise ValueError(
            "there is nothing to train: no parameter of the model or the guide takes gradients; unfreeze some, or name"
            " networks of programs of your own to Pyro by pyro.module"
        )
    refuse_hidden(modules, unique.keys())
    return distinct(unique.values())


def distinct(named: Iterable[tuple[str, T]]) -> dict[str, T]:
    """The same by names that are the same in another process; a name that is taken, by another model, gets a dash."""
    found: dict[str, T] = {}
    for name, value in named:
        name = re.sub(r"^vae[0-9a-f]+\.", "", name)  # a site of ours begins with an address
        while name in found:
            name += "'"
        found[name] = value
    return found
