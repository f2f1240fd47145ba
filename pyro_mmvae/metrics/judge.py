"""A small classifier: of pictures for coherence and Fréchet distances, and, without hidden layers, of codes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.arrays import positive, whole
from pyro_mmvae.chance import seeded
from pyro_mmvae.metrics.given import finite, whole_labels


class Judge(nn.Module):
    """A classifier of one modality, trained on real entries as it is made; it sees numbers, flattened and scaled.

    Args:
        x: (row, *event).
        labels: (row,), whole numbers.
        hidden: sizes of the hidden layers; without any it is a logistic regression, and its fit the only one.
        ridge: weight decay, times |weights|^2 / 2.
        steps: of L-BFGS, on all rows at once.
        seed: of the first weights.

    Raises:
        ValueError: NaN or an infinity in x, fewer than two rows, or labels that are not one whole number a row.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 2)
        >>> judge = Judge(x, (x[:, 0] > 0).long())
        >>> bool((judge(x) == (x[:, 0] > 0)).float().mean() > 0.95)
        True
    """

    loc: Tensor
    scale: Tensor
    classes: Tensor

    def __init__(
        self,
        x: Any,
        labels: Any,
        *,
        hidden: tuple[int, ...] = (64,),
        ridge: float = 1e-3,
        steps: int = 100,
        seed: int = 0,
    ):
        super().__init__()
        ridge, steps = positive("ridge", ridge, zero=True), whole("steps", steps)
        x = finite("x", x, 2)
        labels = whole_labels("labels", labels, len(x))
        flat = x.unsqueeze(1).flatten(1).to(torch.get_default_dtype())
        self.register_buffer("loc", flat.mean(0))
        self.register_buffer("scale", flat.std(0).clamp(min=0.1 * float(flat.std()) + 1e-12))
        self.register_buffer("classes", labels.unique())
        sizes = [flat.shape[1], *(whole("hidden", size) for size in hidden)]
        with seeded(seed):
            self.body = nn.Sequential(*[nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in pairwise(sizes)])
            self.head = nn.Linear(sizes[-1], len(self.classes))
        self.to(flat.device)
        self._fit(x, torch.searchsorted(self.classes, labels.to(flat.device)), ridge, steps)

    def features(self, x: Any) -> Tensor:
        """What the last hidden layer says, (row, feature)."""
        flat = finite("x", x, 0).unsqueeze(1).flatten(1).to(self.loc)
        return self.body((flat - self.loc) / self.scale)

    def log_probabilities(self, x: Any) -> Tensor:
        """(row, class), in nats; the classes are `judge.classes`."""
        return self.head(self.features(x)).log_softmax(-1)

    def forward(self, x: Any) -> Tensor:
        """Labels, (row,)."""
        return self.classes[self.log_probabilities(x).argmax(-1)]

    def _fit(self, x: Tensor, target: Tensor, ridge: float, steps: int) -> None:
        optimiser = torch.optim.LBFGS(self.parameters(), max_iter=steps, line_search_fn="strong_wolfe")
        weights = [p for p in self.parameters() if p.dim() > 1]

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = nn.functional.nll_loss(self.log_probabilities(x), target)
            value = value + ridge / 2 * sum(((w**2).sum() for w in weights), torch.zeros(()))
            value.backward()
            return value

        with torch.enable_grad():
            optimiser.step(loss)
        self.requires_grad_(False)


def linear_probe(
    codes: Any, labels: Any, test_codes: Any, test_labels: Any, *, ridge: float = 1e-3
) -> tuple[float, float]:
    """How much of a label a linear classifier finds in the codes.

    Args:
        codes, test_codes: (row, dim), such as `vae.posterior(x, given=["image"]).mean`.
        labels, test_labels: (row,), whole numbers.
        ridge: of the logistic regression, on codes scaled to unit variance.

    Returns:
        Share of right answers on the test rows, and mean log-probability of the right one there, in nats.

    Raises:
        ValueError: NaN or an infinity among the codes, too few rows, labels that are not one whole number a row, or
            codes of different width.

    Reference:
        Alain and Bengio, 2017, Understanding Intermediate Layers Using Linear Classifier Probes,
        https://arxiv.org/abs/1610.01644

    Example:
        >>> labels = torch.arange(100) % 2
        >>> codes = torch.randn(100, 2) + 8.0 * labels.unsqueeze(1)
        >>> accuracy, score = linear_probe(codes[:50], labels[:50], codes[50:], labels[50:])
        >>> accuracy
        1.0
    """
    train, test = finite("codes", codes, 2).double(), finite("test_codes", test_codes).double()
    if train.dim() != 2 or train.shape[1:] != test.shape[1:]:
        shapes = f"{tuple(train.shape)}, test_codes {tuple(test.shape)}"
        raise ValueError(f"codes have shape {shapes}; give (row, dim), as wide in both")
    targets, right = whole_labels("labels", labels, len(train)), whole_labels("test_labels", test_labels, len(test))
    loc = train.mean(0)
    scale = torch.where((train != train[0]).any(0), train.std(0), torch.inf)  # what never changes tells nothing
    scaled, asked = (train - loc) / scale, (test - loc) / scale
    probe = Judge(scaled, targets, hidden=(), ridge=ridge)
    column = (right.unsqueeze(1) == probe.classes).double()  # a class never seen in training has probability zero
    score = torch.where(column.sum(1) > 0, (probe.log_probabilities(asked) * column).sum(1), -torch.inf)
    return float((probe(asked) == right).double().mean()), float(score.mean())
