"""A LightningModule of any model and guide. Nothing else imports this file: it needs `pyro_mmvae[lightning]`."""

from __future__ import annotations

from typing import Any

import lightning
import torch
import torch.distributed
from torch import Tensor

from pyro_mmvae.modes import train
from pyro_mmvae.owners import owners_of
from pyro_mmvae.processes import MeanLoss
from pyro_mmvae.training.batches import pair

Item = tuple[dict[str, Tensor], dict[str, Tensor]] | dict[str, Tensor]


class LightningVAE(lightning.LightningModule):
    """Trains a model and its guide under Lightning: its loaders, checkpoints, loggers, devices and processes.

    Logs the mean loss of a row, in nats, as "loss" and "validation". A checkpoint at the end of an epoch holds the
    state of the random number generators of all processes too, so that a run that goes on with
    `trainer.fit(..., ckpt_path=path)` ends with the weights of one that was not interrupted; on a GPU, with weights
    that differ as those of two seeds do. It does not hold the architecture:
    `LightningVAE.load_from_checkpoint(path, vae=build())` reads it into a model that was built in the same way.

    As in `mm.fit` modules are trained in training mode, whatever mode they come in; those that are frozen, as in the
    second phase of a method, in eval mode.

    Args:
        vae: a `MultimodalVAE` or a `Pair` of modules; it is trained in place.
        loss: as in `MeanLoss`.
        lr: learning rate of a constant Adam; override `configure_optimizers` for another.

    Limits: loaders give `(x, mask)`, as a DataLoader of a `MultimodalDataset` does, or x alone. In several processes
    take `strategy="ddp_find_unused_parameters_true"`: a batch may lack a modality in one of them.

    Example:
        >>> import lightning, torch, pyro_mmvae as mm
        >>> from pyro_mmvae.lightning import LightningVAE
        >>> parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        >>> vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        >>> loader = torch.utils.data.DataLoader(mm.MultimodalDataset({"a": torch.randn(20, 3)}), batch_size=10)
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, **quiet)
        >>> trainer.fit(LightningVAE(vae), loader)
    """

    def __init__(self, vae: Any, loss: Any = None, *, lr: float = 1e-3):
        super().__init__()
        self.mean_loss, self.lr = MeanLoss(vae, loss), lr

    def training_step(self, batch: Item, batch_idx: int) -> Tensor:
        return self._logged("loss", batch)

    def validation_step(self, batch: Item, batch_idx: int) -> None:
        self._logged("validation", batch)

    def on_train_epoch_start(self) -> None:
        train(owners_of(self.mean_loss.vae))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=self.lr)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = [torch.get_rng_state()]
        if self.trainer.world_size > 1:
            states = [torch.empty_like(states[0]) for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(states, torch.get_rng_state())
        checkpoint["generators"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is None or not self.trainer.training:  # who wants the weights alone draws on as before
            return
        states = checkpoint["generators"]
        if self.global_rank < len(states):
            torch.set_rng_state(states[self.global_rank].cpu())

    def _logged(self, name: str, batch: Item) -> Tensor:
        x, mask = pair(batch)
        loss, rows = self.mean_loss(x, mask), len(next(iter(x.values())))
        self.log(name, loss.detach(), on_epoch=True, on_step=False, prog_bar=True, sync_dist=True, batch_size=rows)
        return loss
