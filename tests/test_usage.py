"""What the code is used for, and whether nested posteriors agree: held to the linear-Gaussian oracle."""

import importlib
import math

import pytest
import torch
from exact import LinearGaussian, known
from torch.overrides import TorchFunctionMode

import pyro_mmvae as mm


def moments(truth, x, subset=None):
    mean, covariance = truth.posterior(x, subset=subset)
    return mean, covariance.diagonal(dim1=1, dim2=2)


def test_kl_by_dimension_is_the_closed_form():
    truth = LinearGaussian()
    x = truth.simulate(400)
    mean, variance = moments(truth, x)
    exact = 0.5 * (variance + mean**2 - 1 - variance.log())
    found = mm.usage(truth.vae(), x, num_draws=100)
    se = exact.std(0) / 20 + 0.01
    assert ((found.kl_of - exact.mean(0)).abs() < 4 * se).all()
    assert found.kl == pytest.approx(exact.sum(1).mean().item(), abs=0.05)
    assert found.kl == pytest.approx(float(found.kl_of.sum()), abs=1e-9)  # no covariances here
    torch.testing.assert_close(found.spread, mean.var(0))


def test_information_and_marginal_are_those_of_the_model():
    """On its own rows: I(x, z) = 1/2 sum log(1 / Var(z | x)), and the codes of all rows are the prior."""
    truth = LinearGaussian()
    x = truth.simulate(1500)
    exact = -0.5 * float(moments(truth, {k: v[:1] for k, v in x.items()})[1].log().sum())
    found = mm.usage(truth.vae(), x, rows=1500)
    assert found.information == pytest.approx(exact, abs=0.06) and found.information < math.log(1500)
    assert abs(found.marginal) < 0.06
    assert found.kl == pytest.approx(found.information + found.marginal, abs=1e-9)
    assert "2 of 2 dimensions active" in str(found)


def test_some_rows_stand_for_many_among_all():
    """What a tenth of the rows say is what all say, within its error, and the rows' number still bounds it."""
    truth = LinearGaussian()
    x = truth.simulate(800)
    every, some = mm.usage(truth.vae(), x, rows=800), mm.usage(truth.vae(), x, rows=200)
    torch.testing.assert_close(every.spread, some.spread)
    assert some.kl_se == pytest.approx(every.kl_se * 2, rel=0.4)  # the error of a spread of 200 is a tenth
    for name in ("kl", "information", "marginal"):
        assert getattr(some, name) == pytest.approx(getattr(every, name), abs=4 * some.kl_se)
    assert some.kl == pytest.approx(some.information + some.marginal, abs=1e-9)
    assert some.kl == pytest.approx(float(some.kl_of.sum()), abs=1e-9)


def test_a_blind_dimension_is_not_active():
    truth = LinearGaussian()
    for loading in truth.loading.values():
        loading[:, 1] *= 1e-3
    vae, x = truth.vae(), truth.simulate(500)
    near = mm.usage(vae, x)
    assert near.active.tolist() == [True, False] and near.kl_of[1].abs() < 0.02


def test_a_prior_of_the_experts_sees_what_the_guide_sees():
    """Pooled(weight=1) of one modality is its expert, so that the KL of q(z | x_a) to it is zero, whatever x_b says."""
    truth = LinearGaussian()
    x = truth.simulate(50)
    vae = truth.vae(mm.PoE(prior_expert=False), mm.Pooled(mm.StandardNormal(2), 1.0), expert="posterior")
    found = [mm.usage(vae, data, given=["a"]) for data in ({"a": x["a"]}, {"a": x["a"], "b": x["b"] + 9.0})]
    assert [one.kl for one in found] == pytest.approx([0, 0], abs=1e-9)


def test_another_prior_is_seen_in_the_marginal_alone():
    """KL(q, N(m, I)) - KL(q, N(0, I)) = m'm / 2 - m'E z, whatever q is."""
    truth = LinearGaussian()
    x = truth.simulate(500)
    vae, other = (truth.vae(mm.MoE(), prior, expert="posterior") for prior in (None, mm.LearnedNormal(2)))
    other.prior.loc.data += 1.0
    near, far = mm.usage(vae, x, given=["a"]), mm.usage(other, x, given=["a"])
    assert far.information == pytest.approx(near.information, abs=0.05)
    shift = 1.0 - float(vae.posterior(x, given=["a"]).mean.detach().mean(0).sum())
    assert far.marginal - near.marginal == pytest.approx(shift, abs=0.05)


@pytest.mark.parametrize("fusion", [mm.MoE, mm.MoPoE])
def test_mixtures_have_a_kl_by_dimension_too(fusion):
    truth = LinearGaussian()
    x = truth.simulate(100)
    found = mm.usage(truth.vae(fusion(), expert="posterior"), x, given=["a"], num_draws=400)
    mean, variance = moments(truth, x, ["a"])
    exact = 0.5 * (variance + mean**2 - 1 - variance.log())
    assert ((found.kl_of - exact.mean(0)).abs() < 0.05).all()


NESTED = [(["a"], ["a", "b"]), (["c"], ["a", "b", "c"]), (["b", "c"], ["a", "b", "c"])]


@pytest.mark.parametrize(("given", "more"), NESTED)
def test_exact_posteriors_agree_and_the_gain_is_the_information(given, more):
    truth = LinearGaussian()
    x = truth.simulate(1500)
    found = mm.consistency(truth.vae(), x, given=given, more=more)
    assert (found.shift.abs() < 4 * found.shift_se).all()
    assert ((found.spread - 1).abs() < 4 * found.spread_se).all() and (found.spread_se < 0.05).all()
    before, after = (moments(truth, {k: v[:1] for k, v in x.items()}, s)[1] for s in (given, more))
    assert found.gain == pytest.approx(0.5 * float((before / after).log().sum()), abs=0.05)


