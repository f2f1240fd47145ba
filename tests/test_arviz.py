"""The way to ArviZ: groups, dims, labels, values and the round trip through a file."""

import arviz1
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import three, three_holes, three_rows
from exact import LinearGaussian

import pyro_mmvae as mm

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def test_the_adapter_alone():
    arviz1.round_trip(arviz1.load())


def test_groups_dims_and_values_of_the_exact_model():
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(6)
    x["a"][2], x["b"][3, 1] = torch.nan, torch.nan
    found = mm.to_arviz(vae, x, num_draws=4000, row_names=list("stuvwx"), feature_names={"b": ["p", "q", "r"]})
    groups = (
        "posterior sample_stats constant_data posterior_predictive log_likelihood observed_data prior prior_predictive"
    )
    assert set(groups.split()) <= set(found)
    assert found.posterior["z"].dims == ("chain", "draw", "row", "latent")
    assert found.posterior_predictive["b"].dims == ("chain", "draw", "b_row", "b_feature")
    assert found.observed_data["a"].coords["a_row"].values.tolist() == list("stvwx")
    assert found.observed_data["b"].coords["b_feature"].values.tolist() == ["p", "q", "r"]
    assert not np.isnan(found.observed_data["a"].values).any()
    assert np.isnan(found.observed_data["b"].values).sum() == 1
    row = {k: torch.as_tensor(v[:1]) for k, v in x.items()}
    mean, covariance = truth.posterior(row)
    z = found.posterior["z"].values[0, :, 0]
    assert np.abs(z.mean(0) - mean[0].numpy()).max() < 4 * covariance[0].diagonal().max().sqrt() / 4000**0.5
    scored = found.log_likelihood["a"].sel(a_row="s").values[0, :5]
    loc = torch.as_tensor(z[:5]) @ truth.loading["a"].T + truth.offset["a"]
    expected = torch.distributions.Normal(loc, truth.noise["a"]).log_prob(x["a"][0]).sum(-1)
    np.testing.assert_allclose(scored, expected.numpy(), rtol=1e-10)
    weight = found.sample_stats["log_weight"].values[0, :, 0]
    np.testing.assert_allclose(weight, truth.log_prob(row).item(), rtol=1e-10)  # the guide is exact
    assert found.sample_stats["khat"].dims == ("row",) and np.isneginf(found.sample_stats["khat"].values[0])
    assert found.constant_data["a_observed"].values.tolist() == [True, True, False, True, True, True]
    assert found.posterior.coords["row"].values.tolist() == list("stuvwx")
    assert np.abs(found.prior["z"].values.mean()) < 0.06 and found.prior_predictive["c"].shape == (1, 4000, 5)


def test_round_trip_of_a_model_with_holes(tmp_path):
    import xarray

    vae, x, mask = three(), three_rows(8), three_holes(8)
    found = mm.to_arviz(vae, x, mask, num_draws=20)
    found.to_netcdf(str(tmp_path / "posterior.nc"))
    stored = xarray.open_dataset(tmp_path / "posterior.nc", group="posterior")
    np.testing.assert_array_equal(stored["z"].values, found.posterior["z"].values)
    for group in ("sample_stats", "prior", "prior_predictive", "posterior_predictive", "log_likelihood"):
        read = xarray.open_dataset(tmp_path / "posterior.nc", group=group)
        assert set(read) == set(found[group]) and read.sizes == found[group].sizes, group
        for name in read:
            np.testing.assert_array_equal(read[name].values, found[group][name].values)
    constant = xarray.open_dataset(tmp_path / "posterior.nc", group="constant_data")
    assert constant["label_observed"].values.tolist() == mask["label"].tolist()
    labels = xarray.open_dataset(tmp_path / "posterior.nc", group="observed_data")["label"]
    assert labels.coords["label_row"].values.tolist() == mask["label"].nonzero().squeeze(1).tolist()
    np.testing.assert_array_equal(labels.values[:, 0], x["label"][mask["label"]])


def test_labels_of_another_number_are_refused():
    vae, x = three(), three_rows(4)
    with pytest.raises(ValueError, match="row_names has 3 labels for 4"):
        mm.to_arviz(vae, x, row_names=[1, 2, 3])
    with pytest.raises(ValueError, match=r"feature_names\['body'\] has 1 labels for 3"):
        mm.to_arviz(vae, x, feature_names={"body": ["one"]})


@pytest.mark.parametrize("event", [(), (2, 3)], ids=["a number", "a matrix"])
def test_a_code_of_a_pair_is_no_vector(event):
    """A single number has no axis of entries; a matrix has one of them all."""

    def model(x=None, mask=None):
        rows = 1 if x is None else len(x["a"])
        with pyro.plate("data", rows, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(event), 1.0).expand([rows, *event]).to_event(len(event)))
            loc = z.flatten(z.dim() - len(event)).mean(-1) if event else z
            pyro.sample("a", dist.Normal(loc, 1.0), obs=None if x is None else x["a"])

    def guide(x, mask=None):
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x["a"]), *event), 1.0).to_event(len(event)))

    found = mm.to_arviz(mm.Pair(model, guide), {"a": torch.randn(4)}, num_draws=7)
    assert found.posterior["z"].dims == ("chain", "draw", "row", "latent")[: 4 if event else 3]
    assert found.posterior["z"].shape == ((1, 7, 4, 6) if event else (1, 7, 4))
    assert found.prior["z"].shape == ((1, 7, 6) if event else (1, 7))


def test_codes_are_those_that_the_guide_draws_from_what_is_given_and_the_model_explains_all():
    """The mean weight is p(x) of all modalities; b is predicted from a alone."""
    truth = LinearGaussian()
    x = truth.simulate(6)
    found = mm.to_arviz(truth.vae(), x, given=["a"], num_draws=4000)
    mean, covariance = truth.posterior(x, subset=["a"])
    z = torch.as_tensor(found["posterior"]["z"].values)[0]
    error = 4.5 * covariance.diagonal(dim1=1, dim2=2).sqrt() / 4000**0.5
    assert ((z.mean(0) - mean).abs() < error).all()
    weights = (torch.as_tensor(found["sample_stats"]["log_weight"].values)[0] - truth.log_prob(x)).exp()
    assert ((weights.mean(0) - 1).abs() < 4.5 * weights.std(0) / 4000**0.5).all() and (weights.std(0) > 0.1).all()
    b = torch.as_tensor(found["posterior_predictive"]["b"].values)[0]
    loc = mean @ truth.loading["b"].T + truth.offset["b"]
    assert ((b.mean(0) - loc).abs() < 4.5 * b.std(0) / 4000**0.5).all()
