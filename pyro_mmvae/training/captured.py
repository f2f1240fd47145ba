"""A graph of tensor operations as one launch on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM = 2
"""Runs before the recording: libraries choose their algorithms and take their workspaces in the first."""


class Captured:
    """A function of tensors whose kernels are recorded once as a CUDA graph and replayed from then on.

    It reads its arguments from memory of its own, where each call copies them, and gives its results in memory of its
    own, which the next call overwrites. Its random numbers are those that the function would draw.

    Args:
        function: (values, tensors, beta) -> loss and gradients, without a look at a number on the way.
        values: tensors that stay where they are, such as the parameters.
        tensors, beta: the first arguments; later ones have their shapes.

    Raises:
        RuntimeError: something in the function cannot be recorded.
    """

    def __init__(self, function: Callable[..., tuple], values: list[Tensor], tensors: list[Tensor], beta: Tensor):
        self.function = function  # which may hold tensors that the kernels read
        self.tensors, self.beta = [tensor.clone() for tensor in tensors], beta.clone()
        device, drawn = values[0].device, torch.get_rng_state()
        self.stream = torch.cuda.Stream(device)  # of its own, as libraries keep a workspace for each
        with torch.no_grad(), torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM):
                    function(values, self.tensors, self.beta)
            torch.cuda.current_stream().wait_stream(aside)
            if not torch.equal(drawn, torch.get_rng_state()):
                raise RuntimeError("it draws random numbers on the CPU, which a replay would not do")
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.loss, self.gradients = function(values, self.tensors, self.beta)

    def __call__(self, values: list[Tensor], tensors: Sequence[Tensor], beta: Tensor) -> tuple:
        for own, tensor in zip([*self.tensors, self.beta], [*tensors, beta], strict=True):
            own.copy_(tensor)
        self.graph.replay()
        return self.loss, self.gradients
