"""Recipes over the same methods in hand-written torch, on the built-in digits: `python -m tests.benchmarks.recipes`.

Same networks, same weights, same number of decoded rows, torch's Binomial density in both, one fused Adam each; the
losses agree within their Monte-Carlo error before anything is timed. Printed are medians over rounds of the ratio in
the same round, with quartiles.
"""

from __future__ import annotations

import copy
import math
import statistics
from itertools import combinations

import torch
from torch.distributions import Binomial
from torch.nn.functional import cross_entropy, softplus

import pyro_mmvae as mm
from pyro_mmvae.datasets import digits_and_voices
from pyro_mmvae.demo import digit_features, digit_modalities
from tests.benchmarks import timing

DIM, BATCH = 16, 128
R = mm.recipes
METHODS = ("shared_representation", "mvae", "mmvae", "mopoe", "mvtcae", "crmvae", "mmjsd", "jmvae")
SIZES = digit_features()


def recipe(name):
    """(vae, loss), the weights of all modalities 1."""
    torch.manual_seed(0)
    parts = digit_modalities(DIM)
    for part in parts.values():
        part.weight = 1.0
    if name == "jmvae":
        return R.jmvae(parts, DIM, mm.encoder(sum(SIZES.values()) + 3, 256, 256, dim=DIM), SIZES)
    return R.mmvae(parts, DIM, num_particles=1) if name == "mmvae" else getattr(R, name)(parts, DIM)


