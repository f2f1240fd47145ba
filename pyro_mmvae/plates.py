"""Plates over all of their rows, for programs that run many times a second."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.subsample_messenger import SubsampleMessenger


class plate(pyro.plate):
    """`pyro.plate` without what costs time in it and is of no use where nothing is subsampled.

    It leaves a distribution that has its size already as it is, where Pyro makes an expanded copy for each plate, and
    it has no subsample site. To every handler it is the plate that it derives from.

    Args:
        name: of the frame.
        size: number of independent entries.
        dim: the axis of the batch that it takes, counted from the right.

    Example:
        >>> import pyro.distributions as dist
        >>> with plate("data", 3, dim=-2), plate("repeat", 2, dim=-1):
        ...     pyro.sample("x", dist.Normal(0.0, 1.0)).shape
        torch.Size([3, 2])
    """

    @staticmethod
    def _subsample(name: str, size: Any = None, *args: Any) -> tuple[int, int, torch.Tensor | None]:
        return size, size, None

    def _process_message(self, msg: Any) -> None:
        frame = CondIndepStackFrame(self.name, self.dim, self.size, self.counter, self.size)
        msg["cond_indep_stack"] = (frame, *msg["cond_indep_stack"])
        shape = getattr(msg["fn"], "batch_shape", ())
        if len(shape) < -self.dim or shape[self.dim] != self.size:
            BroadcastMessenger._pyro_sample(msg)


class shared_plate(plate):
    """A plate of the model that a guide may have as well: under validation, where Pyro looks in the model for every
    subsample site of the guide's plates, it has one.

    Args:
        name, size, dim: as of `plate`.

    Example:
        >>> from pyro import poutine
        >>> def program():
        ...     with shared_plate("data", 3, dim=-1):
        ...         pass
        >>> with pyro.validation_enabled(True):
        ...     "data" in poutine.trace(program).get_trace()
        True
    """

    @staticmethod
    def _subsample(name: str, size: Any = None, *args: Any) -> tuple[int, int, torch.Tensor | None]:
        return SubsampleMessenger._subsample(name, size, *args) if is_validation_enabled() else (size, size, None)
