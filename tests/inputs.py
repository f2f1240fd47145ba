"""Hypothesis strategies: one batch in every container, kind of number and state of repair, beside its plain values."""

from __future__ import annotations

import pickle
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from hypothesis import strategies as st

EVENTS = {"body": (3,), "label": (), "counts": (3,)}  # of cases.three


class Given(NamedTuple):
    """x and mask as a user gives them, and as plain float64 tensors with NaN: None where they must be refused."""

    x: Any
    mask: Any
    plain: dict[str, torch.Tensor] | None
    plain_mask: dict[str, torch.Tensor] | None


KINDS = ["f8", "f4", "f2", ">f8", "g", "i8", "i4", "i1", "u1", "u2", "u8", "?", "O", "bfloat16"]
BRAIN = "bfloat16"
NO_NUMBERS = ["U", "c16", "M8[s]"]
ODD = [np.nan, np.nan, np.inf, -np.inf, -1.0, 9.0, 0.5, 1e308, 1e38, 1e19, 1e6, 5e-324, 0.0]


def rarely(draw, times):
    """Once in so many times."""
    return draw(st.sampled_from([False] * (times - 1) + [True]))


def plainly(name, draw, rows):
    """Values as floats: most fit the likelihoods, some do not."""
    random = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (rows, *EVENTS[name])
    if rarely(draw, 40):
        shape = draw(st.sampled_from([(rows, 2), (rows,), (rows, 3, 1), (rows, 0), (), (rows + 1, *EVENTS[name])]))
    if name == "body":
        value = random.normal(size=shape) * 10.0 ** draw(st.sampled_from([0, 0, 0, 0, 0, 0, -30, 3, 8, 18, 30, 300]))
    elif name == "label":
        value = random.integers(0, 4, shape).astype(float)
    else:
        value = random.poisson(2.0 * 10.0 ** draw(st.sampled_from([0, 0, 0, 0, 0, 3, 9])), shape).astype(float)
    value = np.asarray(value)
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2]))):
        if value.size:
            value.reshape(-1)[draw(st.integers(0, 20)) % value.size] = draw(st.sampled_from(ODD))
    return value


def of_kind(value, kind):
    """The array in that kind of number, and its plain values afterwards, or None if nobody can read it as numbers."""
    if kind == "O":
        holes = [None if np.isnan(v) else v for v in value.reshape(-1).tolist()]
        array = np.empty(value.size, dtype=object)
        array[:] = holes
        return array.reshape(value.shape), value
    if kind in ("U", "M8[s]", "c16"):
        return np.nan_to_num(value, posinf=1, neginf=1).clip(-9, 9).astype("i8").astype(kind), None
    with np.errstate(all="ignore"):
        array = value.astype(kind)
    readable = kind != "u8" or not (array > 2**63 - 1).any()
    return array, array.astype("f8") if readable else None


def as_reversed(array):
    return array[::-1].copy()[::-1] if array.ndim else array


def as_frozen(array):
    array = np.array(array)  # a copy, and of a NumPy scalar an array
    array.flags.writeable = False
    return array


def as_strided(array):
    return np.stack([array, array], -1)[..., 0]


def as_masked(array):
    holes = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    return np.ma.MaskedArray(np.where(holes, np.array(7, array.dtype), array), holes)


def as_frame(array):
    return pd.DataFrame(array) if array.ndim == 2 else pd.Series(array) if array.ndim == 1 else array


def as_nullable(array):
    kinds = {"b": "boolean", "i": "Int64", "f": "Float64"}
    plain = array.ndim in (1, 2) and array.dtype.kind in kinds and array.dtype.isnative and array.dtype != "g"
    return as_frame(array).astype(kinds[array.dtype.kind]) if plain and array.dtype != "f2" else array


def as_csr(array):
    return scipy.sparse.csr_matrix(array) if array.ndim == 2 and array.dtype.kind in "iu" else array


def as_torch(array):
    return torch.tensor(array) if array.dtype.kind in "biufc" and array.dtype.isnative and array.dtype != "g" else array


def as_view(array):
    tensor = as_torch(array)
    return torch.stack([tensor, tensor], -1)[..., 1] if isinstance(tensor, torch.Tensor) else tensor


def as_leaf(array):
    tensor = as_torch(array)
    return tensor.requires_grad_() if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() else tensor


def as_sparse_tensor(array):
    tensor = as_torch(array)
    whole = (
        isinstance(tensor, torch.Tensor) and not tensor.is_floating_point() and str(tensor.dtype)[:10] != "torch.uint"
    )
    return tensor.to_sparse() if whole and tensor.dim() else tensor


