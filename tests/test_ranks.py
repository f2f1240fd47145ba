"""Uniformity of ranks: the exact band and p-value, patterns of holes, and which subsets are looked at."""

import pytest
import torch
from exact import LinearGaussian

import pyro_mmvae as mm
from pyro_mmvae.data import Batch
from pyro_mmvae.diagnostics.patterns import chosen_subsets, observed_subsets, title, titles
from pyro_mmvae.diagnostics.simulated import simulate


def test_the_band_holds_all_of_a_uniform_ecdf_as_often_as_stated_and_p_values_are_uniform():
    found = [mm.rank_ecdf(torch.rand(150)) for _ in range(400)]
    inside = sum(bool((one.difference.abs() <= one.band).all()) for one in found) / 400
    assert inside == pytest.approx(0.95, abs=3.5 * (0.95 * 0.05 / 400) ** 0.5)
    for level in (0.05, 0.5):
        share = sum(one.p < level for one in found) / 400
        assert share == pytest.approx(level, abs=3.5 * (level * (1 - level) / 400) ** 0.5 + 0.01)  # it is discrete


@pytest.mark.parametrize("power", [0.8, 1.3])
def test_positions_that_are_not_uniform_leave_the_band(power):
    found = mm.rank_ecdf(torch.rand(1000) ** power)
    assert found.p < 1e-4 and (found.difference.abs() > found.band).any()
    expected = found.grid ** (1 / power) - found.grid
    assert (found.difference - expected).abs().max() < 4 * 0.5 / 1000**0.5


def test_simulated_rows_have_the_holes_and_repeats_of_the_data():
    truth = LinearGaussian(repeated=("c",))
    x = truth.simulate(40, repeats=3)
    hole = torch.ones(40, 4, dtype=torch.bool)
    hole[:, 1], hole[:10] = False, False
    mask = {"a": hole, "c": torch.tensor([[True, True, False]]).expand(40, 3)}
    found = simulate(truth.vae(), 300, Batch.of(x, mask))
    assert found.batch.mask["a"].tolist() == [[True, False, True, True]] * 300  # never one of the rows without a
    assert found.batch["c"].shape == (300, 3, 5) and found.batch.mask["c"][:, 2].sum() == 0
    residual = found.batch["c"] - (found.truth["z"] @ truth.loading["c"].T + truth.offset["c"]).unsqueeze(1)
    assert residual[:, 0].std().item() == pytest.approx(truth.noise["c"], rel=0.1)
    assert (residual[:, 0] * residual[:, 1]).mean().abs() < 4 * truth.noise["c"] ** 2 / 1500**0.5  # draws of their own
    loc = found.truth["z"] @ truth.loading["a"].T + truth.offset["a"]
    scored = torch.distributions.Normal(loc, truth.noise["a"]).log_prob(found.batch["a"])[:, [0, 2, 3]].sum(-1)
    torch.testing.assert_close(found.log_likelihood["a"], scored)


def test_the_noise_of_simulated_repeats_is_not_drawn_again_afterwards():
    """By the draws of the guide, for one, which would depend on it."""
    truth = LinearGaussian({"c": 2}, repeated=("c",))
    found = simulate(truth.vae(), 50, Batch.of(truth.simulate(20, repeats=3)))
    loc = found.truth["z"] @ truth.loading["c"].T + truth.offset["c"]
    noise = (found.batch["c"] - loc.unsqueeze(1)) / truth.noise["c"]
    assert (noise.flatten().unsqueeze(1) - torch.randn(2000)).abs().min() > 1e-9


def test_a_guide_that_is_wrong_only_where_entries_are_missing_is_found_by_the_holes_of_the_data():
    """The encoder takes hidden entries for zeros: right for complete rows, wrong for the rows of the data."""
    truth = LinearGaussian()
    x = {"a": truth.simulate(100)["a"]}
    x["a"][:, :2] = torch.nan
    vae = truth.vae()
    verdicts = {}
    for name, data in {"complete": {"a": truth.simulate(100)["a"]}, "holes": x}.items():
        options = {"subsets": [("a",)], "num_particles": 50, "progress": False}
        verdicts[name] = mm.certify(vae, data, **options).rows[0].verdict
    assert verdicts["complete"] == "pass" and verdicts["holes"] != "pass"


