"""What `fit` leaves as it is, and what it trains whatever the modes, groups, loaders and first rows of a run."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_mmvae as mm


def noisy(norm=nn.BatchNorm1d):
    torch.manual_seed(0)
    parts = {}
    for name, size in (("a", 3), ("b", 2)):
        look = nn.Sequential(nn.Linear(size, 8), norm(8), nn.ReLU(), mm.encoder(8, 8, dim=2))
        parts[name] = mm.Modality(mm.NormalLikelihood(mm.mlp(2, 8, size)), look)
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())


def two_rows(rows=40):
    torch.manual_seed(1)
    return {"a": torch.randn(rows, 3), "b": torch.randn(rows, 2)}


def states(vae):
    return copy.deepcopy(vae.state_dict())


def same(before, vae):
    return all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_fit_trains_where_gradients_are_switched_off(context):
    x, vae, other = two_rows(), noisy(), noisy()
    with context():
        mm.fit(vae, x, epochs=2, progress=False)
    mm.fit(other, x, epochs=2, progress=False)
    assert same(states(other), vae)


@pytest.mark.parametrize("inside", [False, True])
def test_questions_that_follow_gradients_are_answered_in_inference_mode(inside):
    """Also of data that were made in it; and answers can be computed with afterwards."""
    x, vae = two_rows(4), noisy(nn.LayerNorm)
    torch.manual_seed(2)
    expected = mm.gaps(vae, x, num_draws=50, steps=20).log_likelihood
    with torch.inference_mode():
        torch.manual_seed(2)
        rows = {name: value.clone() for name, value in x.items()} if inside else x
        found = mm.gaps(vae, rows, num_draws=50, steps=20).log_likelihood
    assert torch.equal(found, expected) and not found.is_inference()


def test_looking_for_parameters_changes_no_buffer():
    x, vae = two_rows(), noisy()
    before = states(vae)
    mm.fit(vae, x, epochs=0, progress=False)
    assert same(before, vae)
    mm.fit(vae, x, epochs=3, batch_size=20, progress=False)
    assert int(vae.modalities["a"].encoder[1].num_batches_tracked) == 6
    x["a"][0] = math.nan  # so that of the first two rows one is left, of which there is no variance
    mm.fit(noisy(), x, epochs=1, progress=False)


def test_parameters_that_the_first_rows_do_not_need_are_trained():
    first, second = nn.Linear(2, 3), nn.Linear(2, 2)

    def model(x=None, mask=None):
        with pyro.plate("data", len(x["a"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).expand([len(x["a"]), 2]).to_event(1))
            for name, net in (("a", first), ("b", second)):
                if mask[name].any():
                    pyro.module(name, net)
                    with poutine.mask(mask=mask[name]):
                        pyro.sample(name, dist.Normal(net(z), 1.0).to_event(1), obs=x[name])

    def guide(x=None, mask=None):
        with pyro.plate("data", len(x["a"])):
            loc = pyro.param("loc", torch.zeros(2))
            pyro.sample("z", dist.Normal(loc, 1.0).expand([len(x["a"]), 2]).to_event(1))

    x = two_rows()
    x["b"][:2] = math.nan
    before = second.weight.detach().clone()
    mm.fit(mm.Pair(model, guide), x, epochs=2, lr=0.1, progress=False)
    assert not torch.equal(before, second.weight)


class Tutorial(nn.Module):
    """A VAE as Pyro's tutorial writes it: model and guide are methods."""

    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)), nn.Linear(2, 3)

    def model(self, x=None, mask=None):
        pyro.module("dec", self.dec)
        with pyro.plate("data", len(x["a"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x["a"]), 2), 1.0).to_event(1))
            pyro.sample("a", dist.Normal(self.dec(z), 1.0).to_event(1), obs=x["a"])

    def guide(self, x=None, mask=None):
        pyro.module("enc", self.enc)
        with pyro.plate("data", len(x["a"])):
            loc, log_scale = self.enc(x["a"]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize("paired", [False, True])
def test_a_module_with_plain_methods_is_trained_and_validated_in_its_modes(paired):
    vae = Tutorial().eval()
    x = {"a": two_rows()["a"]}
    program = mm.Pair(vae.model, vae.guide) if paired else vae
    held_out = {"a": 100 * x["a"][:10]}
    history = mm.fit(program, x, epochs=3, batch_size=20, validation=held_out, progress=False)
    assert not vae.training and int(vae.enc[1].num_batches_tracked) == 2 * (history.best_epoch + 1)
    assert float(vae.enc[1].running_mean.abs().max()) < 2  # of the validation data it would be tens


def test_what_is_frozen_stays_in_eval_mode():
    vae, x = noisy(), two_rows()
    mm.fit(vae, x, epochs=1, progress=False)
    vae.modalities["a"].encoder.requires_grad_(False)
    before = copy.deepcopy(vae.modalities["a"].encoder.state_dict())
    mm.fit(vae, x, epochs=1, progress=False)
    assert all(torch.equal(before[k], v) for k, v in vae.modalities["a"].encoder.state_dict().items())


def test_every_group_keeps_its_own_learning_rate():
    made = []

    def make(parameters, lr):
        made.append(torch.optim.AdamW([{"params": parameters[:4], "lr": 0.1 * lr}, {"params": parameters[4:]}], lr=lr))
        return made[0]

    mm.fit(noisy(), two_rows(), epochs=1, lr=1e-2, schedule=mm.constant, optimizer=make, progress=False)
    assert [group["lr"] for group in made[0].param_groups] == pytest.approx([1e-3, 1e-2])


def test_gradients_outside_of_the_optimiser_do_not_pile_up(monkeypatch):
    norms, clip = [], nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda p, most: norms.append(float(clip(p, most))))

    def few(parameters, lr):
        return torch.optim.SGD(parameters[:4], lr=lr)

    mm.fit(noisy(nn.Identity), two_rows(), epochs=30, lr=0.0, clip=1e9, optimizer=few, progress=False)
    assert max(norms[-5:]) < 3 * max(norms[:5])


