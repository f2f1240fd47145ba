"""A compiled step is the step: the same losses and weights, or a refusal in one line."""

import copy
import re
import shutil
import sys
from contextlib import suppress

import pyro
import pytest
import torch
from cases import (
    DIM,
    FUSIONS,
    LIKELIHOODS,
    PRIORS,
    RECIPES,
    SIZES,
    data,
    modality,
    of_tables,
    three,
    three_holes,
    three_rows,
)
from pyro.infer import RenyiELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

import pyro_mmvae as mm
from pyro_mmvae.training.compiled import Compiled

DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True, params=DEVICES)
def device(request, monkeypatch):
    """On a GPU the graph is recorded, and its kernels are launched as one."""
    monkeypatch.setattr(sys.modules[__name__], "DEVICE", request.param)


DEVICE = "cpu"


def both(vae, x, mask=None, backend="eager", **options):
    """History and state of a model trained without and with a compiled step."""
    found = []
    for compile in (None, backend):
        model = copy.deepcopy(vae).to(DEVICE)
        history = mm.fit(model, x, mask, batch_size=16, epochs=3, lr=1e-2, progress=False, compile=compile, **options)
        found.append((history, model.state_dict()))
    return found


def same(found, rtol=1e-9):
    (one, before), (other, after) = found
    assert other.loss == pytest.approx(one.loss, rel=rtol) and other.validation == pytest.approx(
        one.validation, rel=rtol
    )
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=rtol, atol=1e-9, msg=name)


def traced(monkeypatch):
    """How many batches were run by a graph."""
    calls, real = [], Compiled.__call__
    monkeypatch.setattr(Compiled, "__call__", lambda self, batch, beta: calls.append(0) or real(self, batch, beta))
    return calls


OPTIONS = {
    "plain": {},
    "warmup": {"warmup": 2},
    "a course of beta that begins at one": {"beta": lambda progress: 1.0 - 0.5 * progress},
    "clip": {"clip": 0.1},
    "SGD": {"optimizer": torch.optim.SGD},
    "importance weighted": {"loss": mm.Objective([mm.objectives.joint], mm.objectives.iwae, num_particles=3)},
}


def with_holes(x, holes):
    """The data, and a mask that leaves something in every row, of single entries too in three rows in four."""
    if not holes:
        return x, None
    x, mask = mm.hide(x, share=0.3)
    if "body" in x:
        fine = torch.rand(x["body"].shape) > 0.25
        fine[:, 0] = True
        mask["body"] = mask["body"].unsqueeze(-1) & fine
    return x, mask


def whole_rows(mask):
    """The rows in which all is observed."""
    return torch.stack([seen.reshape(len(seen), -1).all(-1) for seen in mask.values()]).all(0)


class Turned(nn.Module):
    """A linear map whose gradient lies transposed in memory, as nobody accumulates it in a compiled step."""

    def __init__(self, size, out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, out))

    def forward(self, x):
        return (self.weight.t() * x.unsqueeze(-2)).sum(-1)


@pytest.mark.parametrize("recipe", ["mvae", "mopoe", "mmvaeplus"])
def test_small_batches_with_holes_are_not_checked_on_one_that_lacks_a_modality(recipe):
    """More holes are put into the first batch to check the graph, where one row alone may have a modality."""
    vae, loss = RECIPES[recipe]()
    x = {name: torch.randn(7, size) for name, size in SIZES.items()}
    mask = {name: torch.arange(7) == 3 if name == "a" else torch.arange(7) != 4 for name in x}
    model = copy.deepcopy(vae)
    options = {"loss": loss, "epochs": 2, "batch_size": 7, "progress": False}
    histories = [mm.fit(vae, x, mask, **options), mm.fit(model, x, mask, compile="eager", **options)]
    assert histories[1].loss == pytest.approx(histories[0].loss, rel=1e-9)


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam])
def test_gradients_that_lie_otherwise_than_their_parameter(optimizer):
    encoder = nn.Sequential(Turned(3, 8), nn.Tanh(), mm.NormalHead(8, DIM))
    parts = {"body": mm.Modality(mm.NormalLikelihood(Turned(DIM, 3)), encoder)}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(DIM), mm.PoE())
    make = optimizer and (lambda parameters, lr: optimizer(parameters, lr=lr, fused=True))
    same(both(vae, {"body": torch.randn(40, 3)}, optimizer=make))


# every option with holes, every kind of posterior without them, and both where an option has to do with the draws
STEPS = [
    *((option, "PoE", True) for option in OPTIONS),
    *(("plain", fusion, False) for fusion in ("PoE", "MoE", "MoPoE")),
]
STEPS += [("importance weighted", fusion, False) for fusion in ("MoE", "MoPoE")] + [("warmup", "PoE", False)]


