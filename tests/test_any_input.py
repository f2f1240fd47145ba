"""Any input: a right and finite answer, the same as for plain tensors, or one line that says what is wrong.

A thousand examples, always the same ones. With PYRO_MMVAE_NIGHTLY=1 in the environment ten thousand, new ones each
time:

    PYRO_MMVAE_NIGHTLY=1 pytest -n 0 tests/test_any_input.py
"""

import os
from functools import cache
from itertools import product

import pytest
import torch
from cases import three
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import EVENTS, batches, contents
from pyro import poutine

import pyro_mmvae as mm

NIGHTLY = bool(os.environ.get("PYRO_MMVAE_NIGHTLY"))


def examples(count):
    return settings(
        max_examples=count * (10 if NIGHTLY else 1),
        derandomize=not NIGHTLY,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@cache
def model(dtype):
    torch.manual_seed(0)
    return three().to(dtype).eval()


PRECISION = st.sampled_from([torch.float64, torch.float32])


def answer(call, x, mask, refusals=(ValueError,)):
    """What the call returns with one seed, as tensors, or the exception it raised; the input stays as it was."""
    before = contents(x), contents(mask)
    torch.manual_seed(0)
    try:
        found = call(x, mask)
    except refusals as error:
        assert "\n" not in str(error) and len(str(error)) > 20, str(error)
        found = error
    assert (contents(x), contents(mask)) == before, "the input was changed"
    return found


def holds(batch, call, refusals=(ValueError,)):
    """The answer to a batch, or None if it was refused, as it must be if and only if its plain values are."""
    found = answer(call, batch.x, batch.mask, refusals)
    if batch.plain is None:
        assert isinstance(found, refusals)
        return None
    plain = answer(call, batch.plain, batch.plain_mask, refusals)
    if isinstance(found, Exception) or isinstance(plain, Exception):
        assert str(found) == str(plain) or ("float64" in str(found) + str(plain))
        return None
    assert found.keys() == plain.keys()
    for name, value in found.items():
        assert value.isfinite().all(), name
        assert torch.equal(value.double().cpu(), plain[name].double().cpu()), name
    return found


def test_the_thousand_is_one():
    assert sum(count for count, _ in DRIVERS.values()) == 1000


def door(vae, x, mask):
    clean, masks = mm.from_nan(x) if not mask else mm.hide(x, mask, share=0.3)
    return {**clean, **{f"mask of {name}": value.double() for name, value in masks.items()}}


def posterior(vae, x, mask):
    q = vae.posterior(x, mask)
    return {"mean": q.mean, "sd": q.stddev, "draw": q.sample()}


def programs(vae, x, mask):
    try:
        guide = poutine.trace(vae.guide).get_trace(x, mask)
        model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x, mask)
    except ValueError as error:  # Pyro adds lines on the trace
        raise ValueError(str(error).splitlines()[0]) from error
    vae.check(x, mask)  # which says in one line what Pyro would say of a value off the support
    return {"z": guide.nodes["z"]["value"], "log p(x, z)": model.log_prob_sum().clamp(min=-1e300)}


def impute(vae, x, mask):
    filled = mm.impute(vae, x, mask, num_draws=2)
    batch = vae.check(x, mask)
    for name in batch:
        fine = batch.mask[name].reshape(*batch.mask[name].shape, *[1] * (batch[name].dim() - batch.mask[name].dim()))
        shown = fine.expand(filled[name].shape)
        assert torch.equal(filled[name][shown], batch[name].to(filled[name].dtype).expand(shown.shape)[shown])
    assert filled.keys() == EVENTS.keys()
    return filled


def translate(vae, x, mask):
    return {"label": mm.translate(vae, x, mask, to="label", num_draws=2)}


def log_likelihood(vae, x, mask):
    found = mm.log_likelihood(vae, x, mask, num_particles=30)
    return {"value": found.value, "se": found.se, "khat": found.khat.nan_to_num(posinf=9, neginf=-9)}


def importance(vae, x, mask):
    found = mm.importance(vae, x, mask, num_draws=30)
    return {"mean": found.mean(), "sd": found.sd(), "ess": found.ess}


