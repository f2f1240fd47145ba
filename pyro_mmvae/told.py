"""What is known already where else a program would draw: codes that a certificate vouches for, and observed data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Distribution
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mmvae.accelerator import moved
from pyro_mmvae.arrays import shown, tensor_of, whole, with_axes
from pyro_mmvae.chance import undisturbed
from pyro_mmvae.checks import check_named, refuse_outside
from pyro_mmvae.data import Batch
from pyro_mmvae.distributions import Beside
from pyro_mmvae.programs import silent
from pyro_mmvae.questions import devices, known
from pyro_mmvae.sites import as_drawn, auxiliary, row_axis, value_of

Latents = Mapping[str, Tensor]
"""Site -> (draw, row, *event), as `mm.posterior_draws` and `mm.importance` have them."""


class Told(Messenger):
    """Gives the latent sites of a model the values that are known, inside a plate of the draws.

    Where a value is NaN, as private codes are whose modality nobody has seen, the site is drawn from its distribution.
    Conditions beside a code are data: they are those that the model is given here.

    Args:
        latents: site -> (draw, row, *event).
        depth: how many axes the plates of the model take.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     with pyro.plate("data", 2, dim=-1):
        ...         return pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> with pyro.plate("draws", 1, dim=-2), Told({"z": torch.tensor([[3.0, 4.0]])}, depth=1):
        ...     model()
        tensor([[3., 4.]])
    """

    def __init__(self, latents: Latents, depth: int):
        super().__init__()
        self.latents, self.depth = latents, depth

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.latents:
            axis, fn = row_axis(msg), msg["fn"]
            assert axis is not None
            value = as_drawn(self.latents[msg["name"]], fn.batch_shape, axis, self.depth, fn.event_shape)
            value = _filled(value, fn)
            msg["value"] = fn.beside(value) if isinstance(fn, Beside) else value


def _filled(value: Tensor, fn: Distribution) -> Tensor:
    hidden = value.isnan()
    if not bool(hidden.any()):
        return value
    return torch.where(hidden, fn.expand(value.shape[: value.dim() - len(fn.event_shape)]).sample(), value)


class Shown(UnconditionMessenger):
    """Draws what a model observes, and lets it go on with what was observed there, if anything was.

    So a modality that hangs on another one, beside the codes, is drawn given the data of that one. A trace around this
    has the draws.

    Args:
        seen: the data, in which what is not to be known counts as missing.
        depth: how many axes the plates of the model take.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     with pyro.plate("data", 2, dim=-1):
        ...         return pyro.sample("a", dist.Normal(0.0, 1.0), obs=torch.tensor([3.0, 4.0]))
        >>> seen = Batch.of({"a": torch.tensor([3.0, 4.0])}, {"a": torch.tensor([True, False])})
        >>> with pyro.plate("draws", 1, dim=-2), Shown(seen, depth=1):
        ...     (model() == torch.tensor([3.0, 4.0])).tolist()
        [[True, False]]
    """

    def __init__(self, seen: Batch, depth: int):
        super().__init__()
        self.seen, self.depth = seen, depth

    def _pyro_post_sample(self, msg: Any) -> None:
        axis, name, fn = row_axis(msg), msg["name"], msg["fn"]
        if axis is None or name not in self.seen or not msg["infer"].get("was_observed"):
            return
        mask, x, obs = self.seen.mask[name], self.seen[name], msg["infer"]["obs"]
        batch, event = fn.batch_shape, fn.event_shape
        if obs.numel() == x.numel():
            mask = with_axes(mask, x.dim()).expand(x.shape)
        else:  # the program has made something else of the data, that it knows of whole rows alone
            mask, batch, event = mask.reshape(len(mask), -1).all(-1), [1] * len(batch), [1] * len(event)
        where = as_drawn(mask.unsqueeze(0), batch, axis, self.depth, event)
        msg["value"] = torch.where(where, obs.to(msg["value"].dtype), msg["value"])


def told(latents: Latents, rows: Tensor, depth: int, but: Collection[str] = ()) -> Told:
    """`Told` of some rows, but for sites of those names."""
    return Told({name: value[:, rows] for name, value in latents.items() if name not in but}, depth)


def chosen(vae: Any, batch: Batch, latents: Latents, num_draws: int | None) -> dict[str, Tensor]:
    """As many of the draws as are asked for, evenly taken; None = all of them.

    Raises:
        ValueError: a code that the guide infers from these data is not there or has another shape, or there are fewer
            draws.
    """
    found = _fitting(vae, batch, latents)
    sizes = {len(value) for value in found.values()}
    if len(sizes) > 1:
        raise ValueError(f"latents have {', '.join(map(str, sorted(sizes)))} draws by name; give as many of each")
    most = max(sizes, default=0)
    count = max(most, 1) if num_draws is None else whole("num_draws", num_draws)
    if count > most:
        raise ValueError(f"num_draws is {shown(num_draws)}, latents have {most}; ask for fewer, or draw more")
    index = torch.linspace(0, most - 1, count, device="cpu").round().long()
    return {name: value[index] for name, value in found.items()}


def _fitting(vae: Any, batch: Batch, latents: Latents) -> dict[str, Tensor]:
    """The codes as the guide has them, in its precision and on its device."""
    check_named("latents", latents, "mm.posterior_draws(vae, x).latents")
    found = {name: moved(tensor_of(f"{name!r} of the latents", v), batch.device) for name, v in latents.items()}
    for name, like in _inferred(vae, batch).items():
        if name not in found:
            there = ", ".join(found) or "nothing"
            raise ValueError(f"latents have no {name!r}, which the guide infers from these data, but {there}; add it")
        shape, wanted = tuple(found[name].shape), (batch.rows, *like.shape[2:])
        if shape[1:] != wanted:
            sizes = ", ".join(map(str, wanted))
            raise ValueError(
                f"latents have a {name!r} of shape {shape} for data that take (draw, {sizes}); draw it for them"
            )
        found[name] = found[name].to(like.dtype)
    return found


def asked(
    vae: Any,
    batch: Batch,
    num_draws: int | None,
    otherwise: int,
    given: Collection[str] | None,
    latents: Latents | None,
) -> tuple[int, Latents | None]:
    """How many draws a row, and the codes that stand in place of the guide's, if there are any."""
    known(vae, given)
    if latents is None:
        return whole("num_draws", otherwise if num_draws is None else num_draws), None
    if given is not None:
        raise ValueError("latents stand in place of what the guide sees in given; leave one of them out")
    found = chosen(vae, batch, latents, num_draws)
    return len(next(iter(found.values()))), found


def _inferred(vae: Any, batch: Batch) -> dict[str, Tensor]:
    """The codes that the guide infers of a few rows, one draw of each, (1, row, *event)."""
    few = batch.few()
    with silent(), undisturbed(devices(vae, batch)), torch.no_grad():
        guide = poutine.trace(vae.guide).get_trace(few, few.mask)
    noise = [site["name"] for site in auxiliary(guide, Trace())]
    sites = {name: site for name, site in guide.iter_stochastic_nodes() if name not in noise}
    sites = {name: site for name, site in sites.items() if not site_is_subsample(site)}
    refuse_outside([name for name, site in sites.items() if row_axis(site) is None])
    return {name: value_of(site, 1, few.rows) for name, site in sites.items()}
