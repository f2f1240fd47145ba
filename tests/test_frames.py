"""Tables of pandas: what columns are taken for, words as numbers and back, and what is learnt of both."""

import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae.datasets import load

RNG = np.random.default_rng(0)
SIZES = pd.CategoricalDtype(["small", "large", "huge"], ordered=True)
LIKERT = [1, 2, 3, 4, 5, 3]
COLUMNS = {
    "real": (RNG.normal(50, 10, 400), mm.RealColumn, None),
    "whole, far from 0": (RNG.normal(200, 14, 400).round(), mm.RealColumn, None),
    "a year": (RNG.integers(2007, 2010, 400), mm.RealColumn, None),
    "a grade": (np.array(LIKERT * 60), mm.RealColumn, None),
    "hardly skewed": (np.exp(RNG.normal(4, 0.2, 400)), mm.RealColumn, None),
    "halves": ([-0.5, 0.5, -0.5], mm.RealColumn, None),
    "one value": (np.full(9, 3.0), mm.RealColumn, None),
    "of both signs": (RNG.integers(-3, 4, 400), mm.RealColumn, None),
    "positive": (np.exp(RNG.normal(2, 1, 400)), mm.PositiveColumn, None),
    "counts": (RNG.poisson(3, 400), mm.CountColumn, None),
    "counts with holes": (np.where(RNG.random(400) < 0.3, np.nan, RNG.poisson(3, 400)), mm.CountColumn, None),
    "words": (["b", "a", None, "a"], mm.CategoryColumn, ["a", "b"]),
    "bools": ([True, True, False], mm.CategoryColumn, [False, True]),
    "bools with holes": ([True, None, False], mm.CategoryColumn, [False, True]),
    "zeros and ones": ([0.0, 1.0, np.nan], mm.CategoryColumn, [0.0, 1.0]),
    "ones and twos": ([2, 1, 1], mm.CategoryColumn, [1, 2]),
    "categories": (pd.Categorical(["x", "y", None], ["y", "x", "never"]), mm.CategoryColumn, ["y", "x", "never"]),
    "an order": (pd.Categorical(["huge", "small", None], dtype=SIZES), mm.OrdinalColumn, ["small", "large", "huge"]),
}


def mixed(rows=60):
    frame = pd.DataFrame(
        {
            "age": RNG.normal(50, 10, rows),
            "ward": RNG.choice(["north", "south", "west"], rows),
            "stage": pd.Categorical(RNG.choice(SIZES.categories, rows), dtype=SIZES),
            "visits": RNG.poisson(2, rows),
            "smoker": RNG.random(rows) < 0.4,
        },
        index=[f"p{row}" for row in range(rows)],
    )
    return frame.mask(RNG.random(frame.shape) < 0.2)


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_taken_for_what_they_are(name):
    values, kind, levels = COLUMNS[name]
    table = mm.Table(pd.DataFrame({"it": values}))
    column = table.columns["it"]
    assert type(column) is kind and table.levels == ({} if levels is None else {"it": levels})
    numbers = pd.Series(values).dropna()
    if kind is mm.RealColumn:
        sd = float(numbers.std(ddof=0)) or 1.0
        assert abs(column.loc - numbers.mean()) <= sd / 100 and abs(column.scale - sd) <= sd / 100
    elif kind is mm.PositiveColumn:
        assert column.median == pytest.approx(numbers.median(), rel=0.01)
    elif kind is mm.CountColumn:
        assert column.mean == pytest.approx(numbers.mean(), rel=0.01)
    else:
        assert column.levels == len(levels)


def test_a_very_skewed_column_keeps_its_median():
    column = mm.Table(pd.DataFrame({"it": np.exp(RNG.normal(-9, 4, 400))})).columns["it"]
    assert -10 < math.log(column.median) < -8


def test_words_become_numbers_and_numbers_words():
    frame = mixed()
    table = mm.Table(frame)
    numbers = table.numbers(frame)
    assert (
        numbers.index.equals(frame.index) and list(numbers) == list(frame) and set(numbers.dtypes) == {np.dtype(float)}
    )
    assert (numbers.isna() == frame.isna()).all().all()
    for label, levels in table.levels.items():
        seen = frame[label].notna()
        assert [levels[int(code)] for code in numbers[label][seen]] == list(frame[label][seen])
    back = table.frame(torch.tensor(numbers.to_numpy()), frame.index)
    assert back["stage"].dtype == SIZES and not back["ward"].cat.ordered
    for label in frame:
        assert (back[label].isna() == frame[label].isna()).all()
        seen = frame[label].notna()
        assert list(back[label][seen]) == list(frame[label][seen])
    assert table.numbers(back).equals(numbers) and pickle.loads(pickle.dumps(table)).numbers(back).equals(numbers)


