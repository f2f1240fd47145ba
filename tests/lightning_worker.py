"""What test_processes.py runs under Lightning on two devices: `python lightning_worker.py FOLDER`.

Every process writes what it found: how far the weights of a run that was interrupted and went on are from those of one
that was not, and the loss that was logged for an exact model with its exact value.
"""

import json
import sys
from pathlib import Path

import torch
from cases import three, three_holes, three_rows
from exact import LinearGaussian
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import pyro_mmvae as mm
from pyro_mmvae.lightning import LightningVAE


def run(module, dataset, epochs, folder=None, resume=None, devices=2):
    """A trainer after so many epochs, the last of them in a checkpoint."""
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=devices,
        strategy="ddp_find_unused_parameters_true" if devices > 1 else "auto",
        callbacks=[ModelCheckpoint(folder, save_last=True)] if folder else [],
        enable_checkpointing=folder is not None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(dataset, 8, shuffle=True), ckpt_path=resume)
    return trainer


def interrupted(folder, devices=2):
    """The largest difference between the weights of a run of 3 epochs, and of 1 epoch and 2 more."""
    torch.manual_seed(1)
    dataset, vaes = mm.MultimodalDataset(three_rows(40), three_holes(40)), []
    for name, epochs, resume in (("whole", 3, None), ("part", 1, None), ("part", 3, folder / "part" / "last.ckpt")):
        torch.manual_seed(5)
        vaes.append(three())
        torch.manual_seed(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
        run(LightningVAE(vaes[-1], lr=1e-2), dataset, epochs, folder / name, resume, devices)
    whole, part, again = [torch.cat([p.detach().flatten() for p in vae.parameters()]) for vae in vaes]
    return {"resumed": float((whole - again).abs().max()), "moved": float((whole - part).abs().max())}


def exact():
    """The logged loss of a model whose ELBO has no noise, and what it must be."""
    truth = LinearGaussian()
    x = truth.simulate(32)
    trainer = run(LightningVAE(truth.vae(), lr=0.0), mm.MultimodalDataset(x), 1)
    return {"loss": float(trainer.callback_metrics["loss"]), "exact": -float(truth.log_prob(x).mean())}


def main():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = {**exact(), **interrupted(folder)}
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
