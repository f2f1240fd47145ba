"""`fit`: stochastic variational inference with a fused torch optimiser over batches drawn by index."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from tqdm import tqdm

from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.programs import Program, scaled, silent

Schedule = Callable[[float], float]


def cosine(progress: float) -> float:
    """A learning-rate factor that falls from 1 to 0 as half a cosine while progress goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def constant(progress: float) -> float:
    """A learning-rate factor of 1."""
    return 1.0


@dataclass
class History:
    """What `fit` saw, one entry an epoch; `mm.plot_history` draws it.

    Attributes:
        loss: mean training loss, nats a row, as weighted in the loss.
        validation: the same on held-out rows, empty without validation data.
        lr: the learning rate at the end of the epoch.
        seconds: wall time since the start.
        best_epoch: the epoch (from 0) whose weights were kept; None without validation data.
    """

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None


def fit(
    vae: Any,
    x: Arrays | Iterable[Any],
    mask: Arrays | None = None,
    *,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    schedule: Schedule = cosine,
    loss: Any = None,
    validation: Any = None,
    patience: int | None = None,
    warmup: int = 0,
    clip: float | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Trains a model and its guide in place, and returns how it went.

    Args:
        vae: a `MultimodalVAE`, or any object with `model` and `guide`, such as `mm.Pair(model, guide)`.
        x: name -> array (row, *event), NaN = missing; or an iterable of `(x, mask)` batches that can be walked once an
            epoch, such as a DataLoader.
        mask: name -> bool, True = observed.
        epochs: passes over the data.
        batch_size: rows a step; ignored for an iterable.
        lr: learning rate at the start.
        schedule: progress (0 to 1) -> factor of the learning rate; `mm.constant` for none.
        loss: a Pyro ELBO, such as `Trace_ELBO(num_particles=4, vectorize_particles=True)` or an objective of ours.
        validation: held-out `x` or `(x, mask)`: its loss is measured each epoch under common random numbers, and the
            weights of the best epoch are kept.
        patience: stop after so many epochs without a better validation loss.
        warmup: epochs over which the KL's weight rises from 0 to 1.
        clip: the largest norm of the gradient of the mean loss of a row.
        optimizer: (parameters, lr) -> torch optimiser; fused Adam by default.
        seed: of all that is random in here; the global generator is left as it was.
        progress: whether to show a progress bar.

    Returns:
        A `History`. The modules are left in eval mode.

    Raises:
        ValueError: bad input, in one line, before anything is changed.
        FloatingPointError: the loss is no longer finite; names the epoch, the step and the modality. The weights are
            those from the start of that epoch.
    """
    data = _batches(vae, x, mask, batch_size)
    held_out = None if validation is None else _open(vae, *_pair(validation))
    loss = Trace_ELBO() if loss is None else loss
    history = History()
    with torch.random.fork_rng(), pyro.validation_enabled(False), _training(vae) as modules, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered")  # Pyro warns of a loss that fit is about to refuse
        torch.manual_seed(seed)
        parameters, latents = _inventory(vae, data.first())
        make = optimizer or _adam
        optim = make(parameters, lr=lr)
        run = _Run(vae, loss, optim, parameters, clip, dict.fromkeys(latents, 1.0))
        state = _Snapshot(parameters, modules)
        best, kept, started = math.inf, state, time.perf_counter()
        bar = tqdm(range(epochs), disable=not progress, unit="epoch", mininterval=0.5)
        for epoch in bar:
            total, rows = 0.0, 0
            for step, batch in enumerate(data):
                done = (epoch + step / max(data.steps, 1)) / epochs
                run.beta(min(1.0, (epoch + step / max(data.steps, 1)) / warmup) if warmup else 1.0)
                for group in optim.param_groups:
                    group["lr"] = lr * schedule(done)
                value = run.step(batch)
                if not math.isfinite(value):
                    culprit = run.culprit(batch)
                    state.restore()
                    raise FloatingPointError(
                        f"the loss is {value} in epoch {epoch}, step {step}, from {culprit}; the weights of the epoch's"
                        " start are back: lower lr, clip the gradient, or rescale the data"
                    )
                total, rows = total + value, rows + batch.rows
            history.loss.append(total / rows)
            history.lr.append(optim.param_groups[0]["lr"])
            history.seconds.append(time.perf_counter() - started)
            state = _Snapshot(parameters, modules)
            shown = f"{history.loss[-1]:.2f}"
            if held_out is not None:
                history.validation.append(run.validate(held_out, modules, batch_size))
                shown += f", held out {history.validation[-1]:.2f}"
                if history.validation[-1] < best:
                    best, kept, history.best_epoch = history.validation[-1], state, epoch
                elif patience is not None and epoch - (history.best_epoch or 0) >= patience:
                    break
            bar.set_postfix_str(f"loss {shown} nats a row", refresh=False)
        bar.close()
        if held_out is not None:
            kept.restore()
    return history


class _Run:
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


class _Snapshot:
    """The values of all parameters and buffers at one moment."""

    def __init__(self, parameters: list[Tensor], modules: list[nn.Module]):
        live = {id(t): t for t in [*parameters, *(b for module in modules for b in module.buffers())]}
        self.live = list(live.values())
        self.values = [t.detach().clone() for t in self.live]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, value in zip(self.live, self.values):
            tensor.copy_(value)


class _InMemory:
    """Batches drawn by index from tensors, in a new order each epoch."""

    def __init__(self, data: Batch, batch_size: int):
        self.data, self.batch_size = data, min(batch_size, data.rows)
        self.steps = -(-data.rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for index in torch.randperm(self.data.rows).split(self.batch_size):
            yield self.data.take(index)

    def first(self) -> Batch:
        return self.data.take(torch.arange(min(2, self.data.rows)))


class _Loader:
    """Batches as the user's iterable gives them."""

    def __init__(self, vae: Any, batches: Iterable[Any]):
        self.vae, self.batches = vae, batches
        self.steps = len(batches) if isinstance(batches, Sized) else 0

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for item in self.batches:
            empty = False
            yield _open(self.vae, *_pair(item))
        if empty:
            raise ValueError("the iterable of batches gave none; give one that can be walked again each epoch")

    def first(self) -> Batch:
        return next(iter(self))


def _batches(vae: Any, x: Any, mask: Arrays | None, batch_size: int) -> _InMemory | _Loader:
    if isinstance(x, Mapping):
        return _InMemory(_open(vae, x, mask), batch_size)
    if isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], Mapping):
        return _InMemory(_open(vae, *x), batch_size)
    return _Loader(vae, x)


