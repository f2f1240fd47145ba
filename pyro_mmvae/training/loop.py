"""`fit`: stochastic variational inference with a fused torch optimiser over batches drawn by index."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from torch import nn

from pyro_mmvae.arrays import positive, whole
from pyro_mmvae.chance import devices_of, seed_generators, undisturbed
from pyro_mmvae.convolutions import channels_last
from pyro_mmvae.data import Arrays, Batch
from pyro_mmvae.dataset import MultimodalDataset
from pyro_mmvae.direct import direct
from pyro_mmvae.memory import keep_at_hand
from pyro_mmvae.modes import in_training
from pyro_mmvae.optim import Adam
from pyro_mmvae.programs import alone, check_model
from pyro_mmvae.questions import opened
from pyro_mmvae.training.arguments import check_arguments, optimizer_of
from pyro_mmvae.training.batches import Batches, batches_of, pair
from pyro_mmvae.training.checkpoint import Checkpoint, carry_on
from pyro_mmvae.training.course import Course
from pyro_mmvae.training.epochs import Loop
from pyro_mmvae.training.history import History, Pace, Schedule, constant, cosine
from pyro_mmvae.training.precision import lowered
from pyro_mmvae.training.settings import checksums, course_of, familiar, made_by, parts_of, title_of
from pyro_mmvae.training.shares import Shares, special_sites
from pyro_mmvae.training.step import Run, inventory
from pyro_mmvae.training.threads import as_many_as_pay


@torch.inference_mode(False)  # which switches gradients on as well
def fit(
    vae: Any,
    x: Arrays | MultimodalDataset | Iterable[Any],
    mask: Arrays | None = None,
    *,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 2e-3,
    schedule: Schedule = cosine,
    loss: Any = None,
    validation: Any = None,
    patience: int | None = None,
    warmup: int = 0,
    beta: Schedule = constant,
    clip: float | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    autocast: torch.dtype | None = None,
    compile: str | None = None,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 60.0,
    if_unwritable: Callable[[OSError], None] = carry_on,
) -> History:
    """Trains a model and its guide in place, and returns how it went.

    Threads of one process train in turn, each with the result that it has alone; in parallel train processes.

    Args:
        vae: a `MultimodalVAE`, or any object with `model` and `guide`, such as `mm.Pair(model, guide)`. A site of
            theirs outside the plate "data", which all rows share, counts once for all of them, in however many batches
            they come; a `pyro.factor` there whose value hangs on the rows counts for those of each batch.
        x: name -> array (row, *event), NaN = missing; or a `MultimodalDataset` of arrays on disk; or an iterable of
            `(x, mask)` batches that can be walked once an epoch, such as a DataLoader.
        mask: name -> bool, True = observed.
        epochs: passes over the data.
        batch_size: rows a step; ignored for an iterable of batches.
        lr: learning rate at the start.
        schedule: progress (0 to 1) -> factor of the learning rate; `mm.constant` for none.
        loss: a Pyro ELBO, such as `Trace_ELBO(num_particles=4, vectorize_particles=True)` or an objective of ours; None
            is `Trace_ELBO()`. That one is run without traces where the draws allow it.
        validation: held-out `x` or `(x, mask)`: its loss is measured each epoch under common random numbers, and the
            weights of the best epoch are kept.
        patience: stop after so many epochs without a better validation loss.
        warmup: epochs over which the KL's weight rises from 0 to 1. A fifth of them keeps directions of the code that
            few entries speak of, as in a table with holes, which the KL alone often prunes before they are learnt.
        beta: progress (0 to 1) -> a further factor of the KL's weight, for any course of it, such as
            `lambda progress: min(1.0, 4 * progress % 1 * 2)`, four times from 0 to 1.
        clip: the largest norm of the gradient of the mean loss of a row.
        optimizer: (parameters, lr) -> torch optimiser; `mm.Adam` by default, torch's fused Adam. The schedule
            multiplies the learning rate of each of its groups.
        autocast: torch.bfloat16 for the networks of the modalities; fusion, prior and all sums stay in float32. For
            GPUs and for processors with instructions for it (avx512_bf16, amx_bf16); others take longer than in
            float32.
        compile: for long runs of small models: traces the first step into one graph of tensor operations and runs that
            for every batch of its shape, by a backend of `torch.compile`; "inductor" needs a C++ compiler and a minute
            at first, "eager" runs the graph as it is. What Python decides in the programs stays as it was in that step.
            Missing data are computed with as zeros and masked, so that nothing is saved where much is missing; dropout
            and batch norm are refused there. Batches in which a modality is missing altogether, and the last one if it
            is smaller, run as without. (In a batch without a complete row a `JointEncoder` with another fusion for the
            rest is not trained; in the graph its gradient is zero, and Adam's momentum moves it on.) On a GPU the graph
            is recorded and launched as one.
        seed: of all that is random in here; the global generator is left as it was.
        progress: whether to show a progress bar.
        checkpoint: a file to keep the run in, and the one before it as `checkpoint.previous`. Whoever calls `fit` again
            in the same way, after its process was killed at whatever moment, gets the result of an uninterrupted run,
            bit by bit on the same machine; a run that was over is returned at once. Under `schedule=mm.constant` a run
            goes on to more epochs.
        every: seconds between two records in that file; 0 = one after each step.
        if_unwritable: what to do if the disk is full or the folder may not be written to: `mm.carry_on` in memory with
            a warning, or `mm.give_up`, which raises the OSError.

    Returns:
        A `History`. The modules are left in eval mode, or as they were if something is refused; those whose parameters
        are all frozen are never in another.

    A run of 100 steps or more warns of a modality that drowns the others, and of a posterior that has collapsed; any
    run on data in memory of a modality, or entries of one, that no row has.

    Ctrl-C stops it after the step that is under way, a second one at once. The weights are those of that moment, or of
    the best epoch if there are validation data, the checkpoint has the run as far as it got, and the KeyboardInterrupt
    has the `history` of the epochs that were over.

    Raises:
        ValueError: bad input, in one line, before anything is changed, or in a later batch, with the weights from the
            start of the epoch; or a checkpoint that is damaged, foreign or of another run, which is left as it is.
        FloatingPointError: the loss, or that of the validation data, is no longer finite; names the epoch, the step and
            the modality. The weights are those from the start of that epoch.
        OSError: no checkpoint could be written, with `mm.give_up`.

    Limits of resuming: a loader must give the same batches again, in an order that depends on torch's global generator
    alone; what a module keeps outside of its parameters and buffers is not in the file, nor is what is frozen, which
    must be the same; of data on disk and of a loader only the numbers of rows and steps are compared.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> history = fit(vae, x, epochs=3, lr=1e-2, progress=False)
        >>> len(history.loss), vae.training
        (3, False)
    """
    keep_at_hand()
    check_model(vae)
    epochs, batch_size, seed = whole("epochs", epochs, 0), whole("batch_size", batch_size), whole("seed", seed, 0)
    warmup, patience = whole("warmup", warmup, 0), None if patience is None else whole("patience", patience)
    lr, clip = positive("lr", lr, zero=True), None if clip is None else positive("clip", clip)
    loss, make = direct(loss), optimizer or Adam
    check_arguments(loss, make, every, schedule=schedule, beta=beta)
    data, held_out = batches_of(vae, x, mask, batch_size), _held_out(vae, validation, patience)
    settings = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": course_of(schedule), "warmup": warmup,
        "beta": course_of(beta), "loss": title_of(loss), "clip": clip, "patience": patience,
        "seed": seed, "validation rows": held_out and held_out.rows, "rows": data.rows,
        "steps an epoch": data.steps, "autocast": str(autocast), "compile": compile,
    }  # fmt: skip
    with (
        _prepared(vae, data, seed) as (modules, first, devices),
        lowered(modules, autocast),
        channels_last(modules if familiar(loss) else ()),
    ):
        parameters = inventory(vae, first, devices, modules)
        optim = optimizer_of(make, parameters.values(), lr)
        settings |= made_by(make, optim) | parts_of(modules)
        settings["modalities"] = {name: list(value.shape[1:]) for name, value in first.items()}
        if checkpoint is not None:
            settings |= checksums(getattr(data, "data", None), held_out, modules)
        rows = getattr(data, "batch_size", None)
        course = Course(parameters, modules, optim, devices)  # first: it may give buffers other memory
        shared, left = special_sites(vae, first, devices, modules, data.steps)
        shares = Shares(shared, data.rows or data.steps * first.rows, left)
        run = Run(vae, loss, optim, list(parameters.values()), clip, devices, modules, compile, rows, shares)
        pace = Pace(schedule, epochs, warmup, beta, data.steps)
        keeper = Checkpoint(checkpoint, every, if_unwritable, settings)
        validate = None if held_out is None else partial(run.validate, held_out, batch_size)
        look = partial(run.validate, first.as_if_seen(), first.rows) if familiar(loss) and not devices else None
        with as_many_as_pay(look, (rows or first.rows) / first.rows):
            Loop(run, course, data, pace, keeper, validate, patience, progress).finish()
    return course.history


def _held_out(vae: Any, validation: Any, patience: int | None) -> Batch | None:
    """The validation data as a checked batch."""
    if validation is None:
        if patience is not None:
            raise ValueError(f"patience is {patience}, but nothing is there to be patient about; give validation data")
        return None
    try:
        batch = opened(vae, *pair(validation))
    except ValueError as error:
        raise ValueError(f"validation: {error}") from None
    if all(batch.lacks(name) for name in batch):
        raise ValueError("validation: nothing is observed in it; give rows with data")
    return batch


@contextmanager
def _prepared(vae: Any, data: Batches, seed: int) -> Iterator[tuple[list[nn.Module], Batch, list[torch.device]]]:
    """The modules in training mode, a small batch, and the devices, whose generators are seeded and put back."""
    with alone(), in_training(vae) as modules, pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered")  # Pyro warns of a loss that fit is about to refuse
        with undisturbed():
            seed_generators((), seed)
            first = data.first()
        devices = devices_of([*first.values(), *(p for module in modules for p in module.parameters())])
        with undisturbed(devices):
            seed_generators(devices, seed)
            yield modules, first, devices