def test_numbers_of_more_digits_than_the_model_has_come_back_whole():
    torch.set_default_dtype(torch.float32)
    frame = pd.DataFrame({"it": [16777217.0, 1.5, 20.25]})  # float32 has no odd numbers there
    table = mm.Table(frame)
    assert table.frame(table.numbers(frame)).equals(frame)


def test_other_rows_have_the_same_codes_and_absent_columns_are_missing():
    frame = mixed()
    table = mm.Table(frame)
    part = frame[["stage", "ward"]].iloc[::-1].iloc[:7]
    numbers = table.numbers(part)
    assert numbers[["ward", "stage"]].equals(table.numbers(frame).loc[part.index, ["ward", "stage"]])
    assert list(numbers) == list(frame) and numbers[["age", "visits", "smoker"]].isna().all().all()


def test_what_is_said_of_a_column_counts():
    grades = pd.DataFrame({"it": LIKERT, "code": [0, 3, 1, 0, 1, 0]})
    table = mm.Table(grades, {"it": mm.OrdinalColumn(5), "code": mm.CategoryColumn(6)})
    assert table.levels == {"it": [1, 2, 3, 4, 5]} and table.columns["code"].levels == 6
    assert table.numbers(grades)["it"].tolist() == [0, 1, 2, 3, 4, 2]
    assert table.numbers(grades)["code"].tolist() == grades["code"].tolist()
    assert repr(table) == (
        "Table of 2 columns\nit: OrdinalColumn(levels=5): 1, 2, 3, 4, 5\ncode: CategoryColumn(levels=6)"
    )


WORDS = pd.DataFrame({"it": ["a", "b", "a"]})
REFUSED = {
    "this is a dict; give a DataFrame": lambda: mm.Table({"a": [1.0]}),
    "the table has no column; give": lambda: mm.Table(WORDS[[]]),
    "the table has two columns of one name; give": lambda: mm.Table(pd.concat([WORDS, WORDS], axis=1)),
    "columns names 'other', which is no column of the table; it has 'it': mend": lambda: mm.Table(
        WORDS, {"other": mm.RealColumn()}
    ),
    "column 'it' has no value; leave": lambda: mm.Table(pd.DataFrame({"it": [None, np.nan]})),
    "column 'it' has 30 words in 30 rows, as names have; leave": lambda: mm.Table(
        pd.DataFrame({"it": [f"p{row}" for row in range(30)]})
    ),
    "column 'it' is of dtype datetime64[ns]; give numbers, such as days": lambda: mm.Table(
        pd.DataFrame({"it": pd.to_datetime(["2020-01-01", "2021-01-01"])})
    ),
    "column 'it' is of dtype object; give numbers": lambda: mm.Table(pd.DataFrame({"it": [{}, {}]})),
    "column 'it' holds arrays; leave it out": lambda: mm.Table(pd.DataFrame({"it": [[1], [2]]})),
    "column 'it' has numbers up to 1e+300, whose squares are no": lambda: mm.Table(pd.DataFrame({"it": [1e300, 1.0]})),
    "column 'it' has numbers up to 1e+308, whose squares are no": lambda: mm.Table(pd.DataFrame({"it": [1e308] * 9})),
    "column 'it' has numbers up to 3e-200, whose squares are no": lambda: mm.Table(
        pd.DataFrame({"it": [1e-200, 3e-200, 2e-200]})
    ),
    "column 'it' has an infinity; mend": lambda: mm.Table(pd.DataFrame({"it": [1.0, math.inf]})),
    "column 'it' has words beside other things; make": lambda: mm.Table(pd.DataFrame({"it": ["a", [1]]})),
    "column 'it' has words and is said to be a RealColumn(": lambda: mm.Table(WORDS, {"it": mm.RealColumn()}),
    "column 'it' has words of no order; make": lambda: mm.Table(WORDS, {"it": mm.OrdinalColumn(2)}),
    "column 'it' has 2 different values and is said to be a CategoryColumn(levels=3); give": lambda: mm.Table(
        WORDS, {"it": mm.CategoryColumn(3)}
    ),
    "the frame has the column 'other', which is no column of the table; it has 'it': mend": lambda: mm.Table(
        WORDS
    ).numbers(WORDS.assign(other=1)),
    "column 'it' has 'c' in row 1, which is none of 'a', 'b'; mend": lambda: mm.Table(WORDS).numbers(
        pd.DataFrame({"it": ["a", "c", None]})
    ),
    "column 'it' has [1] in row 0, which is none of 'a', 'b'; mend": lambda: mm.Table(WORDS).numbers(
        pd.DataFrame({"it": [[1], "a"]})
    ),
    "values have shape (2, 3, 1); give (row, 1), such as one draw": lambda: mm.Table(WORDS).frame(torch.zeros(2, 3, 1)),
    "modality 't' has the column 'it', which is of dtype object; give": lambda: mm.guess_modalities(
        {"t": WORDS}, dim=2
    ),
}