class ByHand:
    """The methods in plain torch, for complete rows."""

    def __init__(self, name, vae):
        self.vae, self.formula = vae, getattr(self, name)
        self.parts, self.count = vae.modalities, len(vae.modalities)

    def loss(self, x):
        """Sum over rows, in nats."""
        return self.formula(x)

    def encoded(self, x):
        """(loc, scale) of every expert."""
        found, self.features = {}, {}
        for name, part in self.parts.items():
            self.features[name] = part.trunk(x[name])
            loc, raw = part.encoder.linear(self.features[name]).chunk(2, -1)
            found[name] = loc, softplus(raw) + 1e-5
        return found

    def nll(self, x, z, names=None):
        """-sum_m log p(x_m | z), (row,)."""
        total = 0.0
        for name in names or self.parts:
            out = self.parts[name].decoder.net(z)
            if x[name].dim() == 1:
                total = total + cross_entropy(out, x[name], reduction="none")
            else:
                p = Binomial(self.parts[name].decoder.total_count, logits=out, validate_args=False)
                total = total - p.log_prob(x[name]).flatten(1).sum(-1)
        return total

    @staticmethod
    def draw(q):
        return q[0] + q[1] * torch.randn_like(q[0])

    @staticmethod
    def log_prob(q, z):
        return (-0.5 * ((z - q[0]) / q[1]) ** 2 - q[1].log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    @staticmethod
    def kl(q, p):
        return (p[1].log() - q[1].log() + (q[1] ** 2 + (q[0] - p[0]) ** 2) / (2 * p[1] ** 2) - 0.5).sum(-1)

    @staticmethod
    def product(qs, prior):
        precision = sum(scale**-2 for _, scale in qs) + (1.0 if prior else 0.0)
        return sum(loc / scale**2 for loc, scale in qs) / precision, precision**-0.5

    @property
    def unit(self):
        return torch.zeros(DIM), torch.ones(DIM)

    def shared_representation(self, x):
        q = self.product(self.encoded(x).values(), True)
        return (self.nll(x, self.draw(q)) + self.kl(q, self.unit)).sum()

    def mvae(self, x):
        experts = self.encoded(x)
        q = self.product(experts.values(), True)
        total = self.nll(x, self.draw(q)) + self.kl(q, self.unit)
        for name, expert in experts.items():
            q = self.product([expert], True)
            total = total + self.nll(x, self.draw(q), [name]) + self.kl(q, self.unit)
        return total.sum()

    def mmvae(self, x):
        experts, total = self.encoded(x), 0.0
        prior = self.vae.prior.loc, self.vae.prior.log_scale.exp()
        for expert in experts.values():
            z = self.draw(expert)
            mixture = torch.stack([self.log_prob(e, z) for e in experts.values()]).logsumexp(0) - math.log(self.count)
            total = total + (self.nll(x, z) + mixture - self.log_prob(prior, z)) / self.count
        return total.sum()

    def mopoe(self, x):
        experts = list(self.encoded(x).values())
        family = [s for size in (1, 2, 3) for s in combinations(range(self.count), size)]
        qs = [self.product([experts[m] for m in s], False) for s in family]
        loc, scale = torch.stack([q[0] for q in qs]), torch.stack([q[1] for q in qs])
        chosen = torch.randint(len(family), (len(loc[0]),))
        rows = torch.arange(len(chosen))
        q = loc[chosen, rows], scale[chosen, rows]
        return (self.nll(x, self.draw(q)) + self.kl(q, self.unit)).sum()

    def mvtcae(self, x, alpha=0.9):
        experts = self.encoded(x)
        q = self.product(experts.values(), False)
        kl = (1 - alpha) * self.kl(q, self.unit) + alpha / self.count * sum(self.kl(q, e) for e in experts.values())
        return (self.nll(x, self.draw(q)) + self.count / (self.count - alpha) * kl).sum()

    def crmvae(self, x):
        experts = self.encoded(x)
        q = self.product(experts.values(), False)
        total = self.nll(x, self.draw(q))
        for name, expert in experts.items():
            total = total + self.nll(x, self.draw(expert), [name])
        return (total + 2 * (self.kl(q, self.unit) + sum(self.kl(q, e) for e in experts.values()))).sum()

    def mmjsd(self, x):
        experts, total = self.encoded(x), 0.0
        loc, scale = self.product(experts.values(), True)
        pool = loc, scale * math.sqrt(self.count + 1)
        for expert in experts.values():
            z = self.draw(expert)
            total = total + (self.nll(x, z) + self.count / (self.count + 1) * self.kl(expert, pool)) / self.count
        return total.sum()

    def jmvae(self, x, alpha=0.1):
        experts = self.encoded(x)
        flat = [self.features[name] for name in SIZES]
        *layers, head = self.vae.fusion.net
        h = torch.cat([*flat, torch.ones(len(flat[0]), self.count)], -1)
        for layer in layers:
            h = layer(h)
        loc, raw = head.linear(h).chunk(2, -1)
        q = loc, softplus(raw) + 1e-5
        kl = self.kl(q, self.unit) + alpha * sum(self.kl(q, e) for e in experts.values())
        return (self.nll(x, self.draw(q)) + kl).sum()


def agree(name, vae, loss, x):
    """Both losses are one number, or there is nothing to compare."""
    hand, few = ByHand(name, vae), {k: v[:BATCH] for k, v in x.items()}
    with torch.no_grad():
        ours = torch.tensor([float(loss.differentiable_loss(vae.model, vae.guide, few)) for _ in range(60)])
        theirs = torch.tensor([float(hand.loss(few)) for _ in range(60)])
    se = ((ours.var() + theirs.var()) / 60).sqrt()
    assert (ours.mean() - theirs.mean()).abs() < 5 * se, (name, ours.mean(), theirs.mean(), se)


def by_hand(name, vae, x, epochs):
    hand, optim = ByHand(name, vae), torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    for _ in range(epochs):
        for index in torch.randperm(len(x["label"])).split(BATCH):
            optim.zero_grad(set_to_none=True)
            (hand.loss({k: v[index] for k, v in x.items()}) / len(index)).backward()
            optim.step()


def measure(name, x, rounds, clock):
    """Seconds an epoch of both, in each round."""
    vae, loss = recipe(name)
    agree(name, vae, loss, x)
    other = copy.deepcopy(vae)

    def part(rows):
        return {k: v[:rows] for k, v in x.items()}

    arms = {
        "ours": lambda n: mm.fit(vae, part(n), loss=loss, epochs=1, batch_size=BATCH, progress=False),
        "by hand": lambda n: by_hand(name, other, part(n), 1),
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
        step = statistics.median(seconds["by hand"]) / -(-rows // BATCH) * 1e3
        timing.line(name, f"{step:.2f}", timing.shown(table[name]))
    timing.write(given.out, table)


if __name__ == "__main__":
    main()
