"""A training step as one graph of tensor operations, for models so small that Python is what takes the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyro_mmvae.chance import seed_generators, undisturbed
from pyro_mmvae.data import Batch
from pyro_mmvae.programs import scaled, silent

CHECKS = 8
"""How often the graph is run beside the step, on other rows, with other random numbers and another weight of the KL."""
Found = tuple[Tensor, Sequence[Tensor | None]]
"""The loss of a batch summed over its rows, and the gradient of its mean by each parameter."""


class Compiled:
    """Loss and gradients of complete batches of one shape, by a graph that is traced from the first of them.

    The graph is what the step did to its tensors once: what Python decided on the way stays as it was. It is run beside
    the step itself on other rows before it is used, and refused if it says something else.

    Args:
        loss: (batch) -> the loss, a scalar.
        modules: which hold all that is trained.
        parameters: what is trained.
        factors: site -> weight of its KL, which changes from step to step.
        devices: those with generators of their own.
        backend: of `torch.compile`; "eager" runs the graph as it was traced.

    Raises:
        ValueError: an unknown backend, a parameter outside of the modules, or a step that cannot be traced.
    """

    def __init__(
        self,
        loss: Callable[[Batch], Tensor],
        modules: Sequence[nn.Module],
        parameters: Sequence[Tensor],
        factors: Mapping[str, float],
        devices: Sequence[torch.device],
        backend: str,
    ):
        if backend not in ("eager", *torch.compiler.list_backends(exclude_tags=())):
            known = ", ".join(torch.compiler.list_backends())
            raise ValueError(
                f"compile: there is no backend {backend!r} of torch.compile; give 'eager' or one of {known}"
            )
        self.whole = _Whole(modules, loss)
        self.factors, self.devices, self.backend = factors, devices, backend
        tensors = {**dict(self.whole.named_parameters()), **dict(self.whole.named_buffers())}
        places = {id(tensor): place for place, tensor in enumerate(tensors.values())}
        if any(id(p) not in places for p in parameters):
            raise ValueError("compile: a parameter of the programs is in no module; make it an nn.Parameter of one")
        self.names, self.values = list(tensors), [tensor.detach() for tensor in tensors.values()]
        self.trained = {places[id(p)]: None for p in parameters}
        self.shapes: dict[str, tuple[torch.Size, torch.dtype]] | None = None
        self.weighted = False
        self.graph: Callable[..., Found] | None = None

    def fits(self, batch: Batch) -> bool:
        """Whether the graph is one for this batch; others are left to the step itself."""
        shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
        if self.shapes is None and len(batch.complete) == len(batch) > 0:
            self.shapes = shapes
        return len(batch.complete) == len(batch) and shapes == self.shapes

    def __call__(self, batch: Batch, beta: float) -> Found:
        """What the graph says of a batch that fits."""
        if self.graph is None or (beta != 1 and not self.weighted):
            self.weighted = self.weighted or beta != 1
            self.graph = self._traced(batch)
        with torch.no_grad():
            return self.graph(self.values, self._tensors(batch), self.values[0].new_full((), beta))

    def _tensors(self, batch: Batch) -> list[Tensor]:
        assert self.shapes is not None
        return [batch[name] for name in self.shapes]

    def _step(self, like: Batch, values: list[Tensor], x: list[Tensor], beta: Tensor) -> Found:
        batch = Batch(dict(zip(self.shapes or (), x, strict=True)), like.mask, like.rows, like.complete)
        batch.checked = True
        weights = scaled(dict.fromkeys(self.factors, beta)) if self.weighted else nullcontext()  # type: ignore[arg-type]
        with torch.enable_grad(), silent(), weights:
            values = [value.detach().requires_grad_(k in self.trained) for k, value in enumerate(values)]
            loss = functional_call(self.whole, dict(zip(self.names, values, strict=True)), (batch,))
            trained = [values[k] for k in self.trained]
            return loss.detach(), torch.autograd.grad(loss / batch.rows, trained, allow_unused=True)

    def _traced(self, batch: Batch) -> Callable[..., Found]:
        """The graph of a step, compiled, that leaves no trace in the modules' buffers and in the generators."""

        def step(values: list[Tensor], x: list[Tensor], beta: Tensor) -> Found:
            return self._step(batch, values, x, beta)

        from torch.fx.experimental.proxy_tensor import make_fx  # takes a while to import, and few need it

        x = self._tensors(batch)
        with undisturbed(self.devices), self._restored():
            try:
                graph: Any = make_fx(step)(self.values, x, self.values[0].new_full((), 0.5))
            except (RuntimeError, TypeError, NotImplementedError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ValueError(
                    f"compile: a step of this loss cannot be traced: {reason}; leave compile out"
                ) from error
        for seed in range(CHECKS):
            self._check(seed, [value.roll(seed, 0) for value in x], graph, step)
        return graph if self.backend == "eager" else torch.compile(graph, backend=self.backend, fullgraph=True)

    def _check(self, seed: int, x: list[Tensor], graph: Callable[..., Found], step: Callable[..., Found]) -> None:
        both = []
        for function in (graph, step):
            with undisturbed(self.devices), self._restored(), torch.no_grad():
                seed_generators(self.devices, seed)
                both.append(function(self.values, x, self.values[0].new_full((), 0.1 * seed)))
        if not _same(*both):
            raise ValueError(
                "compile: traced once, a step of this loss says something else of other rows or random numbers: Python"
                " decides in it what is done; leave compile out"
            )

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """The values are as before afterwards: modules may count in their buffers."""
        kept = [value.clone() for value in self.values]
        try:
            yield
        finally:
            for value, old in zip(self.values, kept, strict=True):
                value.copy_(old)


class _Whole(nn.Module):
    """The loss as a module of all that it runs through."""

    def __init__(self, modules: Sequence[nn.Module], loss: Callable[[Batch], Tensor]):
        super().__init__()
        self.parts, self.loss = nn.ModuleList(modules), loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(batch)


def _same(one: Found, other: Found) -> bool:
    pairs = [(one[0], other[0]), *zip(one[1], other[1], strict=True)]
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.allclose(a, b, rtol=1e-3, atol=1e-5))
        for a, b in pairs
    )
