"""Products and mixtures of experts."""

from __future__ import annotations

from collections.abc import Collection

import torch
from pyro.distributions import Distribution
from torch import nn

from pyro_mmvae.checks import check_made_for
from pyro_mmvae.distributions import Mixture, NaturalNormal, is_correlated, natural_form, product, stacked
from pyro_mmvae.experts import Experts, not_normal
from pyro_mmvae.fusion.base import (
    Fusion,
    WithPriorExpert,
    even,
    filled,
    natural,
    product_of,
    with_prior,
)


class PoE(Fusion):
    """Product of experts: q(z | x_S) ~ p(z) prod_m q_m(z | x_m), a normal.

    Experts of `mm.FullRankHead` are multiplied with all their covariances, beside diagonal ones or alone: then it can
    be exact for every subset of a linear-Gaussian model; with diagonal experts only where the posteriors are diagonal.

    Of complete rows the ELBO trains the whole product and says nothing of its parts: to be asked for subsets, train it
    on rows that lack some (`mm.hide`), or with passes of single modalities, as `mm.recipes.mvae` does.

    Args:
        prior_expert: whether the prior stands in the product, once: the model's own if it is a diagonal normal or,
            beside experts with covariances, any normal; else N(0, I).

    Reference:
        Wu and Goodman, 2018, Multimodal Generative Models for Scalable Weakly-Supervised Learning,
        https://arxiv.org/abs/1802.05335

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), PoE())
        >>> bool((vae.posterior(x).variance < vae.posterior(x, given=['a']).variance).all())
        True
    """

    def __init__(self, prior_expert: bool = True):
        super().__init__()
        self.prior_expert = prior_expert

    def fuse(self, experts: Experts) -> Distribution:
        if any(is_correlated(experts.entries(name)) for name in experts):
            return self._with_covariances(experts)
        precision, shift, _ = product_of(experts, self.prior_expert)
        return product(precision, shift)

    def _with_covariances(self, experts: Experts) -> Distribution:
        shifts, precisions = [], []
        for name in experts:
            q = experts.entries(name)
            shift, precision = natural_form(q) or not_normal(name, q)
            shifts.append(experts.seen[name].summed(shift))
            precisions.append(experts.seen[name].summed(precision))
        eye = torch.eye(shifts[0].shape[-1], dtype=shifts[0].dtype, device=shifts[0].device)
        if self.prior_expert:
            shift, precision = natural_form(experts.plain_prior) or (torch.zeros_like(shifts[0]), eye)
            shifts.append(shift)
            precisions.append(precision)
        else:
            nothing = ~experts.any().unsqueeze(-1).unsqueeze(-1)
            precisions.append(nothing * eye)
        return NaturalNormal(sum(shifts[1:], shifts[0]), sum(precisions[1:], precisions[0]))


class GeneralizedPoE(Fusion):
    """Product of experts to the powers of learnt weights, one for each modality and dimension.

    q(z | x_S) ~ prod_m q_m(z | x_m)^(w_m), the w_m summing to one over what is given; they start even, as
    `GeometricMean`.

    Args:
        names: the modalities.
        dim: of z.
        prior_expert: whether the prior is one of the experts, with weights of its own: the model's if it is a diagonal
            normal, else N(0, I).

    Reference:
        Cao and Fleet, 2014, Generalized Product of Experts for Automatic and Principled Fusion of Gaussian Process
        Predictions, https://arxiv.org/abs/1410.7827

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), GeneralizedPoE(['a', 'b'], 2))
        >>> sum(p.numel() for p in vae.fusion.parameters())
        4
    """

    def __init__(self, names: Collection[str], dim: int, prior_expert: bool = False):
        super().__init__()
        self.prior_expert = prior_expert
        self.logits = nn.ParameterDict({name: nn.Parameter(torch.zeros(dim)) for name in sorted(names)})
        self.prior_logits = nn.Parameter(torch.zeros(dim)) if prior_expert else None

    def fuse(self, experts: Experts) -> Distribution:
        precision, shift, stack = natural(experts)
        check_made_for(experts, self.logits.keys(), "weights in GeneralizedPoE; add it to names")
        own = [self.logits[name] for name in experts]
        given, logits = stack.given, torch.stack([own[place] for place in stack.modality])
        if logits.shape[-1] != precision.shape[-1]:
            raise ValueError(f"GeneralizedPoE has dim {logits.shape[-1]} for codes of {precision.shape[-1]}; mend dim")
        logits = logits.unsqueeze(1).unsqueeze(1)
        if self.prior_logits is not None:
            precision, shift = with_prior(experts, precision, shift)
            logits = torch.cat([self.prior_logits.expand(1, 1, 1, -1), logits])
            given = torch.cat([torch.ones_like(given[:1]), given])
        weights = torch.where(given.unsqueeze(-1), logits.exp(), 0)
        weights = weights / filled(weights.sum(0), given)
        return product(filled((weights * precision).sum(0), given), (weights * shift).sum(0))


class GeometricMean(WithPriorExpert):
    """Normalised geometric mean of the experts: precisions and precision-weighted means are averaged.

    As a prior it is mmJSD's, `DynamicPrior(GeometricMean(prior_expert=True), otherwise=...)`.

    Args:
        prior_expert: whether the prior is one of the experts: the model's own if it is a diagonal normal, else N(0, I).

    Reference:
        Sutter, Daunhawer and Vogt, 2020, Multimodal Generative Learning Utilizing Jensen-Shannon-Divergence,
        https://arxiv.org/abs/2006.08242

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), GeometricMean())
        >>> vae.posterior(x).event_shape
        torch.Size([2])
    """

    def fuse(self, experts: Experts) -> Distribution:
        precision, shift, stack = product_of(experts, self.prior_expert)
        count = stack.given.sum(0).clamp(min=1).unsqueeze(-1) + int(self.prior_expert)
        return product(precision / count, shift / count)


class MoE(WithPriorExpert):
    """Mixture of experts: q(z | x_S) = 1/|S| sum_m q_m(z | x_m), each draw from an expert of its own.

    Args:
        prior_expert: whether the model's prior is one of the experts, as in mmJSD.

    Reference:
        Shi, Siddharth, Paige and Torr, 2019, Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
        Generative Models, https://arxiv.org/abs/1911.03393

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), MoE())
        >>> vae.fusion(vae.experts(x)).components.batch_shape
        torch.Size([2, 5, 1])
    """

    def fuse(self, experts: Experts) -> Distribution:
        _, parts, given = (list(column) for column in zip(*experts.apart()))
        if self.prior_expert:
            parts.append(experts.prior)
            given.append(torch.ones_like(given[0]))
        return Mixture(stacked(parts), even(torch.stack(given)))
