"""The densities that are computed in fewer operations than Pyro's: the same numbers, gradients and manners."""

import pyro.distributions as dist
import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae.distributions import Binomial, Categorical, Normal, Rows, log_prob_sum, mapped

SCALES = {
    "a number": torch.tensor(0.7),
    "one a feature": torch.tensor([0.1, 1.0, 3.0]),
    "one an entry": torch.rand(4, 5, 3) + 0.1,
    "one a row": torch.rand(5, 1) + 0.1,
}


def value_and_slopes(p, value, *leaves):
    log_prob = p.log_prob(value)
    return log_prob, *torch.autograd.grad(
        (log_prob * torch.linspace(0, 1, log_prob.numel()).view_as(log_prob)).sum(), leaves
    )


def same(found, expected, atol=1e-12):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_a_normal_is_pyros(scale):
    loc, scale = torch.randn(4, 5, 3).double().requires_grad_(), scale.double().requires_grad_()
    for value in (torch.randn(4, 5, 3).double(), torch.randn(7, 4, 5, 3).double(), torch.randn(3).double()):
        value.requires_grad_()
        leaves = loc, scale, value
        same(
            value_and_slopes(Normal(loc, scale), value, *leaves),
            value_and_slopes(dist.Normal(loc, scale), value, *leaves),
        )
        wide = Normal(loc, scale).expand((2, 4, 5, 3))
        if value.dim() == 3:
            same(
                value_and_slopes(wide, value, *leaves),
                value_and_slopes(dist.Normal(loc, scale).expand((2, 4, 5, 3)), value, *leaves),
            )
    assert Normal(loc, scale).scale.shape == loc.shape and Normal(loc, scale).batch_shape == loc.shape


@pytest.mark.parametrize("unit", [1e-15, 1e-11, 1e10, 1e15])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_a_normal_in_large_or_small_units_has_its_slopes_in_single_precision(scale, unit):
    loc, value = torch.randn(4, 5, 3).double(), torch.randn(4, 5, 3).double()
    found = []
    for kind, factor in ((torch.float64, 1.0), (torch.float32, unit)):
        leaves = [(factor * part).to(kind).requires_grad_() for part in (loc, scale.double())]
        p, at = Normal(*leaves).to_event(2), (factor * value).to(kind)
        found.append([slope.double() * factor for slope in value_and_slopes(p, at, *leaves)[1:]])
    for exact, single in zip(*found, strict=True):
        torch.testing.assert_close(single, exact, rtol=1e-4, atol=1e-4)


