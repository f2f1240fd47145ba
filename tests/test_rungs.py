"""What certificates of draws ask for: one condition a row, on either side of its limit, with all others met."""

import pytest
import torch
from cases import of_tables
from exact import LinearGaussian

import pyro_mmvae as mm
from pyro_mmvae.diagnostics import climbs, rungs, witness
from pyro_mmvae.diagnostics.refine import diagonal, normal
from pyro_mmvae.diagnostics.rungs import Budget, Ladder
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.diagnostics.witness import Witness
from pyro_mmvae.psis import Smoothed

GUIDE, PRIOR, NEW = 0.0, 1.0, 2.0


def told(raw):
    """The weights of a witness that was `seen`: as many equal ones of a thousand as are effective."""
    khat, ess, log_mean = raw[:3]
    weights = torch.where(torch.arange(1000.0).unsqueeze(1) < ess, -ess.log(), -torch.inf)
    return Smoothed(weights, khat, log_mean, ess)


def seen(who, z, khat, ess, log_mean=0.0):
    """A witness with draws of the value `who`, which stands for the weights that are to be."""
    raw = torch.zeros(1000, z.shape[1])
    for place, value in enumerate((khat, ess, log_mean, who, torch.arange(z.shape[1]))):
        raw[place] = torch.as_tensor(value)
    return Witness(torch.full_like(z, who), raw)


def ladder(monkeypatch, rows, method="auto", lacks=(-1, -1), unsure=-1, found=-9.0):
    """With a guide that is no good and has found so much, a prior that is worse, and nothing certified.

    `lacks`: the row in which all draws lack what the guide has found, and that of the prior.
    """
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(rows)
    made = Ladder(Target(vae, vae.check(x), 2), method, 1000, 0.1, Budget(48, torch.inf))
    monkeypatch.setattr(witness, "smooth", told)
    monkeypatch.setattr(Witness, "lacks", lambda _, other, q: other.raw[4] == lacks[int(other.raw[3, 0])])
    made.guide = seen(GUIDE, made.guide.z, 2.0, torch.full((rows,), 15.0), found)
    made.prior = seen(PRIOR, made.prior.z, 3.0, 12.0, found)
    made.missed, made.unsure = torch.zeros(2, rows, dtype=torch.bool)
    made.unsure[unsure] = unsure >= 0
    made.served.certified[:] = False
    return made


ROWS = {  # khat, ess, what serves, and if these are of the wider normal, whether it certifies
    "as good as can be": (-9.0, 1000.0, "refined", "psis", True),
    "close enough": (0.1, 991.0, "refined", "psis", True),
    "not as close": (0.1, 989.0, "psis", "psis", True),
    "lacks what the guide has": (0.1, 1000.0, "guide", "guide", False),
    "lacks what the prior has": (0.1, 1000.0, "guide", "guide", False),
    "may lack a mode": (0.1, 1000.0, "psis", "psis", False),
    "a bad k-hat": (0.67, 1000.0, "refined", "guide", False),
    "enough to resample": (0.66, 101.0, "psis", "psis", True),
    "not enough": (0.1, 99.0, "psis", "psis", False),
    "some": (0.1, 11.0, "psis", "psis", False),
    "next to none": (0.1, 9.0, "refined", "guide", False),
    "certified before": (-9.0, 1000.0, "guide", "guide", True),
}


@pytest.mark.parametrize("wide", [False, True])
def test_weights_certify_by_k_hat_and_number_where_no_witness_has_found_more(wide, monkeypatch):
    """By the normal, or by the wider one that is only resampled, where the other has seen next to nothing."""
    khat, ess, *names, certified = zip(*ROWS.values())
    made, rows = ladder(monkeypatch, len(ROWS), lacks=(3, 4), unsure=5), torch.arange(len(ROWS))
    made.served.certified[-1], made.served.khat[:] = True, 7.0
    good, poor = (torch.tensor(khat), torch.tensor(ess), 0.0), (2.0, 1.0, -9.0)
    proposals = [seen(NEW + k, made.guide.z, *(good if wide == k else poor)) for k in range(2)]
    monkeypatch.setattr(rungs, "proposed", lambda *_: proposals.pop(0))
    made._refined(rows, made.target, diagonal(torch.zeros(len(ROWS), 2), torch.ones(len(ROWS), 2)), torch.arange(2))
    served, names = made.served, names[wide]
    assert served.method == list(names) and served.certified.tolist() == list(certified)
    new = torch.tensor([name != "guide" for name in names])
    assert torch.equal(served.khat, torch.where(new, good[0], 7.0)) and torch.allclose(served.ess[new], good[1][new])
    assert torch.equal((served.latents["z"] == NEW + wide).all(-1).all(0), new)


