"""Data on disk: read in order, once and ahead, and training that cannot tell where they lie."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from cases import RECIPES, SIZES, three, three_holes, three_rows
from torch.utils.data import DataLoader

import pyro_mmvae as mm

ROWS = 50


class Spy:
    """An array that notes who reads what of it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.asked, self.threads = [], []

    def __getitem__(self, index):
        self.asked.append(np.arange(len(self.array))[index])
        self.threads.append(threading.current_thread())
        return self.array[index]


class Once:
    """A loader whose one batch is all of the data, in a new order each epoch."""

    def __init__(self, x, mask):
        self.x, self.mask = x, mask

    def __len__(self):
        return 1

    def __iter__(self):
        index = torch.randperm(len(next(iter(self.x.values()))))
        yield {k: v[index] for k, v in self.x.items()}, {k: v[index] for k, v in self.mask.items()}


def as_npy(arrays, folder):
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}


def as_hdf5(arrays, folder):
    h5py = pytest.importorskip("h5py")
    file = h5py.File(folder / "rows.h5", "w")
    return {
        name: file.create_dataset(name, data=array, chunks=(16, *array.shape[1:])) for name, array in arrays.items()
    }


def as_zarr(arrays, folder):
    zarr = pytest.importorskip("zarr")
    found = {}
    for name, array in arrays.items():
        found[name] = zarr.create_array(
            folder / name, shape=array.shape, dtype=array.dtype, chunks=(16, *array.shape[1:])
        )
        found[name][:] = array
    return found


STORES = {
    "npy": as_npy,
    "hdf5": as_hdf5,
    "zarr": as_zarr,
    "tensors": lambda arrays, folder: {name: torch.as_tensor(array) for name, array in arrays.items()},
}


def trained(x, mask, **options):
    torch.manual_seed(5)
    vae = three()
    history = mm.fit(vae, x, mask, epochs=3, batch_size=16, lr=1e-2, progress=False, **options)
    return history.loss, [p.detach() for p in vae.parameters()]


@pytest.mark.parametrize("store", STORES)
def test_training_gives_the_very_weights_that_it_gives_in_memory(store, tmp_path):
    x, mask = three_rows(ROWS), three_holes(ROWS)
    (tmp_path / "x").mkdir(), (tmp_path / "mask").mkdir()
    arrays = STORES[store]({k: v.numpy() for k, v in x.items()}, tmp_path / "x")
    masks = STORES[store]({k: v.numpy() for k, v in mask.items()}, tmp_path / "mask")
    loss, weights = trained(mm.MultimodalDataset(arrays, masks), None)
    expected, theirs = trained(x, mask)
    assert loss == expected
    assert all(torch.equal(a, b) for a, b in zip(weights, theirs))