@pytest.mark.parametrize(("option", "fusion", "holes"), STEPS)
def test_it_is_the_step(option, fusion, holes, monkeypatch):
    calls, data = traced(monkeypatch), with_holes(three_rows(70), holes)
    same(both(three(fusion=fusion), *data, **OPTIONS[option], validation=three_rows(20)))
    assert len(calls) == 3 * 4  # and the last batch of an epoch, of six rows, as without


def test_a_modality_with_holes_but_something_in_every_row_beside_one_that_some_rows_lack(monkeypatch):
    """The graph is checked on rows with more holes: not on such as that modality has none of."""
    calls, x = traced(monkeypatch), three_rows(70)
    mask = {"body": torch.ones(70, 3, dtype=torch.bool), "label": torch.arange(70) % 3 > 0}
    mask["body"][::4, 0] = False
    same(both(three(), x, mask))
    assert len(calls) == 12


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_is_compiled_with_holes(fusion):
    same(both(three(fusion=fusion), *with_holes(three_rows(70), True)))


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_is_compiled_with_holes(prior):
    if DEVICE != "cpu" and prior.startswith("function"):
        pytest.skip("written for the CPU")
    same(both(three(prior=prior), *with_holes(three_rows(70), True)))


@pytest.mark.parametrize("likelihood", [likelihood for likelihood in LIKELIHOODS if "recurrent" not in likelihood])
def test_every_likelihood_is_compiled_with_holes_and_empty_rows(likelihood):
    x = data(likelihood, 40)
    mask = torch.rand(40) > 0.2 if x.dim() == 1 or "tokens" in likelihood else torch.rand(x.shape) > 0.3
    mask[:3] = False
    vae = mm.MultimodalVAE({"x": modality(likelihood)}, mm.StandardNormal(DIM), mm.PoE())
    same(both(vae, {"x": x}, {"x": mask}))


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "nexus"])
def test_every_recipe_is_compiled(recipe):
    vae, loss = RECIPES[recipe]()
    x = {name: torch.randn(40, size) for name, size in SIZES.items()}
    x, mask = with_holes(x, True)
    assert all(bool(rows.any()) for rows in whole_rows(mask).split(16))  # a joint encoder has something to do
    same(both(vae, x, mask, loss=loss))


@pytest.mark.parametrize(("recipe", "seed"), [("mmvm", 6), ("mmvm", 15), ("mhvae", 1), ("mhvae", 15), ("mhvae", 24)])
def test_a_batch_that_happens_to_be_complete_draws_what_others_draw(recipe, seed):
    """There a modality with holes elsewhere is whole in one of the batches, which must not change the later ones."""
    torch.manual_seed(seed)
    vae, loss = RECIPES[recipe]()
    x = {name: torch.randn(40, size) for name, size in SIZES.items()}
    same(both(vae, *mm.hide(x, share=0.3, seed=seed), loss=loss, seed=seed))


REFUSED = {
    "nexus": (RECIPES["nexus"], False),
    "random subsets": (lambda: mm.recipes.mvae(of_tables(), 2, subsets=1), False),
    "nexus, with holes": (RECIPES["nexus"], True),
}


@pytest.mark.parametrize(("recipe", "holes"), REFUSED.values(), ids=REFUSED)
def test_recipes_that_look_at_what_they_drew_or_got_are_refused(recipe, holes):
    vae, loss = recipe()
    why = r"^compile: (a step of this loss cannot be traced: |traced once, )[^\n]*; leave compile out$"
    with pytest.raises(ValueError, match=why):
        both(vae, *with_holes({name: torch.randn(40, size) for name, size in SIZES.items()}, holes), loss=loss)


def test_networks_in_half_precision_are_those_of_the_step():
    x = {name: v.float() if v.is_floating_point() else v for name, v in three_rows(40).items()}
    found = both(three().float(), x, autocast=torch.bfloat16)
    if DEVICE == "cpu":
        same(found, rtol=1e-5)
    else:  # where sums are made in any order
        assert found[1][0].loss == pytest.approx(found[0][0].loss, rel=1e-2)


def test_buffers_and_dropout_are_those_of_the_step():
    vae = three()
    body = vae.modalities["body"]
    body.encoder = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), body.encoder)
    found = both(vae, three_rows(70))
    same(found)
    assert found[1][1]["modalities.body.encoder.1.num_batches_tracked"] == 15