class Causal(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(size))

    def forward(self, h):
        return h @ self.mask.softmax(-1)


def test_an_infinity_in_a_buffer_is_no_lost_weight():
    assert len(mm.fit(noisy(Causal), two_rows(), epochs=2, progress=False).loss) == 2


def test_bad_input_in_a_later_batch_leaves_the_start_of_the_epoch():
    x, vae = two_rows(), noisy(nn.Identity)
    batches = [{k: v[i : i + 10].clone() for k, v in x.items()} for i in range(0, 40, 10)]
    batches[2]["a"][3] = math.inf
    before = states(vae)
    with pytest.raises(ValueError, match="an infinity in column 0 in row 3"):
        mm.fit(vae, batches, epochs=1, progress=False)
    assert same(before, vae)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"clip": -1.0}, "clip is -1.0"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"warmup": -5}, "warmup is -5"),
        ({"patience": 2}, "patience is 2, but"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"beta": 4.0}, "beta is 4.0; give a function"),
        ({"schedule": None}, "schedule is None"),
        ({"optimizer": "adam"}, "optimizer is 'adam'"),
        ({"seed": None}, "seed is None"),
        ({"validation": [{}]}, "a list of 1 stands where"),
        ({"validation": {"a": torch.full((4, 3), math.nan)}}, "validation: nothing is observed"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_changes(options, says):
    vae = noisy()
    before, mode = states(vae), vae.training
    with pytest.raises(ValueError, match=says):
        mm.fit(vae, two_rows(), epochs=1, progress=False, **options)
    assert same(before, vae) and vae.training == mode


def test_a_run_on_shuffled_batches_of_varying_modalities_is_found_again(tmp_path):
    x = two_rows()
    rows = [{"a": x["a"][:8]}, {name: value[8:16] for name, value in x.items()}, {"b": x["b"][16:24]}]
    found = []
    for seed in range(6):  # of the generator that the loader would draw its first batch from
        loader, vae = torch.utils.data.DataLoader(rows, batch_size=None, shuffle=True), noisy()
        torch.manual_seed(seed)
        found.append(mm.fit(vae, loader, epochs=1, checkpoint=tmp_path / "run", progress=False).loss)
    assert found == found[:1] * 6


def test_a_run_on_the_same_values_with_another_mask_is_another_run(tmp_path):
    x, mask = {"a": torch.zeros(8, 3)}, torch.ones(8, dtype=torch.bool)
    vae = mm.MultimodalVAE(mm.guess_modalities({"a": torch.randn(8, 3)}, dim=2), mm.StandardNormal(2), mm.PoE())
    mm.fit(vae, x, {"a": mask}, epochs=1, checkpoint=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="of a run with checksum of the data"):
        mm.fit(vae, x, {"a": mask & (torch.arange(8) > 0)}, epochs=1, checkpoint=tmp_path / "run", progress=False)


def test_numbers_of_numpy_are_settings_as_well(tmp_path):
    options = {"warmup": np.int64(2), "lr": np.float32(0.1), "seed": np.int64(0), "epochs": np.int64(2)}
    history = mm.fit(noisy(), two_rows(), checkpoint=tmp_path / "run", progress=False, **options)
    assert len(history.loss) == 2


@pytest.mark.parametrize(("value", "said"), [(1e300, "nan"), (1e160, "inf")])
def test_a_validation_loss_that_is_no_number_stops_training(value, said):
    with pytest.raises(FloatingPointError, match=f"the loss is {said} .* from the validation data"):
        mm.fit(noisy(nn.Identity), two_rows(), epochs=3, validation={"a": torch.full((4, 3), value)}, progress=False)


def test_a_loader_without_a_length_is_walked():
    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            return ({k: v[i] for k, v in two_rows().items()} for i in range(40))

    loader = torch.utils.data.DataLoader(Rows(), batch_size=10)
    assert len(mm.fit(noisy(), loader, epochs=2, progress=False).loss) == 2


def test_a_list_of_arrays_and_masks_is_not_two_batches():
    x = two_rows()
    with pytest.raises(ValueError, match=r"give them as \(x, mask\)"):
        mm.fit(noisy(), [x, {name: torch.ones(40, dtype=torch.bool) for name in x}], epochs=1, progress=False)


@pytest.mark.parametrize(
    "program, elbo",
    [
        (lambda vae: (vae.model, poutine.block(vae.guide, hide_types=["param"])), Trace_ELBO()),
        (lambda vae: (vae.model, vae.guide), Trace_ELBO(num_particles=2, vectorize_particles=True)),
    ],
)
def test_every_parameter_is_trained_from_the_first_step_under_a_block(program, elbo):
    vae, x = noisy(nn.Identity), two_rows()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    SVI(*program(vae), pyro.optim.Adam({"lr": 1e-2}), elbo).step(x)
    assert all(not torch.equal(before[name], p) for name, p in vae.named_parameters())


def test_parameters_of_data_on_disk_are_looked_for_in_more_than_the_first_row():
    x, seen = two_rows(), []
    x["b"][:5] = math.nan
    vae = noisy(nn.Identity)
    vae.modalities["b"].encoder.register_forward_pre_hook(lambda *_: seen.append(vae.training))
    mm.fit(vae, mm.MultimodalDataset(x), epochs=0, progress=False)
    assert seen  # b was looked at, though nothing was trained
