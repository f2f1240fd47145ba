"""Adam for many small parameters, and one optimiser for stock SVI, where `pyro.optim` keeps an object a parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.autograd import profiler
from torch.optim.adam import adam
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pyro_mmvae.arrays import shown
from pyro_mmvae.memory import laid_like

_PLAIN = {"lr", "betas", "eps", "weight_decay"}
EVERYWHERE = _global_optimizer_pre_hooks, _global_optimizer_post_hooks
"""Hooks of every optimiser of the process."""


class Adam(torch.optim.Adam):
    """torch's fused Adam, bit by bit, with less Python a parameter: the optimiser of `fit` and `mm.optim`.

    Its state is that of `torch.optim.Adam`, so that one goes on where the other stopped. As there, a parameter without
    a gradient stays as it is. Unlike there, a parameter may be a slice of another tensor, such as the first components
    of a PCA: torch's mixes its numbers up on a CPU, and refuses it on a GPU.

    Args:
        params: parameters, or groups of them.
        lr, betas, eps, weight_decay: as in `torch.optim.Adam`; its other options are left out.

    Raises:
        ValueError: a group, or a state that is loaded, has an option that is left out.

    Reference:
        Kingma and Ba, 2015, Adam: A Method for Stochastic Optimization, https://arxiv.org/abs/1412.6980

    Example:
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> weight.sum().backward()
        >>> Adam([weight], lr=0.1).step()
        >>> weight.data
        tensor([-0.1000, -0.1000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _refuse_lacking([param_group])
        super().add_param_group(param_group)
        if any(p.is_complex() for p in self.param_groups[-1]["params"]):
            raise ValueError("mm.Adam takes no complex parameters; use torch.optim.Adam")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        _refuse_lacking(state_dict["param_groups"])
        super().load_state_dict(state_dict)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def quick_step(self) -> None:
        """`step()`; where nobody looks, without its hooks and its label in profiles, which take a fifth of its time."""
        hooks = *EVERYWHERE, self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks
        if any(hooks) or "step" in vars(self) or profiler._is_profiler_enabled:  # a schedule of torch wraps it
            self.step()
        else:
            self._update()

    @torch.no_grad()
    def _update(self) -> None:
        for group in self.param_groups:
            taught = [p for p in group["params"] if p.grad is not None]
            means, squares, steps = self._moments(group, taught)
            places = [mean.stride() for mean in means]
            values, gradients = _laid(taught, means, places), _laid([p.grad for p in taught], means, places)
            settings = {
                "lr": group["lr"], "beta1": group["betas"][0], "beta2": group["betas"][1], "eps": group["eps"],
                "weight_decay": group["weight_decay"], "amsgrad": False, "maximize": False,
                "grad_scale": getattr(self, "grad_scale", None), "found_inf": getattr(self, "found_inf", None),
            }  # fmt: skip
            plain = settings["found_inf"] is None and not isinstance(group["lr"], Tensor)
            if plain and len({(p.device, p.dtype) for p in taught}) == 1:  # all that torch's own would look for
                one = torch.ones_like(steps[0])  # of a number torch would make a tensor for each of them
                torch._foreach_add_(steps, [one] * len(steps))
                torch._fused_adam_(values, gradients, means, squares, [], steps, **settings)
            else:
                adam(values, gradients, means, squares, [], steps, fused=True, **settings)
            for p, value in zip(taught, values) if values is not taught else ():
                if value is not p:
                    p.copy_(value)

    def _moments(self, group: dict[str, Any], taught: list[Tensor]) -> list[list[Tensor]]:
        """Means, squares and numbers of steps, each for the parameters that are taught."""
        if list(map(id, self.state)) == list(map(id, taught)):  # which looks nothing up
            states = list(self.state.values())
        else:
            if not all(p in self.state for p in taught):
                self._init_group(group, [], [], [], [], [], [])  # torch's own start of the moments, with its checks
            states = [self.state[p] for p in taught]
        return [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


def _laid(tensors: list[Any], like: list[Tensor], places: list[Any]) -> list[Tensor]:
    """The tensors, each of them as its `like` lies in memory, which has the strides `places`."""
    if [tensor.stride() for tensor in tensors] == places:
        return tensors
    return [laid_like(t, other) for t, other in zip(tensors, like)]


def _refuse_lacking(groups: Iterable[dict[str, Any]]) -> None:
    for name in ("amsgrad", "maximize", "decoupled_weight_decay"):
        if any(group.get(name) for group in groups):
            raise ValueError(f"{name} is an option that mm.Adam lacks; use torch.optim.Adam, or leave it out")


def step_of(optim: torch.optim.Optimizer) -> Callable[[], Any]:
    """How to make an optimiser take a step without a closure."""
    return optim.quick_step if type(optim) is Adam else optim.step


class optim(PyroOptim):
    """A Pyro optimiser that steps all parameters at once.

    Args:
        optim_args: keyword arguments of the torch optimiser, such as {"lr": 1e-3}.
        constructor: the torch optimiser; by default `mm.Adam`, or torch's own for options that it lacks.

    `save` and `load` go by the parameters' names, as those of Pyro's optimisers do, which read each other's files; the
    settings are those that it was made with. Limits: all parameters share them.

    Raises:
        ValueError: arguments that are not named.

    Example:
        >>> import pyro_mmvae as mm
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        >>> vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        >>> svi = SVI(vae.model, vae.guide, mm.optim({"lr": 1e-3}), Trace_ELBO())
    """

    def __init__(self, optim_args: dict[str, Any], constructor: Callable[..., torch.optim.Optimizer] | None = None):
        if not isinstance(optim_args, Mapping):
            advice = "give keyword arguments such as {'lr': 1e-3}; a function of names is for pyro.optim.Adam"
            raise ValueError(f"optim_args is {shown(optim_args)}; {advice}")
        if constructor is None and not set(optim_args) <= _PLAIN:
            constructor = torch.optim.Adam
        super().__init__(constructor or Adam, optim_args)
        self.known: set[Tensor] = set()
        self.single: torch.optim.Optimizer | None = None

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        new = [p for p in params if p not in self.known]
        if self.single is None:
            self.single = self.pt_optim_constructor(new, **self.pt_optim_args)
        elif new:
            self.single.add_param_group({"params": new})
        self.known.update(new)
        waiting = self._state_waiting_to_be_consumed
        name_of = pyro.get_param_store().param_name
        for p in [p for p in self.known if name_of(p) in waiting] if waiting else ():
            self.single.state[p] = _fitting(name_of(p), p, deepcopy(waiting.pop(name_of(p))["state"][0]))
        step_of(self.single)()
        self.single.zero_grad(set_to_none=True)  # else SVI fills them with zeros, and backward adds to those

    def get_state(self) -> dict[str, Any]:
        """The state of every parameter by its name in Pyro's store, as if each had an optimiser of its own."""
        states = {} if self.single is None else self.single.state
        found = {
            name: {"state": {0: states[p]}, "param_groups": [{**group, "params": [0]}]}
            for group in (self.single.param_groups if self.single is not None else ())
            for p in group["params"]
            if p in states and (name := pyro.get_param_store().param_name(p)) is not None  # else taken out of its model
        }
        if states and not found:
            raise ValueError("no parameter has a name in Pyro's store; save the optimiser right after a step of SVI")
        return found


def _fitting(name: str | None, p: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """A state that was loaded; raises ValueError for moments of a parameter of another shape."""
    mean = state.get("exp_avg", p)
    if mean.shape != p.shape:
        raise ValueError(
            f"the optimiser was saved with {name!r} of shape {tuple(mean.shape)}, which has {tuple(p.shape)} in this"
            " model; begin with a new one"
        )
    return state
