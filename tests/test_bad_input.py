"""Bad input: one line that names the modality, what was found and what to do, raised before anything is changed."""

import math
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from cases import three, three_rows
from torch import nn

import pyro_mmvae as mm

ROWS = 6


def with_(**changes):
    return {**three_rows(ROWS), **changes}


INPUTS = {
    "unknown modality": (
        lambda: with_(taste=torch.zeros(ROWS, 2)),
        None,
        "unknown modality 'taste'.*body, label, counts",
    ),
    "different row counts": (lambda: with_(counts=torch.zeros(5, 3)), None, "'counts' has 5 rows where 'body' has 6"),
    "wrong event shape": (
        lambda: with_(body=torch.zeros(ROWS, 4)),
        None,
        r"'body' has entries of shape \(4,\).*\(3,\)",
    ),
    "wrong dtype": (lambda: with_(body=np.array([["a"] * 3] * ROWS)), None, "'body' is of dtype <U1"),
    "no values": (
        lambda: with_(body=torch.zeros(ROWS, 3, device="meta")),
        {},
        "'body' is on the device 'meta', which holds no values",
    ),
    "complex": (
        lambda: with_(body=torch.zeros(ROWS, 3, dtype=torch.complex64)),
        None,
        "'body' is of dtype torch.complex64",
    ),
    "mask not bool": (three_rows, {"body": torch.ones(ROWS)}, "mask of 'body' is of dtype .*give bool"),
    "mask of wrong shape": (three_rows, {"body": torch.ones(4, dtype=torch.bool)}, r"mask of 'body' has shape \(4,\)"),
    "mask of unknown": (three_rows, {"taste": torch.ones(ROWS, dtype=torch.bool)}, "mask names 'taste'"),
    "infinity": (
        lambda: with_(body=torch.full((ROWS, 3), torch.inf)),
        None,
        "'body' has an infinity in column 0 in row 0",
    ),
    "NaN called observed": (
        lambda: with_(body=torch.full((ROWS, 3), torch.nan)),
        {"body": torch.ones(ROWS, dtype=torch.bool)},
        "'body' has NaN in column 0 in row 0",
    ),
    "off the support": (
        lambda: with_(counts=torch.tensor([[1, 2, 3]] * 4 + [[1, -2, 3]] * 2)),
        None,
        "'counts' has the value -2 in row 4, off the support of its likelihood Poisson",
    ),
    "no such category": (
        lambda: with_(label=torch.tensor([0, 1, 2, 3, 9, 0])),
        None,
        "'label' has the value 9 in row 4",
    ),
    "empty data": (
        lambda: with_(body=torch.zeros(0, 3), label=torch.zeros(0), counts=torch.zeros(0, 3)),
        None,
        "'body' is empty",
    ),
    "no modality": (dict, None, "no modality"),
    "tables in another order": (
        lambda: with_(body=pd.DataFrame(np.zeros((ROWS, 3))), label=pd.Series(np.zeros(ROWS), index=range(ROWS)[::-1])),
        None,
        "'label' has another index than 'body'",
    ),
    "no dictionary": (lambda: torch.zeros(ROWS, 3), None, "x is a Tensor; give a dictionary"),
    "a mask for all": (three_rows, torch.ones(ROWS, dtype=torch.bool), "mask is a Tensor; give a dictionary"),
    "numbers for names": (lambda: {0: torch.zeros(ROWS, 3)}, None, "x has the name 0"),
    "None": (lambda: with_(body=None), None, "'body' is None"),
    "one number": (lambda: {"label": torch.tensor(1.0)}, None, "'label' is a single number"),
}

DOORS = {
    "fit": lambda vae, x, mask: mm.fit(vae, x, mask, epochs=1, progress=False),
    "impute": lambda vae, x, mask: mm.impute(vae, x, mask),
    "predict": lambda vae, x, mask: mm.predict(vae, x, mask),
    "translate": lambda vae, x, mask: mm.translate(vae, x, mask, to="label"),
    "log_likelihood": lambda vae, x, mask: mm.log_likelihood(vae, x, mask, num_particles=2),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", INPUTS)
def test_one_line_and_nothing_changed(case, door):
    make, mask, message = INPUTS[case]
    vae = three()
    x = make(ROWS) if make is three_rows else make()
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        DOORS[door](vae, x, mask)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in vae.state_dict().items())


@pytest.mark.parametrize(
    "case", ["unknown modality", "different row counts", "mask not bool", "infinity", "no modality"]
)
def test_the_programs_say_it_too(case):
    make, mask, message = INPUTS[case]
    vae, x = three(), make(ROWS) if make is three_rows else make()
    for program in (vae.model, vae.guide, vae.posterior):
        with pytest.raises(ValueError, match=message):
            program(x, mask)