def test_draws_of_a_normal_are_not_certified_where_the_guide_has_found_more_by_many_draws(monkeypatch):
    made, rows = ladder(monkeypatch, 2, found=torch.tensor([-1.0, 1.0])), torch.arange(2)
    monkeypatch.setattr(rungs, "proposed", lambda *_: seen(NEW, made.guide.z, 0.1, 1000.0))
    made._refined(rows, made.target, diagonal(torch.zeros(2, 2), torch.ones(2, 2)), torch.arange(2))
    assert made.served.certified.tolist() == [True, False] and made.served.method == ["refined", "guide"]


@pytest.mark.parametrize("method", ["refined", "psis"])
def test_a_method_asked_for_serves_every_row_and_certifies_no_more_of_them(method, monkeypatch):
    """Rows with a bad k-hat, with a witness that has more, with too few draws, and with none of these."""
    made, rows = ladder(monkeypatch, 4, method, lacks=(1, 1)), torch.arange(4)
    weights = torch.tensor([0.9, 0.1, 0.1, 0.1]), torch.tensor([1000.0, 1000, 9, 1000])
    monkeypatch.setattr(rungs, "proposed", lambda *_: seen(NEW, made.guide.z, *weights))
    made._refined(rows, made.target, diagonal(torch.zeros(4, 2), torch.ones(4, 2)), torch.arange(2))
    assert made.served.method == [method] * 4 and made.served.certified.tolist() == [False, False, False, True]
    assert torch.equal(made.served.latents["z"][0, :, 0] == NEW, torch.tensor([True, method == "refined", True, True]))


def test_draws_of_the_guide_are_certified_by_their_weights_where_the_prior_has_found_no_more(monkeypatch):
    """Rows on either side of the limits of k-hat and of how close 1000 draws are to weights, and one that misses."""
    truth, x = LinearGaussian(), LinearGaussian().simulate(5)
    target = Target(truth.vae(), truth.vae().check(x), 2)
    khat, ess = torch.tensor([0.66, 0.67, 0.1, 0.1, 0.1]), torch.tensor([1000.0, 1000, 991, 989, 1000])
    guide, missed = seen(GUIDE, torch.zeros(1000, 5, 2), khat, ess), torch.arange(5) == 4
    monkeypatch.setattr(witness, "smooth", told)
    monkeypatch.setattr(rungs, "witnesses", lambda *_: (guide, guide, missed, missed))
    served = Ladder(target, "guide", 1000, 0.1, Budget(0, 0.0)).climb(print)
    assert served.certified.tolist() == [True, False, True, False, False] and torch.equal(served.khat, khat)


CHAINS = {  # R-hat, effective draws, whether they are served, certified, and go on
    "as good as can be": (1.0, 2000.0, True, True, False),
    "just good enough": (1.0099, 101.0, True, True, False),
    "apart": (1.0101, 2000.0, True, False, True),
    "few": (1.0, 99.0, True, False, True),
    "lack what the guide has": (1.0, 2000.0, True, False, False),
    "lack what the prior has": (1.0, 2000.0, True, False, False),
    "may lack a mode": (1.0, 2000.0, True, False, False),
    "few, and may lack a mode": (1.0, 99.0, True, False, False),
    "hardly usable": (1.099, 2000.0, True, False, True),
    "far apart": (1.101, 2000.0, False, False, False),
}


