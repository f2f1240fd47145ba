"""One step of the optimiser, one measurement of the loss, and the weights of a moment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_mmvae.data import Batch
from pyro_mmvae.programs import scaled, silent


class Run:
    """One step of the optimiser, and one measurement of the loss."""

    def __init__(
        self,
        vae: Any,
        loss: Any,
        optim: torch.optim.Optimizer,
        parameters: list[Tensor],
        clip: float | None,
        factors: dict[str, float],
    ):
        self.model, self.guide = vae.model, vae.guide
        self.loss, self.optim, self.parameters, self.clip, self.factors = loss, optim, parameters, clip, factors
        self.differentiable = hasattr(loss, "differentiable_loss")

    def beta(self, value: float) -> None:
        self.factors.update(dict.fromkeys(self.factors, value))

    def _weighted(self, function: Callable[..., Any], batch: Batch) -> Any:
        if all(value == 1 for value in self.factors.values()):
            return function(self.model, self.guide, batch, batch.mask)
        with scaled(self.factors):
            return function(self.model, self.guide, batch, batch.mask)

    def step(self, batch: Batch) -> float:
        """One gradient step; the loss summed over the rows of the batch. Takes no step if it is not finite."""
        self.optim.zero_grad(set_to_none=True)
        if self.differentiable:
            with silent(self.model, self.guide):
                loss = self._weighted(self.loss.differentiable_loss, batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                return value
            if loss.requires_grad:  # a batch in which nothing was observed teaches nothing
                (loss / batch.rows).backward()
        else:  # Renyi and score-function ELBOs of Pyro run backward themselves
            value = float(self._weighted(self.loss.loss_and_grads, batch))
            if not math.isfinite(value):
                return value
            for p in self.parameters:
                if p.grad is not None:
                    p.grad /= batch.rows
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optim.step()
        return value

    @torch.no_grad()
    def validate(self, batch: Batch, modules: list[nn.Module], batch_size: int) -> float:
        """The loss in nats a row, always with the same random numbers."""
        modes = [module.training for module in modules]
        for module in modules:
            module.eval()
        with torch.random.fork_rng(), silent(self.model, self.guide):
            torch.manual_seed(0)
            parts = torch.arange(batch.rows).split(max(batch_size, 512))
            function = self.loss.differentiable_loss if self.differentiable else self.loss.loss
            total = sum(float(function(self.model, self.guide, b, b.mask)) for b in map(batch.take, parts))
        for module, mode in zip(modules, modes):
            module.train(mode)
        return total / batch.rows

    def culprit(self, batch: Batch) -> str:
        """Which site of the programs has a log-probability that is not finite."""
        with torch.no_grad(), silent(self.model, self.guide):
            try:
                guide = poutine.trace(self.guide).get_trace(batch, batch.mask)
                model = poutine.trace(poutine.replay(self.model, guide)).get_trace(batch, batch.mask)
                for trace in (model, guide):
                    for name, site in trace.iter_stochastic_nodes() if trace is guide else trace.nodes.items():
                        if site["type"] == "sample" and not bool(site["fn"].log_prob(site["value"]).isfinite().all()):
                            return f"modality {name!r}" if name in batch else f"the site {name!r}"
            except ValueError as error:
                return str(error).splitlines()[0]
        return "the gradient of an earlier step"


class Snapshot:
    """The values of all parameters and buffers at one moment."""

    def __init__(self, parameters: list[Tensor], modules: list[nn.Module]):
        live = {id(t): t for t in [*parameters, *(b for module in modules for b in module.buffers())]}
        self.live = list(live.values())
        self.values = [t.detach().clone() for t in self.live]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, value in zip(self.live, self.values):
            tensor.copy_(value)


def inventory(vae: Any, batch: Batch) -> tuple[list[Tensor], list[str]]:
    """The tensors to train, and the names of the latent sites."""
    with poutine.trace(param_only=True) as capture, torch.random.fork_rng():
        guide = poutine.trace(vae.guide).get_trace(batch, batch.mask)
        model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(batch, batch.mask)
    unique = {id(p): p for p in (site["value"].unconstrained() for site in capture.trace.nodes.values())}
    if not unique:
        raise ValueError("there is nothing to train: no parameter of the model or the guide takes gradients")
    names = {n for t in (guide, model) for n in t.stochastic_nodes if not site_is_subsample(t.nodes[n])}
    return list(unique.values()), sorted(names)
