"""Small real data sets, shipped with the package; `NOTICES.md` beside this file names sources and licences."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Split(NamedTuple):
    """Rows to learn from and rows to judge by, name -> Tensor (row, *event)."""

    train: dict[str, Tensor]
    test: dict[str, Tensor]


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of one shipped file: "spoken_digits_small", "emoji_small", "penguins" or "pbmc68k".

    Example:
        >>> load("penguins")["body"].shape
        (344, 4)
    """
    path = files(__package__) / f"{name}.npz"
    if not path.is_file():
        raise ValueError(f"no data set {name!r}; there are spoken_digits_small, emoji_small, penguins and pbmc68k")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def digits_and_voices(copies: int = 3, seed: int = 0) -> Split:
    """Handwritten digits, spoken digits and their labels, paired by digit (the pairing is ours).

    Args:
        copies: how many voices each training picture is paired with.
        seed: of the pairing.

    Returns:
        `Split` of name -> Tensor: image (row, 8, 8), counts 0..16; speech (row, 32, 32), grey levels 0..15; label
        (row,). The test rows pair all 180 clips of the 17 held-out voices with two held-out pictures.

    Raises:
        ImportError: scikit-learn, which brings the pictures, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the pictures of digits come with scikit-learn: pip install 'pyro_mmvae[demo]'") from None
    digits, voices, random = load_digits(), load("spoken_digits_small"), np.random.default_rng(seed)
    held_out = np.zeros(len(digits.target), dtype=bool)
    held_out[random.permutation(len(held_out))[: len(held_out) // 5]] = True
    unheard = voices["is_test"].astype(bool)

    pictures = np.repeat(np.flatnonzero(~held_out), copies)
    clips = _partners(digits.target[pictures], voices["label"], ~unheard, random)
    test_clips = np.repeat(np.flatnonzero(unheard), 2)
    test_pictures = _partners(voices["label"][test_clips], digits.target, held_out, random)

    def rows(picture: np.ndarray, clip: np.ndarray) -> dict[str, Tensor]:
        return {
            "image": torch.as_tensor(digits.images[picture], dtype=torch.get_default_dtype()),
            "speech": torch.as_tensor(voices["logmel"][clip] // 17, dtype=torch.get_default_dtype()),
            "label": torch.as_tensor(digits.target[picture]),
        }

    return Split(rows(pictures, clips), rows(test_pictures, test_clips))


def _partners(labels: np.ndarray, others: np.ndarray, allowed: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For every label the position of a random allowed entry of `others` with the same label."""
    pools = [np.flatnonzero((others == digit) & allowed) for digit in range(10)]
    return np.array([random.choice(pools[digit]) for digit in labels])
