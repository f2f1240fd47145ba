"""One loss over several processes, for the engines that there are: DistributedDataParallel, Lightning."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_mmvae.data import Arrays
from pyro_mmvae.programs import check_model, silent
from pyro_mmvae.questions import opened


class MeanLoss(nn.Module):
    """The mean loss of a row in nats, over the batches of all processes, as a module that engines can wrap.

    Losses are sums over rows, and DistributedDataParallel averages gradients over processes. So each process gives
    (sum of its own rows) * processes / (rows of all): averaged, that is the gradient of one process with all the rows,
    however unevenly they lie. Alone, it is the sum divided by the rows.

    Started by `torchrun --nproc-per-node=2 train.py`, with "nccl" instead of "gloo" on GPUs:

        torch.distributed.init_process_group("gloo")
        ddp = DistributedDataParallel(mm.MeanLoss(vae, loss), find_unused_parameters=True)
        optim = torch.optim.Adam(vae.parameters(), lr=1e-3)
        loader = DataLoader(dataset, batch_size=64, sampler=DistributedSampler(dataset))
        for x, mask in loader:
            optim.zero_grad()
            ddp(x, mask).backward()
            optim.step()

    Limits: with `find_unused_parameters=True` a batch may lack a modality in one process or in all, and even hold
    nothing; every process must take the same number of steps, to which a DistributedSampler sees.

    Args:
        vae: a `MultimodalVAE` or a `Pair`, whose parameters are those of its programs that are modules.
        loss: a Pyro ELBO with a `differentiable_loss`, or an objective of ours; `Trace_ELBO()` by default.

    Raises:
        ValueError: what is no model, or a loss that is a class or has no differentiable form.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        >>> vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        >>> MeanLoss(vae, mm.Objective())({"a": torch.zeros(5, 3)}).backward()
    """

    def __init__(self, vae: Any, loss: Any = None):
        super().__init__()
        check_model(vae)
        if isinstance(loss, type):
            raise ValueError(f"loss is the class {loss.__name__}; give an object of it, such as {loss.__name__}()")
        self.vae, self.loss = vae, Trace_ELBO() if loss is None else loss
        if not hasattr(self.loss, "differentiable_loss"):
            raise ValueError(f"{type(loss).__name__} has no differentiable_loss; use Trace_ELBO or mm.Objective")
        if not isinstance(vae, nn.Module):
            self.programs = nn.ModuleList(p for p in (vae.model, vae.guide) if isinstance(p, nn.Module))

    def forward(self, x: Arrays, mask: Arrays | None = None) -> Tensor:
        """The loss of a batch, a scalar that can be differentiated."""
        batch = opened(self.vae, x, mask)
        model, guide = self.vae.model, self.vae.guide
        with silent():
            loss = self.loss.differentiable_loss(model, guide, batch, batch.mask)
        some = next((p for p in self.parameters() if p.requires_grad), None)
        if not loss.requires_grad and some is not None:  # nothing was observed: the other processes wait all the same
            loss = loss + 0 * some.sum()
        return loss * _processes() / _everywhere(batch.rows, loss)


def _processes() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def _everywhere(rows: int, like: Tensor) -> Tensor:
    """The rows of all processes."""
    total = like.new_tensor(rows)
    if _processes() > 1:
        torch.distributed.all_reduce(total)
    return total