def test_a_wrong_event_shape_in_the_model_names_the_modality():
    with pytest.raises(ValueError, match=r"'body' has entries of shape \(4,\)"):
        vae = three()
        vae.modalities["body"].encoder = None
        vae.model({"body": torch.zeros(3, 4)})


def test_names_that_sites_need_are_refused():
    for name in ("z", "data", "a.b", "type", "items"):
        with pytest.raises(ValueError, match=repr(name)):
            mm.MultimodalVAE({name: mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)))}, mm.StandardNormal(2), mm.PoE())
    with pytest.raises(ValueError, match="no modality"):
        mm.MultimodalVAE({}, mm.StandardNormal(2), mm.PoE())


def test_unknown_names_in_questions():
    vae, x = three(), three_rows(3)
    for ask in (
        lambda: vae.posterior(x, given=["taste"]),
        lambda: mm.impute(vae, x, given=["taste"]),
        lambda: mm.translate(vae, x, to="taste"),
        lambda: mm.log_likelihood(vae, x, given=["taste"]),
    ):
        with pytest.raises(ValueError, match="unknown modality 'taste'"):
            ask()


LOOKS = [mm.importance, mm.gaps, mm.posterior_draws, mm.iwae_curve, mm.annealed_log_likelihood, mm.log_likelihood]


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.__name__)
@pytest.mark.parametrize("given", [["taste"], "body"])
def test_no_tool_looks_at_what_is_no_modality(look, given):
    with pytest.raises(ValueError, match=r"unknown modality 'taste'; this model has|'body' stands where names"):
        look(three(), three_rows(ROWS), given=given)


def test_nan_without_a_mask_is_missing():
    vae, x = three(), three_rows(ROWS)
    holes = {**x, "body": x["body"].clone()}
    holes["body"][2] = torch.nan
    holes["body"][3, 1] = torch.nan
    mask = torch.ones(ROWS, 3, dtype=torch.bool)
    mask[2], mask[3, 1] = False, False
    z = torch.randn(ROWS, 2)
    assert torch.equal(vae.posterior(holes).log_prob(z), vae.posterior(x, {"body": mask}).log_prob(z))
    found, masks = mm.from_nan(holes)
    assert torch.equal(masks["body"], mask) and masks["label"].all() and not found["body"].isnan().any()


def test_inputs_are_never_changed():
    vae, x = three(), three_rows(ROWS)
    x["body"][2] = torch.nan
    kept = {k: v.clone() for k, v in x.items()}
    mm.fit(vae, x, epochs=1, progress=False), mm.impute(vae, x), mm.log_likelihood(vae, x, num_particles=2)
    assert all(torch.equal(torch.nan_to_num(kept[k]), torch.nan_to_num(v)) for k, v in x.items())
    assert x["body"][2].isnan().all()


def test_a_network_that_returns_no_distribution_is_named():
    parts = {"a": mm.Modality(mm.mlp(2, 3), mm.encoder(3, 4, dim=2))}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    with pytest.raises(TypeError, match="decoder of 'a' returned Tensor"):
        vae.model({"a": torch.zeros(2, 3)})
    parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.mlp(3, 2))}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    with pytest.raises(TypeError, match="encoder of 'a' returned Tensor"):
        vae.guide({"a": torch.zeros(2, 3)})


def test_experts_that_are_no_normals_are_named():
    parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 4, dim=2, head=mm.LaplaceHead))}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    with pytest.raises(TypeError, match="expert of 'a' is Laplace"):
        vae.guide({"a": torch.zeros(2, 3)})
    mixed = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.MoE())
    assert mixed.posterior({"a": torch.zeros(2, 3)}).mean.shape == (2, 2)


class Family(nn.Module):
    """An encoder to any family of distributions over codes of two."""

    def __init__(self, build):
        super().__init__()
        self.build, self.net = build, nn.Linear(3, 4)

    def forward(self, x):
        return self.build(self.net(x).reshape(-1, 2, 2))


UNFIT = {
    "Delta": lambda h: dist.Delta(h[:, 0]).to_event(1),
    "ZeroInflatedPoisson": lambda h: dist.ZeroInflatedPoisson(h[:, 0].exp(), gate=h[:, 1].sigmoid()).to_event(1),
    "MixtureOfDiagNormals": lambda h: dist.MixtureOfDiagNormals(h, h.exp(), h[:, 0]),
}


@pytest.mark.parametrize("family", UNFIT)
def test_experts_that_cannot_be_laid_out_by_row_are_named(family):
    parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), Family(UNFIT[family]))}
    for fusion, line in ((mm.MoE(), "cannot be laid out by row; give"), (mm.PoE(), "but this fusion multiplies")):
        with pytest.raises(TypeError, match=f"the expert of 'a' is {family}, .*{line}") as caught:
            mm.MultimodalVAE(parts, mm.StandardNormal(2), fusion).posterior({"a": torch.zeros(2, 3)})
        assert "\n" not in str(caught.value)


