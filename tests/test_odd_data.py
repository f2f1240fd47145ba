"""Data as they come: constant and rounded columns, arrays of all kinds, other models' batches, names that are none."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from cases import three, three_rows
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_mmvae as mm


def test_a_constant_column_has_a_scale_of_one():
    rows = np.c_[np.full(1000, 0.1), np.random.default_rng(0).normal(size=1000)].astype(np.float32)
    scale = mm.guess_modalities({"lab": rows}, dim=2)["lab"].decoder.net[-1].scale
    assert scale[0] == 1 and scale[1] == pytest.approx(1, abs=0.1)
    rows = np.c_[np.full(1000, 0.1), np.full(1000, 1.7e9 + 0.1)]  # whose means are rounded
    assert mm.guess_modalities({"lab": rows}, dim=2)["lab"].decoder.net[-1].scale.tolist() == [1, 1]


def test_large_whole_numbers_are_counts_and_short_floats_do_not_overflow():
    found = mm.guess_modalities({"total": np.array([1_200_000, 900_000, 5])}, dim=2)["total"]
    assert type(found.decoder) is mm.NegativeBinomialLikelihood
    tall = np.random.default_rng(0).normal(170, 10, (2000, 2)).astype(np.float16)
    assert bool(mm.guess_modalities({"h": tall}, dim=2)["h"].decoder.net[-1].loc.isfinite().all())
    assert type(mm.guess_modalities({"v": 2e7 + np.random.rand(50, 2)}, dim=2)["v"].decoder) is mm.NormalLikelihood


def test_measurements_so_large_that_single_precision_has_whole_numbers_alone_are_no_counts(single):
    money, reads = 1e9 * torch.randn(200, 3).exp(), torch.tensor([[3.0, 2e7], [0.0, 1e7]])
    assert bool((money == money.round()).all())
    money = {"money": money.clamp(min=1e7)}
    vae = mm.MultimodalVAE(mm.guess_modalities(money, dim=1, hidden=4), mm.StandardNormal(1), mm.PoE())
    assert type(vae.modalities["money"].decoder) is mm.NormalLikelihood
    error = mm.imputation_error(vae, money, visible={"money": torch.arange(200) % 2 == 0})["money"]
    assert error.rmse < 2 * error.baseline_rmse
    assert type(mm.guess_modalities({"reads": reads}, dim=1)["reads"].decoder) is mm.NegativeBinomialLikelihood


def test_a_dataset_reads_masked_arrays_series_and_sparse_matrices_by_position():
    pandas, sparse = pytest.importorskip("pandas"), pytest.importorskip("scipy.sparse")
    age = np.ma.masked_equal(np.where(np.arange(1000) % 2 == 0, -999.0, 60.0)[:, None], -999.0)
    batch = mm.MultimodalDataset({"age": age}).batch(range(1000))
    assert float(batch.mask["age"].float().mean()) == 0.5 and float(batch["age"].min()) == 0
    assert mm.from_nan({"age": list(age[:4])})[1]["age"].tolist() == [False, True, False, True]
    series = pandas.Series([0.0, 10.0, 20.0], index=[2, 1, 0])
    assert mm.MultimodalDataset({"a": series})[[0, 2]][0]["a"].tolist() == [0.0, 20.0]
    matrix = sparse.random(30, 4, 0.3, format="coo", random_state=0)
    found = mm.MultimodalDataset({"rna": matrix})[[4, 1]][0]["rna"]
    assert np.array_equal(found.numpy(), matrix.toarray()[[4, 1]])


def test_a_mask_in_another_order_is_refused():
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame({"u": [10.0, 20.0, 30.0]}, index=["p3", "p2", "p1"])
    seen = pandas.Series([True, False, False], index=["p1", "p2", "p3"])
    with pytest.raises(ValueError, match="modality 'a' in mask has another index than 'a'"):
        mm.Batch.of({"a": x}, {"a": seen})
    vae = mm.MultimodalVAE(mm.guess_modalities({"a": x}, dim=2), mm.StandardNormal(2), mm.PoE())
    with pytest.raises(ValueError, match="modality 'a' in visible has another index than 'a'"):
        mm.imputation_error(vae, {"a": x}, visible={"a": seen})
    assert mm.imputation_error(vae, {"a": x}, visible={"a": seen[::-1]})["a"].entries == 2


def test_a_batch_that_one_model_has_checked_is_checked_by_the_next():
    def model(head):
        part = mm.Modality(head(mm.mlp(2, 1)), mm.encoder(1, 8, dim=2))
        return mm.MultimodalVAE({"s": part}, mm.StandardNormal(2), mm.PoE())

    real, yes_no = model(mm.NormalLikelihood), model(mm.BernoulliLikelihood)
    batch = mm.Batch.of({"s": torch.tensor([[0.5], [3.0]])})
    mm.log_likelihood(real, batch)
    with pytest.raises(ValueError, match="off the support"):
        mm.log_likelihood(yes_no, batch)


def test_a_posterior_of_a_label_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="modality 'label' has the value -1"):
        three().posterior({"label": torch.tensor([-1])})


@pytest.mark.parametrize(
    "ask",
    [
        lambda vae, x: vae.posterior(x, given=(name for name in ["label"])),
        lambda vae, x: mm.log_likelihood(vae, x, targets=filter(None, ["label"])),
        lambda vae, x: mm.guide_predictive_log_likelihood(vae, x, given=["body"], targets="label"),
        lambda vae, x: mm.guide_predictive_log_likelihood(vae, x, given=["body"], targets=["typo"]),
        lambda vae, x: mm.predictive_similarity(vae, x, query=["typo"], target="label"),
        lambda vae, x: mm.predictive_similarity(vae, x, query=["body"], target="typo"),
        lambda vae, x: mm.log_likelihood(mm.Pair(vae.model, vae.guide), x, targets=["typo"]),
        lambda vae, x: mm.coherence(vae, x, torch.zeros(4), {"typo": lambda value: value}),
    ],
)
def test_names_that_are_none_are_refused(ask):
    with pytest.raises(ValueError, match=r"stands where names are asked for|unknown modality 'typo'"):
        ask(three(), three_rows(4))


@pytest.mark.parametrize("name", ["training", "", 5, "Sepal.Length"])
def test_names_that_no_module_can_have_are_refused(name):
    part = mm.Modality(mm.NormalLikelihood(mm.mlp(2, 1)), mm.encoder(1, 8, dim=2))
    with pytest.raises(
        ValueError, match=r"is taken by torch's modules|name it by a string|'z', 'data' and dots belong to"
    ):
        mm.MultimodalVAE({name: part}, mm.StandardNormal(2), mm.PoE())


def test_a_prior_of_numbers_without_an_event_is_named():
    part = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 1)), mm.encoder(1, 8, dim=2))}
    vae = mm.MultimodalVAE(part, lambda: dist.Normal(torch.zeros(2), 1.0), mm.PoE())
    with pytest.raises(ValueError, match=r"the prior has batch \(2,\) and event \(\); .* add .to_event\(1\)"):
        mm.fit(vae, {"a": torch.zeros(4, 1)}, epochs=1, progress=False)


@pytest.mark.parametrize(("values", "typical"), [([1995.5, 2005.5], 2000.5), ([99, 9999], 999)])
def test_an_entry_hidden_where_none_was_is_taken_for_a_typical_one(values, typical):
    """Of years the mean, of counts the geometric one; zero lies hundreds of standard deviations off."""
    rows = np.random.default_rng(0).choice(values, (100, 2))
    rows[:, 0] = np.tile(values, 50)
    vae = mm.MultimodalVAE(mm.guess_modalities({"a": rows}, dim=2), mm.StandardNormal(2), mm.PoE())
    hidden, filled = rows.astype(float), rows.astype(float)
    hidden[:, 0], filled[:, 0] = np.nan, typical
    found, expected = vae.posterior({"a": hidden}), vae.posterior({"a": filled})
    assert torch.allclose(found.mean, expected.mean) and torch.allclose(found.stddev, expected.stddev)


def test_counts_start_at_their_own_size():
    counts = np.random.default_rng(0).poisson([3, 1e6], (200, 2))
    decoder = mm.guess_modalities({"a": counts}, dim=2)["a"].decoder
    torch.testing.assert_close(decoder(torch.zeros(2)).mean.log(), torch.tensor([3, 1e6]).log(), rtol=0, atol=1)


def test_numbers_that_single_precision_cannot_tell_apart_are_named():
    seconds = 1.7e9 + 500 * np.random.default_rng(0).normal(size=(300, 2))
    mm.guess_modalities({"a": seconds}, dim=2)  # in double precision
    one = {"a": torch.full((50, 2), 1.7e9 + 0.3), "b": torch.where(torch.rand(50, 2) > 0.5, 0.1, torch.nan)}
    torch.set_default_dtype(torch.float32)
    try:
        mm.guess_modalities({"a": seconds % 1e5, **one}, dim=2)
        mm.RealColumn(loc=2000.0, scale=3.0)
        with pytest.warns(UserWarning, match=r"loc is 1.7e\+09 and scale 500, .* subtract a typical value"):
            mm.RealColumn(loc=1.7e9, scale=500.0)
        with pytest.warns(UserWarning, match="'a' has in column 0 numbers around 1.7e.09 .* subtract a typical value"):
            mm.guess_modalities({"a": seconds}, dim=2)
    finally:
        torch.set_default_dtype(torch.float64)


def test_a_dataset_where_rows_are_asked_for_is_refused_with_what_to_write():
    dataset = mm.MultimodalDataset({"label": np.arange(4) % 3})
    with pytest.raises(ValueError, match=r"x is a MultimodalDataset; .* as in \(vae, \*dataset\[:1000\]\)"):
        mm.log_likelihood(three(), dataset)
    assert mm.log_likelihood(three(), *dataset[:3], num_particles=2).value.shape == (3,)


def test_hidden_channels_are_hidden_pixels():
    decoder = nn.Sequential(mm.mlp(2, 27), nn.Unflatten(-1, (3, 3, 3)))
    part = mm.Modality(mm.NormalLikelihood(decoder), nn.Sequential(nn.Flatten(), mm.encoder(27, 4, dim=2)))
    vae = mm.MultimodalVAE({"picture": part}, mm.StandardNormal(2), mm.PoE())
    x, channels = {"picture": torch.randn(6, 3, 3, 3)}, torch.rand(6, 3) > 0.4
    losses = []
    for mask in (channels, channels[..., None, None].expand(6, 3, 3, 3)):
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(vae.model, vae.guide, x, {"picture": mask}))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


class ZeroInflated(nn.Module):
    """One count a row, the same distribution whatever the code. Its batch is a plain tuple."""

    def forward(self, z):
        return dist.ZeroInflatedPoisson(z.new_full(z.shape[:-1], 3.0), gate=torch.tensor(0.4))


def test_a_likelihood_of_one_zero_inflated_count_a_row():
    encode = nn.Sequential(nn.Unflatten(0, (-1, 1)), mm.encoder(1, 8, dim=2))
    prior = mm.StandardNormal(2)
    vae = mm.MultimodalVAE({"visits": mm.Modality(ZeroInflated(), encode)}, prior, lambda _: prior())
    x = {"visits": torch.tensor([0.0, 1.0, 5.0, torch.nan])}
    rates = 0.6 * dist.Poisson(3.0).log_prob(torch.tensor([0.0, 1.0, 5.0])).exp() + 0.4 * torch.tensor([1.0, 0.0, 0.0])
    found = mm.log_likelihood(vae, x, num_particles=9).value
    torch.testing.assert_close(found, torch.cat([rates.log(), torch.zeros(1)]))
    torch.testing.assert_close(mm.predict(vae, x)["visits"], torch.full((4,), 1.8))


def test_nothing_is_guessed_from_nothing():
    for nothing in (torch.full((20, 3), torch.nan), torch.zeros(20, 0)):
        x = {"a": torch.randn(20, 2), "b": nothing}
        with pytest.raises(ValueError, match=r"modality 'b' has no observed entry to guess from; say what it is"):
            mm.guess_modalities(x, dim=2)


@pytest.mark.parametrize("keep_one", [True, False])
def test_the_share_that_is_hidden_is_that_of_what_was_there(keep_one):
    """Of rows with both modalities one of two that would go comes back; of rows with one, that one does."""
    rows, share = 8000, 0.6
    x = {"a": torch.randn(rows, 2), "b": torch.randn(rows)}
    x["a"][:2000], x["a"][2000:3000, 0], x["b"][7000:] = torch.nan, torch.nan, torch.nan
    old = mm.from_nan(x)[1]
    values, mask = mm.hide(x, share=share, keep_one=keep_one)
    assert all(torch.equal(values[name], x[name].nan_to_num()) for name in x)
    assert torch.equal(mask["a"], old["a"] & mask["a"].any(1, keepdim=True)) and not (mask["b"] & ~old["b"]).any()
    kept = torch.stack([mask["a"].any(1), mask["b"]], 1).double()
    both, back = kept[2000:7000], share**2 / 2 if keep_one else 0.0
    assert (both.mean(0) - (1 - share + back)).abs().max() < 4.5 * (0.25 / 5000) ** 0.5
    for alone in (kept[:2000, 1], kept[7000:, 0]):
        assert abs(alone.mean() - (1 if keep_one else 1 - share)) < 4.5 * (0.25 / 1000) ** 0.5
    assert torch.equal(mm.hide(x, share=torch.tensor(share), keep_one=keep_one)[1]["b"], mask["b"])
    assert not torch.equal(mm.hide(x, share=share, keep_one=keep_one, seed=1)[1]["b"], mask["b"])
    for extreme, left in ((0.0, old), (1.0, {name: torch.zeros_like(value) for name, value in old.items()})):
        found = mm.hide(x, share=extreme, keep_one=keep_one and extreme == 0)[1]
        assert all(torch.equal(found[name], left[name]) for name in x)
    whole = mm.hide(x, share=1.0)[1]
    assert ((whole["a"].any(1).int() + whole["b"].int()) == 1).all()


@pytest.mark.parametrize("first, second", [(4, 5), (5, 4)])
def test_modalities_with_other_numbers_of_rows_are_refused_whichever_has_more(first, second):
    x = {"a": torch.randn(first, 3), "b": torch.randn(second, 2)}
    with pytest.raises(ValueError, match=f"modality 'b' has {second} rows where 'a' has {first}"):
        mm.guess_modalities(x, dim=2)


@pytest.mark.parametrize("mask", [None, {"a": torch.ones(4, dtype=torch.bool)}])
def test_checked_data_do_not_change_with_the_arrays_that_they_are_of(mask):
    x = {"a": torch.zeros(4, 3)}
    batch = mm.Batch.of(x, mask)
    x["a"].fill_(7.0)
    assert bool((batch["a"] == 0).all())
