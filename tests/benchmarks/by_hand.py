"""The published methods in plain torch, as one would write them for complete rows of three modalities."""

from __future__ import annotations

import math
import random
from itertools import combinations

import torch
from torch.distributions import Binomial, Normal
from torch.nn.functional import cross_entropy, softplus

HALF = 0.5 * math.log(2 * math.pi)


class ByHand:
    """A loss for each recipe: the same networks and formula, as many decoded rows, and nothing else of the package.

    Args:
        name: of the method, one of this class.
        vae: whose networks are used, in place.
    """

    def __init__(self, name, vae):
        self.vae, self.formula = vae, getattr(self, name)
        self.parts, self.names = vae.modalities, list(vae.modalities)
        self.count = len(self.names)
        self.family = [s for size in range(1, self.count + 1) for s in combinations(self.names, size)]

    def loss(self, x):
        """Sum over rows, in nats."""
        return self.formula(x)

    # What the methods are made of. A normal is a pair (loc, scale).

    def features(self, x):
        return {name: part.trunk(x[name]) for name, part in self.parts.items()}

    @staticmethod
    def head(network, h):
        *layers, last = network if isinstance(network, torch.nn.Sequential) else [network]
        for layer in layers:
            h = layer(h)
        loc, raw = last.linear(h).chunk(2, -1)
        return loc, softplus(raw) + 1e-5

    def encoded(self, x):
        return {name: self.head(self.parts[name].encoder, h) for name, h in self.features(x).items()}

    def with_private(self, x):
        """Experts, and the private codes of those that have one."""
        h = self.features(x)
        own = {name: self.head(part.private, h[name]) for name, part in self.parts.items() if part.private is not None}
        return {name: self.head(part.encoder, h[name]) for name, part in self.parts.items()}, own

    def encoded_at_once(self, h):
        flat = [h[name] for name in self.names]
        return self.head(self.vae.fusion.net, torch.cat([*flat, torch.ones(len(flat[0]), self.count)], -1))

    def nll(self, x, z, names=None, own=None):
        """-sum_m log p(x_m | z, w_m), (..., row)."""
        total = 0.0
        for name in names or self.names:
            code = torch.cat([z, own[name]], -1) if own and name in own else z
            out = self.parts[name].decoder.net(code)
            if x[name].dim() == 1:
                target = x[name].expand(out.shape[:-1])
                total = total + cross_entropy(out.movedim(-1, 1), target, reduction="none")
            else:
                p = Binomial(self.parts[name].decoder.total_count, logits=out, validate_args=False)
                total = total - p.log_prob(x[name]).flatten(-2).sum(-1)
        return total

    @staticmethod
    def draw(q, *shape):
        return q[0] + q[1] * torch.randn(*shape, *q[0].shape)

    @staticmethod
    def log_prob(q, z):
        return (-0.5 * ((z - q[0]) / q[1]) ** 2 - q[1].log() - HALF).sum(-1)

    @staticmethod
    def kl(q, p):
        return (p[1].log() - q[1].log() + (q[1] ** 2 + (q[0] - p[0]) ** 2) / (2 * p[1] ** 2) - 0.5).sum(-1)

    @staticmethod
    def product(qs, prior):
        precision = sum(scale**-2 for _, scale in qs) + (1.0 if prior else 0.0)
        return sum(loc / scale**2 for loc, scale in qs) / precision, precision**-0.5

    @staticmethod
    def picked(qs, chosen):
        """One of the normals for each row."""
        rows = torch.arange(len(chosen))
        return torch.stack([q[0] for q in qs])[chosen, rows], torch.stack([q[1] for q in qs])[chosen, rows]

    def mixture(self, qs, z):
        return torch.stack([self.log_prob(q, z) for q in qs]).logsumexp(0) - math.log(len(qs))

    unit = torch.zeros(1), torch.ones(1)

    # A product of experts, or one encoder of everything.

    def shared_representation(self, x):
        q = self.product(self.encoded(x).values(), True)
        return (self.nll(x, self.draw(q)) + self.kl(q, self.unit)).sum()

    def mvae(self, x):
        experts, total = self.encoded(x), 0.0
        pair = random.choice(self.family[self.count : -1])
        for subset in [tuple(self.names), *self.family[: self.count], pair]:
            q = self.product([experts[name] for name in subset], True)
            total = total + self.nll(x, self.draw(q), subset) + self.kl(q, self.unit)
        return total.sum()

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

    def feature_fusion(self, x):
        q = self.encoded_at_once(self.features(x))
        return (self.nll(x, self.draw(q)) + self.kl(q, self.unit)).sum()

    telbo = jnf = feature_fusion  # their first phases

    def jmvae(self, x, alpha=0.1):
        h = self.features(x)
        q, experts = self.encoded_at_once(h), [self.head(self.parts[name].encoder, h[name]) for name in self.names]
        kl = self.kl(q, self.unit) + alpha * sum(self.kl(q, e) for e in experts)
        return (self.nll(x, self.draw(q)) + kl).sum()

    def telbo_second(self, x):
        with torch.no_grad():
            h = self.features(x)
        total = 0.0
        for name, part in self.parts.items():
            q = self.head(part.encoder, h[name])
            total = total + self.nll(x, self.draw(q), [name]) + self.kl(q, self.unit)
        return total.sum()

    def jnf_second(self, x):
        with torch.no_grad():
            h = self.features(x)
            z = self.draw(self.encoded_at_once(h))
        total = 0.0
        for name, part in self.parts.items():
            head, flow = part.encoder
            value = z
            for transform in reversed(flow.transforms):
                before = transform.inv(value)
                jacobian = transform.log_abs_det_jacobian(before, value)
                total, value = total + (jacobian.sum(-1) if jacobian.dim() > 1 else jacobian), before
            total = total - self.log_prob(self.head(head, h[name]), value)
        return total.sum()

    # Mixtures.

    def alignment(self, x, alpha=0.9):
        experts, total = self.encoded(x), 0.0
        for q in experts.values():
            pool = (1 - alpha) * self.kl(q, self.unit) + alpha / self.count * sum(
                self.kl(q, other) for other in experts.values()
            )
            total = total + self.nll(x, self.draw(q)) + pool
        return total.sum() / self.count

    def mmvae(self, x, particles=2):
        experts, total = self.encoded(x), 0.0
        prior = self.vae.prior.loc, self.vae.prior.log_scale.exp()
        for expert in experts.values():
            z = self.draw(expert, particles)
            log_w = self.log_prob(prior, z) - self.mixture(experts.values(), z) - self.nll(x, z)
            total = total - log_w.logsumexp(0) + math.log(particles)
        return total.sum() / self.count

    def mopoe(self, x):
        experts = self.encoded(x)
        qs = [self.product([experts[name] for name in subset], False) for subset in self.family]
        q = self.picked(qs, torch.randint(len(qs), (len(x["label"]),)))
        return (self.nll(x, self.draw(q)) + self.kl(q, self.unit)).sum()

    def wasserstein(self, x):
        experts = self.encoded(x)
        qs = [(sum(experts[n][0] for n in s) / len(s), sum(experts[n][1] for n in s) / len(s)) for s in self.family]
        q = self.picked(qs, torch.randint(len(qs), (len(x["label"]),)))
        return (self.nll(x, self.draw(q)) + self.kl(q, self.unit)).sum()

    def mmjsd(self, x):
        experts, total = self.encoded(x), 0.0
        loc, scale = self.product(experts.values(), True)
        pool = loc, scale * math.sqrt(self.count + 1)
        for expert in experts.values():
            z = self.draw(expert)
            total = total + (self.nll(x, z) + self.count / (self.count + 1) * self.kl(expert, pool)) / self.count
        return total.sum()

    def code(self, x, rho=0.5):
        """The weights learn through the density of the mixture and through the draws, one dimension after another."""
        experts, qs = self.encoded(x), []
        for subset in self.family:
            inverse = torch.stack([1 / experts[name][1] for name in subset])
            shift = torch.stack([experts[name][0] / experts[name][1] for name in subset])
            shared = rho / (1 + (len(subset) - 1) * rho)
            precision = ((inverse**2).sum(0) - shared * inverse.sum(0) ** 2) / (1 - rho)
            top = ((inverse * shift).sum(0) - shared * inverse.sum(0) * shift.sum(0)) / (1 - rho)
            qs.append((top / precision, precision**-0.5))
        weights = self.vae.fusion.logits.log_softmax(0)
        with torch.no_grad():
            z = self.draw(self.picked(qs, torch.multinomial(weights.exp(), len(x["label"]), replacement=True)))
        z = self.moved(z, qs, weights)
        log_q = (torch.stack([self.log_prob(q, z) for q in qs]) + weights[:, None]).logsumexp(0)
        return (self.nll(x, z) + log_q - self.log_prob(self.unit, z)).sum()

    @staticmethod
    def moved(z, qs, weights):
        """A draw from a mixture of normals, with the implicit gradient of its parameters."""
        p = Normal(torch.stack([q[0] for q in qs]), torch.stack([q[1] for q in qs]), validate_args=False)
        logs, cdf = p.log_prob(z), p.cdf(z)
        total, found = weights[:, None], []
        for d in range(z.shape[-1]):
            share = total.softmax(0)
            below, density = (share * cdf[..., d]).sum(0), (share * logs[..., d].exp()).sum(0).detach()
            found.append(z[:, d] - (below - below.detach()) / density)
            one = (found[-1] - p.loc[..., d]) / p.scale[..., d]
            total = total - 0.5 * one**2 - p.scale[..., d].log()
        return torch.stack(found, -1)

    # Private codes, levels, conditions.

    def dmvae(self, x):
        experts, own = self.with_private(x)
        total = 0.0
        for q in [self.product(experts.values(), True), *(self.product([e], True) for e in experts.values())]:
            w = {name: self.draw(one) for name, one in own.items()}
            total = total + self.nll(x, self.draw(q), own=w) + self.kl(q, self.unit)
            total = total + sum(self.kl(one, self.unit) for one in own.values())
        return total.sum()

    def mmvaeplus(self, x, particles=2):
        return self._private_mixture(x, lambda z: self.log_prob(self.unit, z), particles)

    def cmvae(self, x, particles=2):
        prior = self.vae.prior
        logits, clusters = prior.logits.log_softmax(0), (prior.loc, prior.log_scale.exp())
        return self._private_mixture(
            x, lambda z: (logits + self.log_prob(clusters, z.unsqueeze(-2))).logsumexp(-1), particles
        )

    def _private_mixture(self, x, log_prior, particles):
        (experts, own), total = self.with_private(x), 0.0
        rows = len(x["label"])
        for source, expert in experts.items():
            z, w = self.draw(expert, particles), {}
            log_w = log_prior(z) - self.mixture(experts.values(), z)
            for name in own:
                if name == source:
                    w[name] = self.draw(own[name], particles)
                    log_w = log_w + self.log_prob(self.unit, w[name]) - self.log_prob(own[name], w[name])
                else:
                    auxiliary = self.vae.auxiliary_prior[name]
                    w[name] = self.draw((auxiliary.loc, auxiliary.log_scale.exp()), particles, rows)
            log_w = log_w - self.nll(x, z, own=w)
            total = total - log_w.logsumexp(0) + math.log(particles)
        return total.sum() / self.count

    def mmvm(self, x):
        h, total = self.features(x), 0.0
        codes = {name: self.head(part.private, h[name]) for name, part in self.parts.items()}
        for name, q in codes.items():
            w = self.draw(q)
            total = total + self.nll(x, w, [name]) + self.log_prob(q, w) - self.mixture(codes.values(), w)
        return total.sum()

    def nexus(self, x, dropout=0.2):
        bottom, top, total, codes = self.vae.bottom, self.vae.top, 0.0, {}
        for name, part in bottom.modalities.items():
            q = self.head(part.private, part.trunk(x[name]))
            w = self.draw(q)
            total, codes[name] = total + self.nll(x, w, [name]) + self.kl(q, self.unit), w.detach()
        given = random.choice(self.family) if random.random() < dropout else self.names
        message = sum(top.fusion.embed[name](codes[name]) for name in given) / len(given)
        q = self.head(top.fusion.head, message)
        z = self.draw(q)
        for name in self.names:
            total = total - self.log_prob((top.modalities[name].decoder.net(z), torch.ones(1)), codes[name])
        return (total + self.kl(q, self.unit)).sum()

    def mhvae(self, x):
        prior, (first, second) = self.vae.prior, self.vae.fusion.levels
        h, total = self.features(x), 0.0
        says = {name: self.head(first[name], h[name]) for name in self.names}
        for subset in self.family:
            q = self.product([says[name] for name in subset], True)
            z = self.draw(q)
            r = self.head(prior.levels[0], z)
            below = [self.head(second[name], torch.cat([h[name], z], -1)) for name in subset]
            p = self.product([r, *below], False)
            total = total + self.kl(q, self.unit) + self.kl(p, r) + self.nll(x, self.draw(p))
        return total.sum() / len(self.family)

    def cvae(self, x):
        h, ones = self.features(x), torch.ones(len(x["label"]), self.count)
        q = self.head(self.vae.fusion.part.fusion.net, torch.cat([*(h[name] for name in self.names), ones], -1))
        code = torch.cat([self.draw(q), h["speech"], h["label"], ones[:, 1:]], -1)
        return (self.nll(x, code, ["image"]) + self.kl(q, self.unit)).sum()
