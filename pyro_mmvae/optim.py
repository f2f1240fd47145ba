"""One fused torch optimiser for stock SVI, where `pyro.optim` keeps one optimiser object a parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor


class optim(PyroOptim):
    """A Pyro optimiser that steps all parameters at once.

    Args:
        optim_args: keyword arguments of the torch optimiser, such as {"lr": 1e-3}.
        constructor: the torch optimiser; Adam by default, fused where torch has it so.

    Limits: all parameters share their settings, and its state cannot be saved through Pyro (parameters that are no
    members of Pyro's store have no name there); for runs that are to be resumed use `mm.fit(checkpoint=...)`.

    Example:
        >>> import pyro_mmvae as mm
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        >>> vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        >>> svi = SVI(vae.model, vae.guide, mm.optim({"lr": 1e-3}), Trace_ELBO())
    """

    def __init__(self, optim_args: dict[str, Any], constructor: Callable[..., torch.optim.Optimizer] | None = None):
        super().__init__(constructor or torch.optim.Adam, optim_args)
        self.settings = optim_args if constructor else {"fused": True, **optim_args}
        self.known: set[Tensor] = set()
        self.single: torch.optim.Optimizer | None = None

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        new = [p for p in params if p not in self.known]
        if self.single is None:
            self.single = self.pt_optim_constructor(new, **self.settings)
        elif new:
            self.single.add_param_group({"params": new})
        self.known.update(new)
        self.single.step()
        self.single.zero_grad(set_to_none=True)  # else SVI fills them with zeros, and backward adds to those

    def get_state(self) -> dict[str, Any]:
        raise NotImplementedError("mm.optim keeps no state by parameter name; resume runs with mm.fit(checkpoint=...)")