def test_experts_may_be_mixtures_of_torch():
    """The mean of two mixtures in equal parts is the mixture of all components."""
    mixed = Family(lambda h: dist.MixtureSameFamily(dist.Categorical(h[:, 1].exp()), dist.Normal(h, 1.0).to_event(1)))
    parts = {name: mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mixed) for name in "ab"}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.MoE())
    x, z = {name: torch.randn(5, 3) for name in "ab"}, torch.randn(5, 2)
    mask = {"a": torch.arange(5) < 3}
    own = [mixed(x[name]).log_prob(z) for name in "ab"]
    expected = torch.where(mask["a"], torch.stack(own).logsumexp(0) - math.log(2), own[1])
    torch.testing.assert_close(vae.posterior(x, mask).log_prob(z), expected)
    assert mm.log_likelihood(vae, x, mask, num_particles=9).value.isfinite().all()
    assert len(mm.fit(vae, x, mask, epochs=2, progress=False).loss) == 2


def test_a_batch_brings_its_own_mask():
    vae, x = three(), three_rows(ROWS)
    batch = mm.Batch.of(x, {"body": torch.zeros(ROWS, dtype=torch.bool)})
    assert vae.check(batch, batch.mask) is batch
    with pytest.raises(ValueError, match="x is a Batch with a mask of its own"):
        vae.check(batch, {"body": torch.ones(ROWS, dtype=torch.bool)})


def test_values_beyond_the_precision_of_the_model_are_refused():
    vae, x = three().float(), three_rows(ROWS)
    x["body"][3, 1] = 1e39
    for door in (vae.guide, vae.posterior, vae.check, *(lambda x, d=d: d(vae, x, None) for d in DOORS.values())):
        with pytest.raises(ValueError, match=r"'body' has a value too large for torch\.float32 in row 3"):
            door(x)
    assert three().posterior(x).mean.isfinite().all()


def test_masked_arrays_and_nullable_tables_say_what_is_missing():
    values = np.ma.MaskedArray([[1, 7], [2, 3]], [[False, True], [False, False]])
    table = pd.DataFrame({"a": pd.array([1, 2], "Int64"), "b": pd.array([None, 3], "Int64")})
    for given in (values, table, [[1, None], [2, 3]]):
        x, mask = mm.from_nan({"a": given})
        assert x["a"].tolist() == [[1, 0], [2, 3]] and mask["a"].tolist() == [[True, False], [True, True]]


def test_gradients_reach_the_data_and_training_leaves_their_graph_alone():
    vae, x = three(), three_rows(ROWS)
    leaf = x["body"].clone().requires_grad_()
    data = {**x, "body": 2 * leaf}
    mm.fit(vae, data, epochs=2, batch_size=2, progress=False)
    (slope,) = torch.autograd.grad(vae.posterior(data).mean.sum(), leaf)
    assert bool((slope != 0).any())


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"epochs": 2.5}, {"batch_size": 0}, {"batch_size": 32.0}])
def test_fit_counts_in_whole_numbers(wrong):
    vae = three()
    before = [p.clone() for p in vae.parameters()]
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is .*; give a whole number from [01] on$"):
        mm.fit(vae, three_rows(ROWS), **{"epochs": 1, "progress": False, **wrong})
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters()))


def test_an_objective_counts_its_particles_in_whole_numbers():
    with pytest.raises(ValueError, match=r"^num_particles is 0; give a whole number from 1 on$"):
        mm.Objective(num_particles=0)


def test_the_share_to_hide_is_a_share():
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="share is"):
            mm.hide(three_rows(ROWS), share=share)


def test_a_question_leaves_every_module_in_its_mode():
    vae = three().train()
    vae.modalities["body"].encoder.eval()
    before = [module.training for module in vae.modules()]
    mm.impute(vae, three_rows(3))
    assert [module.training for module in vae.modules()] == before


def test_a_batch_that_one_model_took_is_looked_at_anew_by_another():
    first = three()
    batch = first.check(three_rows(ROWS))
    first.posterior(batch)
    parts = {name: part for name, part in three().modalities.items() if name != "counts"}
    second = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    with pytest.raises(ValueError, match="unknown modality 'counts'"):
        second.posterior(batch)
    repeated = mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3), 1.0), mm.encoder(3, dim=2), repeated=True)
    third = mm.MultimodalVAE({"body": repeated}, mm.StandardNormal(2), mm.PoE())
    times = mm.Batch.of({"body": torch.zeros(ROWS, 4, 3)})
    assert third.open(times, None)[1]["body"].entries.shape == (ROWS, 4)
    fourth = mm.MultimodalVAE(
        {"body": mm.Modality(None, nn.Sequential(nn.Flatten(1), mm.encoder(12, dim=2)))}, mm.StandardNormal(2), mm.PoE()
    )
    assert fourth.open(times, None)[1]["body"].entries.shape == (ROWS, 1)


