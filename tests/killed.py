"""`python tests/killed.py FOLDER`: kills a run of `mm.fit` 20 times with SIGKILL, and prints how its lives went.

Each life is a real process, forked from this one, which has imported torch and Pyro and has run nothing: so a life
costs milliseconds, not seconds. The killed run and an uninterrupted one end in files of their own in FOLDER.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pyro
import torch
import torch._dynamo  # an optimiser imports it when it is made: once here, not in every life
from cases import three, three_holes, three_rows
from torch import nn

import pyro_mmvae as mm

KILLS, STEP = 20, 0.02  # seconds that a step and its checkpoint take, roughly


class Killed(BaseException):
    """Stands for the end of a process."""


def ending(step, error=Killed, make=torch.optim.Adam):
    """A maker of optimisers that raises before the step of that number, counted from 0 over all that it makes."""
    left = [step]

    def count(*_):
        left[0] -= 1
        if left[0] < 0:
            raise error

    def optimizer(parameters, lr):
        optim = make(parameters, lr=lr)
        optim.register_step_pre_hook(count)
        return optim

    return optimizer


class Drift(nn.Module):
    """Dropout, and a buffer that follows what passes by."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return self.dropout(x - self.mean)


def setting(seed=0):
    """A model with dropout, a buffer and a mixture posterior, data with holes, and held-out rows."""
    pyro.set_rng_seed(seed)
    vae = three(fusion="MoE")
    vae.modalities["body"].trunk = Drift()
    return vae, three_rows(60), three_holes(60), three_rows(20)


def train(checkpoint=None, every=0.0, **options):
    """One call of fit, always the same but for where it keeps itself."""
    vae, x, mask, held_out = setting()
    given = {"epochs": 12, "batch_size": 9, "lr": 1e-2, "warmup": 3, "seed": 4, "validation": held_out, **options}
    return vae, mm.fit(vae, x, mask, progress=False, checkpoint=checkpoint, every=every, **given)


def finish(folder, pulse):
    """Goes on to the end of the run, and tells the parent of each step."""

    def optimizer(parameters, lr):
        optim = torch.optim.Adam(parameters, lr=lr)
        optim.register_step_post_hook(lambda *_: os.write(pulse, b"."))
        return optim

    vae, history = train(folder / "run.pt", optimizer=optimizer)
    contents = {"state": vae.state_dict(), "loss": history.loss, "validation": history.validation, "lr": history.lr}
    torch.save({**contents, "best": history.best_epoch}, folder / "result.pt")


def born(folder):
    """A process that runs until it is over or killed, and the pipe on which it tells of its steps."""
    listen, pulse = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            finish(folder, pulse)
            status = 0
        finally:
            os._exit(status)
    os.close(pulse)
    return child, listen


def killed(folder, kills):
    """How many steps each life had before it was killed, until the run was over."""
    lives = []
    while not (folder / "result.pt").exists():
        child, listen = born(folder)
        if len(lives) < kills:
            wanted, steps = random.randint(0, 8), 0
            while steps < wanted and os.read(listen, 1):  # nothing to read: the child is over
                steps += 1
            time.sleep(random.uniform(0, STEP))
            os.kill(child, signal.SIGKILL)
            lives.append(steps)
        os.close(listen)
        _, status = os.waitpid(child, 0)
        if status not in (0, signal.SIGKILL, signal.SIGPIPE):
            raise SystemExit(f"a life ended with status {status} after {lives}")
    return lives


def main(folder):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    (folder / "whole").mkdir()
    killed(folder / "whole", 0)
    lives, done = [], 0
    while done < KILLS:  # a run may be over before it has been killed that often; then another one is
        place = folder / f"killed{len(lives)}"
        place.mkdir()
        lives.append(killed(place, KILLS - done))
        done += len(lives[-1])
    print(json.dumps(lives))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
