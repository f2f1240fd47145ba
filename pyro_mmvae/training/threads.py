"""How many threads a training run is worth: one, where every tensor operation of its steps is small."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

PRODUCT = 6e6
"""Floating-point operations of a matrix product from which on a second thread takes less time than its start."""
ELEMENTS = 2**16
"""Numbers that come out of an operation, likewise."""


@contextmanager
def as_many_as_pay(look: Callable[[], object] | None, scale: float) -> Iterator[None]:
    """One thread inside where no operation of a step is large enough for two; afterwards as many as before.

    Threads wait for one another after each operation. A product of 128 x 128 by 128 takes 50 microseconds on one thread
    and on two; on a machine that others use as well, whoever is late holds up the rest, and a step takes twice its
    time. What counts are shapes, not seconds, so that a run that is resumed computes as it did.

    Args:
        look: runs the loss on some rows; None = leave the threads as they are.
        scale: rows of a step over those rows.
    """
    before = torch.get_num_threads()
    if before == 1 or look is None or _largest(look) * scale >= 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _largest(look: Callable[[], object]) -> float:
    try:
        with _uncompiled(), Largest() as found:
            look()
    except Exception:  # of rows as no step has them; what is wrong with the data a step says better
        return math.inf
    return found.share


def _uncompiled() -> AbstractContextManager[Any]:
    """What `torch.compile` has made runs as it was written: under a mode it would be given up for ever."""
    is_there = "torch._dynamo" in sys.modules  # else nothing has been compiled, and it takes seconds to import
    return torch.compiler.set_stance("force_eager") if is_there else nullcontext()  # type: ignore[no-untyped-call]


class Largest(TorchDispatchMode):
    """Watches the tensor operations inside.

    Attributes:
        share: the largest of them over what is worth a second thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.share = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            count = flop_registry.get(func.overloadpacket)
            operations = count(*args, **(kwargs or {}), out_val=out) if count else 0
            numbers = max((part.numel() for part in tree_leaves(out) if isinstance(part, Tensor)), default=0)
            self.share = max(self.share, operations / PRODUCT, numbers / ELEMENTS)
        return out