@pytest.mark.parametrize("door", [door for door in DOORS if door != "translate"])
def test_no_repeats_at_all_are_refused_and_hidden_ones_are_not(door):
    parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 4, 3)), mm.encoder(3, 4, dim=2), repeated=True)}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    with pytest.raises(ValueError, match="'a' is empty: no repeats; give at least one, NaN where there is none"):
        DOORS[door](vae, {"a": torch.zeros(ROWS, 0, 3)}, None)
    with pytest.warns(UserWarning, match="x: no row of it counts") if door == "fit" else nullcontext():
        DOORS[door](vae, {"a": torch.full((ROWS, 1, 3), torch.nan)}, None)


class Shifted(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.sub_(3))


@pytest.mark.parametrize("part", ["encoder", "decoder", "trunk"])
@pytest.mark.parametrize("ask", [mm.log_likelihood, lambda vae, x: mm.fit(vae, x, progress=False)])
def test_a_network_that_writes_into_its_input_is_refused(part, ask):
    """Its likelihood would score what it wrote, and other decoders would see other codes."""
    first, inplace = mm.encoder(3, 4, dim=2), torch.nn.Sequential(torch.nn.LeakyReLU(inplace=True), mm.mlp(2, 3))
    parts = {
        "encoder": {"encoder": Shifted(first)},
        "decoder": {"encoder": first},
        "trunk": {"encoder": first, "trunk": Shifted(torch.nn.Identity())},
    }
    decoder = mm.NormalLikelihood(mm.batched(inplace) if part == "decoder" else mm.mlp(2, 3))
    vae = mm.MultimodalVAE({"a": mm.Modality(decoder, **parts[part])}, mm.StandardNormal(2), mm.PoE())
    x = torch.randn(8, 3)
    before = x.clone()
    with pytest.raises(ValueError, match=f"the {part} of 'a' .*inplace=False"):
        ask(vae, {"a": x})
    assert torch.equal(x, before)


def test_single_entries_of_a_vector_with_a_covariance_are_refused_by_name():
    class Together(nn.Module):
        def forward(self, z):
            return dist.MultivariateNormal(0 * z, torch.eye(2))

    vae = mm.MultimodalVAE({"a": mm.Modality(Together(), mm.encoder(2, dim=2))}, mm.StandardNormal(2), mm.PoE())
    x = {"a": torch.tensor([[0.0, 1.0], [2.0, math.nan]])}
    with pytest.raises(
        ValueError, match=r"'a' has rows with single entries missing: MultivariateNormal has no .*; mask"
    ):
        mm.log_likelihood(vae, x)


def test_a_table_of_pandas_names_the_column_that_is_no_numbers():
    table = pd.DataFrame({"age": [40.0, 51.0], "sex": ["f", None]})
    with pytest.raises(
        ValueError, match=r"'body' has the column 'sex', which is of dtype object; .*codes for categories"
    ):
        mm.from_nan({"body": table})
    table["sex"] = table["sex"].astype("category")
    with pytest.raises(
        ValueError, match=r"the column 'sex', which is of dtype category; give its codes, NaN where"
    ) as told:
        mm.from_nan({"body": table})
    values = table["sex"]
    codes = values.cat.codes.where(values.notna())
    assert str(told.value).endswith("values.cat.codes.where(values.notna()); of such tables see mm.Table")
    assert mm.from_nan({"sex": codes})[1]["sex"].tolist() == [True, False]
    with pytest.raises(ValueError, match="x is a DataFrame; give a dictionary name -> array"):
        mm.fit(three(), table, progress=False)


RAGGED = {
    "lists": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]],
    "tensors": [torch.zeros(3), torch.zeros(2)],
    "arrays": [np.zeros((3, 2)), np.zeros((1, 2))],
}


@pytest.mark.parametrize("kind", RAGGED)
def test_captions_of_different_numbers_are_to_be_padded(kind):
    with pytest.raises(ValueError, match=r"^modality 'caption' has rows of different lengths, .* pad them with NaN"):
        mm.from_nan({"caption": RAGGED[kind]})


def test_codes_of_pandas_with_missing_ones_are_doubted():
    codes = pd.Series(["f", None, "m"] * 5, dtype="category").cat.codes
    with pytest.warns(
        UserWarning, match="'sex' has whole numbers from -1 on and is taken for measurements; .* put NaN"
    ):
        mm.guess_modalities({"sex": codes}, dim=2)
    kind = mm.guess_modalities({"sex": codes.where(codes >= 0), "change": [-1, 2, -2] * 5}, dim=2)
    assert [type(part.decoder).__name__ for part in kind.values()] == ["CategoricalLikelihood", "NormalLikelihood"]
