"""Losses that are read late, as on an accelerator: the same run, to the last bit, and the same errors."""

from contextlib import suppress

import pytest
import torch
from cases import Explodes, three, three_holes, three_rows
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae import data
from pyro_mmvae.training import epochs
from pyro_mmvae.training import step as training_step


@pytest.fixture(params=["late", "often"])
def late(request, monkeypatch):
    """The CPU plays an accelerator; losses are read at the end of an epoch, or every other step."""

    def play():
        monkeypatch.setattr(data, "on_gpu", lambda device: True)
        monkeypatch.setattr(training_step, "on_gpu", lambda device: True)
        if request.param == "often":
            monkeypatch.setattr(epochs, "UNREAD", 2)

    return play


def state(vae, history):
    return [*vae.state_dict().values(), torch.tensor(history.loss), torch.tensor(history.validation)]


@pytest.mark.parametrize("options", [{}, {"clip": 0.1}, {"warmup": 2}], ids=["plain", "clip", "warmup"])
def test_a_run_is_the_same_to_the_last_bit(late, options):
    x, mask, found = three_rows(50), three_holes(50), []
    for play in (lambda: None, late):
        play()
        torch.manual_seed(0)
        vae = three()
        history = mm.fit(vae, x, mask, validation=three_rows(9), epochs=4, batch_size=8, progress=False, **options)
        found.append(state(vae, history))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def killed(stop, taken):
    """An optimiser whose process ends at a step; `taken` gets an entry a step."""

    def make(parameters, lr):
        optim = mm.Adam(parameters, lr=lr)
        optim.register_step_post_hook(count)
        return optim

    def count(*_):
        taken.append(0)
        if len(taken) == stop:
            raise KeyboardInterrupt

    return make


def test_a_run_goes_on_from_any_step_that_was_recorded(late, tmp_path):
    late()
    x, mask, found = three_rows(50), three_holes(50), []
    for path, stops in ((None, [0]), (tmp_path / "run.pt", [17, 0])):
        for stop in stops:
            torch.manual_seed(0)
            vae = three()
            run = {"epochs": 4, "batch_size": 8, "checkpoint": path, "every": 0, "progress": False}
            taken = []
            with suppress(KeyboardInterrupt):
                history = mm.fit(vae, x, mask, optimizer=killed(stop, taken), **run)
        assert len(taken) == (28 if path is None else 28 - 16)  # the seventeenth was not recorded
        found.append(state(vae, history))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Bad(nn.Module):
    """An encoder that gives infinity where it sees a label of three."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        q = self.net(x)
        far = torch.where((x == 3).reshape(-1, 1), torch.inf, 0.0) if self.training else 0.0
        return mm.distributions.Normal(q.mean + far, q.stddev).to_event(1)


@pytest.mark.parametrize("holes", [False, True])
def test_a_loss_that_is_not_finite_is_told_as_if_it_had_been_read_at_once(late, holes):
    """The epoch, the step and the modality, though other steps came after it."""
    x, mask, said = three_rows(40), three_holes(40) if holes else None, []
    x["label"] = torch.zeros(40).long()
    x["label"][17] = 3
    if holes:
        mask["label"][17] = True
    for play in (lambda: None, late):
        play()
        torch.manual_seed(0)
        vae = three()
        vae.modalities["label"].encoder = Bad(vae.modalities["label"].encoder)
        before = [p.detach().clone() for p in vae.parameters()]
        with pytest.raises(FloatingPointError, match="the loss is nan in epoch 0, step ") as error:
            mm.fit(vae, x, mask, epochs=3, batch_size=4, progress=False)
        said.append(str(error.value))
        assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters()))
    assert said[0] == said[1]


def test_a_step_in_the_middle_of_a_later_epoch_is_named_and_the_last_good_weights_are_back(late):
    said, weights = [], []
    for play in (lambda: None, late):
        play()
        torch.manual_seed(0)
        x, vae = three_rows(40), three()
        vae.modalities["counts"].decoder.net = Explodes(vae.modalities["counts"].decoder.net, after=11)
        with pytest.raises(FloatingPointError) as error:
            mm.fit(vae, x, epochs=9, batch_size=10, lr=1e-2, progress=False)
        said.append(str(error.value))
        weights.append(list(vae.parameters()))
    assert said[0].startswith("the loss is") and "in epoch 2, step 3," in said[0]
    assert said[1].split(", from")[0] == said[0].split(", from")[0]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
