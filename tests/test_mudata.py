"""MuData and AnnData in and out: values to the last bit, in the order of obs_names, whatever a modality lacks."""

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from inputs import contents

import pyro_mmvae as mm

CELLS = [f"cell{i}" for i in range(12)]
RNA, PROTEIN = [7, 2, 9, 0, 5, 3, 11, 1], [4, 3, 2, 8, 0, 6]  # which cells each has, in an order of its own


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    counts = random.poisson(0.7, (12, 5)).astype("f4")
    return {"counts": counts, "scaled": random.normal(size=(12, 5)), "protein": random.normal(size=(12, 3))}


def part(cells, x, **slots):
    names = pd.DataFrame(index=[f"{x.shape[1]}.{j}" for j in range(x.shape[1])])
    return anndata.AnnData(x, obs=pd.DataFrame(index=[CELLS[i] for i in cells]), var=names, **slots)


@pytest.fixture(params=[scipy.sparse.csr_matrix, scipy.sparse.csc_matrix, scipy.sparse.csr_array, np.asarray])
def multi(request, arrays):
    rna = part(RNA, request.param(arrays["counts"][RNA]), layers={"scaled": arrays["scaled"][RNA]})
    holes = arrays["protein"][PROTEIN]
    holes[1, 2] = np.nan
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({"rna": rna, "protein": part(PROTEIN, holes)})


def expected(values, cells, names):
    return torch.tensor(np.stack([values[CELLS.index(n)] if CELLS.index(n) in cells else 0 * values[0] for n in names]))


def test_values_and_order_of_a_mudata_with_missing_cells(multi, arrays):
    before = contents({"rna": multi["rna"].X, "protein": multi["protein"].X})
    x, mask = mm.from_mudata(multi)
    names = list(multi.obs_names)
    assert sorted(names) == sorted({CELLS[i] for i in RNA + PROTEIN}) and len(x["rna"]) == len(names) == 11
    assert torch.equal(x["rna"], expected(arrays["counts"], RNA, names)) and x["rna"].dtype == torch.float32
    assert mask["rna"].tolist() == [CELLS.index(name) in RNA for name in names]
    protein = expected(arrays["protein"], PROTEIN, names)
    there = torch.tensor([[CELLS.index(name) in PROTEIN] * 3 for name in names])
    there[names.index(CELLS[3]), 2] = False  # the NaN
    assert torch.equal(mask["protein"], there) and torch.equal(x["protein"], torch.where(there, protein, 0))
    scaled, _ = mm.from_mudata(multi, {"rna": "scaled"})
    assert torch.equal(scaled["rna"], expected(arrays["scaled"], RNA, names))
    assert contents({"rna": multi["rna"].X, "protein": multi["protein"].X}) == before


def vae_of(sizes, counts=()):
    parts = {}
    for name, size in sizes.items():
        head = mm.PoissonLikelihood if name in counts else mm.NormalLikelihood
        parts[name] = mm.Modality(head(mm.mlp(2, 8, size)), mm.encoder(size, 8, dim=2))
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())


def test_the_posterior_is_written_beside_its_cells(multi, arrays):
    vae = vae_of({"rna": 5, "protein": 3}, ["rna"])
    x, mask = mm.from_mudata(multi)
    mm.fit(vae, x, mask, epochs=1, progress=False)
    mm.to_mudata(vae, multi)
    for name, row, sd in zip(multi.obs_names, multi.obsm["X_mmvae"], multi.obsm["X_mmvae_sd"]):
        cell, given = CELLS.index(name), {}
        if cell in RNA:
            given["rna"] = torch.tensor(arrays["counts"][[cell]]).double()
        if cell in PROTEIN:
            given["protein"] = torch.tensor(arrays["protein"][[cell]])
            if cell == 3:
                given["protein"][0, 2] = torch.nan
        q = vae.posterior(given)
        np.testing.assert_allclose(row, q.mean[0].detach(), rtol=1e-10)
        np.testing.assert_allclose(sd, q.stddev[0].detach(), rtol=1e-10)
    turned = multi[list(reversed(multi.obs_names))]  # obsm goes with the cells
    np.testing.assert_array_equal(turned.obsm["X_mmvae"], multi.obsm["X_mmvae"][::-1])


def test_layers_and_obsm_of_an_anndata_are_modalities(arrays, tmp_path):
    frame = pd.DataFrame(arrays["protein"], index=CELLS, columns=list("abc"))
    sparse = scipy.sparse.csr_matrix(arrays["counts"])
    data = part(range(12), sparse, layers={"scaled": arrays["scaled"]}, obsm={"protein": frame})
    slots = {"rna": "X", "levels": "scaled", "protein": "protein"}
    x, mask = mm.from_mudata(data, slots)
    assert all(m.all() and m.shape == (12,) for m in mask.values())
    for name, array in (("rna", "counts"), ("levels", "scaled"), ("protein", "protein")):
        assert torch.equal(x[name].double(), torch.tensor(arrays[array]).double())
    assert mm.from_mudata(data)[0].keys() == {"X"}
    data.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    again, _ = mm.from_mudata(backed, slots)
    backed.file.close()
    assert all(torch.equal(again[name], x[name]) for name in slots)
    vae = vae_of({"rna": 5, "levels": 5, "protein": 3})
    mm.to_mudata(vae, data, slots, key="X_z")
    np.testing.assert_allclose(data.obsm["X_z"], vae.posterior(x).mean.detach(), rtol=1e-10)


def test_a_posterior_without_a_formula_is_averaged_over_draws(arrays):
    data = part(range(12), arrays["protein"])
    vae = vae_of({"X": 3})
    exact = vae.posterior({"X": arrays["protein"]})
    vae.fusion = mm.Flow(mm.PoE(), [torch.distributions.AffineTransform(1.0, 2.0)])
    mm.to_mudata(vae, data)
    error = (torch.tensor(data.obsm["X_mmvae"]) - (1 + 2 * exact.mean)) / (2 * exact.stddev)
    assert error.abs().max() < 5 / 1000**0.5
    ratio = torch.tensor(data.obsm["X_mmvae_sd"]) / (2 * exact.stddev)
    assert ((ratio - 1).abs() < 5 / 2000**0.5).all()


def refused(message, call, *args):
    with pytest.raises(ValueError, match=message) as caught:
        call(*args)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_refused_in_one_line(arrays):
    data = part(range(12), arrays["counts"], layers={"scaled": arrays["scaled"]}, obsm={"scaled": arrays["scaled"]})
    refused(
        "the slot 'raw' is there neither in layers nor in obsm; there are X, scaled", mm.from_mudata, data, {"a": "raw"}
    )
    refused("the slot 'scaled' stands in layers and in obsm", mm.from_mudata, data, {"a": "scaled"})
    refused("this is a dict; give a MuData or an AnnData", mm.from_mudata, {})
    vae = vae_of({"rna": 5})
    refused("x is a AnnData; give a dictionary .*from_mudata", vae.posterior, data)
    data.obs_names = ["same"] * 12
    refused("two cells have one name", mm.from_mudata, data)
    with mudata.set_options(pull_on_update=False):
        multi = mudata.MuData({"rna": part(RNA, arrays["counts"][RNA])})
    refused("slots names 'dna'.* there is rna", mm.from_mudata, multi, {"dna": "X"})
    multi.mod["rna"] = part(range(12), arrays["counts"])
    refused("has the cell 'cell4', which the MuData lacks; call its .update", mm.from_mudata, multi)
    bad = part(range(12), -arrays["counts"] - 1)
    refused("off the support", mm.to_mudata, vae_of({"X": 5}, ["X"]), bad)
    assert not bad.obsm
