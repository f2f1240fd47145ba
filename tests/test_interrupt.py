"""Ctrl-C stops a run between two steps, and nothing of it is lost."""

import signal
import threading
from contextlib import suppress

import pytest
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

import pyro_mmvae as mm

X = {"a": torch.randn(40, 3, generator=torch.Generator().manual_seed(0))}
HELD_OUT = {"a": torch.randn(10, 3, generator=torch.Generator().manual_seed(1))}


@pytest.fixture(autouse=True)
def heard():
    """A shell that starts the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Counted(torch.nn.Module):
    """A network that is interrupted in the middle of some of its calls in training."""

    def __init__(self, net, at=(), how=signal.SIGINT):
        super().__init__()
        self.net, self.at, self.how, self.calls = net, at, how, 0

    def forward(self, z):
        if self.training:
            self.calls += 1
            if self.calls in self.at:
                signal.raise_signal(self.how)
        return self.net(z)


def build(*at):
    torch.manual_seed(0)
    net = Counted(mm.mlp(2, 3), at)
    parts = {"a": mm.Modality(mm.NormalLikelihood(net), mm.encoder(3, 8, dim=2))}
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())


def train(vae, **options):
    return mm.fit(vae, X, epochs=3, batch_size=8, lr=1e-2, progress=False, **options)


def values(vae):
    return torch.cat([p.detach().flatten() for p in vae.parameters()])


def calls(vae):
    return vae.modalities["a"].decoder.net.calls


def test_no_call_in_training_mode_comes_before_the_steps():
    vae = build()
    train(vae)
    assert calls(vae) == 15


@pytest.mark.parametrize("step", [1, 4, 5, 11, 15])
def test_the_step_under_way_is_done_and_the_run_goes_on_from_it(tmp_path, step):
    whole, parts = build(), build(step)
    history = train(whole)
    with pytest.raises(KeyboardInterrupt) as stop:
        train(parts, checkpoint=tmp_path / "run", every=1e9)
    over = (step - 1) // 5  # an epoch is over when all is done that comes after its last step
    assert stop.value.history.loss == history.loss[:over]
    assert calls(parts) == step
    assert not parts.training
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = build()
    resumed = train(again, checkpoint=tmp_path / "run", every=1e9)
    assert calls(again) == 15 - step
    assert torch.equal(values(again), values(whole))
    assert resumed.loss == history.loss


def test_the_weights_are_those_of_the_moment():
    stopped, shorter = build(10), build()
    with pytest.raises(
        KeyboardInterrupt, match="in epoch 1, after 5 steps of it; the weights are those of that moment"
    ):
        train(stopped, schedule=mm.constant)
    mm.fit(shorter, X, epochs=2, batch_size=8, lr=1e-2, progress=False, schedule=mm.constant)
    assert torch.equal(values(stopped), values(shorter))


def test_one_step_is_no_plural():
    with pytest.raises(KeyboardInterrupt, match="in epoch 1, after 1 step of it; the weights"):
        train(build(6), schedule=mm.constant)


def test_with_validation_data_they_are_those_of_the_best_epoch(tmp_path):
    stopped, shorter = build(8), build()
    with pytest.raises(KeyboardInterrupt, match=r"in epoch 1, after 3 steps of it; .* of epoch 0, the best"):
        train(stopped, schedule=mm.constant, validation=HELD_OUT, checkpoint=tmp_path / "run")
    mm.fit(shorter, X, epochs=1, batch_size=8, lr=1e-2, progress=False, schedule=mm.constant)
    assert torch.equal(values(stopped), values(shorter))
    whole, again = build(), build()
    train(whole, schedule=mm.constant, validation=HELD_OUT)
    train(again, schedule=mm.constant, validation=HELD_OUT, checkpoint=tmp_path / "run")
    assert torch.equal(values(again), values(whole))


def test_of_one_that_comes_between_any_two_lines_as_well():
    stopped, shorter = build(), build()

    def raises(*_):
        if stopped.training and calls(stopped) == 8:
            raise KeyboardInterrupt

    stopped.modalities["a"].decoder.register_forward_hook(raises)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, schedule=mm.constant, validation=HELD_OUT)
    mm.fit(shorter, X, epochs=1, batch_size=8, lr=1e-2, progress=False, schedule=mm.constant)
    assert torch.equal(values(stopped), values(shorter))


@pytest.mark.parametrize("epochs", [3, 1], ids=["in the middle of a run", "after its last step"])
def test_while_the_held_out_rows_are_looked_at(epochs):
    vae, seen = build(), []

    def look(*args):
        if not vae.training and calls(vae) == 5 and not seen:
            seen.append(True)
            signal.raise_signal(signal.SIGINT)

    vae.modalities["a"].decoder.register_forward_hook(look)
    with pytest.raises(KeyboardInterrupt):
        mm.fit(vae, X, epochs=epochs, batch_size=8, validation=HELD_OUT, progress=False)
    assert seen
    assert calls(vae) == 5


def test_a_second_one_is_heard_at_once():
    class Twice(Counted):
        def forward(self, z):
            out = super().forward(z)
            if self.training and self.calls in self.at:
                signal.raise_signal(self.how)
                self.calls = -1000  # never reached
            return out

    vae = build()
    vae.modalities["a"].decoder.net = Twice(mm.mlp(2, 3), (7,))
    with pytest.raises(KeyboardInterrupt):
        train(vae)
    assert calls(vae) == 7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_users_stays():
    heard = []
    old = signal.signal(signal.SIGINT, lambda *args: heard.append(1))
    try:
        vae = build(3)
        assert len(train(vae).loss) == 3
        assert heard == [1]
    finally:
        signal.signal(signal.SIGINT, old)


def test_in_another_thread_a_run_is_as_it_was():
    done = []
    thread = threading.Thread(target=lambda: done.append(train(build())))
    thread.start()
    thread.join()
    assert done[0].loss == train(build()).loss


@pytest.mark.parametrize("moment", ["__enter__", "__exit__"])
def test_whatever_pyro_is_doing_its_handlers_and_plates_are_gone(moment, monkeypatch):
    """A plate that stays would be the end of every question: "duplicate plate"."""
    vae, real, left = build(), getattr(Messenger, moment), [0]

    def interrupted(*args):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(Messenger, moment, interrupted)
    for ask in (lambda: mm.generate(vae, 3), lambda: mm.log_likelihood(vae, X, num_particles=5), lambda: train(vae)):
        count = 0
        while left[0] <= 0 and count < 30:
            count += 1
            left[0] = count
            with suppress(KeyboardInterrupt):
                ask()
            assert not _PYRO_STACK and not _DIM_ALLOCATOR._stack
        assert count > 3
        left[0] = 0