def as_meta(array):
    tensor = as_torch(array)
    return tensor.to("meta") if isinstance(tensor, torch.Tensor) else tensor


def as_on_a_gpu(array):
    tensor = as_torch(array)
    return tensor.cuda() if isinstance(tensor, torch.Tensor) and torch.cuda.is_available() else tensor


def has_values(value):
    return not (isinstance(value, torch.Tensor) and value.is_meta)


CONTAINERS = [
    *(np.asarray, as_torch, as_view, as_leaf, as_sparse_tensor, as_reversed, as_frozen, as_strided, np.asfortranarray),
    *(as_on_a_gpu, as_meta),
    *(as_masked, as_frame, as_nullable, as_csr, np.ndarray.tolist),
]


@st.composite
def modalities(draw, name, rows):
    """(given, plain): the values of one modality."""
    value, kind = plainly(name, draw, rows), draw(st.sampled_from(NO_NUMBERS if rarely(draw, 40) else KINDS))
    if kind == BRAIN:  # NumPy knows none
        tensor = torch.tensor(value).bfloat16()
        return tensor, tensor.double().numpy()
    value, plain = of_kind(value, kind)
    container = draw(st.sampled_from(CONTAINERS))
    if container is np.asfortranarray and not value.ndim:
        container = np.asarray
    if container is np.ndarray.tolist and (value.dtype.kind == "M" or value.dtype == "u8"):
        container = np.asarray
    given = container(value)
    return given, plain if has_values(given) else None


@st.composite
def masks(draw, value):
    """(given, plain): a mask for those plain values."""
    random = np.random.default_rng(draw(st.integers(0, 9)))
    shape = draw(st.sampled_from([value.shape[:1], value.shape, value.shape]))
    mask = np.asarray(random.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.8, 1.0])))
    if rarely(draw, 20):
        return draw(st.sampled_from([mask.astype("f8"), mask[:-1], None, "yes", mask.astype(object) * 2])), None
    containers = [torch.tensor, np.asarray, np.ndarray.tolist, as_frozen, as_frame, as_nullable, as_on_a_gpu]
    container = as_meta if rarely(draw, 40) else draw(st.sampled_from(containers))
    given = container(mask)
    refused = mask.ndim == 0 or (isinstance(given, list) and mask.size == 0) or not has_values(given)
    return given, None if refused else mask


SUBSETS = [s for size in range(4) for s in combinations(EVENTS, size)]


@st.composite
def batches(draw):
    rows = 0 if rarely(draw, 20) else draw(st.sampled_from([1, 2, 5]))
    names = draw(st.sampled_from(SUBSETS))
    pairs = {name: draw(modalities(name, rows)) for name in names}
    if rarely(draw, 40):
        pairs["taste"] = (np.zeros((rows, 2)), np.zeros((rows, 2)))
    plain = {name: value for name, (_, value) in pairs.items()}
    x, ok = {name: value for name, (value, _) in pairs.items()}, all(v is not None for v in plain.values())
    masked = [name for name in names if ok and draw(st.sampled_from([False, False, True]))]
    chosen = {name: draw(masks(plain[name])) for name in masked}
    ok = ok and all(value is not None for _, value in chosen.values())
    if rarely(draw, 40):
        chosen, ok = {"smell": (np.ones(rows, bool), None)}, False
    mask = {name: value for name, (value, _) in chosen.items()} if chosen else draw(st.sampled_from([None, {}]))
    if not ok:
        return Given(x, mask, None, None)
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in plain.items()}
    return Given(x, mask, tensors, {name: torch.tensor(value) for name, (_, value) in chosen.items()})


def contents(value: Any) -> Any:
    """Every byte of an input, so that a change would show."""
    if isinstance(value, dict):
        return [(name, contents(one)) for name, one in value.items()]
    if not has_values(value):
        return value.shape, value.dtype
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return bytes(value.detach().cpu().untyped_storage())
    if isinstance(value, torch.Tensor):
        return contents(value.coalesce().values()), contents(value.coalesce().indices())
    if isinstance(value, (pd.DataFrame, pd.Series)):
        return pickle.dumps(value.to_numpy()), str(value.index)
    if isinstance(value, np.ma.MaskedArray):
        return value.data.tobytes(), value.mask.tobytes()
    if isinstance(value, scipy.sparse.csr_matrix):
        return value.data.tobytes(), value.indices.tobytes()
    return pickle.dumps(value)
