"""MultiVae 1.0.3 on the same networks, weights and rows: `python -m tests.benchmarks.multivae [--quick] [--clock cpu]`.

In an environment of its own, see README.md beside this file. PoE: epochs of `fit` over epochs of its trainer, as it
comes and as a user who knows would tune it (fused Adam, torch's validation off); all of a short `fit`, and its epochs
after the first, as what MultiVae's `train` does once is not timed either. MMVAE: as it comes, and over steps of
its model on batches that are ready, without its trainer and loader. Losses agree within their Monte-Carlo error first.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
from itertools import chain

import torch
from multivae.data.datasets import IncompleteDataset, MultimodalBaseDataset
from multivae.models import MMVAE, MVAE, MMVAEConfig, MVAEConfig
from multivae.trainers import BaseTrainer, BaseTrainerConfig
from pyro.infer import Trace_ELBO
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch.distributions import Distribution

import pyro_mmvae as mm
from tests.benchmarks import timing
from tests.benchmarks.workloads import BATCH, WORKLOADS, build, data

logging.disable(logging.INFO)

EPOCHS = 2
"""In every slot, so that what `fit` does once a run counts as what it is in a short run."""
OURS = ("fit", "later epochs", "compiled")
PAIRS = [(own, their) for their in ("as it comes", "tuned") for own in OURS]


class Encoder(BaseEncoder):
    """Our encoder; MultiVae wants the logarithm of the variance."""

    def __init__(self, net, dim):
        super().__init__()
        self.net, self.latent_dim = net, dim

    def forward(self, x):
        q = self.net(x).base_dist
        return ModelOutput(embedding=q.loc, log_covariance=2 * q.scale.log())


class Decoder(BaseDecoder):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z):
        return ModelOutput(reconstruction=self.net(z))


def theirs(name, kind):
    """The workload as a MultiVae model, with the weights that `build` gives."""
    vae, work = build(name), WORKLOADS[name]
    labels = [key for key, event in work.events.items() if isinstance(event, int)]
    encoders = {k: Encoder(m.encoder[1] if k in labels else m.encoder, work.dim) for k, m in vae.modalities.items()}
    decoders = {k: Decoder(m.decoder.net) for k, m in vae.modalities.items()}
    shared = {
        "n_modalities": len(encoders),
        "latent_dim": work.dim,
        "input_dims": {k: (e,) if isinstance(e, int) else e for k, e in work.events.items()},
        "decoders_dist": {k: "categorical" if k in labels else "normal" for k in work.events},
    }
    if kind == "poe":
        return MVAE(MVAEConfig(use_subsampling=False, warmup=0, **shared), encoders, decoders)
    own = {"K": 1, "prior_and_posterior_dist": "normal", "learn_prior": False, "loss": "iwae_looser"}
    return MMVAE(MMVAEConfig(**own, **shared), encoders, decoders)


def dataset(x, mask, rows):
    """Their data set: labels as indicators, masks only where something is missing."""
    x = {
        k: v[:rows] if v.is_floating_point() else torch.nn.functional.one_hot(v[:rows], 10).float()
        for k, v in x.items()
    }
    if all(bool(m.all()) for m in mask.values()):
        return MultimodalBaseDataset(x)
    return IncompleteDataset(x, {k: v[:rows] for k, v in mask.items()})


@contextlib.contextmanager
def torch_validation(on):
    before = Distribution._validate_args
    Distribution.set_default_validate_args(on)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def trainer_epochs(name, x, mask, tuned, kind="poe"):
    """A function of a number of rows: epochs of MultiVae's trainer, without the copies and files of its `train`."""
    model, trainers = theirs(name, kind), {}

    def make(rows):
        settings = BaseTrainerConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=BATCH,
            num_epochs=1,
            learning_rate=1e-3,
            no_cuda=True,
            optimizer_cls="Adam",
            optimizer_params={"fused": True} if tuned else None,
        )
        return BaseTrainer(model, dataset(x, mask, rows), training_config=settings)

    def run(rows):
        with torch_validation(not tuned):
            for _ in range(EPOCHS):
                trainers[rows].train_step(1)

    for rows in {BATCH, WORKLOADS[name].rows}:
        trainers[rows] = make(rows)
    return run, model


def mmvae_steps(name, x, mask):
    """A function of a number of rows: steps of MultiVae's MMVAE on batches by index, fused Adam, no validation."""
    model = theirs(name, "mmvae").train()
    optim, full = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True), dataset(x, mask, None)

    def run(rows):
        with torch_validation(False):
            for index in chain.from_iterable(torch.randperm(rows).split(BATCH) for _ in range(EPOCHS)):
                optim.zero_grad(set_to_none=True)
                (model(take(full, index)).loss / len(index)).backward()
                optim.step()

    return run, model