def fit(vae, x, mask):
    own = model(next(vae.parameters()).dtype)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    try:
        history = mm.fit(own, x, mask, epochs=1, batch_size=3, progress=False)
        return {"loss": torch.tensor(history.loss), **{k: v.clone() for k, v in own.state_dict().items()}}
    finally:
        own.load_state_dict(before)


def certify(vae, x, mask):
    subsets = [["body"], ["label", "counts"]]
    found = mm.certify(vae, x, mask, subsets=subsets, rows=20, num_draws=9, num_particles=20, progress=False)
    return {"p": torch.tensor([row.p for row in found.rows])}


# name -> (how many examples of the thousand, driver)
DRIVERS = {
    "door": (250, door),
    "posterior": (200, posterior),
    "programs": (150, programs),
    "impute": (150, impute),
    "predict": (60, lambda vae, x, mask: mm.predict(vae, x, mask, num_draws=2)),
    "translate": (60, translate),
    "log_likelihood": (60, log_likelihood),
    "importance": (30, importance),
    "fit": (35, fit),
    "certify": (5, certify),
}


@pytest.mark.parametrize("name", DRIVERS)
def test_a_right_answer_or_one_line(name):
    count, driver = DRIVERS[name]
    refusals = (ValueError, FloatingPointError) if name == "fit" else (ValueError,)

    @examples(count)
    @given(batches(), PRECISION)
    def check(batch, dtype):
        vae = model(dtype)
        holds(batch, lambda x, mask: driver(vae, x, mask), refusals)

    check()


NAMES = [None, [], ["body"], ("label", "counts"), {"body"}, "body", "b", ["taste"], [3], [["body"]]]
NUMBERS = [1, 2, 0, -1, True, 1.0, "3", None, torch.tensor(2)]
QUESTIONS = {
    "generate": lambda vae, x, names, number: mm.generate(vae, number),
    "impute": lambda vae, x, names, number: mm.impute(vae, x, given=names, num_draws=number),
    "predict": lambda vae, x, names, number: mm.predict(vae, x, given=names, num_draws=number),
    "translate": lambda vae, x, names, number: mm.translate(vae, x, to=next(iter(names or ["x"])), num_draws=number),
    "given": lambda vae, x, names, number: mm.log_likelihood(vae, x, given=names, num_particles=number),
    "targets": lambda vae, x, names, number: mm.log_likelihood(vae, x, targets=names, num_particles=number),
    "importance": lambda vae, x, names, number: mm.importance(vae, x, given=names, num_draws=number),
    "posterior": lambda vae, x, names, number: vae.posterior(x, given=names).mean,
}


def fits(name, names, number):
    """Whether a question can be asked so."""
    counted = type(number) is int and number > 0
    if name != "posterior" and not (counted or (number is None and name in ("impute", "predict", "translate"))):
        return False
    if name == "translate":
        return bool(names) and next(iter(names)) in list(EVENTS)
    return name == "generate" or names is None or (type(names) is not str and set(map(str, names)) <= EVENTS.keys())


@pytest.mark.parametrize("name", QUESTIONS)
def test_names_and_numbers_are_taken_or_refused_in_one_line(name):
    vae, x = model(torch.float64), {"body": torch.zeros(2, 3), "label": torch.zeros(2)}
    for names, number in product(NAMES, NUMBERS):
        if fits(name, names, number):
            QUESTIONS[name](vae, x, names, number)
        else:
            with pytest.raises(ValueError) as caught:
                QUESTIONS[name](vae, x, names, number)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("top", [999, 1000])
def test_whole_numbers_below_a_thousand_are_categories_and_above_counts(top):
    decoder = mm.guess_modalities({"a": torch.tensor([0.0, top])}, dim=2)["a"].decoder
    assert isinstance(decoder, mm.CategoricalLikelihood if top < 1000 else mm.NegativeBinomialLikelihood)


@pytest.mark.parametrize("top", [255, 256])
def test_pictures_of_whole_numbers_up_to_255_are_grey_levels_and_above_counts(top):
    x = torch.randint(0, 200, (4, 3, 3)).double()
    x[0, 0, 0] = top
    decoder = mm.guess_modalities({"a": x}, dim=2)["a"].decoder
    assert isinstance(decoder, mm.BinomialLikelihood if top < 256 else mm.NegativeBinomialLikelihood)