@pytest.mark.parametrize("error", REFUSED)
def test_what_is_no_such_table_is_refused_in_one_line(error):
    with pytest.raises(ValueError) as found:
        REFUSED[error]()
    assert str(found.value).startswith(error) and "\n" not in str(found.value)


def test_rows_in_another_order_than_those_beside_are_refused():
    frame = mixed()
    table = mm.Table(frame)
    vae = mm.MultimodalVAE({"t": table.modality(2), "u": table.modality(2)}, mm.StandardNormal(2), mm.PoE())
    with pytest.raises(ValueError, match="another index"):
        vae.check({"t": table.numbers(frame), "u": table.numbers(frame.iloc[::-1])})


def test_words_are_learnt_from_numbers_and_numbers_from_words():
    """Penguins of which a fifth of the entries is hidden: the most frequent word is right for .44 and .5."""
    birds = load("penguins")
    frame = pd.DataFrame(birds["body"], columns=["length", "depth", "flipper", "mass"])
    frame["species"] = np.array(["Adelie", "Chinstrap", "Gentoo"])[birds["species"]]
    frame["sex"] = [["f", "m", None][code] for code in birds["sex"]]
    table = mm.Table(frame)
    hidden = (np.random.default_rng(0).random(frame.shape) < 0.2) & frame.notna().to_numpy()
    x = {"bird": table.numbers(frame).mask(hidden)}
    vae = mm.MultimodalVAE({"bird": table.modality(dim=4, hidden=64)}, mm.StandardNormal(4), mm.PoE())
    mm.fit(vae, x, epochs=200, warmup=40, lr=5e-3, progress=False)
    said = table.frame(mm.predict(vae, x)["bird"])
    for place, label in enumerate(frame):
        own, guess = frame[label][hidden[:, place]], said[label][hidden[:, place]]
        if label in table.levels:
            assert (own == guess).mean() > (0.85 if label == "species" else 0.7)
        else:
            assert np.sqrt(((own - guess) ** 2).mean()) < 0.7 * frame[label].std()


def test_numbers_become_words_by_the_names_of_their_columns():
    frame = pd.DataFrame({"age": [1.5, 2.0], "word": ["b", "a"], "mark": [True, None]})
    table = mm.Table(frame)
    numbers = table.numbers(frame)
    back = table.frame(numbers[["mark", "word", "age"]])
    assert back["word"].tolist() == ["b", "a"] and back["age"].tolist() == [1.5, 2.0] and list(back) == list(frame)
    assert table.frame(numbers.to_numpy()).equals(back)


@pytest.mark.parametrize("wrong", [2.0, -1.0, 0.6, np.inf, -np.inf])
def test_a_number_that_is_no_code_is_refused_in_one_line(wrong):
    table = mm.Table(pd.DataFrame({"word": ["b", "a"]}))
    if wrong == 0.6:  # as of a mean
        assert table.frame([[np.nan], [wrong]])["word"].tolist()[1:] == ["b"]
        return
    with pytest.raises(ValueError, match=rf"^column 'word' has {wrong:g} in row 1; give a code from 0 to 1, NaN where"):
        table.frame([[np.nan], [wrong]])
