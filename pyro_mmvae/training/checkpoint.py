"""The file from which a run goes on after its process was killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_mmvae.storage import Damaged, compare, read, write
from pyro_mmvae.titles import around_difference
from pyro_mmvae.training.course import Course
from pyro_mmvae.training.history import constant
from pyro_mmvae.training.settings import course_of
from pyro_mmvae.warn import warn

Settings = dict[str, Any]


def carry_on(error: OSError) -> None:
    """For `fit(if_unwritable=...)`: warns that no checkpoint could be written; training goes on in memory.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/run"
        >>> history = mm.fit(vae, x, epochs=2, checkpoint=path, if_unwritable=carry_on, progress=False)
    """
    warn(f"no checkpoint could be written ({error}); training goes on in memory")


def give_up(error: OSError) -> None:
    """For `fit(if_unwritable=...)`: stops training with the error, in one line.

    Raises:
        OSError: always.

    Example:
        >>> give_up(OSError(28, "No space left on device"))
        Traceback (most recent call last):
            ...
        OSError: [Errno 28] training stopped, as no checkpoint could be written: [Errno 28] No space left on device
    """
    raise OSError(error.errno, f"training stopped, as no checkpoint could be written: {error}") from None


class Checkpoint:
    """Reads and writes the last two records of a run: `path`, and the one before as `path.previous`.

    Args:
        path: the file; None = none is kept.
        every: seconds between two records.
        if_unwritable: what to do about a full disk or a folder that may not be written to.
        settings: of the run, as plain values; a file of a run with others is refused.

    Raises:
        ValueError: the folder does not exist, or the path is one.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        every: float,
        if_unwritable: Callable[[OSError], None],
        settings: Settings,
    ):
        self.path = None if path is None else Path(path)
        self.every, self.if_unwritable, self.settings, self.last = every, if_unwritable, settings, -float("inf")
        if self.path is not None:
            if self.path.is_dir() or not self.path.parent.is_dir():
                raise ValueError(f"checkpoint {self.path} is a folder, or in none that exists; give the path of a file")
            self.old = self.previous = self.path.with_name(self.path.name + ".previous")

    def resume(self, course: Course) -> None:
        """Takes the run to where its file says that it stood, if there is one.

        Raises:
            ValueError: in one line, a file that is not of this run; it stays as it is.
        """
        if self.path is None:
            return
        files = [file for file in (self.path, self.previous) if file.exists()]
        if files == [self.previous]:  # killed between two names, or somebody deleted the other to start anew
            warn(
                f"{self.path} is gone; the run goes on from {self.previous}; delete it too to start from the beginning"
            )
        if files:
            record = self._newest(files)
            self._check(files[0], record, course)
            course.restore(record)

    def due(self) -> bool:
        """Whether it is time for a record."""
        return self.path is not None and time.monotonic() - self.last >= self.every

    def offer(self, course: Course) -> None:
        """Writes a record if it is time for one."""
        if self.due():
            self.write(course)

    def write(self, course: Course) -> None:
        """Writes a record."""
        if self.path is None:
            return
        try:
            write(self.path, "checkpoint", {"settings": self.settings, **course.record()}, self.old)
            self.old = self.previous
        except OSError as error:
            self.if_unwritable(error)
        self.last = time.monotonic()

    def _newest(self, files: list[Path]) -> dict[str, Any]:
        assert self.path is not None
        try:
            return read(files[0], "checkpoint")
        except Damaged as error:
            if len(files) == 1:
                raise
            record = read(files[1], "checkpoint")
            self.old = self.path.with_name(self.path.name + ".damaged")  # the first record to be written moves it there
            warn(f"{error}; the run goes on from {files[1]} and leaves it as {self.old}")
            return record

    def _check(self, file: Path, record: dict[str, Any], course: Course) -> None:
        live = course.live
        filled = (course.held.keys() & record["live"].keys()) - live.keys()  # by a network, since the run began
        try:
            compare(file, record["live"], {**live, **{name: record["live"][name] for name in filled}})
        except ValueError as error:
            raise ValueError(f"{error}, frozen where that was; or another path, such as one for each phase") from None
        for key in {**self.settings, **record["settings"]}:
            there, here = record["settings"].get(key), self.settings.get(key)
            longer = key == "epochs" and self.settings["schedule"] == course_of(constant) and there <= here
            if there != here and not longer:
                there, here = around_difference(there, here)
                raise ValueError(
                    f"checkpoint {file} is of a run with {key} {there}, not {here}; give the same, or another path"
                )
