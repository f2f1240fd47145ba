"""Fusions that learn how to combine what the trunks say: sets, attention, and one joint network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyro_mmvae.accelerator import moved
from pyro_mmvae.arrays import whole
from pyro_mmvae.checks import check_made_for, check_members, distribution
from pyro_mmvae.distributions import mapped
from pyro_mmvae.experts import Experts
from pyro_mmvae.experts import otherwise as elsewhere
from pyro_mmvae.fusion.base import Fusion
from pyro_mmvae.modality import ask
from pyro_mmvae.seen import places
from pyro_mmvae.sequences import attention_layer


class DeepSets(Fusion):
    """Sum pooling: q(z | x_S) = head(sum_m embed_m(h_m)), h_m what the trunk of modality m says.

    Works on any subset; the order of the modalities does not matter. Repeats enter the sum one by one. The unimodal
    encoders are not called: `nn.Identity()` will do, so that the modality counts as one that is looked at.

    Args:
        embed: name -> network (entry, *features) -> (entry, size), one size for all.
        head: (row, size) -> distribution with batch (row,), event (dim,).
        average: pool by the mean instead of the sum.

    Reference:
        Hirt, Campolo, Leong and Ortega, 2024, Learning multi-modal generative models with permutation-invariant
        encoders and tighter variational objectives, https://arxiv.org/abs/2309.00380

    Example:
        >>> import pyro_mmvae as mm
        >>> embed = {"image": nn.Linear(128, 64), "sound": nn.Linear(40, 64)}
        >>> fusion = DeepSets(embed, nn.Sequential(mm.mlp(64, 64), nn.ReLU(), mm.NormalHead(64, 16)))
    """

    def __init__(self, embed: Mapping[str, nn.Module], head: nn.Module, *, average: bool = False):
        super().__init__()
        self.embed, self.head, self.average = nn.ModuleDict(embed), head, average

    def fuse(self, experts: Experts) -> Distribution:
        parts = [part.sum(1) for part in embedded(self.embed, experts)]
        pooled = sum(parts[1:], parts[0])
        if self.average:
            pooled = pooled / torch.cat(list(experts.given.values()), 1).sum(1, keepdim=True).clamp(min=1)
        return said("head", "DeepSets", self.head, pooled)


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

    Raises:
        ValueError: a size that is no multiple of the heads.

    Reference:
        Hirt, Campolo, Leong and Ortega, 2024, https://arxiv.org/abs/2309.00380

    Example:
        >>> import pyro_mmvae as mm
        >>> embed = {"image": nn.Linear(128, 64), "sound": nn.Linear(40, 64)}
        >>> fusion = Attention(embed, mm.NormalHead(64, 16), 64)
    """

    def __init__(self, embed: Mapping[str, nn.Module], head: nn.Module, size: int, *, heads: int = 4, layers: int = 1):
        super().__init__()
        if whole("size", size) % whole("heads", heads):
            raise ValueError(f"size is {size}, with {heads} heads; give a multiple of the heads")
        self.embed, self.head = nn.ModuleDict(embed), head
        self.query = nn.Parameter(torch.randn(size) * size**-0.5)
        self.layers = nn.ModuleList([attention_layer(size, heads) for _ in range(layers)])

    def fuse(self, experts: Experts) -> Distribution:
        query = self.query.expand(experts.rows, 1, -1)
        tokens = torch.cat([query, *embedded(self.embed, experts, len(self.query))], 1)
        hidden = ~torch.cat([torch.ones_like(query[..., 0], dtype=torch.bool), *experts.given.values()], 1)
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=hidden)
        return said("head", "Attention", self.head, tokens[:, 0])


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
        check_made_for(experts, self.sizes, "size in JointEncoder; add it to sizes")
        check_members("sizes", self.sizes, experts.modalities)  # else no row would ever be complete
        if self.otherwise is None:
            return self._all(experts, None)
        if not all(name in experts for name in self.sizes):
            return self.otherwise.fuse(experts)
        partly = [seen for name, seen in experts.seen.items() if name in self.sizes and not seen.whole]
        if not partly:
            return self._all(experts, None)
        complete = torch.stack([seen.known.any(-1) for seen in partly]).all(0)
        dense = all(seen.dense for seen in partly)  # then no shape may depend on the data
        at = None if dense else places(complete, experts.device)
        if at is not None and not len(at):
            return self.otherwise.fuse(experts)

        def spread(value: Tensor, event_dims: int) -> Tensor:
            if at is None:
                return value
            axis = value.dim() - event_dims - 2  # a mixture has its components in front
            value = value.movedim(axis, 0)
            full = value[:1].detach().expand(experts.rows, *value.shape[1:]).index_copy(0, at, value)
            return full.movedim(0, axis)

        q = mapped(self._all(experts, at), spread)
        return elsewhere(moved(complete, experts.device).unsqueeze(-1), q, self.otherwise.fuse(experts))

    def _all(self, experts: Experts, at: Tensor | None) -> Distribution:
        """What the network says of all modalities, in the rows `at`; None = in every row."""
        features = features_beside(experts, self.sizes)
        features = features if at is None else features.index_select(0, at)
        return said("network", "JointEncoder", self.net, features)


