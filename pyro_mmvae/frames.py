"""Tables of pandas as one modality: what each column holds, and its words as numbers and back."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyro_mmvae.arrays import counted, tensor_of, whole
from pyro_mmvae.checks import first_row, kind_of
from pyro_mmvae.columns import (
    Column,
    OrdinalColumn,
    outputs_of,
)
from pyro_mmvae.guess_columns import column_of, numbers_in
from pyro_mmvae.heads import NormalHead
from pyro_mmvae.modality import Modality
from pyro_mmvae.networks import mlp
from pyro_mmvae.tables import TableLikelihood, TableTrunk


class Table:
    """A table of pandas as one modality: what each of its columns holds, and its words as numbers and back.

    What a column holds is guessed. Words, categories, true and false, 0 and 1, and 1 and 2 are categories, with an
    order where pandas has one; whole numbers, the least of them 0, that vary as much as counts do are counts;
    the rest is positive (log-normal) if it is above zero and its logarithms are clearly the better normal, else real.
    It warns of numbers such as -999 far from all others, which files have where a number is missing.

    Args:
        frame: a DataFrame, one thing a row; what is missing is missing.
        columns: label -> column, where the guess is not right.

    Attributes:
        columns: label -> `Column`, in the order of the numbers.
        levels: label -> what the codes 0, 1, ... stand for, of the columns of categories.

    Raises:
        ValueError: in one line, what is no table of pandas, a column that nothing can be made of, or one that is not
            there.

    Example:
        >>> import pandas as pd, pyro_mmvae as mm
        >>> frame = pd.DataFrame({"age": [31.5, 44.0, None], "sex": ["f", None, "m"], "visits": [0, 7, 2]})
        >>> table = Table(frame)
        >>> table
        Table of 3 columns
        age: RealColumn(loc=37.75, scale=6.25)
        sex: CategoryColumn(levels=2): 'f', 'm'
        visits: CountColumn(mean=3.0)
        >>> table.numbers(frame)["sex"].tolist()
        [0.0, nan, 1.0]
        >>> vae = mm.MultimodalVAE({"patient": table.modality(dim=2)}, mm.StandardNormal(2), mm.PoE())
        >>> guess = table.frame(mm.predict(vae, {"patient": table.numbers(frame)})["patient"])
        >>> guess.shape, guess["sex"].isin(["f", "m"]).all().item()
        ((3, 3), True)
    """

    def __init__(self, frame: Any, columns: Mapping[Any, Column] | None = None):
        _check(frame)
        own = dict(columns or {})
        _check_labels("columns names", own, frame.columns)
        self.columns: dict[Any, Column] = {}
        self.levels: dict[Any, list[Any]] = {}
        for label in frame.columns:
            column, levels = column_of(label, frame[label], own.get(label))
            self.columns[label] = column
            if levels is not None:
                self.levels[label] = levels

    def __repr__(self) -> str:
        lines = [f"Table of {counted(len(self.columns), 'column')}"]
        for label, column in self.columns.items():
            levels = ", ".join(map(repr, self.levels.get(label, ())))
            lines.append(f"{label}: {column}{': ' * bool(levels)}{levels}")
        return "\n".join(lines)

    def numbers(self, frame: Any) -> Any:
        """A table of the same columns as numbers, NaN where missing: what the modality takes for data.

        Args:
            frame: a DataFrame; a column that it lacks is missing in all rows.

        Returns:
            A DataFrame of floats with all columns, and with the index of `frame`.

        Raises:
            ValueError: a column that this table does not know, or a value that is none of its categories.
        """
        import pandas

        _check(frame)
        _check_labels("the frame has the column", frame.columns, self.columns)
        values = np.full((len(frame), len(self.columns)), np.nan)
        for place, label in enumerate(self.columns):
            if label in frame.columns:
                values[:, place] = self._coded(label, frame[label])
        return pandas.DataFrame(values, frame.index, list(self.columns))

    def frame(self, values: Any, index: Any = None) -> Any:
        """Numbers of the modality as a DataFrame of words: of a draw of `mm.impute`, or of `mm.predict`.

        Args:
            values: (row, column), NaN where missing.
            index: of the rows, such as `frame.index`.

        Returns:
            A DataFrame in which columns of categories are of pandas' dtype for them, with an order if theirs has one.

        Raises:
            ValueError: values of another shape, or a number that is no code of a category.
        """
        import pandas

        if hasattr(values, "iloc") and values.ndim == 2 and set(values.columns) == set(self.columns):
            values = values[list(self.columns)]  # in whatever order they stand
        values = values.to_numpy() if hasattr(values, "to_numpy") else values  # else NumPy's precision would be lost
        numbers = tensor_of("values", values).detach().cpu().double()
        if numbers.dim() != 2 or numbers.shape[1] != len(self.columns):
            raise ValueError(
                f"values have shape {tuple(numbers.shape)}; give (row, {len(self.columns)}), such as one draw of them"
            )
        named = zip(self.columns.items(), numbers.unbind(1), strict=True)
        found = {label: self._said(pandas, label, column, value) for (label, column), value in named}
        return pandas.DataFrame(found, index=index)

    def modality(self, dim: int, hidden: int = 128, head: type[nn.Module] = NormalHead) -> Modality:
        """A modality of such tables, with multilayer perceptrons on both sides; its encoder is told of every hole.

        Args:
            dim: of z.
            hidden: width of the hidden layers.
            head: of the encoder, see `mm.encoder`.
        """
        dim, hidden, columns = whole("dim", dim), whole("hidden", hidden), list(self.columns.values())
        decoder = TableLikelihood(mlp(dim, hidden, outputs_of(columns)), columns)
        decoder.words = {repr(label): list(map(repr, self.levels.get(label, ()))) for label in self.columns}
        return Modality(decoder, head(hidden, dim), trunk=TableTrunk(columns, hidden))

    def _coded(self, label: Any, series: Any) -> Any:
        """The numbers of one column, (row,)."""
        if label not in self.levels:
            return numbers_in(label, series).numpy()
        code = {level: float(place) for place, level in enumerate(self.levels[label])}
        codes = np.array([code.get(v, math.nan) if isinstance(v, Hashable) else math.nan for v in series])
        for row in np.flatnonzero(np.isnan(codes) & series.notna().to_numpy())[:1]:
            known = ", ".join(map(repr, code))
            raise ValueError(
                f"column {label!r} has {series.iloc[row]!r} in row {row}, which is none of {known}; mend it, or make it"
                " None"
            )
        return codes

    def _said(self, pandas: Any, label: Any, column: Column, value: Tensor) -> Any:
        if label not in self.levels:
            return value.numpy()
        levels, codes = self.levels[label], value.nan_to_num(nan=-1.0).round()
        wrong = ~value.isnan() & ((codes < 0) | (codes >= len(levels)))
        if bool(wrong.any()):
            row = first_row(wrong)
            raise ValueError(
                f"column {label!r} has {value[row]:g} in row {row}; give a code from 0 to {len(levels) - 1}, NaN where"
                " missing"
            )
        return pandas.Categorical.from_codes(codes.long().numpy(), levels, ordered=isinstance(column, OrdinalColumn))


def _check(frame: Any) -> None:
    if not (hasattr(frame, "iloc") and hasattr(frame, "columns")):
        raise ValueError(f"this is {kind_of(frame)}; give a DataFrame of pandas")
    if not frame.columns.is_unique or not len(frame.columns):
        what = "two columns of one name" if len(frame.columns) else "no column"
        raise ValueError(f"the table has {what}; give it columns, each with a name of its own")


def _check_labels(what: str, labels: Iterable[Any], known: Iterable[Any]) -> None:
    known = list(known)
    for label in labels:
        if label not in known:
            there = ", ".join(map(repr, known))
            raise ValueError(f"{what} {label!r}, which is no column of the table; it has {there}: mend or drop it")
