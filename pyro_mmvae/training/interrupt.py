"""Ctrl-C, told between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pyro_mmvae.training.history import History


class Stopped(KeyboardInterrupt):
    """Ctrl-C after a whole step: all that belongs to a run is of one moment."""


class Interrupted(KeyboardInterrupt):
    """What `fit` ends with at Ctrl-C.

    Attributes:
        history: the `History` of the epochs that were over.
    """

    def __init__(self, where: str, history: History):
        super().__init__(where)
        self.history = history


@contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """Inside, Ctrl-C waits for a call of the function that this gives, which raises `Stopped`; a second does not wait.

    Only where Python's own handler is in place, and in the main thread, as no other hears signals.
    """
    told: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if told:
            signal.default_int_handler(number, frame)
        told.append(number)

    def stop_if_told() -> None:
        if told:
            raise Stopped

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield stop_if_told
        return
    signal.signal(signal.SIGINT, hear)
    try:
        yield stop_if_told
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
