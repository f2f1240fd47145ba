"""Whether two ways to compute a step say the same, and the refusal of one that cannot be run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

LOSS = 1e-3
"""How far the loss may lie, and what a step does to buffers, as a share."""
SAME = 1e-3, 0.05
"""How far the graph's loss and gradients may lie from the step's, as a share of their norm; gradients without and with
holes. With holes the step runs networks on fewer rows, where libraries round in another way, and a unit near its kink
may turn over: that makes 0.002 in float32 and 0.016 in bfloat16. Without, both are the same operations."""
Found = tuple[Tensor, Sequence[Tensor | None]]
"""The loss of a batch summed over its rows, and the gradient of its mean by each parameter."""


def change(value: Tensor, before: Tensor) -> Tensor | None:
    """By how much a value was moved; None = it was not."""
    if torch.equal(value, before):
        return None
    exact = value.is_floating_point() or value.is_complex()
    return (value - before if exact else value.float() - before.float()).nan_to_num()  # of an infinity that stays


def exact(device: torch.device) -> AbstractContextManager[None]:
    """Convolutions on a GPU in full float32: otherwise it rounds some of them, by their shapes, to eleven bits."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device.type == "cuda" else nullcontext()


def same(one: Found, other: Found, gradients: float) -> bool:
    """Do they agree? A gradient that is not there is zero."""
    return agree([one[0]], [other[0]]) and agree(one[1], other[1], gradients)


def agree(one: Sequence[Tensor | None], other: Sequence[Tensor | None], share: float = LOSS) -> bool:
    """Whether each of these tensors is the other, up to a share of its norm; one that is not there is zero."""
    return all(_distance(a, b) < share for a, b in zip(one, other, strict=True))


def _distance(a: Tensor | None, b: Tensor | None) -> float:
    """The norm of the difference, as a share of the norm."""
    some = b if a is None else a
    if some is None:
        return 0.0
    a, b = (torch.zeros_like(some) if value is None else value for value in (a, b))
    return float((a - b).norm() / (b.norm() + 1e-5 * b.numel() ** 0.5))


@contextmanager
def refused(how: str) -> Iterator[None]:
    """Makes of what torch raises of a step the ValueError that leaves it to a run without `compile`."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, NotImplementedError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"compile: a step of this loss {how}: {reason}; leave compile out") from error
