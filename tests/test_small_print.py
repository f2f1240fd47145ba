"""Rows, units and names at the edge of what a call takes: an answer, or one line that says what to give."""

import math
from typing import get_args, get_type_hints

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
    x = two(24)
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


def joint():
    return mm.encoder(3 + 2 + 2, 8, dim=2)


REFUSED = {
    "target is 'tpyo'; choose one of the modalities a, b": lambda m: mm.recipes.cvae(
        m, 2, "tpyo", joint(), {"a": 3, "b": 2}
    ),
    "modality 'b' has no size; add it to private": lambda m: mm.recipes.nexus(m, 2, {"a": 2}),
    "sizes names 'tpyo', which is no modality; there is a, b: mend it": lambda m: mm.recipes.jmvae(
        m, 2, joint(), {"a": 3, "b": 2, "tpyo": 4}
    ),
    "sizes names 'c', which is no": lambda m: mm.recipes.cvae(m, 2, "a", joint(), {"a": 3, "b": 2, "c": 4}),
    "sizes names 'd', which is no": lambda m: mm.recipes.mhvae(m, [2, 2], {"a": 3, "b": 2, "d": 4}),
    "sizes names 'e', which is no": lambda m: mm.recipes.jnf(m, 2, joint(), {"a": 3, "b": 2, "e": 4}),
    "sizes names 'f', which is no": lambda m: mm.recipes.telbo(m, 2, joint(), {"a": 3, "b": 2, "f": 4}),
    "sizes names 'g', which is no": lambda m: mm.recipes.feature_fusion(m, 2, joint(), {"a": 3, "b": 2, "g": 4}),
    "private names 'h', which is no": lambda m: mm.recipes.nexus(m, 2, {"a": 2, "b": 2, "h": 2}),
    "modality 'b' has no size; add it to sizes": lambda m: mm.recipes.jmvae(m, 2, joint(), {"a": 3}),
    r"sizes\['a'\] is 3.5; give a whole number": lambda m: mm.recipes.jmvae(m, 2, joint(), {"a": 3.5, "b": 2}),
    r"sizes is a list; give a dictionary": lambda m: mm.recipes.jmvae(m, 2, joint(), [3, 2]),
    "private_prior names 'a', which is no modality with a private code": lambda m: mm.MultimodalVAE(
        m, mm.StandardNormal(2), mm.PoE(), private_prior={"a": mm.StandardNormal(2)}
    ),
    r"dims is 2; give the size of each level, such as \[4, 8\]": lambda m: mm.recipes.mhvae(m, 2, {"a": 3, "b": 2}),
    r"dims\[1\] is 0; give a whole number": lambda m: mm.recipes.mhvae(m, [2, 0], {"a": 3, "b": 2}),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_makes_no_model_is_refused_in_one_line(line):
    with pytest.raises(ValueError, match=f"^{line}") as error:
        REFUSED[line](mm.guess_modalities(two(), dim=2))
    assert "\n" not in str(error.value)


def test_rows_without_anything_have_the_prior_below_two_levels():
    vae, _ = mm.recipes.nexus(mm.guess_modalities(two(), dim=2), 2, {"a": 2, "b": 2})
    empty = {"a": torch.full((4, 3), math.nan)}
    for q in (vae.posterior(empty), vae.posterior(two(4), given=[])):
        assert q.batch_shape == (4,) and bool((q.mean == 0).all())
    some = two(4)
    some["a"][2:], some["b"][1:] = math.nan, math.nan
    torch.testing.assert_close(vae.posterior(some).mean[:1], vae.posterior(two(4)).mean[:1])
    assert bool((vae.posterior(some).mean[2:] == 0).all())


def part(**more):
    return mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 4, dim=2), **more)


