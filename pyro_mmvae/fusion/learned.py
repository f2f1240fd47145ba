"""Fusions that learn how to combine what the trunks say: sets, attention, and one joint network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.distributions import mapped
from pyro_mmvae.fusion.base import Fusion
from pyro_mmvae.modality import Experts
from pyro_mmvae.modality import otherwise as elsewhere
from pyro_mmvae.sequences import attention_layer


class DeepSets(Fusion):
    """Sum pooling: q(z | x_S) = head(sum_m embed_m(h_m)), h_m what the trunk of modality m says.

    Works on any subset; the order of the modalities does not matter. Repeats enter the sum one by one. The unimodal
    encoders are not called: `nn.Identity()` will do, so that the modality counts as one that is looked at.

    Args:
        embed: name -> network (entry, *features) -> (entry, size), one size for all.
        head: (row, size) -> distribution with batch (row,), event (dim,).

    Reference:
        Hirt, Campolo, Leong and Ortega, 2024, Learning multi-modal generative models with permutation-invariant
        encoders and tighter variational objectives, https://arxiv.org/abs/2309.00380

    Example:
        >>> import pyro_mmvae as mm
        >>> embed = {"image": nn.Linear(128, 64), "sound": nn.Linear(40, 64)}
        >>> fusion = DeepSets(embed, nn.Sequential(mm.mlp(64, 64), nn.ReLU(), mm.NormalHead(64, 16)))
    """

    def __init__(self, embed: Mapping[str, nn.Module], head: nn.Module):
        super().__init__()
        self.embed, self.head = nn.ModuleDict(embed), head

    def fuse(self, experts: Experts) -> Distribution:
        parts = [embedded(self.embed, experts, name).sum(1) for name in experts]
        return one_repeat(self.head(sum(parts[1:], parts[0])))


class Attention(Fusion):
    """Self-attention among the given modalities and a learnt query, whose last state the head reads.

    Works on any subset; the order of the modalities does not matter. Repeats are tokens of their own. The unimodal
    encoders are not called, see `DeepSets`.

    Args:
        embed: name -> network (entry, *features) -> (entry, size).
        head: (row, size) -> distribution with batch (row,), event (dim,).
        size: of the tokens, a multiple of heads.
        heads: of the attention.
        layers: of the transformer.

    Reference:
        Hirt, Campolo, Leong and Ortega, 2024, https://arxiv.org/abs/2309.00380
    """

    def __init__(self, embed: Mapping[str, nn.Module], head: nn.Module, size: int, *, heads: int = 4, layers: int = 1):
        super().__init__()
        self.embed, self.head = nn.ModuleDict(embed), head
        self.query = nn.Parameter(torch.randn(size) * size**-0.5)
        self.layers = nn.ModuleList([attention_layer(size, heads) for _ in range(layers)])

    def fuse(self, experts: Experts) -> Distribution:
        query = self.query.expand(experts.rows, 1, -1)
        tokens = torch.cat([query, *[embedded(self.embed, experts, name) for name in experts]], 1)
        hidden = ~torch.cat([torch.ones_like(query[..., 0], dtype=torch.bool), *experts.given.values()], 1)
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=hidden)
        return one_repeat(self.head(tokens[:, 0]))


class JointEncoder(Fusion):
    """One network on what all trunks say, side by side ("feature fusion").

    Without `otherwise` the network takes any subset: zeros stand for what is missing, and one indicator a modality
    says whether it was given. With it, the network sees complete rows only, and the other fusion serves the rest, as in
    JMVAE and TELBO. Repeats are averaged. A modality's features are flattened.

    Args:
        net: (row, sum of sizes + number of modalities) -> distribution with batch (row,), event (dim,).
        sizes: name -> number of features that the trunk gives, or the data has where there is no trunk.
        otherwise: the fusion for incomplete rows.

    Raises:
        ValueError: features of another size than stated.

    Reference:
        Suzuki, Nakayama and Matsuo, 2016, Joint Multimodal Learning with Deep Generative Models,
        https://arxiv.org/abs/1611.01891

    Example:
        >>> import pyro_mmvae as mm
        >>> sizes = {"image": 128, "sound": 40}
        >>> fusion = JointEncoder(mm.encoder(128 + 40 + 2, 256, dim=16), sizes, otherwise=mm.PoE())
    """

    def __init__(self, net: nn.Module, sizes: Mapping[str, int], *, otherwise: Fusion | None = None):
        super().__init__()
        self.net, self.sizes, self.otherwise = net, dict(sizes), otherwise

    def fuse(self, experts: Experts) -> Distribution:
        if self.otherwise is None:
            return one_repeat(self.net(self._inputs(experts)))
        complete = torch.stack([self._given(experts, name) for name in self.sizes]).all(0)
        if not bool(complete.any()):
            return self.otherwise.fuse(experts)
        q = one_repeat(self.net(self._inputs(experts)[complete]))
        if bool(complete.all()):
            return q
        at = complete.nonzero(as_tuple=True)

        def spread(value: Tensor, _: int) -> Tensor:
            return value[:1].detach().expand(experts.rows, *value.shape[1:]).index_put(at, value)

        return elsewhere(complete.unsqueeze(-1), mapped(q, spread), self.otherwise.fuse(experts))

    def _given(self, experts: Experts, name: str) -> Tensor:
        """Which rows have the modality, (row,)."""
        if name in experts:
            return experts.given[name].any(-1)
        return torch.zeros_like(next(iter(experts.given.values()))[:, 0])

    def _inputs(self, experts: Experts) -> Tensor:
        """Features and indicators, (row, sum of sizes + modalities)."""
        columns: dict[str, Tensor] = {}
        for name in experts:
            if name not in self.sizes:
                raise ValueError(f"modality {name!r} has no size in JointEncoder; add it to sizes")
            features = experts.features(name)
            features = features.reshape(len(features), -1)
            features = features if features.is_floating_point() else features.to(torch.get_default_dtype())
            found, wanted = features.shape[1], self.sizes[name]
            if found != wanted:
                raise ValueError(f"modality {name!r} has {found} features, JointEncoder expects {wanted}; mend sizes")
            count = experts.given[name].sum(1, keepdim=True).clamp(min=1)
            columns[name] = placed(experts, name, features).sum(1) / count
        like = next(iter(columns.values()))
        full = [columns.get(name, like.new_zeros(len(like), size)) for name, size in self.sizes.items()]
        given = torch.stack([self._given(experts, name) for name in self.sizes], 1).to(like)
        return torch.cat([*full, given], 1)


def embedded(embed: nn.ModuleDict, experts: Experts, name: str) -> Tensor:
    """embed_m(h_m) as (row, repeat, size), zero where not given."""
    if name not in embed:
        raise ValueError(f"modality {name!r} has no network in the fusion; add it to embed")
    return placed(experts, name, embed[name](experts.features(name)))


def placed(experts: Experts, name: str, value: Tensor) -> Tensor:
    """From the seen entries (entry, size) to (row, repeat, size), zero where not given."""
    given = experts.given[name]
    if len(value) == given.numel():
        return value.unflatten(0, given.shape)
    return value.new_zeros(*given.shape, *value.shape[1:]).index_put(given.nonzero(as_tuple=True), value)


def one_repeat(q: Distribution) -> Distribution:
    """From batch (row,) to (row, 1)."""
    return mapped(q, lambda value, event_dims: value.unsqueeze(value.dim() - event_dims))
