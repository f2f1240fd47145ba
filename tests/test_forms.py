"""Forms of data: whatever holds the same numbers gives the same answer, and what holds none is refused in one line."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_mmvae as mm

ROWS = np.array([[1.0, 2.0, 3.0], [0.5, np.nan, -6.0], [np.nan] * 3, [0.0, 1.0, 1.5]])
THERE = [ROWS[0], ROWS[1], None, ROWS[3]]


def column(rows):
    """A column of arrays, as of embeddings in a table."""
    return pd.Series(rows, index=list("wxyz"), dtype=object)


FORMS = {
    "list with a row that is missing": THERE,
    "lists of lists": [row if row is None else row.tolist() for row in THERE],
    "tuple of tensors": tuple(row if row is None else torch.tensor(row) for row in THERE),
    "short tensors": [row if row is None else torch.tensor(row).bfloat16() for row in THERE],
    "tensors with gradients": [torch.tensor(row).requires_grad_() for row in ROWS],
    "sparse tensors": [torch.tensor(row).to_sparse() for row in ROWS],
    "column of arrays": column(THERE),
    "column of lists with NaN": column([np.nan if row is None else row.tolist() for row in THERE]),
    "column of lists with NA": column([pd.NA if row is None else row.tolist() for row in THERE]),
    "array of arrays": column(THERE).to_numpy(),
    "decimals": [[Decimal(str(value)) for value in row] for row in ROWS],
    "NaT among objects": np.array([[pd.NaT if np.isnan(value) else value for value in row] for row in ROWS], object),
    "eight bits": torch.tensor(ROWS).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_container_changes_nothing(form):
    expected, mask = mm.from_nan({"a": ROWS})
    x, seen = mm.from_nan({"a": FORMS[form]})
    assert torch.equal(x["a"].double(), expected["a"]) and torch.equal(seen["a"], mask["a"])


def test_whole_numbers_beside_a_missing_row_keep_their_digits():
    x, _ = mm.from_nan({"a": pd.Series([np.array([2**40 + 1, 5]), None])})
    assert x["a"].tolist() == [[2**40 + 1, 5], [0, 0]]
    x, _ = mm.from_nan({"a": [torch.tensor([2**60 + 1]), torch.tensor([3])]})
    assert x["a"].tolist() == [[2**60 + 1], [3]]


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
@pytest.mark.parametrize("kind", [torch.float64, torch.int64])
def test_a_masked_tensor_says_what_is_missing(kind):
    seen = torch.tensor([[True, False], [True, True]])
    value = torch.masked.masked_tensor(torch.tensor([[1, 7], [2, 3]], dtype=kind), seen)
    x, mask = mm.from_nan({"a": value})
    assert x["a"].tolist() == [[1, 0], [2, 3]] and torch.equal(mask["a"], seen)


NO_NUMBERS = {
    "'a' is of dtype torch.complex128; give real numbers": np.ones((3, 2), np.clongdouble),
    "'a' has rows of different lengths": [[1.0, 2.0], None, [3.0]],
    "'a' has the column 'p', which holds arrays; make it a modality of its own": pd.DataFrame({"p": [[1, 2]] * 3}),
}


@pytest.mark.parametrize("message", NO_NUMBERS)
def test_what_holds_no_numbers_is_refused(message):
    with pytest.raises(ValueError, match=f"^modality {message}"):
        mm.from_nan({"a": NO_NUMBERS[message]})


@pytest.mark.parametrize("wrong", [torch.ones(4, 2, dtype=torch.complex64), np.ones((4, 2), complex)])
@pytest.mark.parametrize(
    "ask",
    [
        lambda v: mm.retrieval(v),
        lambda v: mm.frechet_distance(v, np.eye(4)[:, :2]),
        lambda v: mm.plot_entry(v),
        lambda v: mm.rank_ecdf(v[:, 0]),
        lambda v: mm.c2st(v, v),
    ],
)
def test_complex_numbers_are_refused_at_every_door(ask, wrong):
    with pytest.raises(ValueError, match=r"is of dtype torch\.complex\d+; give real numbers") as told:
        ask(wrong)
    assert "\n" not in str(told.value)


def test_a_mask_with_its_columns_in_another_order_is_refused():
    x, seen = pd.DataFrame(ROWS[:2], columns=list("abc")), pd.DataFrame(np.eye(3)[:2] == 0, columns=list("abc"))
    assert torch.equal(mm.Batch.of({"t": x.fillna(0)}, {"t": seen}).mask["t"], torch.eye(3)[:2] == 0)
    vae = mm.MultimodalVAE(mm.guess_modalities({"t": x}, dim=2, hidden=4), mm.StandardNormal(2), mm.PoE())
    for wrong in (seen[["c", "b", "a"]], seen.set_axis(["a", "b", "d"], axis=1)):
        with pytest.raises(ValueError, match=r"^modality 't' in mask has other columns than 't', or another order"):
            mm.Batch.of({"t": x}, {"t": wrong})
        with pytest.raises(ValueError, match=r"^modality 't' in mask has other columns"):
            mm.MultimodalDataset({"t": x}, {"t": wrong})
        with pytest.raises(ValueError, match=r"^modality 't' in visible has other columns"):
            mm.imputation_error(vae, {"t": x}, visible={"t": wrong})
    assert mm.Batch.of({"t": x}, {"t": x.notna().to_numpy()}).mask["t"].sum() == 5


def test_arrays_of_xarray_with_other_rows_are_refused():
    xarray = pytest.importorskip("xarray")
    first = xarray.DataArray(ROWS, dims=("row", "f"), coords={"row": [3, 2, 1, 0], "f": list("abc")})
    second = xarray.DataArray([1.0, 2.0, 3.0, 4.0], dims="row", coords={"row": [0, 1, 2, 3]})
    with pytest.raises(ValueError, match=r"^modality 'b' has another index than 'a'; reindex one like the other"):
        mm.Batch.of({"a": first, "b": second})
    found = mm.Batch.of(xarray.Dataset({"a": first, "b": second}))  # which xarray has aligned
    assert torch.equal(found["a"], torch.tensor(ROWS[::-1].copy()).nan_to_num()) and found["b"][0] == 1
    assert mm.Batch.of({"a": first, "b": second.to_numpy()})["b"].tolist() == [1.0, 2.0, 3.0, 4.0]


SEEN = np.array([[True, False], [True, True], [False, False], [True, True]])
MASKS = {
    "nullable": lambda: pd.DataFrame(SEEN).astype("boolean"),
    "objects": lambda: SEEN.astype(object),
    "masked": lambda: np.ma.MaskedArray(SEEN, np.zeros_like(SEEN)),
    "sparse matrix": lambda: pytest.importorskip("scipy.sparse").csr_array(SEEN),
    "sparse tensor": lambda: torch.tensor(SEEN).to_sparse(),
    "xarray": lambda: pytest.importorskip("xarray").DataArray(SEEN),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_dataset_reads_masks_of_every_kind(kind):
    values = torch.arange(8.0).reshape(4, 2)
    dataset = mm.MultimodalDataset({"a": values.to_sparse()}, {"a": MASKS[kind]()})
    for rows in ([2, 0, 1], [3]):
        batch = dataset.batch(rows)
        assert torch.equal(batch.mask["a"].reshape(len(rows), -1).expand(-1, 2), torch.tensor(SEEN[rows]))
        assert torch.equal(batch["a"], values[rows] * torch.tensor(SEEN[rows]))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (SEEN.astype("U5"), "is of dtype <U5"),
        (np.ma.MaskedArray(SEEN, SEEN), "is of dtype torch.float32; give bool"),
        (pd.DataFrame(SEEN).astype("boolean").mask(SEEN), "is of dtype torch.float64; give bool"),
    ],
)
def test_a_dataset_refuses_what_is_no_mask(mask, message):
    with pytest.raises(ValueError, match=f"^the mask of 'a' {message}"):
        mm.MultimodalDataset({"a": np.zeros((4, 2))}, {"a": mask})


def test_a_dataset_refuses_a_nested_tensor():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    with pytest.raises(ValueError, match=r"^modality 'a' is a nested tensor; pad it to one shape"):
        mm.MultimodalDataset({"a": nested})


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.bool])
def test_a_linear_probe_takes_whole_numbers(kind):
    codes = (torch.rand(60, 3) * 5).to(kind)
    labels = (codes[:, 0].double() + torch.rand(60) > 2 - (kind == torch.bool)).long()
    found = mm.linear_probe(codes[:40], labels[:40], codes[40:], labels[40:])
    assert found == mm.linear_probe(codes[:40].double(), labels[:40], codes[40:].double(), labels[40:])


LABELS = {
    "bfloat16": lambda v: torch.tensor(v).bfloat16(),
    "sparse": lambda v: torch.tensor(v).to_sparse(),
    "gradients": lambda v: torch.tensor(v).double().requires_grad_(),
    "masked": lambda v: np.ma.MaskedArray(v, v == 7),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_a_plot_come_in_every_kind(kind):
    from matplotlib.figure import Figure

    vae = mm.MultimodalVAE(
        {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, dim=2))}, mm.StandardNormal(2), mm.PoE()
    )
    labels = np.array([0, 3, 7, 3])
    ax = mm.plot_latent(vae, {"a": torch.randn(4, 3)}, labels=LABELS[kind](labels), ax=Figure().subplots())
    shown = {line.get_label(): len(line.get_xdata()) for line in ax.lines}
    assert shown == {"0": 1, "3": 2, "None" if kind == "masked" else "7": 1}


@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_pseudo_inputs_have_no_holes(hole):
    parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, dim=2))}
    rows = np.where(np.arange(12).reshape(4, 3) == 5, hole, 1.0)
    with pytest.raises(
        ValueError, match=r"^modality 'a' (of pseudo has holes; give|has an infinity in column 2 in row 1)"
    ):
        mm.VampPrior(2, parts, mm.PoE(), {"a": rows})
    prior = mm.VampPrior(2, parts, mm.PoE(), {"a": rows[:1]})
    prior.pseudo["a"].data.fill_(3.0)
    assert (rows[:1] == 1).all()


def test_a_second_model_that_is_loaded_leaves_the_first_alone(tmp_path):
    """`build` makes both of one mean; what the second file holds was written into it, and so into the first model."""

    def build():
        look = torch.nn.Sequential(mm.Standardize(loc, scale), mm.encoder(3, 8, dim=2))
        part = mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3), mm.Fixed(scale)), look)
        return mm.MultimodalVAE({"a": part}, mm.StandardNormal(2), mm.PoE())

    for place in (5.0, -20.0):
        loc, scale = torch.full((3,), place), torch.full((3,), abs(place))
        build().save(tmp_path / f"{place}.pt")
    first = mm.load(tmp_path / "5.0.pt", build)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    mm.load(tmp_path / "-20.0.pt", build)
    assert all(torch.equal(before[name], value) for name, value in first.state_dict().items())
    assert loc.tolist() == [-20.0] * 3 and first.modalities["a"].encoder[0].loc.tolist() == [5.0] * 3


@pytest.mark.parametrize("kind", [np.longdouble, np.float32, ">f8", int])
def test_a_standardize_takes_arrays_of_every_kind(kind):
    loc = np.broadcast_to(np.array([1, 2, 4], kind), 3)  # read-only
    found = mm.Standardize(loc, list(loc))(torch.ones(2, 3))
    assert found[1].tolist() == [0.0, -0.5, -0.75]
    with pytest.raises(ValueError, match=r"^Standardize: loc is of dtype <U1; give an array of numbers"):
        mm.Standardize("2", 1.0)


def with_stand_ins(value, rows):
    lab = np.random.default_rng(0).normal(size=(40, 3))
    lab[rows, 1] = value
    return lab


@pytest.mark.parametrize("value", [-9.0, -99.0, -999.0, -9999.0])
def test_numbers_that_stand_for_missing_ones_are_doubted(value):
    lab = with_stand_ins(value, slice(0, 7))
    holes = np.where(lab == value, np.nan, lab)
    with pytest.warns(UserWarning, match=rf"^column 1 of modality 'lab' has the number {value:g} in 7 rows, far from"):
        mm.guess_modalities({"lab": lab}, dim=2)
    with pytest.warns(UserWarning, match=rf"^modality 'one' has the number {value:g} in 7 rows, .* put NaN there$"):
        mm.guess_modalities({"one": lab[:, 1].round()}, dim=2)
    with pytest.warns(UserWarning, match=rf"^column 'b' has the number {value:g} in 7 rows, far from all others"):
        mm.Table(pd.DataFrame(lab, columns=list("abc")))
    mm.guess_modalities({"lab": holes, "masked": np.ma.masked_equal(lab, value)}, dim=2)


SOUND = {
    "once": with_stand_ins(-999.0, slice(0, 1)),
    "among such": np.where(np.arange(40)[:, None] < 7, -99, np.arange(-95, 25).reshape(40, 3)),
    "two values": np.where(np.arange(40)[:, None] < 7, -9, [[1.0, 2.0, 3.0]]),
    "pixels": np.where(np.random.default_rng(0).random((40, 2, 2)) < 0.3, -9, 1.5),
    "not such": with_stand_ins(-500.0, slice(0, 7)),
}


@pytest.mark.parametrize("case", SOUND)
def test_other_numbers_are_not_doubted(case):
    mm.guess_modalities({"lab": SOUND[case]}, dim=2)  # where a warning is an error
    if case != "pixels":
        mm.Table(pd.DataFrame(SOUND[case]))


@pytest.mark.parametrize("ask", [mm.log_likelihood, mm.impute, lambda vae, x: mm.fit(vae, x, progress=False)])
def test_a_model_that_holds_no_values_is_refused_in_one_line(ask):
    part = mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, dim=2))
    vae = mm.MultimodalVAE({"a": part}, mm.StandardNormal(2), mm.PoE())
    with pytest.raises(ValueError, match=r"^the model is on the device 'meta', .*; build it on another one$"):
        ask(vae.to("meta"), {"a": torch.zeros(4, 3)})


@pytest.mark.parametrize(
    ("unit", "kind"), [(1e30, torch.float32), (1e-30, torch.float32), (1e200, torch.float64), (1e-160, torch.float64)]
)
def test_measurements_whose_squares_overflow_are_refused_before_a_model_is_made_of_them(unit, kind):
    value = np.random.default_rng(0).normal(size=(20, 2)).clip(-1.5, 1.5) * [1.0, unit]
    torch.set_default_dtype(kind)
    with pytest.raises(
        ValueError, match=rf"^modality 'a' has in column 1 numbers up to \S+e.\d+, whose squares {kind} lacks"
    ):
        mm.guess_modalities({"a": value}, dim=2)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_a_unit_changes_what_is_likely_by_its_logarithm_alone(single, unit):
    value = np.random.default_rng(0).normal(size=(20, 2))
    torch.manual_seed(0)
    vae = mm.MultimodalVAE(mm.guess_modalities({"a": value * unit}, dim=1, hidden=4), mm.StandardNormal(1), mm.PoE())
    torch.manual_seed(0)
    one = mm.MultimodalVAE(mm.guess_modalities({"a": value}, dim=1, hidden=4), mm.StandardNormal(1), mm.PoE())
    found = []
    for model, x in ((vae, value * unit), (one, value)):
        torch.manual_seed(1)
        found.append(mm.log_likelihood(model, {"a": x}, num_particles=10).value)
    torch.testing.assert_close(found[0] + 2 * np.log(unit), found[1], rtol=1e-4, atol=1e-4)
