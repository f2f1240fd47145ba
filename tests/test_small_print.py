"""Rows, units and names at the edge of what a call takes: an answer, or one line that says what to give."""

import math

import pytest
import torch

import pyro_mmvae as mm

ROWS = 12


def two(rows=ROWS):
    torch.manual_seed(0)
    return {"a": torch.randn(rows, 3), "b": torch.randn(rows, 2)}


def guessed(x, dim=2):
    return mm.MultimodalVAE(mm.guess_modalities(x, dim=dim), mm.StandardNormal(dim), mm.PoE())


def test_a_modality_of_few_rows_is_left_out_without_a_p_value():
    x = two()
    vae = guessed(x)
    x["b"][1:] = math.nan
    found = {row.name: row for row in mm.leave_one_out(vae, x).rows}
    assert found["b"].rows == 1 and math.isnan(found["b"].p) and 0 <= found["a"].p <= 1
    one = mm.leave_one_out(vae, {name: value[:1] for name, value in x.items()})
    assert [math.isfinite(row.bias) for row in one.rows] == [True, True]


@pytest.mark.parametrize("whole", [True, False])
def test_guessed_counts_with_a_hole_train_in_another_precision_than_the_default(whole):
    counts = torch.poisson(torch.full((40, 4), 30.0)).long()
    mask = torch.ones(40, 4, dtype=torch.bool)
    mask[0, 0] = False
    holed = counts.double().masked_fill(~mask, math.nan)
    data = {"counts": counts} if whole else {"counts": holed}
    vae = guessed({"counts": holed}).float()
    history = mm.fit(vae, data, {"counts": mask} if whole else None, epochs=1, progress=False)
    assert math.isfinite(history.loss[0])


def test_what_is_guessed_of_data_with_a_graph_holds_none_of_it():
    x = {"a": torch.randn(40, 3, requires_grad=True)}
    vae = guessed(x)
    assert not any(value.requires_grad for value in vae.buffers())
    assert len(mm.fit(vae, x, epochs=2, progress=False).loss) == 2