def test_which_subsets():
    batch = Batch.of({n: torch.zeros(4) for n in "abcdef"}, {"b": torch.tensor([True, False, False, False])})
    assert observed_subsets(batch) == [tuple("acdef"), tuple("abcdef")] == chosen_subsets(batch)
    assert len(chosen_subsets(batch, "all")) == 63
    few = chosen_subsets(batch, 5)
    assert len(set(few)) == 5 and all(s == tuple(sorted(s)) for s in few)
    assert chosen_subsets(batch, [{"c"}, ["a", "b"]]) == [("c",), ("a", "b")]
    assert len(chosen_subsets(Batch.of({"a": torch.zeros(2), "b": torch.zeros(2)}), 9)) == 3
    with pytest.raises(ValueError, match='give "all"'):
        chosen_subsets(batch, "every")
    with pytest.raises(ValueError, match="subsets is 0"):
        chosen_subsets(batch, 0)
    assert title(["a" * 40], 22) == "a" * 19 + "..."
    assert len(title([f"modality{i}" for i in range(20)], 22)) <= 22
    long = [f"a very long name of a modality, number {i}" for i in range(12)]
    cut = titles([long, long[:11], long[1:]])  # the first and the last would read the same
    assert len(set(cut)) == 3 and max(map(len, cut)) < 12 * 15
    assert titles([long[:1], long[:1]], 22) == [title(long[:1], 22)] * 2
    lacks_one, omics = ["rna", "cnv", "mutation", "mirna"], ["rna", "cnv", "protein", "mutation", "mirna"]
    assert titles([omics, ["cnv"]], 22) == ["rna + cnv + ... (5)", "cnv"]
    assert titles([omics, lacks_one, ["rna", "mutation"]], 22) == [
        "rna + cnv + ... (5)",
        "all 5 but protein",
        "rna + mutation",
    ]
    assert titles([lacks_one, lacks_one[:3]], 16) == [" + ".join(lacks_one), " + ".join(lacks_one[:3])]  # a few names
    many = [f"sensor{i:02}" for i in range(12)]
    cut = titles([[name for name in many if name != lacked] for lacked in many] + [many, many[:2], many[6:]])
    assert cut == [*(f"all 12 but {name}" for name in many), title(many), "sensor00 + sensor01", " + ".join(many[6:])]
    assert titles([many[:9], many[3:]]) == [" + ".join(many[:9]), " + ".join(many[3:])]  # all are not among them
    assert titles([many[5:], many, many[2:]])[::2] == [f"all 12 but {' + '.join(many[:n])}" for n in (5, 2)]


def test_a_modality_without_likelihood_cannot_be_simulated():
    parts = LinearGaussian().vae().modalities
    parts["b"].decoder = None
    vae = mm.MultimodalVAE(dict(parts.items()), mm.StandardNormal(2), mm.PoE())
    with pytest.raises(ValueError, match=r"no rows of modality 'b' .*; give subsets without it"):
        mm.sbc(vae, ("b",), rows=20)


@pytest.mark.parametrize(
    ("position", "why"),
    [
        (torch.tensor([0.3, torch.nan]), "^position has nan in row 1; give numbers between 0 and 1$"),
        (torch.tensor([7.0, 0.3]), "^position has 7 in row 0"),
        ([0.2, -0.1], "^position has -0.1 in row 1"),
        (torch.tensor([]), r"^position has shape \(0,\); give one number a row, at least one row$"),
        (torch.rand(4, 2), r"^position has shape \(4, 2\)"),
    ],
)
def test_positions_that_are_none_are_refused(position, why):
    with pytest.raises(ValueError, match=why):
        mm.rank_ecdf(position)
