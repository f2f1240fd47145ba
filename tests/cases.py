"""The tables behind the laws: a new fusion, prior or likelihood is one line here and passes all of test_laws.py."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

import pyro_mmvae as mm

DIM = 2


def _embed(sizes: dict[str, int]) -> dict[str, nn.Module]:
    return {name: nn.Sequential(Entries(size), nn.Linear(size, 8), nn.Tanh()) for name, size in sizes.items()}


class From(nn.Module):
    """A plain function as a decoder's network or an encoder."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Entries(nn.Module):
    """Entries of any shape as real vectors."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, self.size).double()


class SinhArcsinh(dist.TransformModule):
    """A smooth transform with learnt skewness and tails, one of each a dimension."""

    bijective = True
    domain = codomain = dist.constraints.real_vector

    def __init__(self, dim: int):
        super().__init__()
        self.skew, self.log_tail = nn.Parameter(torch.full((dim,), 0.3)), nn.Parameter(torch.full((dim,), -0.1))

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sinh(self.log_tail.exp() * torch.asinh(x) + self.skew)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return torch.sinh((torch.asinh(y) - self.skew) / self.log_tail.exp())

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.log_tail + 0.5 * (1 + y**2).log() - 0.5 * (1 + x**2).log()).sum(-1)


def _joint(sizes: dict[str, int], dim: int) -> nn.Module:
    return mm.encoder(sum(sizes.values()) + len(sizes), 8, dim=dim)


# name -> (name -> number of features, dim of z) -> fusion
FUSIONS = {
    "PoE": lambda sizes, dim: mm.PoE(),
    "PoE with covariances": lambda sizes, dim: mm.PoE(),
    "PoE without prior": lambda sizes, dim: mm.PoE(prior_expert=False),
    "GeneralizedPoE": lambda sizes, dim: mm.GeneralizedPoE(sizes, dim),
    "GeneralizedPoE with prior": lambda sizes, dim: mm.GeneralizedPoE(sizes, dim, prior_expert=True),
    "GeometricMean": lambda sizes, dim: mm.GeometricMean(),
    "GeometricMean with prior": lambda sizes, dim: mm.GeometricMean(prior_expert=True),
    "MoE": lambda sizes, dim: mm.MoE(),
    "MoE with prior": lambda sizes, dim: mm.MoE(prior_expert=True),
    "MoPoE": lambda sizes, dim: mm.MoPoE(),
    "MoPoE with prior": lambda sizes, dim: mm.MoPoE(prior_expert=True),
    "MixtureOfWasserstein": lambda sizes, dim: mm.MixtureOfWasserstein(),
    "WassersteinMean": lambda sizes, dim: mm.WassersteinMean(),
    "WassersteinMean with prior": lambda sizes, dim: mm.WassersteinMean(prior_expert=True),
    "HoelderMixture": lambda sizes, dim: mm.HoelderMixture(),
    "HoelderMixture with prior": lambda sizes, dim: mm.HoelderMixture(prior_expert=True),
    "Hellinger": lambda sizes, dim: mm.Hellinger(),
    "CoDE": lambda sizes, dim: mm.CoDE(sizes, rho=0.3),
    "DeepSets": lambda sizes, dim: mm.DeepSets(_embed(sizes), mm.NormalHead(8, dim)),
    "Attention": lambda sizes, dim: mm.Attention(_embed(sizes), mm.NormalHead(8, dim), 8, heads=2),
    "JointEncoder": lambda sizes, dim: mm.JointEncoder(_joint(sizes, dim), sizes),
    "JointEncoder and PoE": lambda sizes, dim: mm.JointEncoder(_joint(sizes, dim), sizes, otherwise=mm.PoE()),
    "Flow": lambda sizes, dim: mm.Flow(mm.PoE(), [SinhArcsinh(dim)]),
    "Flow of a mixture": lambda sizes, dim: mm.Flow(mm.MoE(), [SinhArcsinh(dim)]),
}

# fusions that look at the trunks and never call the unimodal encoders
WITHOUT_ENCODERS = ("DeepSets", "Attention", "JointEncoder")

PRIORS = {
    "StandardNormal": lambda: mm.StandardNormal(DIM),
    "LearnedNormal": lambda: mm.LearnedNormal(DIM),
    "GaussianMixture": lambda: mm.GaussianMixture(DIM, components=3),
    "Laplace": lambda: mm.Laplace(DIM),
    "FlowPrior": lambda: mm.FlowPrior(DIM, [dist.transforms.affine_coupling(DIM, [16]), SinhArcsinh(DIM)]),
    "DynamicPrior": lambda: mm.DynamicPrior(mm.PoE(prior_expert=False), otherwise=mm.StandardNormal(DIM)),
    "Pooled": lambda: mm.Pooled(mm.LearnedNormal(DIM), 0.25),
    "function": lambda: lambda: dist.StudentT(5.0, torch.zeros(DIM), 1.0).to_event(1),
    "function of the experts": lambda: lambda experts: dist.Laplace(torch.zeros(DIM), 1.0).to_event(1),
}


def _flat(features: int) -> nn.Module:
    return mm.encoder(features, 8, dim=DIM)


def _labels() -> nn.Module:
    return nn.Sequential(mm.OneHot(4), mm.encoder(4, 8, dim=DIM))


def _net(features: int = 3) -> nn.Module:
    return mm.mlp(DIM, 8, features)


# name -> (decoder, encoder, draw of that many rows, and a trunk if there is one)
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
    "residual picture": (
        lambda: mm.NormalLikelihood(mm.residual_decoder(DIM, (2, 5, 6), channels=(8, 4), size=8)),
        lambda: mm.residual_encoder((2, 5, 6), channels=(4, 8), size=8, dim=DIM),
        lambda n: torch.randn(n, 2, 5, 6),
    ),
    "counts with a total": (
        lambda: mm.PoissonLikelihood(mm.LogRates(_net(), mm.mlp(DIM, 1), start=9.0)),
        lambda: _flat(3),
        lambda n: torch.randint(0, 5, (n, 3)),
    ),
    "tokens, attention": (
        lambda: mm.CategoricalLikelihood(mm.TokenDecoder(DIM, 5, 7, 8)),
        lambda: mm.NormalHead(8, DIM),
        lambda n: torch.randint(0, 7, (n, 5)),
        lambda: mm.AttentionTrunk(7, 5, 8, heads=2, layers=1),
    ),
    "tokens, recurrent": (
        lambda: mm.CategoricalLikelihood(mm.TokenDecoder(DIM, 5, 7, 8)),
        lambda: mm.NormalHead(8, DIM),
        lambda n: torch.randint(0, 7, (n, 5)),
        lambda: mm.RecurrentTrunk(7, 8),
    ),
    "table": (
        lambda: mm.TableLikelihood(_net(mm.outputs_of(COLUMNS)), COLUMNS),
        lambda: mm.NormalHead(8, DIM),
        lambda n: table(n),
        lambda: mm.TableTrunk(COLUMNS, 8),
    ),
    "measurements and their pattern": (
        lambda: mm.NormalLikelihood(_net()),
        lambda: mm.NormalHead(8, DIM),
        lambda n: torch.randn(n, 3),
        lambda: mm.WithHoles(mm.mlp(6, 8)),
    ),
}

COLUMNS = [
    mm.RealColumn(2.0, 3.0),
    mm.PositiveColumn(1.5),
    mm.CountColumn(4.0),
    mm.OrdinalColumn(4),
    mm.CategoryColumn(3),
]


def table(rows: int) -> torch.Tensor:
    counts = [torch.randint(0, n, (rows,)).double() for n in (9, 4, 3)]
    return torch.stack([torch.randn(rows), torch.rand(rows) + 0.1, *counts], 1)


def modality(name: str) -> mm.Modality:
    decoder, encoder, _, *trunk = LIKELIHOODS[name]
    return mm.Modality(decoder(), encoder(), trunk=trunk[0]() if trunk else None)


def data(name: str, rows: int) -> torch.Tensor:
    return LIKELIHOODS[name][2](rows)


# fusions with networks, no good proposals before they are trained
OF_NETWORKS = (*WITHOUT_ENCODERS, "JointEncoder and PoE", "Flow", "Flow of a mixture")

# priors that look at the experts
OF_EXPERTS = ("DynamicPrior", "Pooled")


def blind(parts: dict[str, mm.Modality], fusion: str, prior: str = "StandardNormal") -> None:
    """Takes out the encoders that nobody calls."""
    if fusion in WITHOUT_ENCODERS and prior not in OF_EXPERTS:
        for part in parts.values():
            part.encoder = nn.Identity()


def correlated(parts: dict[str, mm.Modality], fusion: str) -> None:
    """Gives the encoders heads with covariances, but for one."""
    for name, part in parts.items() if fusion == "PoE with covariances" else ():
        if name != "label":
            linear = part.encoder[-1].linear
            part.encoder[-1] = mm.FullRankHead(linear.in_features, linear.out_features // 2)
            nn.init.normal_(part.encoder[-1].linear.weight, std=0.3)  # which starts without covariances


class Explodes(nn.Module):
    """A network that gives infinity once it is armed."""

    def __init__(self, net, after):
        super().__init__()
        self.net, self.after, self.calls = net, after, 0

    def forward(self, z):
        self.calls += self.training
        return self.net(z) / (0.0 if self.calls > self.after else 1.0)


def three(prior: str = "StandardNormal", fusion: str = "PoE") -> mm.MultimodalVAE:
    """A small model of measurements, a label and counts."""
    parts = {"body": modality("Normal learned"), "label": modality("Categorical"), "counts": modality("Poisson")}
    blind(parts, fusion, prior), correlated(parts, fusion)
    return mm.MultimodalVAE(parts, PRIORS[prior](), FUSIONS[fusion]({"body": 3, "label": 1, "counts": 3}, DIM))


def three_rows(rows: int) -> dict[str, torch.Tensor]:
    return {"body": data("Normal learned", rows), "label": data("Categorical", rows), "counts": data("Poisson", rows)}


def three_holes(rows: int) -> dict[str, torch.Tensor]:
    """Single entries of body, whole rows of the others; row 0 has nothing, row 1 everything."""
    mask = {"body": torch.rand(rows, 3) > 0.3, "label": torch.rand(rows) > 0.5, "counts": torch.rand(rows) > 0.5}
    for row, value in ((0, False), (1, True)):
        for seen in mask.values():
            seen[row] = value
    return mask


NAMES, SIZES, PRIVATE = ("a", "b", "c"), {"a": 3, "b": 2, "c": 4}, 2


def of_tables(private=0):
    parts = {}
    for name in NAMES:
        decoder = mm.NormalLikelihood(mm.mlp(DIM + private, 6, SIZES[name], activation=torch.nn.Tanh), scale=0.8)
        own = mm.encoder(SIZES[name], 6, dim=private) if private else None
        parts[name] = mm.Modality(decoder, mm.encoder(SIZES[name], 6, dim=DIM), private=own)
    return parts


def rows_of_tables(rows: int = 20) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Rows for `of_tables`, and a mask that hides some of each."""
    x = {name: torch.randn(rows, size) for name, size in SIZES.items()}
    return x, {name: torch.rand(rows) > 0.3 for name in x}