def test_chains_certify_by_r_hat_and_number_where_no_witness_has_found_more(monkeypatch):
    """Of all rows but one. Chains start at the normal, half of them, the others at the better witness."""
    rhat, ess, taken, certified, on = (torch.tensor(column) for column in zip(*CHAINS.values()))
    some, starts = torch.arange(1, len(CHAINS) + 1), []
    made = ladder(monkeypatch, len(CHAINS) + 1)
    made.unsure[7:9] = True
    odd, made.missed[2] = torch.arange(len(CHAINS) + 1) % 2, True
    made.guide.raw[2], made.prior.raw[2] = -3.0 - odd, -4.0 + odd

    def stub(walked, other, q):
        assert (walked.raw == -3).all()  # what has been found of p(x_S), of which chains know nothing
        return torch.arange(len(CHAINS)) == (4 if float(other.raw[3, 0]) == GUIDE else 5)

    monkeypatch.setattr(Witness, "lacks", stub)
    monkeypatch.setattr(rungs, "mixing", lambda y: (rhat, ess))
    khat, rows = made.served.khat.clone(), torch.arange(len(CHAINS) + 1)

    def walk(path, start, warmup, num_draws, deadline):
        starts.append(path.codes(start))
        return start + torch.arange(num_draws).reshape(-1, 1, 1, 1)

    q = diagonal(torch.full((len(rows), 2), 50.0), torch.full((len(rows), 2), 0.5))
    late = made._walked("hmc", lambda *_: None, some, rows, q, torch.arange(2))
    assert len(late[0]) == 0 and set(made.served.method) == {"guide"}  # the time was up while they walked
    left, ends = made._walked("hmc", walk, some, rows, q, torch.arange(2))
    assert made.served.certified[1:].tolist() == certified.tolist() and not made.served.certified[0]
    assert [name == "hmc" for name in made.served.method] == [False, *taken.tolist()]
    assert left.tolist() == some[on].tolist() and torch.equal(made.served.khat, khat)
    assert torch.equal(made.served.rhat[some[taken]], rhat[taken])
    assert torch.equal(made.served.ess[some[taken]], ess[taken])
    assert ((starts[0][:4] - 50).abs() < 8).all()
    assert torch.equal(starts[0][4:, :, 0], (some == 2).double().expand(4, -1))  # at the guide, or at the prior: 0 or 1
    torch.testing.assert_close(ends, (starts[0] + 0.5 * 249)[:, on])  # where the draws end, in coordinates of the codes
    first, last = (starts[0] + 0.5 * step for step in (0, 249))
    served = made.served.latents["z"][:, some[taken]]
    torch.testing.assert_close(served[[0, -1]], torch.stack([first[0], last[-1]])[:, taken])
    assert made.budget.nuts_rows == 48
    monkeypatch.setattr(rungs, "mixing", lambda y: (rhat[on], ess[on]))
    monkeypatch.setattr(Witness, "lacks", lambda *_: torch.zeros(len(left), dtype=torch.bool))
    made._walked("nuts", walk, left, rows, q, torch.arange(2), ends)
    torch.testing.assert_close(starts[1], ends)  # those that go on start there
    assert made.budget.nuts_rows == 48 - len(left) and made.served.method[int(left[0])] == "nuts"


def test_draws_that_are_served_are_not_those_of_the_witness():
    """Who is written over, and who bears witness of what comes next."""
    truth = LinearGaussian()
    made = Ladder(Target(truth.vae(), truth.vae().check(truth.simulate(3)), 2), "auto", 1000, 0.1, Budget(0, 0.0))
    z, khat = made.guide.z.clone(), made.guide.weights.khat.clone()
    new = torch.full((3,), 7.0)
    made._put(torch.arange(3), torch.arange(3) > 0, "psis", {"z": z + 9}, new, new, new > 0)
    assert torch.equal(made.guide.z, z) and torch.equal(made.guide.weights.khat, khat)
    assert made.served.khat[1:].tolist() == [7.0, 7.0] and made.served.rhat.isnan().all()


@pytest.mark.parametrize(
    ("method", "walks"), [("auto", "hhhnn"), ("hmc", "hhh"), ("nuts", "nn"), ("psis", ""), ("guide", "")]
)
def test_a_ladder_goes_up_as_far_as_it_is_told(method, walks, monkeypatch):
    """Chains of HMC three times, longer each time, and NUTS for as many rows as are left, sixteen at a time."""
    made, called, said = ladder(monkeypatch, 20, method), [], []
    made.budget.nuts_rows = 18
    monkeypatch.setattr(rungs, "fit_normal", lambda *_, **__: None)
    monkeypatch.setattr(made, "_refined", lambda *_: None)

    def walked(name, walk, some, rows, q, columns, at=None):
        called.append((name[0], len(some), walk.keywords["apart"] if name == "hmc" else None, at))
        return some[1:], len(called)

    monkeypatch.setattr(made, "_walked", walked)
    made.climb(said.append)
    hmc, nuts = (("h", 20, 1, None), ("h", 19, 4, 1), ("h", 18, 16, 2)), (("n", 16, None, None), ("n", 2, None, None))
    assert called == [*(hmc if "h" in walks else ()), *(nuts if "n" in walks else ())]
    assert said == [text for text, mark in {"refining": "p", "walking, hmc": "h", "walking, nuts": "n"}.items()
                    if mark in walks or (mark == "p" and method != "guide")]  # fmt: skip


