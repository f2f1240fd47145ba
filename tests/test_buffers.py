"""Buffers that networks assign anew, fill later, or that lie on top of themselves."""

import pytest
import torch
from torch import nn

import pyro_mmvae as mm


class Centred(nn.Module):
    """Subtracts a running mean, which it assigns anew at every step; it may begin as nothing."""

    def __init__(self, mean):
        super().__init__()
        self.register_buffer("mean", mean)
        self.net = mm.encoder(6, 8, dim=2)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * (0 if self.mean is None else self.mean) + 0.1 * x.mean(0)
        return self.net(x if self.mean is None else x - self.mean)


class Table(nn.Module):
    """A buffer that is a part of a table, another one at every step."""

    def __init__(self):
        super().__init__()
        self.table, self.at = torch.eye(9), 0
        self.register_buffer("row", torch.zeros(9))
        self.net = mm.encoder(6, 8, dim=2)

    def forward(self, x):
        if self.training:
            self.row, self.at = self.table[self.at], self.at + 1
        return self.net(x)


def centred(mean=True, look=Centred):
    torch.manual_seed(1)
    look = look(torch.zeros(6) if mean else None) if look is Centred else look()
    parts = {"p": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 8, 6)), look)}
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())


def rows():
    return {"p": torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 3}


def train(vae, x=None, **options):
    given = {"batch_size": 10, "schedule": mm.constant, "progress": False, **options}
    return mm.fit(vae, x or rows(), **given)


def same(a, b):
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mean", [True, False])
def test_a_run_goes_on_with_the_buffers_that_a_network_assigned(tmp_path, mean):
    whole, part, rest = centred(mean), centred(mean), centred(mean)
    train(whole, epochs=4)
    train(part, epochs=2, checkpoint=tmp_path / "run.pt")
    train(rest, epochs=4, checkpoint=tmp_path / "run.pt")
    assert same(whole, rest) and not same(whole, part)


@pytest.mark.parametrize("mean", [True, False])
def test_the_best_epoch_has_its_own_buffers(mean):
    vae, again = centred(mean), centred(mean)
    history = train(vae, epochs=9, lr=0.1, validation={"p": -rows()["p"]})
    assert history.best_epoch < 8
    train(again, epochs=history.best_epoch + 1, lr=0.1)
    assert same(vae, again)


@pytest.mark.parametrize("mean", [True, False])
def test_a_buffer_that_was_assigned_is_rolled_back(mean):
    vae = centred(mean)
    with pytest.raises(FloatingPointError):
        train(vae, epochs=2, lr=1e38)
    assert same(vae, centred(mean))


def test_what_a_buffer_is_a_part_of_is_not_written_to():
    vae = centred(look=Table)
    history = train(vae, epochs=9, lr=0.1, validation={"p": -rows()["p"]}, batch_size=40)
    look = vae.modalities["p"].encoder
    assert history.best_epoch < 8 and int(look.row.argmax()) == history.best_epoch
    assert torch.equal(look.table, torch.eye(9))


@pytest.mark.parametrize("mean", [True, False])
def test_a_compiled_step_that_assigns_a_buffer_is_refused(mean):
    says = r"^compile: a step puts another tensor in the place of the buffer 'modalities\.p\.encoder\.mean', [^\n]*$"
    vae = centred(mean)
    with pytest.raises(ValueError, match=says):
        train(vae, epochs=1, compile="eager")
    assert same(vae, centred(mean))


@pytest.mark.parametrize("compile", [None, "eager"])
def test_buffers_that_lie_on_top_of_themselves_are_kept_and_put_back(tmp_path, compile):
    vae = [centred(look=lambda: mm.encoder(6, 8, dim=2)) for _ in range(3)]
    for one in vae:
        one.register_buffer("wide", torch.tensor(0.5).expand(6))
    train(vae[0], epochs=2, validation=rows(), compile=compile)
    train(vae[1], epochs=1, validation=rows(), compile=compile, checkpoint=tmp_path / "run.pt")
    train(vae[2], epochs=2, validation=rows(), compile=compile, checkpoint=tmp_path / "run.pt")
    assert same(vae[0], vae[2]) and torch.equal(vae[2].wide, torch.full((6,), 0.5))
    with pytest.raises(FloatingPointError, match="the weights of its start are back"):
        train(vae[0], epochs=1, lr=1e38, compile=compile)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_network_of_torch_jit_trains_as_the_one_that_it_was_made_from():
    found = []
    for made in (torch.jit.script, lambda net: net):
        torch.manual_seed(1)
        trunk = made(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)))
        parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 6)), mm.NormalHead(8, 2), trunk=trunk)}
        vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        x = {"a": torch.randn(40, 6)}
        mm.fit(vae, x, validation=x, epochs=4, batch_size=20, lr=3e-2, progress=False)
        found.append({**vae.state_dict(), "value": mm.log_likelihood(vae, x, num_particles=20).value})
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())