def _pair(item: Any) -> tuple[Any, Any]:
    return (item[0], item[1]) if isinstance(item, (tuple, list)) else (item, None)


def _open(vae: Any, x: Arrays, mask: Arrays | None) -> Batch:
    return vae.check(x, mask) if hasattr(vae, "check") else Batch.of(x, mask)


def _inventory(vae: Any, batch: Batch) -> tuple[list[Tensor], list[str]]:
    """The tensors to train, and the names of the latent sites."""
    with poutine.trace(param_only=True) as capture, torch.random.fork_rng():
        guide = poutine.trace(vae.guide).get_trace(batch, batch.mask)
        model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(batch, batch.mask)
    unique = {id(p): p for p in (site["value"].unconstrained() for site in capture.trace.nodes.values())}
    if not unique:
        raise ValueError("there is nothing to train: no parameter of the model or the guide takes gradients")
    names = {n for t in (guide, model) for n in t.stochastic_nodes if not site_is_subsample(t.nodes[n])}
    return list(unique.values()), sorted(names)


def _adam(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, fused=True)


@contextmanager
def _training(vae: Any) -> Iterator[list[nn.Module]]:
    """The modules of both programs in training mode, and in eval mode afterwards."""
    owners = [p.vae if isinstance(p, Program) else p for p in (vae.model, vae.guide)]
    found = list({id(owner): owner for owner in owners if isinstance(owner, nn.Module)}.values())
    for module in found:
        module.train()
    try:
        yield found
    finally:
        for module in found:
            module.eval()
