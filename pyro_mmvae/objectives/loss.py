"""What losses of ours have in common: one function that can be differentiated, and the rest of Pyro's interface."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor


class Loss(ELBO):
    """A drop-in loss for stock SVI, `mm.fit` and the ELBO-module style, made of `differentiable_loss`. Abstract."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch `(x, mask)`, a scalar that can be differentiated."""
        raise NotImplementedError

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss of a batch; leaves its gradients in the parameters, as stock SVI wants it."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss of a batch."""
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} traces its own passes")  # Pyro's class asks for one