@pytest.mark.parametrize("layer", [lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(3)], ids=["dropout", "batch norm"])
def test_networks_that_see_more_than_their_row_are_refused_with_holes(layer):
    """Hidden rows run through them in the graph, and do not in the step."""
    vae = three()
    body = vae.modalities["body"]
    body.encoder = nn.Sequential(layer(), body.encoder)
    with pytest.raises(ValueError, match=r"^compile: traced once, [^\n]* where data are missing; leave compile out$"):
        mm.fit(vae, *with_holes(three_rows(40), True), epochs=1, progress=False, compile="eager")


def test_batches_without_a_modality_run_as_without(monkeypatch):
    calls = traced(monkeypatch)
    x, mask = with_holes(three_rows(60), True)
    parts = [({k: v[:40] for k, v in x.items()}, {k: v[:40] for k, v in mask.items()}) for _ in range(3)]
    for part in parts[1:]:
        part[1]["label"] = part[1]["label"] & False
    same(both(three(), parts))
    assert len(calls) == 3
    with pytest.warns(UserWarning, match=r"^compile: every batch lacked a modality"):
        same(both(three(), parts[1:]))
    assert len(calls) == 3


def test_batches_with_other_holes_than_the_first_run_as_without(monkeypatch):
    calls = traced(monkeypatch)
    x, mask = three_rows(60), three_holes(60)
    mask = {name: seen | (torch.arange(60) < 32).reshape(-1, *[1] * (seen.dim() - 1)) for name, seen in mask.items()}
    parts = [
        ({k: v[i : i + 16] for k, v in x.items()}, {k: v[i : i + 16] for k, v in mask.items()}) for i in (0, 16, 32)
    ]
    parts[1] = tuple(dict(reversed(part.items())) for part in parts[1])  # in whatever order a loader gives them
    same(both(three(), parts))
    assert len(calls) == 3 * 2  # two of three batches are complete


def test_a_run_that_goes_on_before_a_smaller_last_batch_compiles_the_others(tmp_path, monkeypatch):
    calls, x, left, ends = traced(monkeypatch), three_rows(60), [0], []

    def optimizer(parameters, lr):
        optim = mm.Adam(parameters, lr=lr)
        optim.register_step_post_hook(lambda *_: left.append(0) or (len(left) == 10 and 1 / 0))
        return optim

    for path in (None, tmp_path / "run.pt"):
        for stop in (False,) if path is None else (True, False):
            torch.manual_seed(0)
            vae = three()
            left[:] = [0] if stop else [0] * 1000
            run = {"epochs": 3, "batch_size": 7, "compile": "eager", "checkpoint": path, "every": 0, "progress": False}
            with suppress(ZeroDivisionError):
                calls.clear()
                mm.fit(vae, x, optimizer=optimizer, **run)
        ends.append(list(vae.parameters()))
    assert len(calls) == 16  # eight of nine batches in each of the two epochs that were left
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_what_is_trained_goes_on_from_a_checkpoint(tmp_path):
    x, ends = three_rows(48), []
    for path, stops in ((None, [4]), (tmp_path / "run.pt", [2, 4])):
        torch.manual_seed(0)
        vae = three()
        for epochs in stops:
            history = mm.fit(
                vae, x, epochs=epochs, batch_size=16, schedule=mm.constant, compile="eager",
                checkpoint=path, progress=False,
            )  # fmt: skip
        ends.append((history.loss, list(vae.parameters())))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1]))
    with pytest.raises(ValueError, match="of a run with compile eager, not None"):
        mm.fit(three(), x, epochs=4, batch_size=16, schedule=mm.constant, checkpoint=path, progress=False)


class Looks(nn.Module):
    """An encoder that decides by numbers."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return self.head(x if float(x.mean()) > 0 else -x)


class Counts(Looks):
    """An encoder that does something else each time."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.head(x * self.calls)


class Drifts(Looks):
    """An encoder that does a little more each time."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.head(x * (1 + 0.01 * self.calls))


class Tilts(Looks):
    """An encoder that says the same each time, with a gradient that grows a little."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        q = self.head(x)
        still = q.mean.detach()
        return mm.distributions.Normal(still + (1 + 0.002 * self.calls) * (q.mean - still), q.stddev).to_event(1)


