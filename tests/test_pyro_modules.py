"""PyroModules as networks of a model: their parameters are the model's, as those of torch's modules are."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

import pyro_mmvae as mm


class Pyros(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = mm.mlp(2, 8, 3)
        self.scale = PyroParam(torch.ones(3), constraint=constraints.positive)

    def forward(self, z):
        return dist.Normal(self.net(z), self.scale).to_event(1)


class Torchs(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mm.mlp(2, 8, 3)
        self.raw = nn.Parameter(torch.zeros(3))

    def forward(self, z):
        return dist.Normal(self.net(z), self.raw.exp()).to_event(1)


def rows():
    torch.manual_seed(1)
    return {"wide": 5 * torch.randn(40, 3), "narrow": 0.1 * torch.randn(40, 3)}


def built(decoder, seed=0):
    torch.manual_seed(seed)
    parts = {name: mm.Modality(decoder(), mm.encoder(3, 8, dim=2)) for name in rows()}
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())


def by_fit(vae, x, **options):
    mm.fit(vae, x, epochs=5, lr=3e-2, batch_size=20, progress=False, **options)


def by_svi(vae, x):
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-2}), Trace_ELBO())
    for _ in range(10):
        svi.step(x)


def traced(vae, x):
    by_fit(vae, x, compile="eager")


@pytest.mark.parametrize("trained", [by_fit, by_svi, traced])
def test_a_pyro_param_trains_as_a_parameter_of_torchs_does(trained):
    found = []
    for decoder in (Torchs, Pyros):
        vae = built(decoder)
        assert vae.likelihoods()["wide"].base_dist.scale.unique() == 1.0  # decoded before it was trained
        torch.manual_seed(2)
        trained(vae, rows())
        found.append(sorted(vae.state_dict().items(), key=lambda item: item[0].replace("scale_unconstrained", "raw")))
    assert len(found[0]) == len(found[1]) and len(pyro.get_param_store()) == 0
    for (name, one), (_, other) in zip(*found, strict=True):
        assert torch.equal(one, other), name
        assert "decoder" not in name or not torch.equal(one, built(Torchs).state_dict()[name])


def test_models_share_no_pyro_param(tmp_path):
    x, vae = rows(), built(Pyros)
    by_fit(vae, x)
    vae.save(tmp_path / "vae.pt")
    kept, copied = copy.deepcopy(vae.state_dict()), copy.deepcopy(vae)
    second = built(Pyros)
    by_fit(second, {"wide": x["narrow"], "narrow": x["wide"]})
    by_fit(copied, x)
    loaded = mm.load(tmp_path / "vae.pt", lambda: built(Pyros, seed=3))
    torch.manual_seed(4)
    before = mm.log_likelihood(vae, x).value
    torch.manual_seed(4)
    assert torch.equal(before, mm.log_likelihood(loaded, x).value)
    for one in (vae, loaded):
        assert all(torch.equal(value, kept[name]) for name, value in one.state_dict().items())
    for one in (second, copied):
        assert not torch.equal(one.modalities["wide"].decoder.scale, vae.modalities["wide"].decoder.scale)


def test_a_module_with_a_pyro_sample_keeps_its_sites():
    vae = built(Pyros)
    narrow = Pyros()
    narrow.shift = PyroSample(dist.Normal(0.0, 1.0))
    narrow.forward = lambda z: dist.Normal(narrow.net(z) + narrow.shift.unsqueeze(-1), narrow.scale).to_event(1)
    parts = {**vae.modalities, "narrow": mm.Modality(narrow, vae.modalities["narrow"].encoder)}
    trace = pyro.poutine.trace(mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE()).model).get_trace(rows())
    assert set(trace.stochastic_nodes) >= {"z", "shift"} and "scale" in pyro.get_param_store()
    assert trace.nodes["scale"]["type"] == "param"