WRONG = {
    "weight is -1; give a number from 0 on": lambda: part(weight=-1),
    "components is 0; give a whole": lambda: mm.GaussianMixture(2, components=0),
    "Pooled: the weight is 2; give numbers from 0 to 1": lambda: mm.Pooled(mm.StandardNormal(2), 2),
    "Pooled: the weight is nan; give": lambda: mm.Pooled(mm.StandardNormal(2), {"a": math.nan}),
    "RealColumn: scale is -1; give": lambda: mm.RealColumn(scale=-1),
    "PositiveColumn: median is 0; give": lambda: mm.PositiveColumn(0),
    "CountColumn: mean is nan; give": lambda: mm.CountColumn(math.nan),
    "OrdinalColumn: levels is 1; give": lambda: mm.OrdinalColumn(1),
    "CategoryColumn: levels is 0; give": lambda: mm.CategoryColumn(0),
    "dim is -1; give": lambda: mm.guess_modalities(two(), dim=-1),
    "dim is 0; give": lambda: mm.guess_modalities(two(), dim=0),
    "dim is 2.0; give": lambda: mm.guess_modalities(two(), dim=2.0),
    "hidden is 0; give": lambda: mm.guess_modalities(two(), dim=2, hidden=0),
    "prior is the class StandardNormal; give an object": lambda: mm.MultimodalVAE(
        {"a": part()}, mm.StandardNormal, mm.PoE()
    ),
    "prior is 'normal'; give what returns a distribution": lambda: mm.MultimodalVAE({"a": part()}, "normal", mm.PoE()),
    "components is 0; give a whole number from 1": lambda: mm.MoPoE(components=0),
    "components is 0.5; give a whole number": lambda: mm.MixtureOfWasserstein(0.5),
    "beta is -1; give a number from 0 on": lambda: mm.Objective(beta=-1),
    "beta is nan; give a number from 0 on": lambda: mm.Objective(beta=math.nan),
    "'ab' stands where names are asked for": lambda: mm.LooksAt("ab", mm.PoE()),
    "pseudo is a list; give a dictionary": lambda: mm.VampPrior(2, {"a": part()}, mm.PoE(), [1.0]),
    "pseudo names 'typo', which is no modality; there is a: mend": lambda: mm.VampPrior(
        2, {"a": part()}, mm.PoE(), {"typo": torch.ones(3, 3)}
    ),
    "modality 'a' is None; give": lambda: mm.VampPrior(2, {"a": part()}, mm.PoE(), {"a": None}),
    "fusion is the class PoE; give an object": lambda: mm.MultimodalVAE({"a": part()}, mm.StandardNormal(2), mm.PoE),
    "modality 'a' has no code at all; give": lambda: mm.MultimodalVAE({"a": part()}, None, None),
    "modality 'a' is repeated and has a private code, which is not supported": lambda: mm.MultimodalVAE(
        {"a": mm.Modality(part().decoder, torch.nn.Identity(), private=torch.nn.Identity(), repeated=True)},
        mm.StandardNormal(2),
        mm.PoE(),
        private_prior={"a": mm.StandardNormal(1)},
    ),
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_no_size_and_no_part_is_refused_in_one_line(line):
    with pytest.raises(ValueError, match=f"^{line}") as error:
        WRONG[line]()
    assert "\n" not in str(error.value)


TYPOS = {
    "LooksAt": (None, lambda: mm.LooksAt(["a", "typo"], mm.PoE())),
    "WhereGiven": (None, lambda: mm.WhereGiven("typo", mm.PoE(), mm.StandardNormal(2))),
    "sizes": (None, lambda: mm.Conditioned(mm.PoE(), {"typo": 3})),
    "Pooled": (lambda: mm.Pooled(mm.StandardNormal(2), {"a": 0.5, "typo": 0.5}), mm.PoE),
}


@pytest.mark.parametrize("what", TYPOS)
def test_the_name_of_no_modality_in_a_part_of_the_model_is_refused(what):
    """It would never be looked at: the posterior would be the prior, or a weight nobody's."""
    prior, fusion = TYPOS[what]
    vae = mm.MultimodalVAE(mm.guess_modalities(two(), dim=2), prior() if prior else mm.StandardNormal(2), fusion())
    with pytest.raises(ValueError, match=f"^{what} names 'typo', which is no modality; there is a, b: mend it$"):
        mm.fit(vae, two(), epochs=1, progress=False)


def test_the_scale_of_a_column_may_be_a_tensor():
    assert float(mm.RealColumn(scale=torch.tensor(3.0)).features(torch.tensor([6.0]))) == 2.0


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_column_of_any_unit_starts_at_its_scale(scale):
    column = mm.RealColumn(scale=scale)
    assert float(column.distribution(torch.zeros(1), column.start()).stddev) == pytest.approx(scale, rel=1e-4)


# questions


ASKED = {
    "subsets is empty; give": lambda vae, x: mm.certify(vae, x, subsets=[], progress=False),
    "tolerance is 0; give": lambda vae, x: mm.posterior_draws(vae, x, tolerance=0, progress=False),
    "rows is 0; give a whole number from 2": lambda vae, x: mm.sbc(vae, ["a"], rows=0),
    "rows is 0; give a whole number from 1": lambda vae, x: mm.sandwich(vae, given=["a"], rows=0),
    "chains is 0; give": lambda vae, x: mm.sandwich(vae, given=["a"], chains=0),
    "temperatures is 0; give": lambda vae, x: mm.sandwich(vae, given=["a"], temperatures=0),
    "feature_names names 'tpyo', .* there is a, b": lambda vae, x: mm.to_arviz(
        vae, x, num_draws=2, feature_names={"tpyo": ["u"]}
    ),
}


@pytest.mark.parametrize("line", ASKED)
def test_what_cannot_be_answered_is_refused_in_one_line(line):
    x = two()
    with pytest.raises(ValueError, match=f"^{line}") as error:
        ASKED[line](guessed(x), x)
    assert "\n" not in str(error.value)


def test_sbc_takes_the_holes_of_a_dictionary():
    x = two()
    x["a"][:, 0] = math.nan
    vae = guessed(x)
    torch.manual_seed(0)
    found = mm.sbc(vae, ["a"], x, rows=20, num_draws=9)
    torch.manual_seed(0)
    batch = mm.sbc(vae, ["a"], mm.Batch.of(x), rows=20, num_draws=9)
    assert all(torch.equal(position, batch.position[name]) for name, position in found.position.items())
    mask = ~x["a"].isnan()
    torch.manual_seed(0)
    masked = mm.sbc(vae, ["a"], mm.Batch.of({**x, "a": x["a"].nan_to_num(5.0)}, {"a": mask}), rows=20, num_draws=9)
    assert all(torch.equal(position, masked.position[name]) for name, position in found.position.items())


def test_a_joint_encoder_of_another_size_says_so_in_one_line():
    x = two()
    vae, loss = mm.recipes.feature_fusion(mm.guess_modalities(x, dim=2), 2, mm.encoder(5, 8, dim=2), {"a": 3, "b": 2})
    with pytest.raises(ValueError, match=r"^the network of 'JointEncoder' fails on \(\d+, 7\)") as error:
        mm.fit(vae, x, loss=loss, epochs=1, progress=False)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
def test_one_row_has_no_standard_error_and_no_warning():
    x = two(1)
    vae = guessed(two())
    assert math.isnan(mm.usage(vae, x).kl_se)
    found = mm.consistency(vae, x, given=["a"], more=["a", "b"])
    assert bool(found.shift_se.isnan().all()) and bool(found.shift.isfinite().all())
    mm.leave_one_out(vae, x)


def test_a_value_off_the_support_of_a_column_names_the_column():
    columns = [mm.RealColumn(), mm.PositiveColumn(), mm.CountColumn()]
    decoder = mm.TableLikelihood(mm.mlp(2, 3), columns)
    parts = {"table": mm.Modality(decoder, mm.NormalHead(4, 2), trunk=mm.TableTrunk(columns, 4))}
    table = torch.ones(5, 3)
    table[3, 1] = -2.0
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    line = r"^modality 'table' has the value -2 in column 1 in row 3, off the support of its likelihood LogNormal \("
    with pytest.raises(ValueError, match=line):
        vae.posterior({"table": table})


LAST_LINES = {
    "verdict": lambda vae, x: mm.certify(vae, x, rows=40, num_particles=20, progress=False),
    "share of draws with the right label": lambda vae, x: mm.coherence(
        vae, x, torch.arange(ROWS) % 2, {"b": lambda b: (b[:, 0] > 0).long()}
    ),
    "model ": lambda vae, x: mm.compare({"one": vae}, x, num_particles=9),
    "nats a row": lambda vae, x: mm.gaps(vae, x, num_draws=9, steps=2),
    "2 epochs in": lambda vae, x: mm.fit(vae, x, epochs=2, progress=False),
    "method ": lambda vae, x: mm.posterior_draws(vae, x, method="guide", progress=False),
    "left out ": lambda vae, x: mm.leave_one_out(vae, x),
    "KL to the prior": lambda vae, x: mm.usage(vae, x),
    "log-likelihood of 12 rows": lambda vae, x: mm.log_likelihood(vae, x, num_particles=9),
    "weighted draws of z": lambda vae, x: mm.importance(vae, x, num_draws=9),
    "mean bound of 12 rows": lambda vae, x: mm.iwae_curve(vae, x, num_particles=[1]),
    "20 simulated rows": lambda vae, x: mm.sbc(vae, ["a"], rows=20),
    "largest shift": lambda vae, x: mm.consistency(vae, x, given=["a"], more=["a", "b"]),
    "ImputationError(24 entries": lambda vae, x: mm.imputation_error(vae, x, visible={"b": torch.zeros(ROWS) > 0}),
    "lower bound": lambda vae, x: mm.sandwich(vae, given=["a"], rows=2, chains=2, temperatures=3),
}


@pytest.mark.parametrize("heading", LAST_LINES)
def test_the_last_line_of_a_cell_shows_what_print_shows(heading):
    x = two()
    found = LAST_LINES[heading](guessed(x), x)
    assert heading in repr(found) == str(found)


@pytest.mark.parametrize(("scale", "shift"), [(1e-8, 0.0), (1e12, 0.0), (50.0, 1e4)])
def test_a_guessed_model_trains_alike_in_any_unit(scale, shift):
    """Losses differ by the Jacobian, predictions by the unit."""
    x = two(40)
    x["a"][::3, 0] = math.nan

    def trained(x):
        torch.manual_seed(1)
        vae = guessed(x)
        history = mm.fit(vae, x, epochs=5, batch_size=10, lr=1e-2, progress=False)
        return torch.tensor(history.loss), mm.predict(vae, x)["a"]

    jacobian = math.log(scale) * sum(int((~value.isnan()).sum()) for value in x.values()) / 40
    (loss, mean), (other, far) = trained(x), trained({name: scale * value + shift for name, value in x.items()})
    torch.testing.assert_close(other, loss + jacobian, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((far - shift) / scale, mean, rtol=1e-8, atol=1e-8)


def test_an_editor_is_told_that_posteriors_and_likelihoods_have_means():
    told = [get_type_hints(ask)["return"] for ask in (mm.MultimodalVAE.posterior, mm.MultimodalVAE.likelihoods)]
    posterior, likelihoods = told[0], get_args(told[1])[1]
    assert all(hasattr(told, name) for told in (posterior, likelihoods) for name in ("mean", "rsample", "log_prob"))
