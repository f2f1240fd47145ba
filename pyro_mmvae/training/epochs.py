"""The loop itself: what is left of a run, epoch by epoch and step by step, until it is over or goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from pyro_mmvae.arrays import counted
from pyro_mmvae.data import Batch
from pyro_mmvae.training.balance import warn_of_collapse, warn_of_drowning
from pyro_mmvae.training.batches import Batches
from pyro_mmvae.training.checkpoint import Checkpoint
from pyro_mmvae.training.course import Course
from pyro_mmvae.training.history import Pace
from pyro_mmvae.training.interrupt import Interrupted, Stopped, between_steps
from pyro_mmvae.training.step import Run, not_finite
from pyro_mmvae.warn import warn

LONG = 100
"""Steps from which on a run looks at the balance of the modalities, and at its end whether the codes say anything: it
then costs less than a hundredth of it."""
UNREAD = 1000
"""Steps after which losses that were left on an accelerator are read."""
UNCOUNTED = "no row of it counts in this loss, which is 0; give rows that do, such as complete ones"
NOTHING = (
    "nothing is trained: the loss of no step hangs on a parameter that is not frozen; vae.requires_grad_(True)"
    " unfreezes all, such as what the second phase of a recipe froze"
)


@dataclass
class Loop:
    """A run and what it goes over.

    Attributes:
        validate: the loss of the held-out rows, if there are any.
        patience: epochs without a better one after which it stops.
        progress: whether to show a bar.
        last: the batch of the last step.
    """

    run: Run
    course: Course
    data: Batches
    pace: Pace
    keeper: Checkpoint
    validate: Callable[[], float] | None
    patience: int | None
    progress: bool
    last: Batch | None = None

    def finish(self) -> None:
        """Takes the run up where its file says that it stood, does what is left of it, and leaves the best weights.

        Ctrl-C ends it as well, after the step that is under way, with a record of where it stands.
        """
        self.keeper.resume(self.course)
        before = self.course.epoch
        try:
            with between_steps() as stop_if_told:
                self._epochs(stop_if_told)
        except Stopped:
            self._judge()
            self.keeper.write(self.course)
            self.course.take_best()
            raise Interrupted(self._where(), self.course.history) from None
        except KeyboardInterrupt:  # at any moment, of which no record can be made
            self.course.take_best()
            raise
        if self.course.epoch > before:
            self.keeper.write(self.course)
            if self.run.compiled is not None and self.run.compiled.graph is None:
                warn("compile: every batch lacked a modality, so every step ran as without")
        self.course.take_best()
        if self.last is not None and self.pace.total >= LONG:
            with self.run.aside():
                warn_of_collapse(self.run, self.last)

    def _epochs(self, stop_if_told: Callable[[], None]) -> None:
        course, epochs = self.course, self.pace.epochs
        with tqdm(total=epochs, initial=course.epoch, disable=not self.progress, unit="epoch", mininterval=0.5) as bar:
            while course.epoch < epochs and not course.stale(self.patience):
                try:
                    self._epoch(stop_if_told)
                except ValueError:  # of a later batch, or of a step that cannot be compiled after some that need not be
                    course.set(course.start)
                    raise
                held_out = None if self.validate is None else self.validate()
                if held_out is not None and not math.isfinite(held_out):
                    raise self._failed(course.step, f"the loss is {held_out}", "the validation data")
                if held_out == 0:  # in every epoch, of which the first would be kept
                    course.set(course.start)
                    raise ValueError(f"validation: {UNCOUNTED}")
                course.end_epoch(held_out)
                if course.epoch == 1 and self.last is not None:
                    self._warn_of_nothing()
                bar.set_postfix_str(course.history.summary(), refresh=False)
                bar.update()
                stop_if_told()  # of while the held-out rows were looked at

    def _warn_of_nothing(self) -> None:
        if self.course.history.loss[0] == 0:
            warn(f"x: {UNCOUNTED}")
        elif not self.run.taught:
            warn(NOTHING)

    def _epoch(self, stop_if_told: Callable[[], None]) -> None:
        """What is left of an epoch, step by step."""
        run, course, keeper = self.run, self.course, self.keeper
        late = run.late and self.data.rows > 0  # an iterable of the user's may not give the same batches twice
        for batch in course.rest(self.data):
            if course.epoch == course.step == 0 and self.pace.total >= LONG:
                with run.aside():
                    warn_of_drowning(run.model, batch)
            rate, beta = self.pace(course.epoch, course.step)
            course.add(run.step(batch, rate, beta), batch.rows)
            self.last = batch
            if not late or keeper.due() or len(course.unread) == UNREAD:
                self._judge(None if late else batch)
                keeper.offer(course)
            stop_if_told()
        self._judge()
        lost = not_finite(course.live)
        if lost is not None:  # else the last step of an epoch would put it into the history as a good one
            raise self._failed(course.step, "the weights are no longer finite", lost)

    def _judge(self, last: Batch | None = None) -> None:
        """Reads the losses of the last steps, and stops at one that is not finite.

        Args:
            last: the batch, if no more than the last step is unread.
        """
        bad = self.course.read()
        if bad is not None:
            batch = next(self.course.since(self.data, bad[0])) if last is None else last
            culprit = not_finite(self.course.live) or self.run.culprit(batch)
            raise self._failed(bad[0], f"the loss is {bad[1]}", culprit)

    def _where(self) -> str:
        course = self.course
        weights = "that moment" if course.kept is None else f"epoch {course.history.best_epoch}, the best"
        where = f"in epoch {course.epoch}, after {counted(course.step, 'step')} of it"
        return f"fit stopped {where}; the weights are those of {weights}"

    def _failed(self, step: int, what: str, culprit: str) -> FloatingPointError:
        self.course.set(self.course.start)
        return FloatingPointError(
            f"{what} in epoch {self.course.epoch}, step {step}, from {culprit}; the weights of its start are back:"
            " lower lr, clip the gradient, rescale the data, or let the encoder of counts see log(1 + x)"
        )