@pytest.mark.parametrize("source", ["dataset", "loader"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns_the_same_from_memory_from_disk_and_from_a_loader(recipe, source):
    """With rows of which nothing is known in front, where a network is looked at first."""
    x = {name: torch.randn(24, size) for name, size in SIZES.items()}
    mask = {name: torch.arange(24) % 4 == place for place, name in enumerate(x)}  # no two cover every row
    for value in mask.values():
        value |= torch.arange(24) >= 20
        value[:3] = False
    weights = []
    for data in ((x, mask), mm.MultimodalDataset(x, mask) if source == "dataset" else Once(x, mask)):
        pyro.set_rng_seed(0)
        vae, loss = RECIPES[recipe]()
        mm.fit(vae, data, loss=loss, epochs=2, batch_size=24, progress=False)
        weights.append(list(vae.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_loader_has_a_network_run_for_its_first_batch_alone(monkeypatch):
    runs, look = [], mm.MultimodalVAE.likelihoods
    monkeypatch.setattr(mm.MultimodalVAE, "likelihoods", lambda *args: runs.append(args) or look(*args))
    x, mask = three_rows(ROWS), three_holes(ROWS)
    batches = DataLoader(mm.MultimodalDataset(x, mask), 10)
    mm.fit(three(), batches, epochs=3, progress=False)
    assert len(runs) == 2  # one to check the first, one to remember what the others are checked against
    bad = {**x, "counts": torch.full_like(x["counts"], -1)}
    with pytest.raises(ValueError, match="modality 'counts' has the value -1"):
        mm.fit(three(), [(x, mask), (bad, mask)], epochs=1, progress=False)


def test_nan_on_disk_is_missing(tmp_path):
    x, mask = three_rows(ROWS), three_holes(ROWS)
    fine = {k: mask[k].reshape(*mask[k].shape, *[1] * (v.dim() - mask[k].dim())) for k, v in x.items()}
    holes = {k: torch.where(fine[k], v.double(), torch.nan) for k, v in x.items()}
    stored = as_npy({k: v.numpy() for k, v in holes.items()}, tmp_path)
    loss, weights = trained(mm.MultimodalDataset(stored), None)
    expected, theirs = trained(holes, None)
    assert loss == pytest.approx(expected, rel=1e-12)  # masks are as coarse as a batch allows: other sums
    assert all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(weights, theirs))


def test_a_batch_is_one_access_by_rising_row_numbers_in_the_order_asked_for(monkeypatch):
    monkeypatch.setattr(mm.dataset, "GAP", 0)
    body = np.random.default_rng(0).normal(size=(ROWS, 3))
    spy = Spy(body)
    dataset = mm.MultimodalDataset({"body": spy}, rows=range(10, 40))
    assert [index.tolist() for index in spy.asked] == [[10]]  # the one row that is looked at beforehand
    index = [7, 3, 29, 3, -1]
    assert np.array_equal(dataset[index][0]["body"], body[10:40][index])
    assert spy.asked[1].tolist() == [13, 17, 39] and len(spy.asked) == 2
    assert np.array_equal(dataset[5:20:4][0]["body"], body[10:40][5:20:4])
    assert np.array_equal(dataset[torch.tensor([2, 1])][0]["body"], body[[12, 11]])
    assert np.array_equal(dataset[np.arange(30) > 25][0]["body"], body[36:40])
    assert np.array_equal(dataset[4][0]["body"], body[14]) and len(dataset) == 30
    for wrong, error in ((30, IndexError), ([0, -31], IndexError), ([0.5], ValueError), ([[0]], ValueError)):
        with pytest.raises(error):
            dataset[wrong]


def test_rows_that_lie_close_are_read_along_in_blocks(monkeypatch):
    body, mask = np.arange(600.0).reshape(200, 3), np.arange(200) % 3 > 0
    monkeypatch.setattr(mm.dataset, "GAP", 2 * 24)  # two rows
    monkeypatch.setattr(mm.dataset, "BLOCK", 10 * 24)
    spy = Spy(body)
    dataset = mm.MultimodalDataset({"body": spy}, {"body": mask})
    for index, asked in (
        ([14, 11, 14, 39, 12, 13], None),  # 24 between five rows
        ([13, 11, 14, 12, 24], [(11, 21), (21, 25)]),  # nine between five
        ([60, 59, 61, 62, 70], [(59, 69), (69, 71)]),
        (range(95, 131), [(95, 105), (105, 115), (115, 125), (125, 131)]),
        ([5], None),
        ([], None),
    ):
        spy.asked.clear()
        x, m = dataset[np.array(index, int)]
        assert np.array_equal(x["body"], body[list(index)]) and np.array_equal(m["body"], mask[list(index)])
        expected = [sorted(set(index))] if asked is None else [list(range(*each)) for each in asked]
        assert [rows.tolist() for rows in spy.asked] == expected
    whole = mm.MultimodalDataset({"body": torch.tensor(body)})
    assert np.array_equal(whole[[4, 2, 3]][0]["body"], body[[4, 2, 3]])


def test_small_batches_are_read_several_at_once_and_are_the_same(monkeypatch):
    x = {"body": torch.randn(100, 3), "label": torch.randint(4, (100,))}
    monkeypatch.setattr(mm.training.batches, "AT_ONCE", 3 * 8 * (3 * 8 + 8) + 7)  # three batches of eight rows
    spies = {name: Spy(value.double().numpy()) for name, value in x.items()}
    source = mm.training.batches.batches_of(three(), mm.MultimodalDataset(spies), None, 8)
    assert source.at_once == 3
    spies["body"].asked.clear()
    state = torch.get_rng_state()
    found = list(source.walk())
    assert len(spies["body"].asked) == 5 and [len(batch["body"]) for batch in found] == [8] * 12 + [4]
    torch.set_rng_state(state)
    order = torch.randperm(100).split(8)
    for name in x:
        assert all(torch.equal(batch[name], x[name][index].double()) for batch, index in zip(found, order, strict=True))
    torch.set_rng_state(state)
    for batch, again in zip(found[7:], source.walk(start=7), strict=True):
        assert torch.equal(batch["body"], again["body"])


def test_one_thread_reads_ahead_while_batches_are_computed_with(monkeypatch):
    monkeypatch.setattr(mm.training.batches, "AT_ONCE", 1)
    monkeypatch.setattr(mm.dataset, "GAP", 0)
    ready = threading.Event()

    class Signals(Spy):
        def __getitem__(self, index):
            found = super().__getitem__(index)
            if len(self.asked) == 6:
                ready.set()
            return found

    spy = Signals(torch.randn(64, 3).numpy())
    data = mm.MultimodalDataset({"body": spy})
    source = mm.training.batches.batches_of(three(), data, None, 8)
    spy.asked.clear(), spy.threads.clear()
    state = torch.get_rng_state()
    walk = source.walk()
    for _ in range(4):
        next(walk)
    assert ready.wait(timeout=60), "nobody reads while the fourth batch is in hand"  # two batches ahead of it
    rest = list(walk)
    assert len(rest) == 4 and len(spy.asked) == 8
    assert len(set(spy.threads)) == 1 and spy.threads[0] is not threading.main_thread()
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    order = torch.randperm(64)  # all that is random is the order
    assert torch.equal(after, torch.get_rng_state())
    assert [i.tolist() for i in spy.asked] == [sorted(i.tolist()) for i in order.split(8)]
    torch.set_rng_state(state)
    for batch, again in zip(rest, source.walk(start=4), strict=True):
        assert torch.equal(batch["body"], again["body"])


def test_a_data_loader_takes_it_as_it_is(tmp_path):
    x, mask = three_rows(ROWS), three_holes(ROWS)
    stored = as_npy({k: v.numpy() for k, v in x.items()}, tmp_path)
    dataset = mm.MultimodalDataset(stored, mask)
    for workers in (0, 2):
        found = list(DataLoader(dataset, batch_size=16, num_workers=workers))
        for name in x:
            assert torch.equal(torch.cat([part[name] for part, _ in found]), x[name])
            assert torch.equal(torch.cat([part[name] for _, part in found]), mask[name])
    vae = three()
    means = torch.cat([vae.posterior(*part).mean for part in DataLoader(dataset, 16)])
    assert torch.allclose(means, vae.posterior(x, mask).mean)
    torch.manual_seed(3)
    history = mm.fit(three(), DataLoader(dataset, 16, shuffle=True), epochs=20, lr=1e-2, progress=False)
    assert history.loss[-1] < history.loss[0] - 0.3


def test_a_bad_value_is_found_when_it_is_read_and_named_by_its_row_on_disk():
    x = {k: v.numpy() for k, v in three_rows(ROWS).items()}
    for name, value, found in (("counts", -1, "has the value -1 in row 33, off the support"), ("label", 9, "row 33")):
        wrong = {**x, name: x[name].copy()}
        wrong[name][33] = value
        for rows in (None, range(20, 40), [33, 34]):
            with pytest.raises(ValueError, match=found) as error:
                mm.fit(three(), mm.MultimodalDataset(wrong, rows=rows), batch_size=7, epochs=1, progress=False)
            assert f"modality {name!r}" in str(error.value)
    body = np.where(np.arange(ROWS)[:, None] == 33, np.inf, x["body"])
    with pytest.raises(ValueError, match="'body' has an infinity in column 0 in row 33"):
        mm.fit(three(), mm.MultimodalDataset({"body": body}), epochs=1, progress=False)
    with pytest.raises(ValueError, match="'body' has an infinity in column 0 in row 33"):
        mm.MultimodalDataset({"body": body}, rows=[33])


A = np.zeros((4, 3))
AT_THE_DOOR = {
    "no modality": lambda: ({},),
    "'a' is a list": lambda: ({"a": [1, 2]},),
    "'b' has 5 rows where 'a' has 4": lambda: ({"a": A, "b": np.zeros(5)},),
    "'a' is empty": lambda: ({"a": A[:0]},),
    "'a' is a single number|'a' is empty": lambda: ({"a": np.float64(1)},),
    "'a' is of dtype <U1": lambda: ({"a": np.array(["x"] * 4)},),
    "'a' is of dtype complex128|torch.complex128": lambda: ({"a": A.astype(complex)},),
    "masks names 'b'": lambda: ({"a": A}, {"b": A > 0}),
    r"mask of 'a' has shape \(3,\)": lambda: ({"a": A}, {"a": np.zeros(3, bool)}),
    r"mask of 'a' has shape \(4, 2\)": lambda: ({"a": A}, {"a": np.zeros((4, 2), bool)}),
    "mask of 'a' is of dtype": lambda: ({"a": A}, {"a": np.zeros(4)}),
}


@pytest.mark.parametrize("message", AT_THE_DOOR)
def test_arrays_that_do_not_fit_are_refused_at_the_door(message):
    with pytest.raises(ValueError, match=message) as error:
        mm.MultimodalDataset(*AT_THE_DOOR[message]())
    assert "\n" not in str(error.value)


def test_what_a_dataset_cannot_take():
    dataset = mm.MultimodalDataset({"body": np.zeros((4, 3))})
    with pytest.raises(ValueError, match="a mask beside a MultimodalDataset"):
        mm.fit(three(), dataset, {"body": np.ones(4, bool)}, progress=False)
    for question in (mm.log_likelihood, mm.impute, mm.certify, lambda vae, x: mm.fit(vae, x, validation=x)):
        with pytest.raises(ValueError, match="x is a MultimodalDataset"):
            question(three(), dataset)
    with pytest.raises(ValueError, match="rows names no row"):
        mm.MultimodalDataset({"body": np.zeros((4, 3))}, rows=[])
    with pytest.raises(ValueError, match="unknown modality 'nose'"):
        mm.fit(three(), mm.MultimodalDataset({"nose": np.zeros((4, 3))}), progress=False)


def a_file(path, rows, features):
    """Standard normal numbers, written in parts."""
    part = np.random.default_rng(0).standard_normal((rows // 10, features), dtype=np.float32)
    if path.suffix == ".npy":
        array = np.lib.format.open_memmap(path, "w+", np.float32, (rows, features))
    else:
        array = pytest.importorskip("h5py").File(path, "w").create_dataset("x", (rows, features), np.float32)
    for start in range(0, rows, len(part)):
        array[start : start + len(part)] = part
    array.flush()


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")
@pytest.mark.parametrize("name", ["x.npy", "x.h5"])
def test_it_trains_on_ten_times_the_memory_that_it_may_take(name, tmp_path):
    """640 MB on disk, 60 MB to take; memory_worker.py says what is limited."""
    path, here = tmp_path / name, Path(__file__).parent
    a_file(path, 80_000, 2000)
    env = {**os.environ, "PYTHONPATH": str(here.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here / "memory_worker.py"), str(path), "60"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    size = path.stat().st_size
    path.unlink()
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert size > 10 * 60 * 2**20
    assert found["refused"]  # the limit bites: loading the file fails
    # what there is to learn of 2000 standard normal numbers is a mean of 0
    assert found["loss"] == pytest.approx(2000 * 1.4189, rel=0.02)
    assert found["after"] <= found["before"] + 60 * 2**20


def test_a_run_that_a_failing_disk_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(mm.training.batches, "AT_ONCE", 1)

    class Fails(Spy):
        def __getitem__(self, index):
            if len(self.asked) == 9:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    x, path = three_rows(ROWS), tmp_path / "run"
    loss, weights = trained(x, None)
    with pytest.raises(OSError, match="the disk is gone"):
        trained(mm.MultimodalDataset({**x, "body": Fails(x["body"])}), None, checkpoint=path, every=0)
    assert path.exists()
    again, theirs = trained(mm.MultimodalDataset(x), None, checkpoint=path, every=0)
    assert again == loss
    assert all(torch.equal(a, b) for a, b in zip(weights, theirs))
