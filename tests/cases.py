"""The tables behind the laws: a new fusion, prior or likelihood is one line here and passes every law of test_laws.py."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

import pyro_mmvae as mm

DIM = 2

FUSIONS = {
    "PoE": lambda: mm.PoE(),
    "PoE without prior": lambda: mm.PoE(prior_expert=False),
    "MoE": lambda: mm.MoE(),
    "MoPoE": lambda: mm.MoPoE(),
    "MoPoE with prior": lambda: mm.MoPoE(prior_expert=True),
}

PRIORS = {
    "StandardNormal": lambda: mm.StandardNormal(DIM),
    "LearnedNormal": lambda: mm.LearnedNormal(DIM),
    "GaussianMixture": lambda: mm.GaussianMixture(DIM, components=3),
    "function": lambda: lambda: dist.StudentT(5.0, torch.zeros(DIM), 1.0).to_event(1),
    "function of the experts": lambda: lambda experts: dist.Laplace(torch.zeros(DIM), 1.0).to_event(1),
}


def _flat(features: int) -> nn.Module:
    return mm.encoder(features, 8, dim=DIM)


def _labels() -> nn.Module:
    return nn.Sequential(mm.OneHot(4), mm.encoder(4, 8, dim=DIM))


def _net(features: int = 3) -> nn.Module:
    return mm.mlp(DIM, 8, features)


# name -> (decoder, encoder, draw of that many rows)
LIKELIHOODS = {
    "Bernoulli": (lambda: mm.BernoulliLikelihood(_net()), lambda: _flat(3), lambda n: torch.rand(n, 3).round()),
    "Binomial": (lambda: mm.BinomialLikelihood(_net(), 16), lambda: _flat(3), lambda n: torch.randint(0, 17, (n, 3))),
    "Normal fixed": (lambda: mm.NormalLikelihood(_net(), 0.5), lambda: _flat(3), lambda n: torch.randn(n, 3)),
    "Normal learned": (
        lambda: mm.NormalLikelihood(_net(), mm.LearnedScale(3)),
        lambda: _flat(3),
        lambda n: torch.randn(n, 3),
    ),
    "Normal per row": (
        lambda: mm.NormalLikelihood(_net(), mm.Positive(_net())),
        lambda: _flat(3),
        lambda n: torch.randn(n, 3),
    ),
    "Laplace": (lambda: mm.LaplaceLikelihood(_net()), lambda: _flat(3), lambda n: torch.randn(n, 3)),
    "StudentT": (lambda: mm.StudentTLikelihood(_net()), lambda: _flat(3), lambda n: torch.randn(n, 3)),
    "Categorical": (lambda: mm.CategoricalLikelihood(_net(4)), _labels, lambda n: torch.randint(0, 4, (n,))),
    "Poisson": (lambda: mm.PoissonLikelihood(_net()), lambda: _flat(3), lambda n: torch.randint(0, 5, (n, 3))),
    "NegativeBinomial": (
        lambda: mm.NegativeBinomialLikelihood(_net(), mm.LearnedScale(3)),
        lambda: _flat(3),
        lambda n: torch.randint(0, 5, (n, 3)),
    ),
    "picture": (
        lambda: mm.BernoulliLikelihood(mm.conv_decoder(DIM, (1, 5, 6), channels=(4,), size=8)),
        lambda: mm.conv_encoder((1, 5, 6), channels=(4,), size=8, dim=DIM),
        lambda n: torch.rand(n, 1, 5, 6).round(),
    ),
}


def modality(name: str) -> mm.Modality:
    decoder, encoder, _ = LIKELIHOODS[name]
    return mm.Modality(decoder(), encoder())


def data(name: str, rows: int) -> torch.Tensor:
    return LIKELIHOODS[name][2](rows)


def three(prior: str = "StandardNormal", fusion: str = "PoE") -> mm.MultimodalVAE:
    """A small model of measurements, a label and counts."""
    parts = {"body": modality("Normal learned"), "label": modality("Categorical"), "counts": modality("Poisson")}
    return mm.MultimodalVAE(parts, PRIORS[prior](), FUSIONS[fusion]())


def three_rows(rows: int) -> dict[str, torch.Tensor]:
    return {"body": data("Normal learned", rows), "label": data("Categorical", rows), "counts": data("Poisson", rows)}


def three_holes(rows: int) -> dict[str, torch.Tensor]:
    """Single entries of body, whole rows of the others; row 0 has nothing, row 1 everything."""
    mask = {"body": torch.rand(rows, 3) > 0.3, "label": torch.rand(rows) > 0.5, "counts": torch.rand(rows) > 0.5}
    for row, value in ((0, False), (1, True)):
        for seen in mask.values():
            seen[row] = value
    return mask
