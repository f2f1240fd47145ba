"""The loop itself: what is left of a run, epoch by epoch and step by step, until it is over or goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

from tqdm import tqdm

from pyro_mmvae.data import Batch
from pyro_mmvae.training.balance import warn_of_drowning
from pyro_mmvae.training.batches import Batches
from pyro_mmvae.training.checkpoint import Checkpoint
from pyro_mmvae.training.course import Course
from pyro_mmvae.training.history import Pace
from pyro_mmvae.training.step import Run, not_finite

LONG = 100
"""Steps of a run in which the balance of the modalities is looked at: there it costs less than a hundredth."""
UNREAD = 1000
"""Steps after which losses are read that were left on an accelerator."""


def run_epochs(
    run: Run,
    course: Course,
    data: Batches,
    pace: Pace,
    keeper: Checkpoint,
    patience: int | None,
    validate: Callable[[], float] | None,
    progress: bool,
) -> None:
    """What is left of the run, epoch by epoch."""
    with tqdm(total=pace.epochs, initial=course.epoch, disable=not progress, unit="epoch", mininterval=0.5) as bar:
        while course.epoch < pace.epochs and not course.stale(patience):
            try:
                _epoch(run, course, data, pace, keeper)
            except ValueError:  # of a later batch, or of a step that cannot be compiled after others that needed not be
                course.set(course.start)
                raise
            held_out = None if validate is None else validate()
            if held_out is not None and not math.isfinite(held_out):
                raise _stopped(course, course.step, f"the loss is {held_out}", "the validation data")
            course.end_epoch(held_out)
            bar.set_postfix_str(course.history.summary(), refresh=False)
            bar.update()


def _epoch(run: Run, course: Course, data: Batches, pace: Pace, keeper: Checkpoint) -> None:
    """What is left of an epoch, step by step."""
    late = run.late and data.rows > 0  # an iterable of the user's may not give the same batches twice
    for batch in course.rest(data):
        if course.epoch == course.step == 0 and pace.total >= LONG:
            with run.aside():
                warn_of_drowning(run.model, batch)
        rate, beta = pace(course.epoch, course.step)
        course.add(run.step(batch, rate, beta), batch.rows)
        if not late or keeper.due() or len(course.unread) == UNREAD:
            _judge(run, course, data, None if late else batch)
            keeper.offer(course)
    _judge(run, course, data)
    lost = not_finite(course.live)
    if lost is not None:  # else the last step of an epoch would put it into the history as a good one
        raise _stopped(course, course.step, "the weights are no longer finite", lost)


def _judge(run: Run, course: Course, data: Batches, last: Batch | None = None) -> None:
    """Reads the losses of the last steps, and stops at one that is not finite.

    Args:
        last: the batch, if no more than the last step is unread.
    """
    bad = course.read()
    if bad is not None:
        batch = next(course.since(data, bad[0])) if last is None else last
        culprit = not_finite(course.live) or run.culprit(batch)
        raise _stopped(course, bad[0], f"the loss is {bad[1]}", culprit)


def _stopped(course: Course, step: int, what: str, culprit: str) -> FloatingPointError:
    course.set(course.start)
    return FloatingPointError(
        f"{what} in epoch {course.epoch}, step {step}, from {culprit}; the weights of its start are back:"
        " lower lr, clip the gradient, or rescale the data"
    )
