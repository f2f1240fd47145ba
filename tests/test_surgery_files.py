"""Files of a model and of a run beside a model that has changed since: refused where numbers mean something else."""

import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae.titles import around_difference

FRAME = {"age": [51.0, 48.0, 60.0, 55.0], "ward": ["north", "south", "west", "north"], "falls": [0, 4, 1, 0]}
OTHERS = {
    "the scale of a column": {"age": [21.0, 18.0, 30.0, 25.0]},
    "the words of a column": {"ward": ["north", "south", "east", "north"]},
    "the kind of a column": {"falls": [5.0, 4.0, 5.5, 5.2]},
    "the name of a column": {"age": None, "weight": FRAME["age"]},
}


def of_table(changes=()):
    frame = {**FRAME, **dict(changes)}
    table = mm.Table(pd.DataFrame({label: frame[label] for label in sorted(frame) if frame[label] is not None}))
    return mm.MultimodalVAE({"patient": table.modality(dim=2, hidden=4)}, mm.StandardNormal(2), mm.PoE())


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_a_file_is_not_loaded_into_the_model_of_another_table(changes, tmp_path):
    vae, path = of_table(), tmp_path / "vae.pt"
    vae.save(path)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), mm.load(path, of_table).parameters()))
    other = of_table(changes)
    kept = [p.clone() for p in other.parameters()]
    what = "is .* there, .* in this one|does not exist" if None in changes.values() else "is .* there, .* in this one"
    with pytest.raises(ValueError, match=rf"'modalities.patient.decoder.*' ({what})") as error:
        mm.load(path, other)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert all(torch.equal(a, b) for a, b in zip(kept, other.parameters()))


def test_a_file_is_not_loaded_into_another_likelihood_but_beside_another_guide(tmp_path):
    def built(decoder, fusion):
        return mm.MultimodalVAE({"a": mm.Modality(decoder, mm.encoder(3, 4, dim=2))}, mm.StandardNormal(2), fusion)

    def binomial(count):
        return mm.BinomialLikelihood(mm.mlp(2, 3), count)

    path = tmp_path / "vae.pt"
    vae = built(binomial(16), mm.PoE())
    vae.save(path)
    other = mm.load(path, built(binomial(16), mm.MoE()))
    assert torch.equal(other.modalities["a"].decoder.net[0].weight, vae.modalities["a"].decoder.net[0].weight)
    for decoder in (binomial(15), mm.BernoulliLikelihood(mm.mlp(2, 3))):
        with pytest.raises(ValueError, match=r"'modalities.a.decoder' is BinomialLikelihood\(total_count=16\) there"):
            mm.load(path, built(decoder, mm.PoE()))


def wide():
    return dist.Normal(torch.zeros(2), 2.0).to_event(1)


def narrow():
    return dist.Normal(torch.zeros(2), 0.5).to_event(1)


def table(loc=0.0, prior=wide, decoder=0):
    columns = [mm.RealColumn(loc), mm.RealColumn()]
    torch.manual_seed(decoder)
    part = mm.Modality(mm.TableLikelihood(mm.mlp(2, 2), columns), mm.NormalHead(3, 2), trunk=mm.TableTrunk(columns, 3))
    part.decoder.requires_grad_(False)
    return mm.MultimodalVAE({"a": part}, prior, mm.PoE())


CHANGED = {
    "part 'prior' Function(bare=True, function=wide)": lambda: table(prior=narrow),
    "part 'modalities.a.decoder' TableLikelihood": lambda: table(loc=1.0),
    "checksum of what is frozen": lambda: table(decoder=1),
}


@pytest.mark.parametrize("says", CHANGED)
def test_a_run_is_not_taken_for_that_of_a_model_with_another_part(says, tmp_path):
    """Of a run that was over it would return the weights that fit the other one."""
    x, path = {"a": torch.randn(20, 2)}, tmp_path / "run.pt"

    def fit(vae):
        return mm.fit(vae, x, epochs=2, checkpoint=path, progress=False)

    history = fit(table())
    assert fit(table()).loss == history.loss
    with pytest.raises(ValueError, match=r"is of a run with") as error:
        fit(CHANGED[says]())
    assert says in str(error.value) and "\n" not in str(error.value)


def test_of_long_descriptions_the_difference_is_shown():
    columns = [mm.RealColumn(float(place)) for place in range(100)]
    one, other = ([*columns[:50], mm.RealColumn(loc), *columns[50:]] for loc in (-1.0, -2.0))
    there, here = around_difference(one, other)
    assert "loc=-1.0" in there and "loc=-2.0" in here and len(there) < 130
