"""Crash and resume: whatever happens to a process of `fit`, the next one ends where an uninterrupted one would."""

import errno
import json
import os
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pyro
import pytest
import torch
from cases import RECIPES, rows_of_tables, three, three_rows
from killed import KILLS, Killed, ending, setting, train

import pyro_mmvae as mm


def same(a, b):
    """Whether two nests of tensors, numbers and text are equal, bit by bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def record(path):
    """All of a checkpoint but the times: weights, best weights, optimiser, generators, history."""
    found = torch.load(path, weights_only=True)
    del found["seconds"], found["history"]["seconds"]
    return found


def outcome(vae, history):
    return [dict(vae.state_dict()), history.loss, history.validation, history.lr, history.best_epoch]


def test_a_process_killed_at_20_random_moments_ends_like_one_that_was_not(tmp_path):
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(Path(mm.__file__).parents[1])])}
    done = subprocess.run(
        [sys.executable, str(here / "killed.py"), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lives = json.loads(done.stdout)
    assert sum(map(len, lives)) == KILLS
    results = [torch.load(file, weights_only=True) for file in sorted(tmp_path.glob("*/result.pt"))]
    records = [record(file) for file in sorted(tmp_path.glob("*/run.pt"))]
    assert len(results) == len(records) == len(lives) + 1
    assert all(same(results[0], result) for result in results) and all(same(records[0], each) for each in records)


def life(path, steps, make=torch.optim.Adam, **options):
    """What a process does that ends before its step number `steps`: None, or the result if the run was over by then."""
    try:
        return train(path, optimizer=ending(steps, make=make), **options)
    except Killed:
        return None


def lives(path, steps, *args, **options):
    """A run of many short lives."""
    for _ in range(100):
        result = life(path, steps, *args, **options)
        if result is not None:
            return result
    raise AssertionError("it makes no progress")


@pytest.mark.parametrize("steps", [1, 3])
def test_every_step_is_one_to_go_on_from(tmp_path, steps):
    """Lives of one step, and of three: 3 epochs of 7 steps, with ends in the middle of epochs and between them."""
    whole = life(tmp_path / "whole.pt", 999, epochs=3)
    again = lives(tmp_path / "run.pt", steps, epochs=3)
    assert same(outcome(*whole), outcome(*again))
    assert same(record(tmp_path / "whole.pt"), record(tmp_path / "run.pt"))


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "NAdam", "ASGD", "Rprop"])
def test_any_optimizer_goes_on(tmp_path, name):
    make = getattr(torch.optim, name)
    whole = life(tmp_path / "whole.pt", 999, make, epochs=2)
    again = lives(tmp_path / "run.pt", 5, make, epochs=2)
    assert same(outcome(*whole), outcome(*again))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_goes_on(tmp_path, recipe):
    """With all that its own loss draws; lives of two steps, of seven in all."""

    def fit(path, stop):
        pyro.set_rng_seed(1)
        (vae, loss), (x, mask) = RECIPES[recipe](), rows_of_tables()
        options = {"optimizer": ending(stop), "checkpoint": path, "every": 0.0, "progress": False, "warmup": 1}
        history = mm.fit(vae, x, mask, loss=loss, epochs=1, batch_size=3, lr=1e-2, **options)
        return outcome(vae, history)

    whole, again = fit(None, 999), None
    for _ in range(9):
        with suppress(Killed):
            again = fit(tmp_path / "run.pt", 2)
    assert same(whole, again)


def test_early_stopping_goes_on(tmp_path):
    options = {"patience": 2, "lr": 0.2, "epochs": 40}
    whole = life(None, 999, **options)
    assert len(whole[1].loss) < 40 and whole[1].best_epoch == len(whole[1].loss) - 3
    assert same(
        outcome(*whole), outcome(*lives(tmp_path / "run.pt", 8, **options))
    )  # the best epoch was in a life before


def test_a_checkpoint_changes_nothing_and_a_run_that_is_over_takes_no_step(tmp_path):
    plain, kept = life(None, 999), life(tmp_path / "run.pt", 999)
    assert same(outcome(*plain), outcome(*kept))
    written = (tmp_path / "run.pt").read_bytes()
    again = life(tmp_path / "run.pt", 0)
    assert same(outcome(*plain), outcome(*again)) and again[1].seconds == kept[1].seconds
    assert (tmp_path / "run.pt").read_bytes() == written


def test_under_a_constant_rate_a_run_goes_on_to_more_epochs(tmp_path):
    options = {"schedule": mm.constant, "validation": None}
    whole = life(None, 999, epochs=4, **options)
    for epochs in (1, 4):
        longer = life(tmp_path / "run.pt", 999, epochs=epochs, **options)
    assert same(outcome(*whole), outcome(*longer))
    with pytest.raises(ValueError, match="of a run with epochs 4, not 3"):
        life(tmp_path / "run.pt", 0, epochs=3, **options)
    life(tmp_path / "cosine.pt", 999, epochs=1)
    with pytest.raises(ValueError, match="of a run with epochs 1, not 2"):
        life(tmp_path / "cosine.pt", 0, epochs=2)


def test_loaders_and_programs_of_the_users_go_on(tmp_path):
    """A shuffling DataLoader, a model and a guide of plain pyro.param, a random augmentation of each batch."""
    x = torch.randn(24, 2) + 3

    def augmented(rows):
        chosen = torch.stack(rows)
        return {"x": chosen + 0.1 * torch.randn_like(chosen)}, None

    def model(x, mask):
        loc = pyro.param("loc", torch.randn(2))
        with pyro.plate("data", len(x["x"]), dim=-2):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("x_plate", 1, dim=-1):
                pyro.sample("x", pyro.distributions.Normal(loc + z, 1.0).to_event(1), obs=x["x"].unsqueeze(1))

    def guide(x, mask):
        scale = pyro.param("scale", torch.rand(2), constraint=torch.distributions.constraints.positive)
        with pyro.plate("data", len(x["x"]), dim=-2):
            pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), scale).to_event(1))

    def run(path, stop):
        pyro.clear_param_store()  # as in a new process
        loader = torch.utils.data.DataLoader(x, batch_size=5, shuffle=True, collate_fn=augmented)
        options = {"optimizer": ending(stop), "checkpoint": path, "every": 0.0, "progress": False}
        history = mm.fit(mm.Pair(model, guide), loader, epochs=3, lr=0.1, **options)
        return [history.loss, pyro.param("loc").detach(), pyro.param("scale").detach()]

    whole, again = run(None, 999), None
    while again is None:
        try:
            again = run(tmp_path / "run.pt", 4)
        except Killed:
            continue
    assert same(whole, again)


def test_a_truncated_file_falls_back_on_the_one_before_and_stays(tmp_path):
    path = tmp_path / "run.pt"
    whole = life(None, 999, epochs=2)
    assert life(path, 9, epochs=2) is None
    path.write_bytes(path.read_bytes()[:-1000])
    damaged = path.read_bytes()
    with pytest.warns(UserWarning, match=r"damaged .* the run goes on from .*previous"):
        result = life(path, 999, epochs=2)
    assert same(outcome(*whole), outcome(*result))
    assert (tmp_path / "run.pt.damaged").read_bytes() == damaged
    path.write_bytes(damaged)
    (tmp_path / "run.pt.previous").unlink()
    with pytest.raises(ValueError, match="is damaged"):
        life(path, 0, epochs=2)
    assert path.read_bytes() == damaged


def test_a_crash_between_the_two_names_loses_nothing(tmp_path):
    assert life(tmp_path / "run.pt", 9, epochs=2) is None
    (tmp_path / "run.pt").rename(tmp_path / "run.pt.previous")
    with pytest.warns(UserWarning, match=r"run.pt is gone; the run goes on from .*run.pt.previous; delete it too"):
        result = life(tmp_path / "run.pt", 999, epochs=2)
    assert same(outcome(*life(None, 999, epochs=2)), outcome(*result))


@pytest.mark.parametrize(
    ("contents", "reason"),
    [(b"a,b\n1,2\n", "is no file of pyro_mmvae's"), (None, "is a model, not a checkpoint"), (0, "has format 0")],
)
def test_a_foreign_or_older_file_is_refused_and_never_overwritten(tmp_path, contents, reason):
    path, vae = tmp_path / "run.pt", setting()[0]
    if contents is None:
        vae.save(path)
    elif contents == 0:
        torch.save({"format": "pyro_mmvae checkpoint", "version": 0}, path)
    else:
        path.write_bytes(contents)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=reason) as caught:
        train(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1 and "\n" not in str(caught.value)


def heavy(parameters, lr):
    return mm.Adam(parameters, lr=lr, weight_decay=5.0)


heavy.__qualname__ = "Adam"


def test_a_file_of_another_run_is_refused(tmp_path):
    path, x = tmp_path / "run.pt", three_rows(20)

    def fit(vae=None, x=x, **options):
        vae = three() if vae is None else vae
        before = [p.detach().clone() for p in vae.parameters()]
        try:
            return mm.fit(vae, x, **{"epochs": 1, "progress": False, "checkpoint": path, **options})
        finally:
            if options or vae.training:
                assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters()))

    fit()
    before = path.read_bytes()
    changed = {"lr": 0.5, "seed": 1, "batch_size": 7, "warmup": 2, "clip": 1.0, "schedule": mm.constant}
    for key, value in changed.items():
        with pytest.raises(ValueError, match=rf"of a run with {key} .*, not .*; give the same, or another path"):
            fit(**{key: value})
    with pytest.raises(ValueError, match="of a run with optimizer Adam, not SGD"):
        fit(optimizer=torch.optim.SGD)
    with pytest.raises(ValueError, match=r"of a run with loss DirectELBO.*, not Objective\(.*num_particles=3.*"):
        fit(loss=mm.Objective(num_particles=3))
    with pytest.raises(ValueError, match=r"options of the optimizer .*weight_decay 0.*, not .*weight_decay 5"):
        fit(optimizer=heavy)
    with pytest.raises(ValueError, match=r"schedule <lambda>|schedule cosine \[1.0, .*\], not .*<lambda> \[1.0"):
        fit(schedule=lambda progress: 1.0 - 0.5 * progress)
    with pytest.raises(ValueError, match=r"of a run with checksum of the data \d+, not \d+"):
        fit(x={**x, "body": 2 * x["body"]})
    with pytest.raises(ValueError, match="of a run with rows 20, not 19"):
        fit(x={name: value[1:] for name, value in x.items()})
    with pytest.raises(ValueError, match="of a run with modalities"):
        fit(x={"body": x["body"]})
    with pytest.raises(ValueError, match=r"written from another model: 'prior\.\S*' does not exist there"):
        fit(three(prior="LearnedNormal"))
    frozen = three()
    frozen.modalities["body"].decoder.requires_grad_(False)
    with pytest.raises(ValueError, match=r"not exist in this one; build .*, frozen .*; or another path, .* each phase"):
        fit(frozen)
    with pytest.raises(ValueError, match=r"of a run with part 'fusion' PoE\(prior_expert=True\), not MoE\("):
        fit(three(fusion="MoE"))
    heavier, shorter = three(), three()
    heavier.modalities["body"].weight = 2.0
    with pytest.raises(ValueError, match=r"with part 'modalities\.body' Modality\(.*weight=1.0\), not .*weight=2.0\)"):
        fit(heavier)
    shorter.modalities["label"].decoder.net.append(torch.nn.Dropout(0.3))
    with pytest.raises(ValueError, match=r"with part '.*decoder\.net\.3' None, not Dropout\(inplace=False, p=0.3\)"):
        fit(shorter)
    mm.fit(shorter, x, epochs=1, progress=False, checkpoint=tmp_path / "dropout.pt")
    with pytest.raises(ValueError, match=r"with part '.*decoder\.net\.3' Dropout\(.*\), not None"):
        fit(checkpoint=tmp_path / "dropout.pt")
    one, two = (mm.Objective([mm.objectives.random_subsets(count)]) for count in (1, 2))
    mm.fit(three(), x, epochs=1, progress=False, checkpoint=tmp_path / "subsets.pt", loss=one)
    with pytest.raises(ValueError, match=r"random_subsets\(1\).*, not .*random_subsets\(2\)"):
        fit(checkpoint=tmp_path / "subsets.pt", loss=two)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="is a folder, or in none that exists"):
        fit(checkpoint=tmp_path / "nowhere" / "run.pt")
    for folder in (tmp_path, ""):
        with pytest.raises(ValueError, match="is a folder, or in none that exists"):
            fit(checkpoint=folder)


@pytest.mark.parametrize("left", [0, 9000])
def test_a_full_disk_is_warned_of_and_training_goes_on(tmp_path, full_disk, left):
    path = tmp_path / "run.pt"
    whole = life(None, 999, epochs=2)
    full_disk(left)  # the first record meets it, the later ones do not
    with pytest.warns(UserWarning, match=r"No space left.*training goes on in memory"):
        result = life(path, 999, epochs=2)
    assert same(outcome(*whole), outcome(*result)) and same(record(path)["history"]["loss"], whole[1].loss)


def test_a_full_disk_stops_training_where_the_user_wants_it_so_and_the_last_record_is_kept(tmp_path, full_disk):
    path = tmp_path / "run.pt"
    assert life(path, 5, epochs=2) is None
    before = path.read_bytes()
    full_disk(0)
    with pytest.raises(
        OSError, match=r"training stopped, as no checkpoint could be written: .*No space left"
    ) as caught:
        life(path, 999, epochs=2, if_unwritable=mm.give_up)
    assert caught.value.errno == errno.ENOSPC and path.read_bytes() == before
    assert same(outcome(*life(None, 999, epochs=2)), outcome(*life(path, 999, epochs=2)))  # there is room again


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    """As an OSError from the system call that makes the file: this test may run as root, who may write anywhere."""
    real = open

    def guarded(file, mode="r", *args, **kwargs):
        if str(file).startswith(str(tmp_path)) and mode == "xb":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", guarded)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        result = life(tmp_path / "run.pt", 999, epochs=2)
    assert same(outcome(*life(None, 999, epochs=2)), outcome(*result)) and not list(tmp_path.iterdir())
    assert {str(each.message)[:36] for each in caught} == {"no checkpoint could be written ([Err"}
    with pytest.raises(PermissionError, match="training stopped"):
        life(tmp_path / "run.pt", 999, epochs=2, if_unwritable=mm.give_up)


def test_time_decides_when_a_record_is_written(tmp_path, monkeypatch):
    """One second a step by this clock: a record at the first step, every ten steps, and at the end."""
    clock, written = [0.0], []

    def tick():
        clock[0] += 1.0
        return clock[0]

    monkeypatch.setattr("pyro_mmvae.training.checkpoint.time.monotonic", lambda: clock[0])
    write = mm.training.checkpoint.write
    monkeypatch.setattr("pyro_mmvae.training.checkpoint.write", lambda *a: (written.append(clock[0]), write(*a)))

    def optimizer(parameters, lr):
        optim = torch.optim.Adam(parameters, lr=lr)
        optim.register_step_post_hook(lambda *_: tick() and None)
        return optim

    train(tmp_path / "run.pt", every=10.0, epochs=4, optimizer=optimizer)
    assert written == [1.0, 11.0, 21.0, 28.0]


def test_an_optimizer_whose_state_no_file_can_hold_is_named(tmp_path):
    class Odd(torch.optim.SGD):
        def state_dict(self):
            return {**super().state_dict(), "odd": {1, 2}}

    with pytest.raises(TypeError, match=r"\['optimizer'\]\['odd'\] is a set; a file holds tensors, numbers and text"):
        life(tmp_path / "run.pt", 999, Odd, epochs=1)
