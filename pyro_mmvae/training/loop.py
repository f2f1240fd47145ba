"""`fit`: stochastic variational inference with a fused torch optimiser over batches drawn by index."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from tqdm import tqdm

from pyro_mmvae.data import Arrays
from pyro_mmvae.dataset import MultimodalDataset
from pyro_mmvae.programs import Program, alone
from pyro_mmvae.training.batches import batches_of, opened, pair
from pyro_mmvae.training.history import History, Schedule, cosine
from pyro_mmvae.training.step import Run, Snapshot, inventory


def fit(
    vae: Any,
    x: Arrays | MultimodalDataset | Iterable[Any],
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

    Threads of one process train in turn, each with the result that it has alone; in parallel train processes.

    Args:
        vae: a `MultimodalVAE`, or any object with `model` and `guide`, such as `mm.Pair(model, guide)`.
        x: name -> array (row, *event), NaN = missing; or a `MultimodalDataset` of arrays on disk; or an iterable of
            `(x, mask)` batches that can be walked once an epoch, such as a DataLoader.
        mask: name -> bool, True = observed.
        epochs: passes over the data.
        batch_size: rows a step; ignored for an iterable of batches.
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
    data = batches_of(vae, x, mask, batch_size)
    held_out = None if validation is None else opened(vae, *pair(validation))
    loss = Trace_ELBO() if loss is None else loss
    history = History()
    with (
        alone(),
        torch.random.fork_rng(),
        pyro.validation_enabled(False),
        _training(vae) as modules,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Encountered")  # Pyro warns of a loss that fit is about to refuse
        torch.manual_seed(seed)
        parameters, latents = inventory(vae, data.first())
        make = optimizer or _adam
        optim = make(parameters, lr=lr)
        run = Run(vae, loss, optim, parameters, clip, dict.fromkeys(latents, 1.0))
        state = Snapshot(parameters, modules)
        best, kept, started = math.inf, state, time.perf_counter()
        bar = tqdm(range(epochs), disable=not progress, unit="epoch", mininterval=0.5)
        for epoch in bar:
            total, rows = 0.0, 0
            for step, batch in enumerate(data.walk()):
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
            state = Snapshot(parameters, modules)
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
