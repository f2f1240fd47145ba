"""Normalizing flows: distributions pushed through invertible transforms, Pyro's or zuko's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution, TransformedDistribution
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Transform, constraints
from torch.distributions.transforms import _InverseTransform

from pyro_mmvae.distributions.base import Mapped, mapped

INVERSE = "inv_permutation"
"""What Pyro's permutation keeps of the order that it had when it was first inverted."""

NO_MOMENTS = (
    "a flow knows neither its mean nor its variance; take those of draws, such as q.sample((1000,)).mean(0),"
    " or the posterior's own, mm.importance(vae, x).mean()"
)


class Pushed(TransformedDistribution):
    """A transformed distribution whose `sample` leaves nothing behind.

    Pyro's transforms remember the last draw with its inverse. After `rsample` that saves an inverse; after `sample` it
    would cut the gradient that `log_prob` of the same draw has on the transforms.
    """

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        value = super().sample(torch.Size(sample_shape))
        self.clear_cache()
        return value

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError(NO_MOMENTS)

    @property
    def variance(self) -> Tensor:
        raise NotImplementedError(NO_MOMENTS)

    def mapped(self, function: Mapped) -> Pushed:
        return Pushed(mapped(self.base_dist, function), self.transforms)


class Transforms(nn.Module):
    """A row of transforms, whose parameters are found if they have any; what `Flow` and `FlowPrior` share.

    Args:
        transforms: applied in this order, each with event (dim,): Pyro's, such as
            `pyro.distributions.transforms.spline_autoregressive(dim)`, torch's, or a `ZukoTransform`. The tensors of
            those that are no modules, such as the order of `permute(dim)`, are kept as buffers, so that they are
            moved and saved with the rest.
    """

    def __init__(self, transforms: Sequence[Transform]):
        super().__init__()
        self.transforms = list(transforms)
        self.learnt = nn.ModuleList([t for t in transforms if isinstance(t, nn.Module)])
        plain = list(_plain(transforms))
        for t in plain:
            vars(t).pop(INVERSE, None)
        self.held = [(t, k) for t in plain for k, v in vars(t).items() if isinstance(v, Tensor) and not v.requires_grad]
        for place, (t, key) in enumerate(self.held):
            self.register_buffer(f"held_{place}", vars(t)[key])
        self._state: list[tuple[int, int]] = []
        self._lent: list[tuple[int, int]] = []

    def forward(self, base: Distribution) -> Distribution:
        """The distribution of what the transforms make of a draw from `base`."""
        pushed = Pushed(base, self.transforms)
        self._give_back()
        state = _state(self.parameters())
        if state != self._state:  # an inverse from before a step of the optimiser is another transform's
            pushed.clear_cache()
            self._state = state
        return pushed

    def _give_back(self) -> None:
        """The buffers, if they were moved or loaded, to the transforms that they are of."""
        held = [self._buffers[f"held_{place}"] for place in range(len(self.held))]
        state = _state(value for value in held if value is not None)
        if state == self._lent:
            return
        for (t, key), value in zip(self.held, held, strict=True):
            vars(t)[key] = value
            vars(t).pop(INVERSE, None)
        self._lent, self._state = state, []

    def __getstate__(self) -> dict[str, Any]:
        """Without what the transforms remember, which could neither be copied nor saved."""
        for part in [*self.transforms, *self.modules()]:
            for key, value in vars(part).items():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    vars(part)[key] = None
                elif isinstance(value, tuple) and any(isinstance(v, Tensor) for v in value):
                    vars(part)[key] = (None, None)
        return {**vars(self), "_state": [], "_lent": []}


def _plain(transforms: Iterable[Transform]) -> Iterator[Transform]:
    """Those that are no modules, from within others too."""
    for t in transforms:
        if isinstance(t, ComposeTransform):
            yield from _plain(t.parts)
        elif isinstance(t, _InverseTransform) and t._inv is not None:
            yield from _plain([t._inv])
        elif not isinstance(t, nn.Module):
            yield t


def _state(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """What differs once one of them was changed or moved."""
    return [(tensor._version, tensor.data_ptr()) for tensor in tensors]


class ZukoTransform(dist.TransformModule):
    """A flow of the optional package zuko as a Pyro transform, from the flow's base to its data side.

    Drawing uses the flow's inverse and scoring its forward direction; prefer coupling flows (`passes=2`), which are
    fast both ways.

    Args:
        build: takes the module zuko and returns an unconditional flow: zuko is imported in here, because its import
            turns off the validation of all distributions, which is put back.

    Raises:
        ImportError: zuko is not installed.

    Reference:
        Rozet et al., 2022, Zuko: Normalizing flows in PyTorch, https://github.com/probabilists/zuko

    Example:
        A neural spline flow as a prior:

        >>> prior = mm.FlowPrior(16, [mm.ZukoTransform(lambda zuko: zuko.flows.NSF(16, passes=2))])  # doctest: +SKIP
    """

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, build: Callable[[ModuleType], Any]):
        super().__init__()
        validate = torch.distributions.Distribution._validate_args
        try:
            import zuko
        except ImportError:
            raise ImportError("ZukoTransform needs the package zuko; install pyro_mmvae[zuko]") from None
        finally:
            torch.distributions.Distribution.set_default_validate_args(validate)
        self.lazy = build(zuko).transform

    def _call(self, x: Tensor) -> Tensor:
        return self.lazy().inv(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.lazy()(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.lazy().log_abs_det_jacobian(y, x)
