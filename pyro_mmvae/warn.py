"""Warnings that point at the line of the user's that led to them."""

from __future__ import annotations

import sys
import warnings

OURS = {"pyro_mmvae", "pyro", "torch", "contextlib", "functools"}
"""Packages whose lines nobody is to change."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn` at the innermost line outside of this package and of what it stands on.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("the data are few")
        >>> str(caught[0].message)
        'the data are few'
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
