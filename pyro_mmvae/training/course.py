"""Where a training run stands: all that it takes to go on from there as if nothing had happened."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_mmvae.buffers import apart, places
from pyro_mmvae.chance import generators, set_generators
from pyro_mmvae.data import Batch
from pyro_mmvae.training.batches import Batches
from pyro_mmvae.training.history import History
from pyro_mmvae.training.step import distinct

Values = dict[str, Tensor]


class Course:
    """The weights, the optimiser, the generators and the history of a run, at one moment.

    Args:
        parameters: what is trained, by name.
        modules: whose buffers training changes too.
        optim: their optimiser.
        devices: those with generators of their own.

    Attributes:
        held: where the buffers stand, by name, empty ones too.
        epoch, step: epochs done, and steps done in the one that is under way.
        total, rows: of the losses and of the rows of that epoch so far, without the `unread` losses of the last steps.
        start: the values at its start.
        best, kept: the least validation loss of an epoch, and the values then.
    """

    def __init__(
        self,
        parameters: Values,
        modules: Sequence[nn.Module],
        optim: torch.optim.Optimizer,
        devices: Sequence[torch.device],
    ):
        self.parameters, self.optim, self.devices = parameters, optim, devices
        apart(modules)
        self.held = distinct(places(modules))
        self.first = self.live
        self.history, self.epoch, self.step, self.total, self.rows = History(), 0, 0, 0.0, 0
        self.best, self.kept = math.inf, cast("Values | None", None)
        self.start = self.values()
        self.order = generators(devices)  # at the start of the epoch, where its order is drawn from
        self.unread: list[tuple[Tensor, int]] = []
        self.began = time.perf_counter()

    @property
    def live(self) -> Values:
        """The parameters and buffers as they are now, by name: a network may have put another tensor in a place."""
        held = {name: getattr(module, key, None) for name, (module, key) in self.held.items()}
        return {**self.parameters, **{name: buffer for name, buffer in held.items() if buffer is not None}}

    @torch.no_grad()
    def values(self, over: Values | None = None) -> Values:
        """A copy of the live values, over an older one if there is one: fresh memory costs more than copying."""
        old = over or {}
        return {
            name: old[name].copy_(tensor) if name in old and _alike(old[name], tensor) else tensor.detach().clone()
            for name, tensor in self.live.items()
        }

    @torch.no_grad()
    def set(self, values: Mapping[str, Tensor]) -> None:
        """Makes the live values those."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
        device = next(iter(self.parameters.values())).device
        for name, (module, key) in self.held.items():
            own: Tensor | None = getattr(module, key, None)
            value = values.get(name)
            if own is not None and value is not None and own is self.first.get(name):
                own.copy_(value)
            else:  # a network put a tensor of its own there, which may be a part of the data
                there = device if own is None else own.device
                setattr(module, key, None if value is None else value.detach().to(there, copy=True))

    def rest(self, data: Batches) -> Iterator[Batch]:
        """The batches of this epoch that are still to come."""
        if self.step == 0:
            self.order = generators(self.devices)
            yield from data.walk()
        else:
            batches = self.since(data, self.step - 1)
            next(batches, None)
            yield from batches

    def since(self, data: Batches, step: int) -> Iterator[Batch]:
        """The batches of this epoch from that step on, once more; the generators stand as now when the first comes."""
        now = generators(self.devices)
        set_generators(self.order)
        batches = data.walk(step)
        first = next(batches, None)  # by now the order has been drawn
        set_generators(now)
        if first is not None:
            yield first
            yield from batches

    def add(self, loss: Tensor, rows: int) -> None:
        """One step was done; its loss may be still on the way."""
        self.unread.append((loss, rows))
        self.step += 1

    def read(self) -> tuple[int, float] | None:
        """Reads the losses of the last steps: the first step whose loss is not finite, with that loss, if there is one.

        Where they were computed on an accelerator, this waits for it.
        """
        unread, self.unread = self.unread, []
        many = len(unread) > 1
        device = unread[-1][0].device if unread else None  # of a batch with nothing to score the loss may be elsewhere
        losses = torch.stack([v.to(device) for v, _ in unread]).tolist() if many else [float(v) for v, _ in unread]
        for step, (loss, (_, rows)) in enumerate(zip(losses, unread, strict=True), self.step - len(unread)):
            if not math.isfinite(loss):
                return step, loss
            self.total, self.rows = self.total + loss, self.rows + rows
        return None

    def end_epoch(self, validation: float | None) -> None:
        """An epoch was done; its weights are kept if they are the best so far."""
        history = self.history
        history.loss.append(self.total / self.rows)
        history.lr.append(self.optim.param_groups[0]["lr"])
        history.seconds.append(time.perf_counter() - self.began)
        self.start = self.values(self.start)
        if validation is not None:
            history.validation.append(validation)
            if validation < self.best:
                self.best, self.kept, history.best_epoch = validation, self.values(self.kept), self.epoch
        self.epoch, self.step, self.total, self.rows = self.epoch + 1, 0, 0.0, 0

    def take_best(self) -> None:
        """Makes the live values those of the best epoch, if one was measured."""
        if self.kept is not None:
            self.set(self.kept)

    def stale(self, patience: int | None) -> bool:
        """Whether so many epochs passed without a better validation loss."""
        return patience is not None and self.epoch - 1 - (self.history.best_epoch or 0) >= patience

    def record(self) -> dict[str, Any]:
        """All of it as tensors, numbers and text, for a file."""
        return {
            "live": {name: tensor.detach() for name, tensor in self.live.items()},
            "start": self.start if self.step else None,
            "kept": self.kept,
            "optimizer": self.optim.state_dict(),
            "history": asdict(self.history),
            "at": [self.epoch, self.step, self.total, self.rows, self.best],
            "seconds": time.perf_counter() - self.began,
            "generators": [generators(self.devices), self.order],
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Goes to where `record` was taken, maybe in another process."""
        self.set(record["live"])
        self.optim.load_state_dict(record["optimizer"])
        self.history = History(**record["history"])
        self.epoch, self.step, self.total, self.rows, self.best = record["at"]
        self.start = record["start"] or self.values()
        self.kept = record["kept"] and {k: v.clone() for k, v in record["kept"].items()}  # a file may share its memory
        self.began = time.perf_counter() - record["seconds"]
        now, self.order = record["generators"]
        self.order = {name: self.order[name] for name in self.order if name in generators(self.devices)}
        set_generators({name: now[name] for name in self.order})


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
