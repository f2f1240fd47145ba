"""Priors made of experts: of the row's own, or of pseudo-inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.checks import check_members, check_named
from pyro_mmvae.data import Batch
from pyro_mmvae.distributions import LogPool, Mixture, Normal, like, mapped
from pyro_mmvae.experts import Experts
from pyro_mmvae.modality import Modality
from pyro_mmvae.seen import Seen


class DynamicPrior(nn.Module):
    """A fusion of the row's experts as its prior, and another prior where there are none.

    A fusion can be a prior by itself; this one can be drawn from without data, and so be used with `mm.generate`. The
    gradient reaches the encoders through the prior as well.

    Args:
        fusion: experts -> distribution.
        otherwise: the prior of a row with nothing given, and the prior expert of the fusion.

    Reference:
        Sutter, Daunhawer and Vogt, 2020, Multimodal Generative Learning Utilizing Jensen-Shannon-Divergence,
        https://arxiv.org/abs/2006.08242

    Example:
        The prior of mmJSD:

        >>> import pyro_mmvae as mm
        >>> prior = DynamicPrior(mm.GeometricMean(prior_expert=True), otherwise=mm.StandardNormal(16))
    """

    def __init__(self, fusion: nn.Module, *, otherwise: nn.Module):
        super().__init__()
        self.fusion, self.otherwise = fusion, otherwise

    def forward(self, experts: Experts | None = None) -> Distribution:
        if experts is None:
            return self.otherwise(None)
        return self.fusion(experts.against(lambda _: self.otherwise(None)))  # of a private code they have N(0, I)


class Pooled(nn.Module):
    """Log-linear pool of a prior with the row's experts: p(z) ~ prior(z)^(1 - sum_m b_m) prod_m q_m(z | x_m)^(b_m).

    The density stays unnormalised on purpose. For weights that sum to one a sum of KL divergences is one:
    b_0 KL(q || prior) + sum_m b_m KL(q || q_m) = KL(q || pool), so that MVTCAE, JMVAE and CRMVAE differ in the weight
    and in beta alone, and a loss with this prior is no bound on log p(x).

    A missing modality's weight goes to the prior; a row with nothing given has the prior itself. The repeats of a
    modality share its weight. Without data, and in `mm.generate`, it is the prior. Drawing a row with data needs
    normals.

    Args:
        prior: a prior that does not depend on data.
        weight: b_m, one for all modalities or name -> b_m (0 for a name that it lacks).

    Raises:
        ValueError: weights below zero, or that sum to more than one.

    Reference:
        Hwang, Kim, Hong and Kim, 2021, Multi-View Representation Learning via Total Correlation Objective,
        https://proceedings.neurips.cc/paper/2021/hash/65a99bb7a3115fdede20da98b08a370f-Abstract.html

    Example:
        The prior of JMVAE for two modalities and alpha = 0.1:

        >>> import pyro_mmvae as mm
        >>> prior = Pooled(mm.StandardNormal(16), 0.1 / (1 + 2 * 0.1))
    """

    def __init__(self, prior: nn.Module, weight: float | Mapping[str, float]):
        super().__init__()
        self.prior, self.weight = prior, weight if isinstance(weight, Mapping) else float(weight)
        numbers = self.weight.values() if isinstance(self.weight, Mapping) else [self.weight]
        for number in numbers:
            if not 0 <= number <= 1:
                raise ValueError(f"Pooled: the weight is {number:g}; give numbers from 0 to 1")

    def forward(self, experts: Experts | None = None) -> Distribution:
        prior = self.prior(None)
        if experts is None or not experts.given:
            return prior if experts is None else prior.expand((experts.rows, 1))
        check_members("Pooled", self.weight if isinstance(self.weight, Mapping) else (), experts.modalities)
        parts, weights = [], []
        for name, expert, given in experts.apart():
            seen = experts.given[name].sum(1, keepdim=True).clamp(min=1)
            parts.append(expert)
            weights.append(given * (self._weight(name) / seen.to(like(expert).dtype)))
        rest = 1 - torch.stack(weights).sum(0)
        if sum(map(self._weight, experts)) > 1 and bool((rest < -1e-6).any()):
            raise ValueError(
                f"Pooled: the weights of {len(experts)} modalities sum to {1 - rest.min():g}; give 1 at most"
            )
        return LogPool([prior.expand((experts.rows, 1)), *parts], [rest.clamp(min=0), *weights])

    def _weight(self, name: str) -> float:
        return self.weight.get(name, 0.0) if isinstance(self.weight, Mapping) else self.weight


class VampPrior(nn.Module):
    """Mixture of the posteriors of learnt pseudo-inputs: p(z) = 1/K sum_k q(z | u_k).

    The encoders are the model's own, used here and owned there: they are no parameters of this module, so give this
    prior and the model the same modalities, and make it anew where one of them, or a fusion with parameters, is
    replaced: `mm.fit` refuses those of others. The pseudo-inputs are learnt in the space of the data where that is
    real; counts and categories (integers) stay the rows that were given.

    A prior expert within the fusion is N(0, I), here as in the guide.

    Args:
        dim: of z.
        modalities: the model's own.
        fusion: what combines the experts of a pseudo-input; the model's own, or another one without parameters.
        pseudo: name -> (K, *event), such as a few rows of the training data: copied, nothing missing in them.

    Raises:
        ValueError: bad pseudo-inputs, or something missing in them.

    Reference:
        Tomczak and Welling, 2018, VAE with a VampPrior, https://arxiv.org/abs/1705.07120

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        >>> prior = VampPrior(2, parts, mm.PoE(), {"a": torch.randn(20, 3)})
        >>> vae = mm.MultimodalVAE(parts, prior, mm.PoE())
    """

    zero: Tensor

    def __init__(self, dim: int, modalities: Mapping[str, Modality], fusion: nn.Module, pseudo: Mapping[str, Tensor]):
        super().__init__()
        self.register_buffer("zero", torch.zeros(dim))
        self._borrowed = (dict(modalities), fusion)  # in a tuple, so that they are not registered a second time
        check_named("pseudo", pseudo, "{'image': images[:20]}")
        check_members("pseudo", pseudo, modalities)
        rows = Batch.of(pseudo).detached()
        for name in rows.keys() - rows.complete:
            raise ValueError(f"modality {name!r} of pseudo has holes; give rows that are complete in it")
        self.pseudo = nn.ParameterDict(
            {name: nn.Parameter(value, requires_grad=value.is_floating_point()) for name, value in rows.items()}
        )

    def forward(self, experts: Experts | None = None) -> Distribution:
        modalities, fusion = self._borrowed
        batch = Batch.of(dict(self.pseudo.items()))
        seen = {name: Seen.of(batch, name, modalities[name].repeated) for name in batch}
        q = fusion(Experts(modalities, seen, batch.rows, self._normal))
        components = mapped(q.expand((batch.rows, 1)), lambda value, event_dims: value.squeeze(-1 - event_dims))
        return Mixture(components, self.zero.new_full((batch.rows,), 1 / batch.rows))

    @property
    def borrowed(self) -> list[nn.Module]:
        """The networks that belong to the model."""
        modalities, fusion = self._borrowed
        looked = [part for name in self.pseudo for part in (modalities[name].trunk, modalities[name].encoder)]
        return [fusion, *(part for part in looked if part is not None)]

    def _normal(self, _: Experts) -> Distribution:
        return Normal(self.zero, torch.ones_like(self.zero)).to_event(1)
