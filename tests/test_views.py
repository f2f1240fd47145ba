"""Passes over programs of a user's that take no view: what they are not to look at is missing from their data."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

import pyro_mmvae as mm
from pyro_mmvae.diagnostics.patterns import chosen_subsets, rows_with, title
from pyro_mmvae.objectives import Pass, cross, dropped, every_subset, joint, random_subsets, strata, unimodal

ROWS, NAMES, NOISE = 30, ("a", "b", "c"), 0.5
VARIANCE = NOISE**2


def model(x=None, mask=None):
    rows = 1 if x is None else len(x["a"])
    with pyro.plate("data", rows):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        for name in NAMES:
            seen = torch.tensor(True) if mask is None else mask[name]
            pyro.sample(name, dist.Normal(z, NOISE).mask(seen), obs=None if x is None else x[name])


def guide(x, mask):
    """The posterior given whatever is observed."""
    count = sum(mask[name].to(x[name].dtype) for name in NAMES)
    total = sum(torch.where(mask[name], x[name], 0) for name in NAMES)
    precision = 1 + count / VARIANCE
    with pyro.plate("data", len(total)):
        pyro.sample("z", dist.Normal(total / VARIANCE / precision, precision.rsqrt()))


def data(holes=False):
    z = torch.randn(ROWS)
    x = {name: z + NOISE * torch.randn(ROWS) for name in NAMES}
    mask = {name: torch.rand(ROWS) < (0.6 if holes else 1.1) for name in NAMES}
    mask["c"] |= ~(mask["a"] | mask["b"])
    return x, mask


def evidence(x, mask, names=NAMES):
    """log p of what is observed of the named modalities, (row,), in nats."""
    seen = torch.stack([mask[name] for name in names], -1)
    both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
    covariance = torch.where(both, 1.0, 0.0) + torch.diag_embed(torch.where(seen, VARIANCE, 1.0))
    value = torch.stack([torch.where(mask[name], x[name], 0) for name in names], -1)
    whole = dist.MultivariateNormal(torch.zeros(len(names)), covariance).log_prob(value)
    return whole - dist.Normal(0.0, 1.0).log_prob(torch.zeros(())) * (~seen).sum(-1)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("bound", [mm.objectives.elbo, mm.objectives.iwae], ids=lambda bound: type(bound).__name__)
def test_the_bound_of_what_a_guide_knows_exactly_is_the_evidence(holes, bound):
    x, mask = data(holes)
    exact = sum(evidence(x, mask, [name]).sum() for name in NAMES)
    found = mm.Objective([unimodal], bound, num_particles=3, max_plate_nesting=1).loss(model, guide, x, mask)
    assert found == pytest.approx(-float(exact), rel=1e-9)
    whole = mm.Objective([joint, Pass(unimodal, weight=0.5)], bound, max_plate_nesting=1)
    assert whole.loss(model, guide, x, mask) == pytest.approx(-float(evidence(x, mask).sum() + exact / 2), rel=1e-9)


def test_what_is_looked_at_and_what_is_explained_may_differ():
    x, mask = data()
    view = mm.View(given=["a"], targets=["b", "c"])
    loss = mm.Objective([lambda names: [view]], num_particles=20_000, max_plate_nesting=1)
    variance = 1 / (1 + 1 / VARIANCE)
    loc = x["a"] / VARIANCE * variance
    kl = kl_divergence(dist.Normal(loc, variance**0.5), dist.Normal(0.0, 1.0)).sum()
    fit = sum((dist.Normal(loc, NOISE).log_prob(x[name]) - variance / VARIANCE / 2).sum() for name in "bc")
    assert loss.loss(model, guide, x, mask) == pytest.approx(float(kl - fit), abs=0.3)  # its standard error is 0.06


@pytest.mark.parametrize("views", [every_subset, random_subsets(2), dropped(0.9)])
def test_every_family_of_subsets_is_a_pass_of_such_programs(views):
    loss = mm.Objective([views], max_plate_nesting=1).loss(model, guide, *data())
    assert 0 < loss < 1e4


@pytest.mark.parametrize("views", [cross, strata])
def test_a_pass_that_says_more_is_refused(views):
    with pytest.raises(ValueError, match=r"the guide takes no view, which .* need; .*view=mm.EVERYTHING"):
        mm.Objective([views], max_plate_nesting=1).loss(model, guide, *data())


def test_a_program_that_takes_a_view_gets_it():
    got = []

    def looking(x, mask, view=mm.EVERYTHING):
        got.append(view)
        guide(x, mask)

    def told(x, mask, view=mm.EVERYTHING):
        model(x, mask)

    mm.Objective([unimodal], max_plate_nesting=1).loss(told, looking, *data())
    assert [view.given for view in got] == [("a",), ("b",), ("c",)]
    got.clear()
    mm.Objective([unimodal], max_plate_nesting=1).loss(functools.partial(model), looking, *data())
    assert got == [mm.EVERYTHING] * 3  # both or none


def test_fit_trains_such_a_pair_by_passes():
    net = mm.mlp(6, 32, 2)

    def learnt(x, mask):
        pyro.module("net", net)
        seen = torch.stack([mask[name] for name in NAMES], -1)
        value = torch.where(seen, torch.stack([x[name] for name in NAMES], -1), 0)
        loc, log_scale = net(torch.cat([value, seen.to(value.dtype)], -1)).unbind(-1)
        with pyro.plate("data", len(loc)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    torch.manual_seed(0)
    x, mask = data()
    loss = mm.Objective([joint, unimodal], max_plate_nesting=1)
    mm.fit(mm.Pair(model, learnt), x, mask, loss=loss, epochs=40, lr=5e-2, progress=False)
    exact = float(evidence(x, mask).sum() + sum(evidence(x, mask, [name]).sum() for name in NAMES))
    assert -loss.loss(model, learnt, x, mask) > exact - 0.1 * 4 * ROWS  # a tenth of a nat a row and pass


def test_which_subsets_are_looked_at():
    """All of four modalities; those of the data, of five, the most frequent first; and sixty-four of them unasked."""

    def batch(rows, names):
        seen = torch.tensor([[bool(row >> place & 1) for place in range(len(names))] for row in rows])
        x = {name: torch.zeros(len(rows)) for name in names}
        return mm.Batch.of(x, dict(zip(names, seen.T)))

    assert len(chosen_subsets(batch([15] * 2, "abcd"))) == 15
    assert chosen_subsets(batch([0, 0, 0, 3, 17, 17], "abcde")) == [("a", "e"), ("a", "b")]
    assert len(chosen_subsets(batch([3], "abcde"), "all")) == 31
    assert [len(chosen_subsets(batch([3], "abcde"), count)) for count in (1, 2, 30, 31, 90)] == [1, 2, 30, 31, 31]
    assert len(chosen_subsets(batch(range(65), "abcdefg"))) == 64
    with pytest.warns(UserWarning, match="the rows have 65 different subsets .*; the 64 most frequent .*, 98% of the"):
        found = chosen_subsets(batch([1, *range(66)], "abcdefg"))
    assert found[0] == ("a",) and len(found) == 64
    rows = rows_with(batch([1, 3, 7, 2, 3], "abc"), ["a", "b"])
    assert rows.tolist() == [1, 2, 4] and not len(rows_with(batch([3], "abc"), ["q"]))


def test_titles_are_cut_where_they_do_not_fit():
    assert title(()) == "nothing" and title(["x" * 28]) == "x" * 28 and title(["x" * 29]) == "x" * 25 + "..."
    assert title(["x" * 12, "y" * 13]) == "x" * 12 + " + " + "y" * 13
    assert title(["x" * 12, "y" * 14]) == "x" * 12 + " + ... (2)"
    assert title(["x" * 40, "y"]) == "x" * 18 + " + ... (2)"
    assert title(["xxx", "yyy", "z" * 30], 19) == "xxx + yyy + ... (3)"
