"""The demonstration: digits that are written, spoken and named. Its model and its measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_mmvae.data import Batch
from pyro_mmvae.diagnostics import gaps
from pyro_mmvae.diagnostics.patterns import rows_with
from pyro_mmvae.errors import standard_error
from pyro_mmvae.evidence import log_likelihood
from pyro_mmvae.fusion import Fusion, MoE, MoPoE, PoE
from pyro_mmvae.heads import NormalHead
from pyro_mmvae.inference import predict
from pyro_mmvae.likelihoods import BinomialLikelihood, CategoricalLikelihood
from pyro_mmvae.modality import Modality
from pyro_mmvae.networks import OneHot, Standardize, mlp
from pyro_mmvae.priors import GaussianMixture, LearnedNormal, StandardNormal
from pyro_mmvae.psis import khat_limit
from pyro_mmvae.vae import MultimodalVAE
from pyro_mmvae.view import subsets_of

DIM = 16
REFINED = 30
"""Rows for which the posterior is refined one by one."""
FUSIONS: dict[str, Callable[[], Fusion]] = {"mopoe": MoPoE, "poe": PoE, "moe": MoE}
PRIORS: dict[str, Callable[[int], nn.Module]] = {
    "mixture": lambda dim: GaussianMixture(dim, components=20),
    "learned": LearnedNormal,
    "normal": StandardNormal,
}


def digit_modalities(dim: int = DIM, hidden: int = 256, private: int = 0) -> dict[str, Modality]:
    """Image (8, 8) counts 0..16, speech (32, 32) grey levels 0..15, label 0..9; their trunks give `digit_features`.

    Speech has 16 times the entries of the picture; its weight of 0.3 keeps it from owning the code.

    Args:
        dim: of z.
        hidden: width of the networks.
        private: size of the private codes of image and speech; 0 for none.
    """

    def picture(side: int, top: int, weight: float = 1.0) -> Modality:
        net = nn.Sequential(mlp(dim + private, hidden, side * side), nn.Unflatten(-1, (side, side)))
        trunk = nn.Sequential(Standardize(top / 2, top / 2), nn.Flatten(), mlp(side * side, hidden, hidden), nn.ReLU())
        own = NormalHead(hidden, private) if private else None
        return Modality(BinomialLikelihood(net, top), NormalHead(hidden, dim), own, trunk, weight)

    trunk = nn.Sequential(OneHot(10), mlp(10, 64), nn.ReLU())
    label = Modality(CategoricalLikelihood(mlp(dim, 64, 10)), NormalHead(64, dim), trunk=trunk)
    return {"image": picture(8, 16), "speech": picture(32, 15, weight=0.3), "label": label}


def digit_features(hidden: int = 256) -> dict[str, int]:
    """How many features the trunks of `digit_modalities` give, by name."""
    return {"image": hidden, "speech": hidden, "label": 64}


class SubsetRow(NamedTuple):
    """One line of the table, for the modalities `given`.

    Attributes:
        rows: held-out ones that have all of these.
        log_likelihood, se: held-out log p(x_S) a row with the guide as the proposal, and its standard error over rows.
        good_khat: share of the rows for which the guide can be trusted.
        gain: what a posterior refined row by row finds more, mean over a few of the rows; all in nats.
        refined_good_khat: share of those rows for which the refined one can be trusted.
    """

    given: tuple[str, ...]
    rows: int
    log_likelihood: float
    se: float
    good_khat: float
    gain: float
    refined_good_khat: float


def subset_table(vae: Any, x: dict[str, Tensor], num_particles: int) -> list[SubsetRow]:
    """log p(x_S) for every subset S of the modalities that rows have, by the guide, and for the first of these rows by
    a refined posterior."""
    table, limit, batch = [], khat_limit(num_particles), Batch.of(x)
    for given in tqdm(subsets(list(x)), unit="subset", leave=False):
        there = rows_with(batch, given)
        if not len(there):
            continue
        found = log_likelihood(vae, {name: x[name][there] for name in given}, num_particles=num_particles)
        few = {name: value[there[:REFINED]] for name, value in x.items()}
        better = gaps(vae, few, given=given, full_rank=True, num_draws=num_particles)
        gain = better.log_likelihood - found.value[: len(better.log_likelihood)]
        numbers = found.value, standard_error(found.value), found.khat < limit, gain, better.khat < limit
        table.append(SubsetRow(given, len(there), *(value.float().mean().item() for value in numbers)))
    return table


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, the smaller ones first; for more than five names the single ones and all."""
    if len(names) > 5:
        return [*((name,) for name in names), tuple(names)]
    return subsets_of(names, what="too many")


def accuracy(vae: Any, x: dict[str, Tensor], given: Sequence[str], target: str) -> float:
    """How often the most probable category of `target` given the others is the true one."""
    probabilities = predict(vae, {name: x[name] for name in given})[target]
    return (probabilities.argmax(-1) == x[target]).float().mean().item()


def picture_judge(images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """An independent classifier of pictures (row, 8, 8), trained on real ones."""
    from sklearn.svm import SVC

    judge = SVC(gamma=0.001).fit(images.flatten(1).numpy(), labels.numpy())
    return lambda pictures: torch.as_tensor(judge.predict(pictures.flatten(1).numpy()))


def digit_report(vae: Any, train: dict[str, Tensor], test: dict[str, Tensor]) -> dict[str, float]:
    """Names from pictures and voices, pictures from voices: shares of held-out rows that come out right."""
    judge = picture_judge(train["image"], train["label"])
    drawn = predict(vae, {"speech": test["speech"]}, num_draws=1)["image"]
    return {
        "label from image": accuracy(vae, test, ["image"], "label"),
        "label from an unheard voice": accuracy(vae, test, ["speech"], "label"),
        "label from both": accuracy(vae, test, ["image", "speech"], "label"),
        "image from an unheard voice, judged by a classifier": (judge(drawn) == test["label"]).float().mean().item(),
        "the classifier on real held-out images": (judge(test["image"]) == test["label"]).float().mean().item(),
    }


def split(x: dict[str, Tensor], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rows to learn from, and a fifth held out by chance; raises ValueError if there is one row alone."""
    rows = len(next(iter(x.values())))
    if rows < 2:
        raise ValueError("x has 1 row; give at least two, one to learn from and one that is held out")
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    cut = max(1, int(rows * 0.2))
    return {k: v[order[cut:]] for k, v in x.items()}, {k: v[order[:cut]] for k, v in x.items()}


def build(modalities: dict[str, Modality], prior: str, fusion: str) -> MultimodalVAE:
    """A model of the named parts."""
    return MultimodalVAE(modalities, PRIORS[prior](DIM), FUSIONS[fusion]())
