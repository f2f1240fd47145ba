"""Tools that ask for q(z | x) as a distribution take a pair of a model's programs, and say so of other programs."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import three, three_rows
from matplotlib.figure import Figure

import pyro_mmvae as mm

torch.manual_seed(0)
X = three_rows(12)


def cells(vae):
    names = list("abcdefghijkl")
    body = SimpleNamespace(obs_names=names, X=X["body"].numpy(), layers={}, obsm={})
    whole = SimpleNamespace(obs_names=names, mod={"body": body}, obsm={})
    mm.to_mudata(vae, whole)
    return torch.as_tensor(whole.obsm["X_mmvae"])


ASKS = {
    "usage": lambda vae: mm.usage(vae, X).spread,
    "plot_latent": lambda vae: torch.as_tensor(mm.plot_latent(vae, X, ax=Figure().subplots()).lines[0].get_xydata()),
    "latent_similarity": lambda vae: mm.latent_similarity(vae, X, query=["body"], target=["counts"]),
    "to_mudata": cells,
}


def program(x, mask=None):
    with pyro.plate("data", 12, dim=-2):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_a_pair(ask):
    vae = three().eval()
    found = []
    for asked in (vae, mm.Pair(vae.model, vae.guide)):
        torch.manual_seed(0)
        found.append(ask(asked))
    assert torch.equal(*found)
    with pytest.raises(ValueError, match=r"a Pair can only be drawn from, and this asks for q.*; give a MultimodalVAE"):
        ask(mm.Pair(program, program))


def test_slots_in_another_form():
    with pytest.raises(ValueError, match="slots is 'X'; give a dictionary"):
        mm.from_mudata(SimpleNamespace(obs_names=["a"], X=[[1.0]], layers={}, obsm={}), "X")
