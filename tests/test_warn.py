"""Every warning points at the line of the user's that led to it, however many lines of ours lie between."""

import inspect
import warnings

import pyro.distributions as dist
import pytest
import torch

import pyro_mmvae as mm


def build(scale=1.0, rows=400):
    torch.manual_seed(0)
    x = {"a": scale * torch.randn(rows, 6), "b": torch.randn(rows, 1)}
    parts = {
        k: mm.Modality(mm.NormalLikelihood(mm.mlp(2, v.shape[1]), 1.0), mm.encoder(v.shape[1], 8, dim=2))
        for k, v in x.items()
    }
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE()), x


def drowned(tmp_path, rows=400):
    vae, x = build(1e4, rows)
    return "pulls", lambda: mm.fit(vae, x, epochs=1, batch_size=4, lr=0.0, progress=False)


def collapsed(tmp_path, rows=400):
    like, x = build(rows=rows)
    prior = lambda experts: dist.Normal(torch.zeros(experts.rows, 1, 2), 1.0).to_event(1)  # noqa: E731
    vae = mm.MultimodalVAE(like.modalities, mm.StandardNormal(2), prior)
    return "collapsed", lambda: mm.fit(vae, x, epochs=1, batch_size=4, lr=0.0, progress=False)


def full(tmp_path):
    vae, x = build()
    (tmp_path / "run.partial").mkdir()  # where a record is written before it gets its name
    path = tmp_path / "run"
    return "no checkpoint", lambda: mm.fit(vae, x, epochs=1, lr=0.0, progress=False, checkpoint=path)


def damaged(tmp_path):
    vae, x = build()
    for _ in range(2):
        mm.fit(vae, x, epochs=1, lr=0.0, progress=False, checkpoint=tmp_path / "run", every=0)
    (tmp_path / "run").write_bytes((tmp_path / "run").read_bytes()[:-100])
    return "goes on from", lambda: mm.fit(vae, x, epochs=1, lr=0.0, progress=False, checkpoint=tmp_path / "run")


def never_compiled(tmp_path):
    vae, x = build(rows=8)
    mask = {"a": torch.arange(8) < 4, "b": torch.arange(8) >= 4}
    run = {"epochs": 1, "batch_size": 1, "lr": 0.0, "progress": False, "compile": "eager"}
    return "every batch lacked", lambda: mm.fit(vae, x, mask, **run)


def never_seen(tmp_path):
    vae, x = build()
    x["a"][:, 2] = torch.nan
    return "observed in no row", lambda: mm.fit(vae, x, epochs=1, lr=0.0, progress=False)


MAKE = [drowned, collapsed, full, damaged, never_compiled, never_seen]


@pytest.mark.parametrize("make", MAKE, ids=lambda make: make.__name__)
def test_it_points_here(make, tmp_path):
    part, call = make(tmp_path)
    lines, first = inspect.getsourcelines(call)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert caught
    for found in caught:
        assert part in str(found.message)
        assert found.filename == __file__
        assert first <= found.lineno < first + len(lines)


@pytest.mark.parametrize("make", [drowned, collapsed])
@pytest.mark.parametrize("steps", [99, 100])
def test_runs_of_a_hundred_steps_are_looked_at_once_and_shorter_ones_never(make, steps, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(tmp_path, rows=4 * steps)[1]()
    assert len(caught) == steps - 99


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        ({"b": torch.zeros(20, dtype=torch.bool)}, "modality 'b' is observed in no row"),
        (
            {"a": torch.arange(6).expand(20, 6) % 3 > 0},
            "of modality 'a' 2 of 6 entries are observed in no row, first [0]",
        ),
        ({"a": torch.eye(20, 6, dtype=torch.bool), "b": torch.arange(20) == 3}, None),
    ],
)
def test_what_no_row_has_is_named_before_it_is_not_learnt(mask, found):
    vae, x = build(rows=20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mm.fit(vae, x, mask, epochs=1, progress=False)
    rest = "; nothing of that is learnt, and what is said of it means nothing: leave it out"
    assert [str(one.message) for one in caught] == ([] if found is None else [found + rest])