def features_beside(experts: Experts, sizes: Mapping[str, int]) -> Tensor:
    """Features and indicators of the named modalities, (row, sum of sizes + modalities); zeros for what is missing.

    Raises:
        ValueError: features of another size than stated, or a modality without an encoder, which counts as unseen.
    """
    columns, given = [], []
    like = torch.zeros((), dtype=torch.get_default_dtype(), device=experts.device)
    for name, wanted in sizes.items():
        if name not in experts:
            check_members("sizes", [name], experts.modalities)
            if name in experts.seen and experts.modalities[name].encoder is None:
                raise ValueError(
                    f"modality {name!r} has no encoder, so that nobody looks at it; give it one, such as"
                    " torch.nn.Identity() where its trunk alone is asked, or drop it from sizes"
                )
            columns.append(like.new_zeros(experts.rows, wanted))
            given.append(like.new_zeros(experts.rows))
            continue
        features = experts.features(name)
        features = features.reshape(len(features), -1)
        like = features = features if features.is_floating_point() else features.to(torch.get_default_dtype())
        if features.shape[1] != wanted:
            raise ValueError(f"modality {name!r} has {features.shape[1]} features, {wanted} were stated; mend sizes")
        there, total = experts.given[name], experts.seen[name].summed(features).squeeze(1)
        columns.append(total if there.shape[1] == 1 else total / there.sum(1, keepdim=True).clamp(min=1))
        given.append(there.any(-1).to(features))
    return torch.cat([*(c.to(like) for c in columns), torch.stack(given, 1).to(like)], 1)


def embedded(embed: nn.ModuleDict, experts: Experts, size: int | None = None) -> list[Tensor]:
    """embed_m(h_m) of every expert as (row, repeat, size), zero where not given.

    Raises:
        ValueError: a modality without a network, or one of another size than `size`, or than the first has.
    """
    found = []
    for name in experts:
        check_made_for([name], embed.keys(), "network in the fusion; add it to embed")
        features = experts.features(name)
        value = ask("network in embed", name, embed[name], features)
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        size = shape[-1] if size is None and shape else size
        if shape != (len(features), size):
            what = f"shape {shape}" if shape else f"a {type(value).__name__}"
            raise ValueError(f"the network in embed of {name!r} gives {what}; let it give {(len(features), size)}")
        found.append(experts.seen[name].placed(value))
    return found


def said(what: str, name: str, network: nn.Module, features: Tensor) -> Distribution:
    """What a network makes of features (row, size) as a distribution with batch (row, 1)."""
    q = distribution(f"the {what} of {name!r}", ask(what, name, network, features))
    if q.batch_shape != features.shape[:1]:
        raise ValueError(
            f"the {what} of {name!r} has batch {tuple(q.batch_shape)} for {tuple(features.shape)}; it must have batch"
            " (row,) and event (dim,): add .to_event(1)"
        )
    return mapped(q, lambda value, event_dims: value.unsqueeze(value.dim() - event_dims))