def take(full, index):
    batch = ModelOutput(data={k: v[index] for k, v in full.data.items()})
    if hasattr(full, "masks"):
        batch["masks"] = {k: v[index] for k, v in full.masks.items()}
        batch.masks = batch["masks"]
    return batch


def fit_epochs(name, x, mask, fusion, loss=None):
    vae = build(name, fusion=fusion)

    def run(rows):
        part = {k: v[:rows] for k, v in x.items()}, {k: v[:rows] for k, v in mask.items()}
        mm.fit(vae, *part, loss=loss, epochs=EPOCHS, batch_size=BATCH, progress=False)

    return run, vae


def later_epochs(name, x, mask, compiled=None):
    """As `fit_epochs` with PoE, wall seconds without the first epoch, in which a compiled step is made."""
    vae = build(name)

    def run(rows):
        part = {k: v[:rows] for k, v in x.items()}, {k: v[:rows] for k, v in mask.items()}
        options = {"epochs": EPOCHS + 1, "batch_size": BATCH, "progress": False, "compile": compiled}
        seconds = mm.fit(vae, *part, **options).seconds
        return seconds[-1] - seconds[0]

    return run


def agree(vae, model, x, mask, loss, summed):
    few = {k: v[:BATCH] for k, v in x.items()}, {k: v[:BATCH] for k, v in mask.items()}
    batch = take(dataset(x, mask, None), torch.arange(BATCH))
    vae, model, scale = copy.deepcopy(vae).eval(), copy.deepcopy(model).eval(), 1 if summed else BATCH
    ours = lambda: loss.differentiable_loss(vae.model, vae.guide, *few)  # noqa: E731
    timing.agree(type(model).__name__, ours, lambda: model(batch, epoch=1).loss * scale, draws=20)


def poe(name, missing, clock, compiled):
    x, mask = data(name, missing)
    fit, vae = fit_epochs(name, x, mask, mm.PoE())
    plain, model = trainer_epochs(name, x, mask, tuned=False)
    tuned, _ = trainer_epochs(name, x, mask, tuned=True)
    agree(vae, model, x, mask, Trace_ELBO(), summed=False)
    arms = {"fit": fit, "as it comes": plain, "tuned": tuned}
    if clock == "wall":
        arms["later epochs"] = later_epochs(name, x, mask)
    if compiled:
        arms["compiled"] = later_epochs(name, x, mask, "inductor")
    return arms


def mmvae(name, missing):
    x, mask = data(name, missing)
    strata = mm.Objective([mm.objectives.strata])
    one, vae = fit_epochs(name, x, mask, mm.MoE())
    every, _ = fit_epochs(name, x, mask, mm.MoE(), strata)
    step, model = mmvae_steps(name, x, mask)
    agree(vae, model, x, mask, strata, summed=True)
    plain, _ = trainer_epochs(name, x, mask, tuned=False, kind="mmvae")
    return {"one draw": one, "every expert": every, "as it comes": plain, "its step": step}


def main():
    given = timing.options(__doc__, 5, "--only")
    names = ["small"] if given.quick else [given.only] if given.only else list(WORKLOADS)
    table = {}
    timing.heading("workload", "missing", *(f"{own} / {their}" for own, their in PAIRS))
    for name in names:
        for missing in (0.0, 0.5) if name != "conv" else (0.0, 0.5, 0.8):
            rows = WORKLOADS[name].rows if not given.quick else BATCH
            compiled = name != "conv" and timing.compiles(given)
            seconds = timing.paired(poe(name, missing, given.clock, compiled), rows, BATCH, given.rounds, given.clock)
            found = {f"{a} / {b}": timing.ratio(seconds, a, b) for a, b in PAIRS if a in seconds}
            table[f"PoE {name} {missing:.0%}"] = found
            shown = [timing.shown(found[f"{a} / {b}"]) if a in seconds else "" for a, b in PAIRS]
            timing.line(name, f"{missing:.0%}", *shown)
    print()
    pairs = [(own, their) for own in ("one draw", "every expert") for their in ("as it comes", "its step")]
    timing.heading("workload", "missing", *(f"MMVAE, {own} / MultiVae {their}" for own, their in pairs))
    for name in ["small"] if given.quick else ["conv"]:
        for missing in (0.0, 0.5):
            rows = WORKLOADS[name].rows if not given.quick else BATCH
            seconds = timing.paired(mmvae(name, missing), rows, BATCH, given.rounds, given.clock)
            found = {f"{a} / {b}": timing.ratio(seconds, a, b) for a, b in pairs}
            table[f"MMVAE {name} {missing:.0%}"] = found
            timing.line(name, f"{missing:.0%}", *map(timing.shown, found.values()))
    timing.write(given.out, table)


if __name__ == "__main__":
    main()
