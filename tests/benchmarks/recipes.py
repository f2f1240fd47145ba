"""Recipes over the same methods in hand-written torch, on the built-in digits: `python -m tests.benchmarks.recipes`.

Same networks, same weights, same number of decoded rows, one fused Adam each; the losses agree within their Monte-Carlo
error before anything is timed. Printed are medians over rounds of the ratio in the same round, with quartiles.
"""

from __future__ import annotations

import copy
import statistics

import torch

import pyro_mmvae as mm
from pyro_mmvae.datasets import digits_and_voices
from tests.benchmarks import timing
from tests.benchmarks.by_hand import ByHand
from tests.digits import recipes

DIM, HIDDEN, PRIVATE, BATCH, EPOCHS = 16, 256, 4, 128, 2
RECIPES = recipes(DIM, HIDDEN, PRIVATE)
SECOND = ("telbo", "jnf")  # those whose second phase is measured as well
METHODS = [*RECIPES, *(f"{name}_second" for name in SECOND)]


def recipe(name):
    """(vae, loss), the weights of all modalities 1."""
    torch.manual_seed(0)
    vae, loss, *more = RECIPES[name.removesuffix("_second")]()
    for part in vae.modalities.values():
        part.weight = 1.0
    return vae, more[0]() if name.endswith("_second") else loss


def agree(name, vae, loss, x):
    hand, few = ByHand(name, vae), {k: v[:BATCH] for k, v in x.items()}
    ours = lambda: loss.differentiable_loss(vae.model, vae.guide, few)  # noqa: E731
    timing.agree(name, ours, lambda: hand.loss(few), draws=60)


def by_hand(name, vae, x, epochs):
    hand, free = ByHand(name, vae), [p for p in vae.parameters() if p.requires_grad]
    optim = torch.optim.Adam(free, lr=1e-3, fused=True)
    for _ in range(epochs):
        for index in torch.randperm(len(x["label"])).split(BATCH):
            optim.zero_grad(set_to_none=True)
            (hand.loss({k: v[index] for k, v in x.items()}) / len(index)).backward()
            optim.step()


def measure(name, x, rounds, clock):
    """Seconds of EPOCHS epochs of both, in each round: what `fit` does once counts as in a short run."""
    vae, loss = recipe(name)
    agree(name, vae, loss, x)
    other = copy.deepcopy(vae)

    def part(rows):
        return {k: v[:rows] for k, v in x.items()}

    arms = {
        "ours": lambda n: mm.fit(vae, part(n), loss=loss, epochs=EPOCHS, batch_size=BATCH, progress=False),
        "by hand": lambda n: by_hand(name, other, part(n), EPOCHS),
    }
    return timing.paired(arms, len(x["label"]), BATCH, rounds, clock)


def main():
    given = timing.options(__doc__, 5, "--only")
    train, _ = digits_and_voices()
    x, table = {**train, "label": train["label"].long()}, {}
    rows = len(x["label"])
    timing.heading("recipe", f"by hand, ms a step ({rows} rows, batches of {BATCH})", "ratio [quartiles]")
    for name in [given.only] if given.only else METHODS[:1] if given.quick else METHODS:
        seconds = measure(name, x, given.rounds, given.clock)
        table[name] = timing.ratio(seconds, "ours", "by hand")
        step = statistics.median(seconds["by hand"]) / -(-rows // BATCH) / EPOCHS * 1e3
        timing.line(name, f"{step:.2f}", timing.shown(table[name]))
    timing.write(given.out, table)


if __name__ == "__main__":
    main()
