"""What makes a host wait for an accelerator, counted on the CPU: numbers read from tensors, and shapes that depend on
values."""

import inspect

import pytest
import torch
from cases import FUSIONS as EVERY_FUSION
from cases import PRIORS, RECIPES, SIZES, three, three_holes, three_rows
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode

import pyro_mmvae as mm
from pyro_mmvae import data, seen
from pyro_mmvae.fusion import learned
from pyro_mmvae.objectives import objective
from pyro_mmvae.training import step as training_step
from pyro_mmvae.training.step import Run

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::item"}


class Waits(TorchDispatchMode):
    """Counts the operations that wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        indices = args[1] if name.startswith("aten::index") and isinstance(args[1], (list, tuple)) else ()
        by_mask = any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices)
        if name in WAITS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Sends(TorchFunctionMode):
    """Counts what our code makes of Python's numbers: it would be sent to an accelerator, which waits as well."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        made = name in ("tensor", "as_tensor", "new_tensor") and not all(isinstance(a, torch.Tensor) for a in args)
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        listed = any(isinstance(i, list) for i in (index if isinstance(index, tuple) else (index,)))
        if (made or listed) and "pyro_mmvae" in inspect.currentframe().f_back.f_code.co_filename:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """A function that trains for an epoch and gives what waited in its last step."""
    step, found = Run.step, []

    def counted(self, *args):
        with Sends() as sends, Waits() as waits:
            value = step(self, *args)
        found.append(sends.found + waits.found)
        return value

    monkeypatch.setattr(Run, "step", counted)

    def train(fusion="PoE", holes=False, prior="StandardNormal", recipe=None, disk=False):
        mask = three_holes(20) if holes else None
        vae, loss, x = three(fusion=fusion, prior=prior), None, three_rows(20)
        if recipe is not None:
            (vae, loss), x = RECIPES[recipe](), {name: torch.randn(20, size) for name, size in SIZES.items()}
            mask = mm.hide(x, share=0.3)[1] if holes else None
        if disk:  # in single precision: what comes to an accelerator is made anew there
            x, mask = mm.MultimodalDataset({k: v.float() for k, v in x.items()}, mask), None
        mm.fit(vae, x, mask, loss=loss, epochs=1, batch_size=10, progress=False)
        return found[-1]

    return train


@pytest.fixture
def accelerated(monkeypatch):
    """The CPU plays an accelerator, beside which the program keeps the masks, and whose losses it reads late.

    What looks at those masks is not counted; that it looks at no others is.
    """
    for module in (data, objective, training_step):
        monkeypatch.setattr(module, "on_gpu", lambda device: True)
    at = seen.Seen.at.__func__

    def laid_out(cls, x, entries, elements, known=None, part=False):
        assert known is not None or _get_current_dispatch_mode() is None
        return at(cls, x, entries, elements, known, part)

    monkeypatch.setattr(seen.Seen, "at", classmethod(laid_out))
    for module, name in ((seen, "places"), (learned, "places"), (objective, "_that_count"), (data.Batch, "lacks")):
        monkeypatch.setattr(module, name, uncounted(getattr(module, name)))


def uncounted(function):
    def run(*args):
        with _disable_current_modes():
            return function(*args)

    return run


FUSIONS = ["PoE", "MoE", "MoPoE", "GeometricMean"]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_step_on_complete_data_waits_once_for_its_loss(waits, fusion):
    """The one number is the loss, which `fit` looks at before it takes the step."""
    assert waits(fusion, holes=False) == ["aten::_local_scalar_dense"]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_holes_add_one_wait_a_modality(waits, fusion):
    """Which rows a modality has decides the shapes of everything after it; empty ones were looked for beforehand."""
    found = waits(fusion, holes=True)
    assert sorted(found) == ["aten::_local_scalar_dense", *["aten::nonzero"] * 3]


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("fusion", EVERY_FUSION)
def test_on_an_accelerator_no_step_waits(waits, accelerated, fusion, holes):
    assert waits(fusion, holes) == []


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("fusion", EVERY_FUSION)
def test_on_an_accelerator_no_step_on_data_from_disk_waits(waits, accelerated, fusion, holes):
    assert waits(fusion, holes, disk=True) == []


