"""Objects of all kinds in words that are the same in another process, by which one is told from another."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from typing import Any

from torch import nn

PYROS = {"max_plate_nesting", "ignore_jit_warnings", "strict_enumeration_warning", "retain_graph"}
"""Attributes of a loss that tell no runs apart: Pyro finds them out by itself, or they change no number."""


def title_of(thing: Any) -> str:
    """A function or class by its name; an object by its class, its numbers and switches, and what it is made of."""
    if hasattr(thing, "__qualname__"):
        return str(thing.__qualname__)
    if isinstance(thing, (list, tuple)):
        return f"{type(thing).__qualname__}({', '.join(map(title_of, thing))})"
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return repr(thing)
    simple = (bool, int, float, str, list, tuple)
    inside = getattr(thing, "__dict__", {}).items()
    parts = {k: v for k, v in inside if isinstance(v, simple) and k not in PYROS}
    return f"{type(thing).__qualname__}({', '.join(f'{k}={title_of(v)}' for k, v in sorted(parts.items()))})"


def part_of(module: nn.Module) -> str:
    """A module by its class; one of torch or of ours also by its numbers and switches, the functions behind it and what
    its columns are. One of the user's may count its calls."""
    kind, known = type(module), type(module).__module__.startswith(("torch.nn.", "pyro_mmvae."))
    parts = {k: v for k, v in vars(module).items() if known and k[0] != "_" and k != "training" and _tells(v)}
    told = [f"{k}={getattr(v, '__qualname__', repr(v))}" for k, v in sorted(parts.items())]
    return f"{kind.__qualname__}({', '.join(told)})"


def _tells(value: Any) -> bool:
    """Whether its words say what it is: they have no address, and nothing that changes in training."""
    return hasattr(value, "__qualname__") or _is_plain(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (dict, list, tuple)):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (bool, int, float, str)) or (is_dataclass(value) and not isinstance(value, type))


def within_modalities(module: nn.Module) -> dict[str, str]:
    """The networks of ours in the modalities of a model, with what their parameters do not say of them: what the
    columns of a table are, or up to where a binomial counts."""
    named = [(name.replace("_orig_mod.", ""), part) for name, part in module.named_modules()]
    ours = [(name, part) for name, part in named if type(part).__module__.startswith("pyro_mmvae.")]
    return {name: part_of(part) for name, part in ours if re.search(r"(^|\.)modalities\.[^.]+\.", name)}


def around_difference(one: Any, other: Any) -> tuple[str, str]:
    """Two descriptions in short: of long ones what is around the place where they begin to differ."""
    texts = str(one), str(other)
    apart = (place for place, (a, b) in enumerate(zip(*texts, strict=False)) if a != b)
    first = max(next(apart, min(map(len, texts))) - 40, 0)

    def cut(text: str) -> str:
        return "..." * bool(first) + text[first : first + 120] + "..." * (first + 120 < len(text))

    return texts if max(map(len, texts)) <= 200 else (cut(texts[0]), cut(texts[1]))