@pytest.mark.parametrize(("method", "count"), [("auto", 2), ("refined", 5), ("psis", 5), ("hmc", 5)])
def test_rows_that_the_guide_serves_are_not_refined_unless_a_method_was_asked_for(method, count, monkeypatch):
    made, seen = ladder(monkeypatch, 5, method), []
    made.served.certified[:3] = True
    monkeypatch.setattr(rungs, "fit_normal", lambda target, **_: seen.append(target.batch.rows))
    monkeypatch.setattr(made, "_refined", lambda rows, *_: seen.append(len(rows)))
    monkeypatch.setattr(made, "_walked", lambda *_: (torch.arange(0), None))
    made.climb(print)
    assert seen == [count, count]


def test_chains_of_rows_that_all_lack_a_private_code_start_from_the_marginal_of_the_others():
    """Of four rows the last two lack b, whose private code stands in the middle."""
    vae, seen = mm.recipes.dmvae(of_tables(2), 2, 2)[0], []
    x = {"a": torch.randn(4, 3), "b": torch.randn(4, 2), "c": torch.randn(4, 4)}
    target = Target(vae, vae.check(x, {"b": torch.arange(4) < 2}), 2)
    own = target.take(torch.tensor([2, 3]))[1]
    assert len(own) == target.size - 2 and own[-1] == target.size - 1
    factor = torch.randn(4, target.size, target.size).tril(-1) + torch.eye(target.size)
    q = normal(torch.randn(4, target.size), factor)
    made = Ladder(target, "auto", 1000, 0.1, Budget(48, torch.inf))
    some, every = torch.tensor([2, 3]), target.columns(target.sites)
    made._walked("hmc", lambda path, *_: seen.append(path.base), some, torch.arange(4), q, every)
    torch.testing.assert_close(seen[0].loc, q.loc[2:, own])
    torch.testing.assert_close(seen[0].covariance_matrix, q.covariance_matrix[2:, own][..., own])


def test_chains_are_not_begun_that_would_be_cut_off(monkeypatch):
    """Each run takes four times as long as the one before: after 1 and 4 seconds a third ends at 21."""
    made, now, called = ladder(monkeypatch, 1, "hmc"), [0.0], []
    monkeypatch.setattr(rungs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(rungs, "fit_normal", lambda *_, **__: None)
    monkeypatch.setattr(made, "_refined", lambda *_: None)

    def walked(name, walk, some, *_):
        called.append(walk.keywords["apart"])
        now[0] += called[-1]
        return some, None

    monkeypatch.setattr(made, "_walked", walked)
    for deadline, expected in ((20.9, [1, 4]), (21.1, [1, 4, 16]), (4.9, [1])):
        now[0], made.budget.deadline = 0.0, deadline
        called.clear()
        made.climb(print)
        assert called == expected


def test_chains_are_as_long_as_the_draws_that_are_asked_for(monkeypatch):
    """Eight chains of 313 draws for 2500, every one of them different; of 250 at least for their R-hat."""
    lengths, q = [], diagonal(torch.zeros(1, 2), torch.ones(1, 2))
    monkeypatch.setattr(rungs, "mixing", lambda y: (torch.ones(1), torch.full((1,), 1e4)))

    def walk(path, start, warmup, num_draws, deadline):
        lengths.append(num_draws)
        return torch.randn(num_draws, *start.shape)

    made = ladder(monkeypatch, 1, "hmc")
    for num_draws in (2500, 10):
        made.num_draws, made.served.latents["z"] = num_draws, torch.zeros(num_draws, 1, 2)
        made._walked("hmc", walk, torch.arange(1), torch.arange(1), q, torch.arange(2))
        assert len(made.served.latents["z"].unique(dim=0)) == num_draws
    assert lengths == [313, 250]


def test_a_guide_has_missed_what_its_weights_or_its_draws_lack_or_climbs_leave_in_doubt(monkeypatch):
    made, row = ladder(monkeypatch, 4), torch.arange(4)
    monkeypatch.setattr(climbs, "with_modes", lambda *_: (made.prior, row == 2))
    monkeypatch.setattr(Smoothed, "misses", lambda own, other: (row == 0) & (own.khat < other.khat))  # 2 and 3
    monkeypatch.setattr(Witness, "lacks", lambda own, other, q: (row == 1) & (own.raw[3] != other.raw[3]))
    monkeypatch.setattr(climbs, "Witness", lambda *_: made.guide)
    _, prior, missed, unsure = climbs.witnesses(made.target, 1000)
    assert prior is made.prior and missed.tolist() == [True, True, True, False] and torch.equal(unsure, row == 2)
