"""A training step as one graph of tensor operations, for models so small that Python is what takes the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyro_mmvae.buffers import in_place, standing
from pyro_mmvae.chance import seed_generators, undisturbed
from pyro_mmvae.data import Batch
from pyro_mmvae.holes import hide
from pyro_mmvae.programs import silent, weighted_kl
from pyro_mmvae.training.agreement import SAME, Found, agree, change, exact, refused, same
from pyro_mmvae.training.captured import Captured

CHECKS = 8
"""How often the graph is run beside the step, on other rows, with other random numbers and another weight of the KL."""
MORE = 0.3
"""Share of what was observed that those runs hide, so that no modality happens to be whole."""


class Form(NamedTuple):
    """What the batches of one graph have in common.

    Attributes:
        x: name -> shape and dtype.
        masks: name -> shape of the mask, for the modalities that are not observed everywhere.
        covered: whether something is observed in every row.
        filled: the modalities of which something is observed in every row.
    """

    x: dict[str, tuple[torch.Size, torch.dtype]]
    masks: dict[str, torch.Size]
    covered: bool
    filled: frozenset[str]

    @classmethod
    def of(cls, batch: Batch) -> Form:
        x = {name: (value.shape, value.dtype) for name, value in batch.items()}
        masks = {name: batch.mask[name].shape for name in batch if name not in batch.complete}
        return cls(x, masks, bool(batch.covered), frozenset(batch.filled or ()))

    def tensors(self, batch: Batch) -> list[Tensor]:
        return [*(batch[name] for name in self.x), *(batch.mask[name] for name in self.masks)]

    def batch(self, tensors: Sequence[Tensor], like: Batch, dense: bool) -> Batch:
        """The batch that those are the tensors of; `like` it where everything is observed."""
        x = dict(zip(self.x, tensors))
        masks = dict(zip(self.masks, tensors[len(x) :], strict=True))
        new = Batch(x, {**like.mask, **masks}, like.rows, frozenset(x) - frozenset(masks))
        new.checked, new.covered, new.filled, new.dense = None, self.covered, self.filled, dense
        return new


class Compiled:
    """Loss and gradients of batches of one form, by a graph that is traced from the first of them.

    The graph is what the step did to its tensors once: what Python decided on the way stays as it was. Where data are
    missing, it computes with zeros in their place and masks them, as its shapes may not depend on them. It is run
    beside the step itself on other rows before it is used, and refused if it says something else.

    Args:
        loss: (batch) -> the loss, a scalar.
        modules: which hold all that is trained.
        parameters: what is trained.
        devices: those with generators of their own.
        backend: of `torch.compile`; "eager" runs the graph as it was traced.
        rows: of a full batch; None = that is not known beforehand.

    Raises:
        ValueError: an unknown backend, a parameter outside of the modules or reached by another way than theirs, or a
            step that cannot be traced.
    """

    def __init__(
        self,
        loss: Callable[[Batch], Tensor],
        modules: Sequence[nn.Module],
        parameters: Sequence[Tensor],
        devices: Sequence[torch.device],
        backend: str,
        rows: int | None,
    ):
        if backend not in ("eager", *torch.compiler.list_backends(exclude_tags=())):
            known = ", ".join(torch.compiler.list_backends())
            raise ValueError(
                f"compile: there is no backend {backend!r} of torch.compile; give 'eager' or one of {known}"
            )
        self.whole = _Whole(modules, loss)
        self.devices, self.backend, self.rows = devices, backend, rows
        tensors = {**dict(self.whole.named_parameters()), **dict(self.whole.named_buffers())}
        places = {id(tensor): place for place, tensor in enumerate(tensors.values())}
        if any(id(p) not in places for p in parameters):
            raise ValueError("compile: a parameter of the programs is in no module; make it an nn.Parameter of one")
        self.names = {name: places[id(tensor)] for name, tensor in standing(self.whole)}
        self.values = [tensor.detach() for tensor in tensors.values()]
        self.parameters, self.trained = parameters, {places[id(p)]: None for p in parameters}
        self.form: Form | None = None
        self.weighted = False
        self.graph: Callable[..., Found] | None = None

    def fits(self, batch: Batch) -> bool:
        """Whether the graph is one for this batch; others are left to the step itself.

        One in which a modality is missing altogether is not: the step leaves its parameters alone, momentum and all.
        """
        if self.rows not in (None, batch.rows):
            return False
        batch.survey()
        form = Form.of(batch)
        if not form.x or any(batch.lacks(name) for name in form.masks):
            return False
        self.form = own = self.form or form
        return (
            form.x == own.x
            and form.covered >= own.covered
            and form.filled >= own.filled
            and form.masks.keys() <= own.masks.keys()
            and all(batch.mask[name].shape == shape for name, shape in own.masks.items())
        )

    def __call__(self, batch: Batch, beta: float) -> Found:
        """What the graph says of a batch that fits."""
        assert self.form is not None
        if self.graph is None or (beta != 1 and not self.weighted):
            self.weighted = self.weighted or beta != 1
            self.graph = self._traced(batch)
        with torch.no_grad():
            loss, gradients = self.graph(self.values, self.form.tensors(batch), self.values[0].new_full((), beta))
        return loss.clone(), gradients  # a recorded graph writes the next loss where this one is

    def _step(self, batch: Batch, values: list[Tensor], beta: Tensor) -> Found:
        values = [value.detach().requires_grad_(k in self.trained) for k, value in enumerate(values)]
        named = {name: values[k] for name, k in self.names.items()}  # torch's own tie takes shared modules apart
        whole = partial(functional_call, self.whole, named, tie_weights=False)
        return self._found(whole, batch, [values[k] for k in self.trained], beta)

    def _found(self, whole: Callable[..., Tensor], batch: Batch, trained: Sequence[Tensor], beta: Tensor) -> Found:
        weights = weighted_kl(beta) if self.weighted else nullcontext()
        with torch.enable_grad(), silent(), weights:
            loss = whole(batch)
            return loss.detach(), torch.autograd.grad(loss / batch.rows, trained, allow_unused=True)

    def _plain(self, batch: Batch) -> Found:
        """As a step finds it, by `backward`, which runs hooks and checkpoints of torch's that a graph leaves out."""
        with torch.enable_grad(), silent():
            loss = self.whole(batch)
            (loss / batch.rows).backward()
        gradients = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        return loss.detach(), gradients

    def _traced(self, batch: Batch) -> Callable[..., Found]:
        """The graph of a step, compiled, that leaves no trace in the modules' buffers and in the generators."""
        from torch.fx.experimental.proxy_tensor import make_fx  # takes a while to import, and few need it

        form = self.form
        assert form is not None

        def step(values: list[Tensor], tensors: list[Tensor], beta: Tensor, dense: bool = False) -> Found:
            return self._step(form.batch(tensors, batch, dense), values, beta)

        tensors = form.tensors(batch)
        with undisturbed(self.devices), self._restored(), refused("cannot be traced"):
            graph: Any = make_fx(partial(step, dense=True))(self.values, tensors, self.values[0].new_full((), 0.5))
        for seed in range(CHECKS):
            self._check(form.tensors(_other(form.batch(tensors, batch, False), form, seed)), seed, graph, step)
        self._check_ways(batch)
        graph = graph if self.backend == "eager" else torch.compile(graph, backend=self.backend, fullgraph=True)
        places = {value.device for value in (*self.values, *tensors)}
        if self.backend == "cudagraphs" or len(places) > 1 or places.pop().type != "cuda":
            return graph
        with undisturbed(self.devices), self._restored(), refused("cannot be recorded as a CUDA graph"):
            return Captured(graph, self.values, tensors, self.values[0].new_full((), 1.0))

    def _check(self, tensors: list[Tensor], seed: int, graph: Callable[..., Found], step: Callable[..., Found]) -> None:
        beta = self.values[0].new_full((), 0.1 * seed)
        both = [self._run(partial(function, self.values, tensors, beta), seed) for function in (graph, step)]
        assert self.form is not None
        (one, moved), (other, moved_too) = both
        if not (same(one, other, SAME[bool(self.form.masks)]) and agree(moved, moved_too)):
            hidden = ", or a network draws or counts where data are missing" if self.form.masks else ""
            raise ValueError(
                "compile: traced once, a step of this loss says something else of other rows or random numbers: Python"
                f" decides in it what is done{hidden}; leave compile out"
            )

    def _check_ways(self, batch: Batch) -> None:
        """Raises ValueError if the programs get at a parameter by another way than its name in a module: it would stay
        as it is."""
        one = self.values[0].new_full((), 1.0)
        plain, _ = self._run(partial(self._plain, batch), 0)
        step, _ = self._run(partial(self._step, batch, self.values, one), 0)
        for k, slope, found in zip(self.trained, plain[1], step[1], strict=True):
            if not same((plain[0], [slope]), (step[0], [found]), SAME[False]):
                name = next(name for name, place in self.names.items() if place == k).split(".", 2)[-1]
                raise ValueError(
                    f"compile: the programs get at the parameter {name!r} by another way than by its name in its"
                    " module, as closures, hooks and reentrant checkpoints do; make it an nn.Parameter, or leave"
                    " compile out"
                )

    def _run(self, function: Callable[[], Found], seed: int) -> tuple[Found, list[Tensor | None]]:
        """What it says, with random numbers of that seed, and what it did to the values, of which no trace is left."""
        with undisturbed(self.devices), self._restored() as kept, refused("cannot be run on other rows"):
            seed_generators(self.devices, seed)
            with torch.no_grad(), exact(self.values[0].device):
                return function(), [change(value, old) for value, old in zip(self.values, kept)]

    @contextmanager
    def _restored(self) -> Iterator[list[Tensor]]:
        """The values, of which a copy is given, are as before afterwards: modules may count in their buffers."""
        kept = [value.clone() for value in self.values]
        try:
            yield kept
        finally:
            for value, old in zip(self.values, kept, strict=True):
                value.copy_(old)


class _Whole(nn.Module):
    """The loss as a module of all that it runs through."""

    def __init__(self, modules: Sequence[nn.Module], loss: Callable[[Batch], Tensor]):
        super().__init__()
        self.parts, self.loss = nn.ModuleList(modules), loss

    def forward(self, batch: Batch) -> Tensor:
        with in_place(self):
            return self.loss(batch)


def _other(batch: Batch, form: Form, seed: int) -> Batch:
    """The rows in another order, and with more holes where there are some; as many rows have something observed.

    No modality is lost altogether, nor in a row if it has something in every row: the graph takes no such batch.
    """
    batch = batch.take(torch.arange(batch.rows, device="cpu").roll(seed))
    part = {name: batch[name] for name in form.masks if name not in form.filled}
    if not part:
        return batch
    _, masks = hide(part, {name: batch.mask[name] for name in part}, share=MORE, seed=seed)
    masks = {name: mask if bool(mask.any()) else batch.mask[name] for name, mask in masks.items()}
    return Batch(dict(batch), {**batch.mask, **masks}, batch.rows, batch.complete)