def test_a_normal_refuses_what_pyros_refuses():
    loc = torch.zeros(2, 3)
    for scale in (torch.tensor(-1.0), torch.tensor([1.0, 0.0, 1.0]), torch.tensor(torch.nan)):
        with pytest.raises(ValueError, match="scale"):
            Normal(loc, scale, validate_args=True)
    with pytest.raises(ValueError, match="loc"):
        Normal(loc + torch.nan, torch.tensor(1.0), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        Normal(loc, torch.tensor(1.0), validate_args=True).log_prob(loc + torch.nan)
    with pytest.raises(RuntimeError):
        Normal(loc, torch.ones(4))


@pytest.mark.parametrize("top", [1, 16, 255, 1023, 65535])
def test_a_binomial_is_pyros(top):
    logits = torch.cat([torch.linspace(-300, 300, 41), torch.randn(23)]).double().repeat(2, 1).requires_grad_()
    value = torch.randint(0, top + 1, (5, 2, 64)).double()
    value[0], value[1] = 0, top
    ours, theirs = Binomial(top, logits), dist.Binomial(top, logits=logits)
    same(value_and_slopes(ours, value, logits), value_and_slopes(theirs, value, logits), atol=1e-9)
    wide = ours.expand((5, 2, 64))
    same(
        [wide.log_prob(value), wide.mean, wide.variance],
        [ours.log_prob(value), *(v.expand(5, 2, 64) for v in (theirs.mean, theirs.variance))],
    )
    double = mapped(ours, lambda parameter, _: 2 * parameter)
    same([double.log_prob(value)], [dist.Binomial(top, logits=2 * logits).log_prob(value)], atol=1e-9)
    assert bool(ours.support.check(value).all()) and not bool(ours.support.check(value + top + 1).any())
    torch.testing.assert_close(
        ours.log_prob(ours.enumerate_support()).logsumexp(0), torch.zeros(2, 64).double(), rtol=0, atol=1e-9
    )


def test_a_binomial_takes_counts_of_any_shape_and_order():
    logits = torch.randn(3, 4)
    value = torch.randint(0, 17, (4, 3)).double().T
    torch.testing.assert_close(Binomial(16, logits).log_prob(value), dist.Binomial(16, logits=logits).log_prob(value))
    assert Binomial(16, logits[0, 0]).log_prob(torch.tensor(3.0)).shape == ()
    assert Binomial(16, logits).log_prob(torch.tensor(3.0)).shape == (3, 4)
    with pytest.raises(ValueError, match="support"):
        Binomial(16, logits, validate_args=True).log_prob(torch.tensor(17.0))
    assert Binomial(16, logits).sample((1000,)).shape == (1000, 3, 4)


@pytest.mark.parametrize("top", [255, 1023, 65535])
@pytest.mark.parametrize("entries", [200, 70_000])
def test_binomial_coefficients_have_their_digits_in_single_precision(top, entries):
    """On average: what is left is the rounding of each entry by itself, which is of either sign."""
    logits = torch.randn(entries, dtype=torch.float32)
    value = dist.Binomial(top, logits=logits).sample()
    found = mm.BinomialLikelihood(torch.nn.Identity(), top)(logits.unsqueeze(0)).base_dist.log_prob(value)
    error = found.double() - dist.Binomial(top, logits=logits.double()).log_prob(value.double())
    assert found.dtype == torch.float32
    assert abs(float(error.mean())) < 2e-8 * top and float(error.abs().max()) < 1e-6 * top


def test_values_whose_sum_overflows_are_finite_all_the_same():
    x = {"a": torch.full((8, 4), 3e38, dtype=torch.float32)}
    assert bool(mm.Batch.of(x)["a"].eq(x["a"]).all())
    x["a"][5, 2] = torch.inf
    with pytest.raises(ValueError, match="'a' has an infinity in column 2 in row 5"):
        mm.Batch.of(x)


EVENTS = {
    "Normal, one scale": Normal(torch.randn(4, 5, 3), torch.tensor(0.7)),
    "Normal, one scale, expanded": Normal(torch.randn(5, 1), torch.tensor(0.7)).expand((4, 5, 3)),
    "Normal, one scale a feature": Normal(torch.randn(4, 5, 3), torch.tensor([0.1, 1.0, 3.0])),
    "Binomial": Binomial(9, torch.randn(4, 5, 3)),
    "Categorical": Categorical(torch.randn(4, 5, 3, 7)),
}


@pytest.mark.parametrize("p", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("ndims", [1, 2, 3])
def test_their_events_are_pyros(p, ndims):
    ours, pyros = p.to_event(ndims), dist.Independent(p, ndims)
    assert isinstance(ours, dist.Independent) and (ours.batch_shape, ours.event_shape) == (
        pyros.batch_shape,
        pyros.event_shape,
    )
    value = pyros.sample((2,))
    torch.testing.assert_close(ours.log_prob(value), pyros.log_prob(value))
    torch.testing.assert_close(ours.log_prob(value[0]), pyros.log_prob(value[0]))
    with pytest.raises(ValueError, match="support"):
        ours.log_prob(value[0] * torch.nan)
    wide = ours.expand((6, *ours.batch_shape))
    assert wide.batch_shape == (6, *ours.batch_shape) and wide.sample().shape == (6, 4, 5, 3)
    torch.testing.assert_close(wide.log_prob(value[:1]), pyros.log_prob(value[0]).expand(wide.batch_shape))
    assert p.to_event(0) is p and p.to_event().batch_shape == ()
    assert ours.to_event(len(ours.batch_shape)).batch_shape == () and ours.to_event(-ndims) is p
    hidden = ours.mask(torch.zeros(ours.batch_shape, dtype=torch.bool))
    assert not hidden.log_prob(value).any()
    with pytest.raises(ValueError, match="an event of 4 axes is asked of the batch"):
        p.to_event(4)


def test_the_divergence_of_their_events_is_torchs():
    a, b = (Normal(torch.randn(4, 3), torch.rand(4, 3) + 0.1) for _ in range(2))
    expected = torch.distributions.kl_divergence(a, b).sum(-1)
    torch.testing.assert_close(torch.distributions.kl_divergence(a.to_event(1), b.to_event(1)), expected)


def test_the_slopes_of_an_event_with_one_scale_are_pyros():
    loc, scale, value = torch.randn(4, 3, 2), torch.tensor(0.7), torch.randn(5, 4, 3, 2)
    leaves = [leaf.requires_grad_() for leaf in (loc, scale, value)]
    ours, pyros = Normal(loc, scale).to_event(2), dist.Normal(loc, scale).to_event(2)
    same(value_and_slopes(ours, value, *leaves), value_and_slopes(pyros, value, *leaves))


@pytest.mark.parametrize("shape", [(4, 7), (6, 4, 7), (7,), (4, 20)])
def test_a_categorical_is_pyros(shape):
    logits = (3 * torch.randn(shape) + 5).requires_grad_()
    ours, pyros = Categorical(logits), dist.Categorical(logits=logits)
    for value in (pyros.sample(), pyros.sample().double(), pyros.sample((2,)), torch.tensor(3)):
        both = Categorical(logits), dist.Categorical(logits=logits)
        same(*(value_and_slopes(p, value, logits) for p in both))
    same([ours.probs, ours.entropy()], [pyros.probs, pyros.entropy()])
    wide = ours.expand((2, *ours.batch_shape))
    assert type(wide) is Categorical and wide.sample().shape == (2, *shape[:-1])
    same([wide.log_prob(value)], [pyros.expand((2, *shape[:-1])).log_prob(value)])
    support = ours.enumerate_support()
    same([ours.log_prob(support)], [pyros.log_prob(support)])
    narrow = ours.enumerate_support(expand=False)
    same([ours.log_prob(narrow)], [pyros.log_prob(pyros.enumerate_support(expand=False))])
    wide = mapped(ours, lambda parameter, event_dims: parameter.unsqueeze(-1 - event_dims))
    same([wide.logits], [pyros.logits.unsqueeze(-2)])


def test_a_categorical_refuses_what_pyros_refuses():
    with pytest.raises(ValueError, match="support"):
        Categorical(torch.zeros(4, 3)).log_prob(torch.full((4,), 3.0))
    with pytest.raises(ValueError, match="logits"):
        Categorical(torch.full((4, 3), torch.nan))


def batches_of_every_kind():
    """Distributions as they stand in the programs, each with a value of its batch."""
    wide = torch.randn(6, 1, 3)
    yield "a scale for all", Normal(wide, torch.tensor(0.7)).to_event(1), torch.randn(6, 1, 3)
    yield "a scale a feature", Normal(wide, torch.rand(3) + 0.1).to_event(1), torch.randn(6, 1, 3)
    yield "a scale an entry", Normal(wide, torch.rand(6, 1, 3) + 0.1).to_event(1), torch.randn(6, 1, 3)
    yield "a prior", Normal(torch.zeros(3), torch.ones(3)).to_event(1).expand((6, 1)), torch.randn(6, 1, 3)
    yield "pictures", Normal(torch.randn(6, 1, 2, 4, 4), torch.tensor(2.0)).to_event(3), torch.randn(6, 1, 2, 4, 4)
    yield "a value that is broadcast", Normal(wide, torch.tensor(0.7)).to_event(1), torch.randn(3)
    yield "more values than batch", Normal(wide, torch.rand(3) + 0.1).to_event(1), torch.randn(4, 6, 1, 3)
    yield "no event", Normal(torch.randn(6, 1), torch.tensor(0.7)), torch.randn(6, 1)
    yield "labels", Categorical(torch.randn(6, 1, 5)), torch.randint(0, 5, (6, 1))
    yield "counts", Binomial(16, torch.randn(6, 1, 3)).to_event(1), torch.randint(0, 17, (6, 1, 3)).double()
    yield "Pyro's own", dist.Laplace(wide, 1.0).to_event(1), torch.randn(6, 1, 3)
    x = torch.randn(9, 1, 3)
    rows = torch.tensor([0, 2, 3, 5, 7, 8])
    yield "a few rows", Rows(Normal(wide, torch.tensor(0.7)).to_event(1), rows, 9), x
    yield "a few rows, known", Rows(Normal(wide, torch.tensor(0.7)).to_event(1), rows, 9, (x, x[rows])), x


@pytest.mark.parametrize(("p", "value"), [pytest.param(p, v, id=n) for n, p, v in batches_of_every_kind()])
def test_the_sum_of_a_batch_is_the_sum_of_its_log_probabilities(p, value):
    torch.testing.assert_close(log_prob_sum(p, value), p.log_prob(value).sum(), rtol=1e-5, atol=1e-5)
    assert log_prob_sum(p, value).shape == ()


def test_a_normal_of_infinite_means_is_checked_as_pyros():
    """The two numbers that are looked at first say nothing here."""
    loc = torch.tensor([torch.inf, -torch.inf, 1.0])
    assert Normal(loc, torch.tensor(1.0), validate_args=True).batch_shape == (3,)
    with pytest.raises(ValueError, match="loc"):
        Normal(torch.tensor([torch.inf, torch.nan]), torch.tensor(1.0), validate_args=True)
    assert Normal(torch.zeros(0, 3), torch.ones(0, 3), validate_args=True).batch_shape == (0, 3)


def test_rows_that_were_picked_beforehand_are_those_that_would_be_picked():
    x, rows = torch.randn(9, 1, 3), torch.tensor([0, 2, 3, 5, 7, 8])
    base = Normal(torch.randn(6, 1, 3), torch.tensor(0.7)).to_event(1)
    torch.testing.assert_close(Rows(base, rows, 9, (x, x[rows])).log_prob(x), Rows(base, rows, 9).log_prob(x))
    other = torch.randn(9, 1, 3)
    torch.testing.assert_close(Rows(base, rows, 9, (x, x[rows])).log_prob(other), Rows(base, rows, 9).log_prob(other))