@pytest.mark.parametrize("prior", PRIORS)
def test_on_an_accelerator_no_step_waits_with_any_prior(waits, accelerated, prior):
    assert waits(prior=prior, holes=True) == []


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "nexus"])  # which throws a coin
def test_on_an_accelerator_no_step_of_a_recipe_waits(waits, accelerated, recipe, holes):
    assert waits(recipe=recipe, holes=holes) == []


@pytest.mark.parametrize("holes", [False, True])
def test_nexus_waits_for_the_coin_that_the_cpu_throws_and_for_nothing_else(waits, accelerated, holes):
    assert set(waits(recipe="nexus", holes=holes)) == {"aten::_local_scalar_dense"}


def test_whether_rows_are_empty_is_known_of_what_was_looked_at_and_of_nothing_else():
    x, mask = three_rows(6), {name: torch.ones(6).bool() for name in ("body", "label", "counts")}
    mask["body"][0] = mask["label"][1] = mask["counts"][2] = False
    batch = mm.Batch.of(x, mask)
    assert batch.covered is None
    batch.survey()
    assert batch.covered and batch.take(torch.tensor([0, 2])).covered and batch.remembering().covered
    assert batch.only(["body", "label"]).covered is None
    mask["body"][1] = mask["counts"][1] = False
    batch = mm.Batch.of(x, mask)
    batch.survey()
    assert batch.covered is False and batch.take(torch.tensor([0, 2])).covered is False
    assert mm.Batch.of(x).covered


def test_a_table_with_scattered_holes_in_which_no_row_is_empty_is_one_that_was_seen_everywhere():
    """Then nothing is put in the place of an expert; that is so of the data, whatever a batch of them has."""
    vae, x = three(fusion="MoE"), three_rows(40)
    mask = {"body": torch.rand(40, 3) > 0.3, "label": torch.arange(40) != 7, "counts": torch.ones(40).bool()}
    mask["body"][:, 0] = True
    batch = vae.check(x, mask)
    batch.survey()
    assert batch.filled == {"body", "counts"}
    part = batch.take(torch.arange(10, 20))
    _, seen = vae.open(part, part.mask)
    assert seen["body"].whole and seen["counts"].whole and seen["label"].flat is None and not seen["label"].whole
    assert type(vae.posterior(part, part.mask, given=["body"])).__name__ == "Mixture"
    assert part.only(["body"]).filled == {"body"}
    _, seen = vae.open(x, mask)  # of data by themselves all is known
    assert seen["body"].whole and not seen["label"].whole


@pytest.mark.parametrize("fusion", ["PoE without prior", "MoE", "MoPoE"])
def test_a_subset_of_what_covers_every_row_may_leave_rows_empty(fusion):
    """There the guide has the prior, whether anybody looked beforehand or not."""
    vae, x, given = three(fusion=fusion), three_rows(6), ["body", "label"]
    mask = {name: torch.ones(6).bool() for name in x}
    mask["body"][:2] = mask["label"][1:3] = mask["counts"][3] = False
    looked = vae.check(x, mask)
    looked.survey()
    assert looked.covered
    q, fresh = (vae.posterior(batch, batch.mask, given=given) for batch in (looked, vae.check(x, mask)))
    z = torch.randn(6, *q.event_shape)
    torch.testing.assert_close(q.log_prob(z), fresh.log_prob(z))
    prior = mm.StandardNormal(*q.event_shape)()
    torch.testing.assert_close(q.log_prob(z)[1], prior.log_prob(z[1]))
    assert (q.log_prob(z)[[0, 2, 3]] - prior.log_prob(z[[0, 2, 3]])).abs().min() > 1e-6
