"""The ELBO without a trace: what `fit` minimises if no other loss than `Trace_ELBO()` is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
)
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mmvae.data import Batch
from pyro_mmvae.distributions import log_prob_sum

TRACED = JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO


class DirectELBO(Trace_ELBO):
    """`Trace_ELBO` with less to do: the sites are scored while the programs run, and no trace is built.

    That holds for one particle whose draws are all reparameterised. Where the guide has others, or there are more
    particles, it is `Trace_ELBO` itself that answers.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> model = lambda: pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = lambda: pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> DirectELBO().differentiable_loss(model, guide)
        tensor(0.)
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of one draw, a scalar that can be differentiated."""
        if self.num_particles == 1 and not self.vectorize_particles and not isinstance(guide, Messenger):
            if args and isinstance(args[0], Batch):  # a prior of what the encoders say finds it said
                args = (args[0].remembering(), *args[1:])
            with Scored({}) as q:
                guide(*args, **kwargs)
            if q.reparameterised:
                with Scored(q.draws) as p:
                    model(*args, **kwargs)
                return torch.as_tensor(q.log_prob - p.log_prob)
        return super().differentiable_loss(model, guide, *args, **kwargs)


def direct(loss: Any) -> Any:
    """The loss that `fit` runs for the one that was named: a `DirectELBO` for none and for a plain `Trace_ELBO()`.

    Raises:
        ValueError: one of Pyro's that trace the programs, which take no batches, or one that weighs batches as a whole.
    """
    if isinstance(loss, ReweightedWakeSleep):
        raise ValueError(
            "loss is a ReweightedWakeSleep, two losses with weights of whole batches, not of rows; give"
            " mm.Objective(bound=mm.objectives.iwae, num_particles=5), and in a second phase mm.Sleep()"
        )
    if isinstance(loss, TRACED):
        raise ValueError(
            f"loss is a {type(loss).__name__}, which traces programs of tensors, not of batches; give"
            f" {type(loss).__name__.removeprefix('Jit')}(), and compile='eager' to fit for a traced step"
        )
    plain = type(loss) is Trace_ELBO and vars(loss) == vars(Trace_ELBO())
    return DirectELBO() if loss is None or plain else loss


class Scored(Messenger):
    """Sums the log-probabilities of all sites that run under it, in nats, as their handlers scale and mask them.

    Args:
        given: site -> value to take in place of a draw.

    Attributes:
        draws: site -> what was drawn, or taken.
        reparameterised: whether gradients flow through every draw.
    """

    def __init__(self, given: Mapping[str, Tensor]):
        super().__init__()
        self.given, self.draws = given, dict[str, Tensor]()
        self.log_prob: Tensor | float = 0.0
        self.reparameterised = True

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.given and not msg["is_observed"]:
            msg["value"] = self.given[msg["name"]]

    def _pyro_post_sample(self, msg: Any) -> None:
        fn, value = msg["fn"], msg["value"]
        if not msg["is_observed"]:
            self.draws[msg["name"]] = value
        if site_is_subsample(msg):  # the model takes the rows that the guide took
            return
        self.reparameterised = self.reparameterised and (msg["is_observed"] or fn.has_rsample)
        if msg["mask"] is None and type(msg["scale"]) is float and not (msg["args"] or msg["kwargs"]):
            log_prob = log_prob_sum(fn, value)
            log_prob = log_prob if msg["scale"] == 1 else log_prob * msg["scale"]
        else:
            log_prob = scale_and_mask(
                fn.log_prob(value, *msg["args"], **msg["kwargs"]), msg["scale"], msg["mask"]
            ).sum()
        self.log_prob = log_prob if isinstance(self.log_prob, float) else self.log_prob + log_prob