def test_a_guide_that_changes_its_mind_in_one_direction_has_the_shift_and_spread_of_its_normals():
    """N(0, 2) given a alone and, of N(0, 2) and N(3, 1), the product N(2.4, sqrt 0.8) given both, on every row."""
    rows = 2000
    x = {
        name: torch.tensor(loc_and_log_scale).expand(rows, 2)
        for name, loc_and_log_scale in {"a": [0.0, math.log(2.0)], "b": [3.0, 0.0]}.items()
    }
    found = mm.consistency(known(mm.PoE(prior_expert=False), "ab"), x, given=["a"], more=["a", "b"])
    assert found.shift.item() == pytest.approx(2.4 / 2, abs=4 * float(found.shift_se)) and found.shift_se < 0.005
    assert found.spread.item() == pytest.approx((0.8 + 2.4**2) / 4, abs=4 * float(found.spread_se))
    assert found.gain == pytest.approx(0.5 * (0.8 / 4 + 2.4**2 / 4 - 1 - math.log(0.8 / 4)), abs=0.01)


@pytest.mark.parametrize("num_draws", [2, 3, 10])
def test_few_draws_do_not_look_like_changes_of_mind(num_draws):
    """Means of so many draws move by (Var(z | x_S) + Var(z | x_S')) / num_draws more than the posteriors do."""
    truth = LinearGaussian()
    found = mm.consistency(truth.vae(), truth.simulate(4000), given=["a"], more=["a", "b"], num_draws=num_draws)
    assert ((found.spread - 1).abs() < 4.5 * found.spread_se).all() and (found.spread_se < 0.08).all()


def test_the_errors_of_shift_and_spread_are_their_deviations_over_data_sets():
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(40 * 60)
    parts = [{name: value[60 * k : 60 * k + 60] for name, value in x.items()} for k in range(40)]
    found = [mm.consistency(vae, part, given=["a"], more=["a", "b"]) for part in parts]
    for name in ("shift", "spread"):
        value, se = (torch.stack([getattr(one, name + end) for one in found]) for end in ("", "_se"))
        assert ((value.std(0) / se.mean(0)).log().abs() < 4 / 80**0.5).all()  # of a deviation over 40


def test_rows_of_which_more_is_uncertain_do_not_make_an_error_of_the_spread():
    """N(0, s) given a and N(0, s / sqrt 2) given both, of s 1 and 10: the spread is a half of every row."""
    rows = 2000
    scale = (torch.arange(rows) % 2 * math.log(10.0)).unsqueeze(1)
    both = torch.cat([torch.zeros(rows, 1), scale], 1)
    seen = torch.arange(rows) % 4 < 2
    found = mm.consistency(
        known(mm.PoE(prior_expert=False), "ab"), {"a": both, "b": both}, {"b": seen}, given=["a"], more=["a", "b"]
    )
    noise = (2 * 0.5**2 * 2 / 200 * (1 + 100**2) / 2) ** 0.5 / ((1 + 100) / 2)  # of two variances of 200 draws
    assert found.rows == rows // 2
    assert found.spread.item() == pytest.approx(0.5, abs=4 * float(found.spread_se))
    assert found.spread_se.item() == pytest.approx(noise / (rows // 2) ** 0.5, rel=0.1)


def test_a_guide_that_is_too_sure_of_the_smaller_subset_is_seen():
    truth = LinearGaussian()
    vae = truth.vae(expert="posterior")  # the prior in every expert: the more modalities the surer
    found = mm.consistency(vae, truth.simulate(1500), given=["a"], more=["a", "b", "c"])
    assert (found.spread - 1).abs().max() > 4 * found.spread_se.max()


def test_subsets_that_are_not_nested_are_refused_in_one_line():
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(10)
    for more in (["b"], ["a"]):
        with pytest.raises(ValueError, match="not within more"):
            mm.consistency(vae, x, given=["a"], more=more)
    with pytest.raises(ValueError, match="unknown modality 'q'"):
        mm.consistency(vae, x, given=["a"], more=["a", "q"])
    with pytest.raises(ValueError, match="'ab' stands where names"):
        mm.consistency(vae, x, given=["a"], more="ab")
    with pytest.raises(ValueError, match="int stands where names"):
        mm.consistency(vae, x, given=["a"], more=3)
    for there in ("a", "c"):  # one of the two, and neither
        with pytest.raises(ValueError, match="no row has all"):
            mm.consistency(vae, {there: x[there]}, given=["a"], more=["a", "b"])


class Largest(TorchFunctionMode):
    """The most numbers that one tensor had."""

    numbers = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, found.numel() if isinstance(found, torch.Tensor) else 0)
        return found


def test_neither_pairs_of_rows_nor_draws_of_all_rows_are_held_at_once(monkeypatch):
    truth = LinearGaussian()
    vae, x, most = truth.vae(), truth.simulate(300), 20_000
    torch.manual_seed(0)
    whole = mm.usage(vae, x, num_draws=3)
    monkeypatch.setattr(importlib.import_module("pyro_mmvae.diagnostics.usage"), "NUMBERS_AT_ONCE", most)
    monkeypatch.setattr(mm.weights, "NUMBERS_AT_ONCE", most)
    torch.manual_seed(0)
    with Largest() as usage:
        found = mm.usage(vae, x, num_draws=3)
    with Largest() as consistency:
        mm.consistency(vae, x, given=["a"], more=["a", "b"])
    assert (found.kl, found.marginal) == pytest.approx((whole.kl, whole.marginal), abs=1e-9)
    assert usage.numbers <= most and consistency.numbers <= most