class Draws(Looks):
    """An encoder that draws what it does, and tells torch nothing of it."""

    def forward(self, x):
        return self.head(x if torch.randperm(2).tolist()[0] else -x)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Looks, "cannot be traced"),
        (Counts, "says something else"),
        (Drifts, "says something else"),
        (Tilts, "says something else"),
        (Draws, "says something else"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused_and_nothing_changed(broken, message):
    vae = three()
    body = vae.modalities["body"]
    body.encoder = broken(body.encoder)
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(ValueError, match=f"^compile: .*{message}[^\n]*leave compile out$"):
        mm.fit(vae, three_rows(20), epochs=1, progress=False, compile="eager")
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    mm.fit(vae, three_rows(20), epochs=1, progress=False)


class Aside(nn.Module):
    """A scale that is a parameter of the module, and read from beside it."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(3))
        self.read = lambda raw=self.raw: raw.exp()

    def forward(self, z):
        return self.read()


class Positive(PyroModule):
    def __init__(self):
        super().__init__()
        self.raw = PyroParam(torch.ones(3), constraint=constraints.positive)

    def forward(self, z):
        return self.raw


@pytest.mark.parametrize(("scale", "name"), [(Aside, "raw"), (Positive, "raw_unconstrained")])
def test_a_parameter_that_a_graph_would_not_train_is_refused(scale, name):
    vae, x = three(), three_rows(64)
    vae.modalities["body"].decoder.scale = scale()
    where = re.escape(f"compile: the programs get at the parameter 'modalities.body.decoder.scale.{name}' by another")
    with pytest.raises(ValueError, match=f"^{where}.*; make it an nn.Parameter, or leave compile out$"):
        mm.fit(vae, x, epochs=1, progress=False, compile="eager")
    before = getattr(vae.modalities["body"].decoder.scale, name).detach().clone()
    mm.fit(vae, x, epochs=1, lr=1e-2, progress=False)
    assert (getattr(vae.modalities["body"].decoder.scale, name) - before).abs().min() > 1e-3


def test_modules_and_parameters_that_stand_at_several_places_are_compiled():
    torch.manual_seed(0)
    shared, x = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), {"left": torch.randn(48, 6)}
    x["right"] = x["left"] + 0.1 * torch.randn(48, 6)
    nets = mm.mlp(2, 8, 6), mm.mlp(2, 8, 6)
    nets[1][-1].weight = nets[0][-1].weight
    parts = {
        name: mm.Modality(mm.NormalLikelihood(net), nn.Sequential(shared, mm.NormalHead(8, 2)))
        for name, net in zip(x, nets, strict=True)
    }
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    same(both(vae, x))
    before = dict(vae.named_parameters(remove_duplicate=False))
    mm.fit(vae, x, epochs=1, progress=False, compile="eager")
    after = dict(vae.named_parameters(remove_duplicate=False))
    assert len(before) == 22 and all(after[name] is value for name, value in before.items())


def test_a_refusal_after_steps_with_holes_puts_the_weights_back():
    vae = three()
    body = vae.modalities["body"]
    body.encoder = Looks(body.encoder)
    before = copy.deepcopy(vae.state_dict())
    parts = [(three_rows(16), three_holes(16)), (three_rows(16), None)]
    with pytest.raises(ValueError, match=r"^compile: a step of this loss cannot be traced"):
        mm.fit(vae, parts, epochs=1, progress=False, compile="eager")
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_losses_and_parameters_out_of_reach_are_refused():
    with pytest.raises(ValueError, match=r"^compile: RenyiELBO has no differentiable_loss"):
        mm.fit(three(), three_rows(20), loss=RenyiELBO(num_particles=2), progress=False, compile="eager")
    vae = three()

    def guide(x, mask):
        shift = pyro.param("shift", torch.zeros(()))
        return vae.guide(x, mask) + shift

    with pytest.raises(ValueError, match=r"^compile: a parameter of the programs is in no module"):
        mm.fit(mm.Pair(vae.model, guide), three_rows(20), epochs=1, progress=False, compile="eager")


def test_an_unknown_backend_is_refused_before_anything_is_changed():
    vae = three()
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(ValueError, match=r"^compile: there is no backend 'swift'"):
        mm.fit(vae, three_rows(20), epochs=1, progress=False, compile="swift")
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiler_of_torch_gives_the_same_to_rounding():
    same(both(three(), three_rows(40), backend="inductor"), rtol=1e-6)


def test_sequences_of_which_one_row_is_wholly_hidden_are_compiled(monkeypatch):
    decoder = mm.CategoricalLikelihood(mm.TokenDecoder(DIM, 7, 12, 8))
    part = mm.Modality(decoder, mm.NormalHead(8, DIM), trunk=mm.AttentionTrunk(12, 7, 8, heads=2))
    vae = mm.MultimodalVAE({"text": part}, mm.StandardNormal(DIM), mm.PoE())
    text = torch.where(torch.arange(7) < torch.randint(1, 8, (40, 1)), torch.randint(12, (40, 7)).double(), torch.nan)
    text[7] = torch.nan
    calls = traced(monkeypatch)
    found = both(vae, {"text": text})
    assert calls
    same(found, rtol=1e-6)
