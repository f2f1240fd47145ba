"""Networks for sequences of tokens. Padding, and any other hole, is an entry that the mask hides."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from pyro_mmvae.networks import SeesHoles


def attention_layer(size: int, heads: int) -> nn.TransformerEncoderLayer:
    """One layer of self-attention without dropout, (row, position, size) -> the same."""
    return nn.TransformerEncoderLayer(size, heads, 2 * size, dropout=0.0, batch_first=True, norm_first=True)


class AttentionTrunk(SeesHoles):
    """Self-attention over the observed tokens, averaged: (row, length) -> (row, size).

    Hidden tokens are neither looked at nor averaged: more padding changes nothing. A row without any gives zeros.

    Args:
        vocabulary: tokens are 0 .. vocabulary - 1.
        length: of the longest sequence.
        size: of the features, a multiple of heads.
        heads: of the attention.
        layers: of the transformer.

    Example:
        >>> import torch
        >>> AttentionTrunk(1000, 20, 64)(torch.zeros(5, 20), torch.ones(5, 20, dtype=torch.bool)).shape
        torch.Size([5, 64])
    """

    def __init__(self, vocabulary: int, length: int, size: int, *, heads: int = 4, layers: int = 2):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, size)
        self.positions = nn.Parameter(torch.randn(length, size) * size**-0.5)
        self.layers = nn.ModuleList([attention_layer(size, heads) for _ in range(layers)])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.tokens(x.long()) + self.positions[: x.shape[1]]
        hidden = ~mask & mask.any(1, keepdim=True)  # a row without any token looks at all of them, not at none
        for layer in self.layers:
            h = layer(h, src_key_padding_mask=hidden)
        seen = mask.unsqueeze(-1)
        return torch.where(seen, h, 0).sum(1) / seen.sum(1).clamp(min=1)


class RecurrentTrunk(SeesHoles):
    """The last states of a GRU that reads the observed tokens both ways: (row, length) -> (row, size).

    Hidden tokens are skipped, wherever they stand: the network does not learn how many there were. It is no network for
    `fit(compile=...)`: Python looks at how many tokens each row has (a step on a GPU waits for it), and a row without
    any has no last state.

    Args:
        vocabulary: tokens are 0 .. vocabulary - 1.
        size: of the features, even.
        layers: of the GRU.

    Example:
        >>> trunk, tokens = RecurrentTrunk(1000, 64), torch.randint(1000, (5, 20))
        >>> trunk(tokens, torch.arange(20).expand(5, 20) < 7).shape
        torch.Size([5, 64])
    """

    def __init__(self, vocabulary: int, size: int, *, layers: int = 1):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, size)
        self.gru = nn.GRU(size, size // 2, layers, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        first = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # observed tokens to the front, in their order
        h = self.tokens(x.long().gather(1, first))
        packed = pack_padded_sequence(h, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed)
        return torch.cat([last[-2], last[-1]], -1)


class TokenDecoder(nn.Module):
    """z (..., dim) -> logits (..., length, vocabulary), all positions at once; for a `CategoricalLikelihood`.

    Every position reads z in a way of its own: one reading plus an embedding of the position lets z collapse.
    Given z the tokens are independent. What is drawn always has the full length: let sequences end with a token of
    their own, and hide the padding behind it.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> mm.CategoricalLikelihood(TokenDecoder(16, 20, 1000, 64))(torch.zeros(5, 1, 16)).event_shape
        torch.Size([20])
    """

    def __init__(self, dim: int, length: int, vocabulary: int, size: int):
        super().__init__()
        self.positions = nn.Sequential(nn.Linear(dim, length * size), nn.Unflatten(-1, (length, size)))
        self.net = nn.Sequential(nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, vocabulary))

    def forward(self, z: Tensor) -> Tensor:
        return self.net(self.positions(z))
