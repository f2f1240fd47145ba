"""The categorical of labels and tokens, which `fit` builds and scores many times a step."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mmvae.distributions.base import Mapped
from pyro_mmvae.distributions.normal import Entrywise

SHORT = 16
"""With fewer categories torch's `log_softmax` goes number by number on a CPU; over a leading axis it is faster."""


class Categorical(Entrywise, dist.Categorical):
    """Pyro's categorical of logits, made and scored with fewer tensor operations.

    Args:
        logits: (..., category), up to a constant.

    Example:
        >>> Categorical(torch.tensor([0.0, 0.0])).log_prob(torch.tensor(1)).exp()
        tensor(0.5000)
    """

    logits: Tensor

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        if logits.shape[-1] < SHORT:
            self.logits = logits.movedim(-1, 0).log_softmax(0).movedim(0, -1)
        else:
            self.logits = logits.log_softmax(-1)
        self._param = self.logits
        self._num_events = logits.shape[-1]
        torch.distributions.Distribution.__init__(self, logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Categorical | None = None) -> Categorical:
        return super().expand(torch.Size(batch_shape), self._get_checked_instance(Categorical, _instance))

    def mapped(self, function: Mapped) -> Categorical:
        return Categorical(function(self.logits, 1))

    def log_prob(self, value: Tensor) -> Tensor:
        if value.shape != self.logits.shape[:-1]:
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        return self.logits.gather(-1, value.long().unsqueeze(-1)).squeeze(-1)