def joint_net():
    return mm.encoder(sum(SIZES.values()) + len(NAMES), 8, dim=DIM)


def for_ladder():
    parts = of_tables()
    for part in parts.values():
        part.decoder = mm.NormalLikelihood(torch.nn.Sequential(mm.Last(DIM), part.decoder.net), scale=0.8)
        part.encoder = torch.nn.Identity()
    return parts


def for_target():
    parts = of_tables()
    for part in parts.values():
        part.encoder = torch.nn.Identity()
    wide = DIM + SIZES["b"] + SIZES["c"] + 2
    parts["a"].decoder = mm.NormalLikelihood(mm.mlp(wide, 6, SIZES["a"], activation=torch.nn.Tanh), scale=0.8)
    return parts


R = mm.recipes
# name -> a recipe on three tables of 3, 2 and 4 numbers: (vae, loss)
RECIPES = {
    "mmvm": lambda: R.mmvm(of_tables()),
    "mmvm of pairs": lambda: R.mmvm(of_tables(), mm.Pooled(mm.StandardNormal(DIM), 1 / 3)),
    "cvae": lambda: R.cvae(for_target(), DIM, "a", joint_net(), SIZES),
    "mhvae": lambda: R.mhvae(for_ladder(), [DIM, DIM], SIZES, hidden=6),
    "nexus": lambda: R.nexus(of_tables(), DIM, dict.fromkeys(NAMES, PRIVATE), 6, 5, dropout=0.0, weights={"b": 3.0}),
    "jnf": lambda: R.jnf(of_tables(), DIM, joint_net(), SIZES)[:2],
    "shared_representation": lambda: R.shared_representation(of_tables(), DIM),
    "alignment": lambda: R.alignment(of_tables(), DIM),
    "mvae": lambda: R.mvae(of_tables(), DIM),
    "mmvae": lambda: R.mmvae(of_tables(), DIM),
    "mopoe": lambda: R.mopoe(of_tables(), DIM),
    "mvtcae": lambda: R.mvtcae(of_tables(), DIM),
    "mmjsd": lambda: R.mmjsd(of_tables(), DIM),
    "crmvae": lambda: R.crmvae(of_tables(), DIM),
    "jmvae": lambda: R.jmvae(of_tables(), DIM, joint_net(), SIZES),
    "telbo": lambda: R.telbo(of_tables(), DIM, joint_net(), SIZES)[:2],
    "dmvae": lambda: R.dmvae(of_tables(PRIVATE), DIM, PRIVATE),
    "mmvaeplus": lambda: R.mmvaeplus(of_tables(PRIVATE), DIM, PRIVATE),
    "cmvae": lambda: R.cmvae(of_tables(PRIVATE), DIM, PRIVATE, clusters=4),
    "feature_fusion": lambda: R.feature_fusion(of_tables(), DIM, joint_net(), SIZES),
    "wasserstein": lambda: R.wasserstein(of_tables(), DIM),
    "code": lambda: R.code(of_tables(), DIM),
}


def pictures():
    parts = {
        "picture": mm.Modality(
            mm.NormalLikelihood(mm.conv_decoder(2, (3, 8, 8), (4, 4))), mm.conv_encoder((3, 8, 8), (4, 4), dim=2)
        )
    }
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
