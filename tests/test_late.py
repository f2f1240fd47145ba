"""Losses that are read late, as on an accelerator: the same run, to the last bit, and the same errors."""

import signal
from contextlib import suppress

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import Explodes, three, three_holes, three_rows
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae import data
from pyro_mmvae.training import epochs
from pyro_mmvae.training import step as training_step
from pyro_mmvae.training.course import Course
from pyro_mmvae.training.shares import Shares


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


def test_after_a_loss_that_is_not_finite_the_optimiser_takes_no_step_any_more():
    weight = torch.ones(3, requires_grad=True)

    class Scripted:
        factors = [1.0, float("nan"), 1.0]

        def differentiable_loss(self, model, guide, x, mask):
            return weight.sum() * self.factors.pop(0)

    pair, batch = mm.Pair(None, None), mm.Batch.of({"a": torch.zeros(2)})
    run = training_step.Run(
        pair, Scripted(), mm.Adam([weight], lr=0.1), [weight], None, [], [], None, None, Shares([], 2)
    )
    run.late, seen = True, []
    for _ in range(3):
        run.step(batch, 1.0, 1.0)
        seen.append(weight.detach().clone())
    torch.testing.assert_close(seen[0], torch.full((3,), 0.9))
    assert torch.equal(seen[1], seen[0]) and torch.equal(seen[2], seen[0])


def test_a_run_stopped_by_hand_goes_on_as_if_it_had_not_been(late, tmp_path):
    """The losses that nobody had read by then count."""
    late()
    x, found = three_rows(50), []

    def stopped(step):
        def make(parameters, lr):
            optim, taken = mm.Adam(parameters, lr=lr), []
            optim.register_step_post_hook(lambda *_: taken.append(0))
            optim.register_step_post_hook(lambda *_: len(taken) == step and signal.raise_signal(signal.SIGINT))
            return optim

        return make

    for path, steps in ((None, [0]), (tmp_path / "run.pt", [10, 0])):
        for step in steps:
            torch.manual_seed(0)
            vae, run = three(), {"epochs": 2, "batch_size": 8, "checkpoint": path, "progress": False}
            with suppress(KeyboardInterrupt):
                history = mm.fit(vae, x, optimizer=stopped(step), **run)
        found.append(state(vae, history))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("where, says", [("guide", "the site 'z'"), ("a", "modality 'a'"), ("c", "the site 'c'")])
def test_the_culprit_is_the_site_whose_density_is_not_finite(where, says):
    def point(name):
        density = torch.nan if where == name else 0.0
        return dist.Delta(torch.zeros(2), log_density=density, validate_args=False)

    def model(x, mask):
        with pyro.plate("data", 2):
            pyro.sample("z", point("model"))
            for name in ("a", "c"):
                pyro.sample(name, point(name), obs=torch.zeros(2))

    def guide(x, mask):
        with pyro.plate("data", 2):
            pyro.sample("z", point("guide"))

    weight = torch.ones(1, requires_grad=True)
    run = training_step.Run(
        mm.Pair(model, guide),
        mm.Objective(),
        mm.Adam([weight], lr=0.1),
        [weight],
        None,
        [],
        [],
        None,
        None,
        Shares([], 2),
    )
    assert run.culprit(mm.Batch.of({"a": torch.zeros(2)})) == says


def test_parameters_of_two_models_keep_apart_by_name():
    found = training_step.distinct([("vae0a.net", 1), ("vae0b.net", 2), ("net", 3), ("vaeless.net", 4)])
    assert found == {"net": 1, "net'": 2, "net''": 3, "vaeless.net": 4}


def course_of(value, buffer=None):
    weight, module = torch.full((2,), value, requires_grad=True), nn.Module()
    if buffer is not None:
        module.register_buffer("seen", buffer)
    course = Course({"weight": weight}, [module], torch.optim.SGD([weight], lr=0.1), [])
    return course, weight, module


def test_a_course_that_goes_on_knows_where_its_epoch_began_and_how_long_it_took(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    first, weight, _ = course_of(1.0)
    weight.data.fill_(2.0)
    first.add(torch.tensor(3.0), 4)
    assert first.read() is None
    now[0] = 107.0
    record = first.record()
    record["generators"] = [{**states, "cuda:9": torch.zeros(1)} for states in record["generators"]]  # not here
    now[0] = 1000.0
    second, again, _ = course_of(5.0)
    second.restore(record)
    assert (
        second.order.keys() == {"cpu"}
        and again.tolist() == [2.0, 2.0]
        and second.start["weight"].tolist() == [1.0, 1.0]
    )
    now[0] = 1001.0
    second.end_epoch(None)
    assert second.history.seconds == [8.0] and second.history.loss == [3.0 / 4]
    assert second.start["weight"].tolist() == [2.0, 2.0]


def test_a_buffer_that_becomes_another_kind_of_number_is_kept_as_it_is():
    course, _, module = course_of(1.0, torch.zeros(2, dtype=torch.int64))
    module.seen = torch.tensor([0.5, 1.5])
    assert course.values(course.start)["seen"].tolist() == [0.5, 1.5]


def test_what_is_put_back_is_a_copy_also_where_a_network_has_put_a_tensor_of_its_own():
    course, _, module = course_of(1.0, torch.zeros(2))
    module.seen = torch.ones(2)
    course.set(course.start)
    module.seen += 5
    assert course.start["seen"].tolist() == [0.0, 0.0]


def test_of_epochs_that_are_alike_the_first_is_the_best():
    course, weight, _ = course_of(1.0)
    for value, validation in ((1.0, 3.0), (2.0, 2.0), (4.0, 2.0)):
        weight.data.fill_(value)
        course.add(torch.tensor(0.0), 1)
        assert course.read() is None
        course.end_epoch(validation)
    assert course.history.best_epoch == 1 and course.stale(1) and not course.stale(2)
    course.take_best()
    assert weight.tolist() == [2.0, 2.0]
