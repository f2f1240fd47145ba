"""Threads of one process: Pyro's handlers are global, and still nobody's result depends on what others do meanwhile."""

import sys
import threading
import time

import pytest
import torch
from cases import three, three_holes, three_rows
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.optim import Adam
from pyro.poutine.runtime import _PYRO_STACK

import pyro_mmvae as mm
from pyro_mmvae import programs


@pytest.fixture(autouse=True)
def torn():
    """Threads that change over as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
    assert not _PYRO_STACK


def together(*calls):
    """What each call returns or raises, all of them started at once, each in a thread of its own."""
    found, start = [None] * len(calls), threading.Barrier(len(calls))

    def run(i, call):
        start.wait()
        try:
            found[i] = call()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def prepared(seed):
    torch.manual_seed(seed)
    return three(), three_rows(64), three_holes(64)


def trained(vae, x, mask, seed, loss=None):
    history = mm.fit(vae, x, mask, epochs=3, batch_size=16, seed=seed, loss=loss, validation=(x, mask), progress=False)
    return history.loss, history.validation, [value.tolist() for value in vae.parameters()]


@pytest.mark.parametrize("loss", [Trace_ELBO, lambda: RenyiELBO(alpha=0.0, num_particles=2, vectorize_particles=True)])
def test_two_models_trained_in_two_threads_end_as_if_alone(loss):
    single = [trained(*prepared(seed), seed, loss()) for seed in range(3)]
    ready = [prepared(seed) for seed in range(3)]
    state = torch.get_rng_state()
    both = together(*[lambda each=each, i=i: trained(*each, i, loss()) for i, each in enumerate(ready)])
    assert both == single
    assert torch.equal(torch.get_rng_state(), state) and torch.distributions.Distribution._validate_args


def test_questions_to_one_model_do_not_disturb_the_training_of_another():
    single = trained(*prepared(0), 0)
    vae, x, mask = prepared(1)
    certificate = mm.certify(vae, x, mask, rows=20, num_draws=9, num_particles=20, progress=False)
    ready = prepared(0)

    def ask():
        return [mm.impute(vae, x, mask, num_draws=2) for _ in range(20)]

    def certify():
        return mm.certify(vae, x, mask, rows=20, num_draws=9, num_particles=20, progress=False)

    training, answers, again = together(lambda: trained(*ready, 0), ask, certify)
    assert training == single and str(again) == str(certificate)
    for filled in answers:
        assert all(value.isfinite().all() for value in filled.values())
        shown = mask["body"].expand(2, -1, -1)
        assert torch.equal(filled["body"][shown], x["body"].expand(2, -1, -1)[shown])


def test_stock_svi_beside_another_thread_is_refused():
    """Its handlers stand on Pyro's stack before it could wait."""
    vae, x, _ = prepared(0)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO())
    inside, done = threading.Event(), threading.Event()

    def hold():
        with programs.alone():
            inside.set()
            done.wait(10)

    def step():
        inside.wait(10)
        try:
            svi.step(x)
        finally:
            done.set()

    _, refused = together(hold, step)
    assert isinstance(refused, RuntimeError) and "one program at a time" in str(refused)
    assert torch.tensor(svi.step(x)).isfinite()


def test_who_waits_long_is_told_so(monkeypatch):
    monkeypatch.setattr(programs, "PATIENCE", 0.01)
    inside = threading.Event()

    def hold():
        with programs.alone():
            inside.set()
            time.sleep(0.1)

    def wait():
        inside.wait(10)
        with pytest.warns(RuntimeWarning, match="another thread"), programs.alone():
            return "in"

    assert together(hold, wait)[1] == "in"


def test_silence_is_kept_when_it_ends_inside_another():
    vae, x = three(), three_rows(4)

    def announced():
        return sum(site["type"] == "param" for site in poutine.trace(vae.model).get_trace(x).nodes.values())

    with programs.silent():
        with programs.silent():
            pass
        assert announced() == 0
    assert announced() == len(list(vae.model.parameters())) > 0
