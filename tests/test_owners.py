"""The modules behind a model and a guide are found however the two hold them: each once, and no other."""

import functools
from types import FunctionType

import pytest
from pyro import poutine
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.owners import owners_of

A, B, C = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
PARTS, NETS = {"one": A, "size": 3}, (B, "more")


def first(x=None, mask=None):
    return A


def again(x=None, mask=None):
    return again(x) if x else A  # names itself


def inner(x=None, mask=None):
    def within():
        return B

    return within()


def of_parts(x=None, mask=None):
    return PARTS["one"], NETS


def of_a_library(x=None, mask=None):
    return elsewhere(), B


elsewhere = FunctionType(first.__code__, {"A": C})


def given(x=None, mask=None, net=None, *, other=None):
    return net


class Holds:
    """No module itself."""

    def __init__(self, *nets, **named):
        self.nets, self.named = nets, named

    def model(self, x=None, mask=None):
        return C  # beside what it holds

    def guide(self, x=None, mask=None):
        return self.model()


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.guide, self.beside = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)

    def method(self, x=None, mask=None):
        return self.beside


class Slots:
    __slots__ = ()

    def model(self):
        return A


def unset():
    def model(x=None, mask=None):
        return A, late

    if model is None:
        late = B
    return model


VAE, BOTH = mm.MultimodalVAE({"a": mm.Modality(mm.NormalLikelihood(A), B)}, mm.StandardNormal(1), mm.PoE()), Both()
HOLDS = {
    "functions": (mm.Pair(first, inner), [A, B]),
    "the guide alone": (mm.Pair(given, first), [A]),
    "collections": (mm.Pair(of_parts, given), [A, B]),
    "a library": (mm.Pair(of_a_library, given), [B]),
    "itself": (mm.Pair(again, again), [A]),
    "a part of another": (mm.Pair(lambda x, mask: VAE.model(x, mask), first), [VAE]),
    "programs": (mm.Pair(VAE.model, VAE.guide), [VAE]),
    "the whole": (BOTH, [BOTH]),
    "a method of it": (mm.Pair(BOTH.method, given), [BOTH]),
    "a closure": (mm.Pair((lambda net: lambda x, mask: net)(A), given), [A]),
    "handlers": (mm.Pair(poutine.block(first), poutine.scale(inner, scale=2.0)), [A, B]),
    "partial": (mm.Pair(functools.partial(given, net=A), functools.partial(given, None, None, B)), [A, B]),
    "an object": (Holds(), [C]),
    "without a dictionary": (mm.Pair(Slots().model, inner), [A, B]),
    "a name without a value": (mm.Pair(unset(), inner), [A, B]),
}


@pytest.mark.parametrize("how", HOLDS)
def test_every_module_is_found_once(how):
    vae, owners = HOLDS[how]
    found = owners_of(vae)
    assert len(found) == len(owners) and set(found) == set(owners)
