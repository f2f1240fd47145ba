"""What programs of the user's may get wrong of their contract without an error of Pyro's: refused in one line, or told
by numbers. z ~ N(0, 1), and a and b ~ N(z, 1)."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_mmvae as mm

ROWS = 8


def seen_of(batch, name):
    return batch.mask[name] if name in batch else torch.zeros(batch.rows, dtype=torch.bool)


def posterior(batch, masked=True):
    """Location and scale of p(z | what the mask shows), or of zeros under the holes as data."""
    count = sum(seen_of(batch, name).double() for name in ("a", "b")) if masked else torch.full((batch.rows,), 2.0)
    return sum(batch.values()) / (1 + count), (1 + count).rsqrt()


def model(x=None, mask=None):
    batch = mm.Batch.of(x, mask)
    with pyro.plate("data", batch.rows, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        for name in ("a", "b"):
            p = dist.Normal(z, 1.0)
            pyro.sample(name, p if x is None else p.mask(seen_of(batch, name)), obs=batch.get(name))


def of_batch(function):
    def program(x=None, mask=None):
        function(mm.Batch.of(x, mask))

    return program


@of_batch
def zeros_for_holes(batch):
    """The posterior of whole rows, from values alone: a zero is what a hole looks like."""
    with pyro.plate("data", batch.rows, dim=-1):
        pyro.sample("z", dist.Normal(*posterior(batch, masked=False)))


def data(holes=0):
    x = {name: 1.4 * torch.randn(ROWS) for name in ("a", "b")}
    x["b"][:holes] = torch.nan
    return x


def test_a_guide_that_asks_no_mask_does_not_see_what_is_hidden():
    """Of `a` alone it says N(a / 3, 1 / 3), where the posterior is N(a / 2, 1 / 2), as where b is missing; it saw b,
    passed the certificate and drew b from itself."""
    pair, x = mm.Pair(model, zeros_for_holes), data()
    missing = {"a": x["a"], "b": torch.full((ROWS,), torch.nan)}
    drawn = mm.translate(pair, x, to="b", num_draws=20_000)
    assert ((drawn.mean(0) - x["a"] / 3).abs() < 5 * (4 / 3 / 20_000) ** 0.5).all()
    found = []
    for batch, given in ((x, ["a"]), (missing, None)):
        torch.manual_seed(0)
        found.append(mm.importance(pair, batch, given=given, num_draws=20).latents["z"])
    assert torch.equal(*found)
    pyro.set_rng_seed(0)
    rows = {row.given: row for row in mm.certify(pair, x, rows=300, gap_rows=0, progress=False).rows}
    assert rows["a",].verdict == rows["b",].verdict == "over-confident" and rows["a", "b"].verdict == "pass"


def test_a_pass_hides_values_from_a_guide_too():
    """The bound of b given a: log p(b | z) less the divergence of N(a / 3, 1 / 3) from N(0, 1)."""
    x = data()
    loc, variance = x["a"] / 3, torch.tensor(1 / 3)
    kl = torch.distributions.kl_divergence(dist.Normal(loc, variance.sqrt()), dist.Normal(0.0, 1.0))
    exact = dist.Normal(loc, 1.0).log_prob(x["b"]) - variance / 2 - kl
    view = [lambda names: [mm.View(given=["a"], targets=["b"])]]
    loss = mm.Objective(view, num_particles=40_000, max_plate_nesting=1)
    assert float(loss.loss(model, zeros_for_holes, x)) == pytest.approx(-float(exact.sum()), abs=0.1)


@of_batch
def exact(batch):
    with pyro.plate("data", batch.rows, dim=-1):
        pyro.sample("z", dist.Normal(*posterior(batch)))


def guide_with(loc=lambda loc: loc, sample=lambda loc, scale: pyro.sample("z", dist.Normal(loc, scale)), **plate):
    """The exact guide, but for its means, its site, or its plate."""

    def guide(batch):
        mean, scale = posterior(batch)
        with pyro.plate(**{"name": "data", "size": batch.rows, "dim": -1, **plate}):
            sample(loc(mean), scale)

    return mm.Pair(model, of_batch(guide))


def model_with(means=lambda batch, z: z, seen=seen_of):
    """The model, but for the means of its modalities, or what of them it scores."""

    def program(batch):
        with pyro.plate("data", batch.rows, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            for name in batch:
                pyro.sample(name, dist.Normal(means(batch, z), 1.0).mask(seen(batch, name)), obs=batch[name])

    return mm.Pair(of_batch(program), exact)


def masked(loc, scale):
    with poutine.mask(mask=loc > 0):
        pyro.sample("z", dist.Normal(loc, scale))


def observing(loc, scale):
    pyro.sample("z", dist.Normal(loc, scale))
    pyro.sample("a", dist.Normal(loc, 1.0), obs=loc)


def halving(batch, z):
    batch["a"].mul_(0.5)
    return z


def filling(batch, z):
    batch["b"][~batch.mask["b"]] = 0.0
    return z


def opening(batch, z):
    batch.mask["b"].fill_(True)
    return z


BREAKS = {
    "the guide has 'z' in a plate 'data' at dim -2 and the model .* at dim -1; give both": guide_with(
        sample=lambda loc, scale: pyro.sample("z", dist.Normal(loc[:, None], scale[:, None])), dim=-2
    ),
    "the guide has 'z' outside of the plate 'data' and the model in a plate": guide_with(name="rows"),
    "the guide observes 'a', as the model does": guide_with(sample=observing),
    "the guide masks 'z' and the model does not": guide_with(sample=masked),
    "the guide has one point for 'z'": guide_with(sample=lambda loc, _: pyro.sample("z", dist.Delta(loc))),
    "writes into x of 'a'": model_with(halving),
    "writes into the mask of 'b'": model_with(opening),
    "of a row is another one with other rows beside it": guide_with(lambda loc: loc - loc.mean()),
    "with other rows beside it: the model or the guide": guide_with(lambda loc: loc.flip(0)),
    "with other rows beside it: .* mixes rows": model_with(lambda batch, z: z - z.mean(-1, keepdim=True)),
    "with other rows beside it: .* asks whether all": model_with(
        seen=lambda batch, name: seen_of(batch, name).all().expand(batch.rows)
    ),
}


@pytest.mark.parametrize("line", BREAKS)
def test_tools_refuse(line):
    """Each of them gave a log p(x) that was off, by 0.2 to 27 nats a row, or a certified point."""
    with pytest.raises(ValueError, match=line) as caught:
        mm.log_likelihood(BREAKS[line], data(holes=3), num_particles=10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", [line for line in BREAKS if "plate" in line or "writes" in line or "observes" in line])
def test_training_refuses(line):
    loss = mm.Objective(max_plate_nesting=1)
    pair = BREAKS[line]
    pyro.clear_param_store()
    guide = lambda x, mask: (pyro.param("used", torch.zeros(())), pair.guide(x, mask))  # noqa: E731
    with pytest.raises(ValueError, match=line):
        mm.fit(mm.Pair(pair.model, guide), data(holes=3), loss=loss, epochs=1, progress=False)


def test_tools_refuse_a_model_that_scores_what_its_mask_hides():
    """It counted the zeros under the holes as data, and for subsets what it was not asked about: log p of both."""

    def scores_all(x=None, mask=None):
        model(None if x is None else mm.Batch.of(x, mask).as_if_seen())

    x, forgets = data(holes=3), mm.Pair(scores_all, exact)
    alone = dist.Normal(0.0, 2**0.5).log_prob(x["a"])
    both = dist.MultivariateNormal(torch.zeros(2), torch.ones(2, 2) + torch.eye(2)).log_prob(
        torch.stack([x["a"], x["b"].nan_to_num()], -1)
    )
    found = mm.log_likelihood(mm.Pair(model, exact), x, num_particles=30).value
    torch.testing.assert_close(found, torch.where(x["b"].isnan(), alone, both))
    with pytest.raises(ValueError, match=r"scores 'b' in rows where its mask hides it.*\.mask\(mask\['b'\]\)"):
        mm.log_likelihood(forgets, x)
    whole = {name: value[3:] for name, value in x.items()}
    torch.testing.assert_close(mm.log_likelihood(forgets, whole, num_particles=30).value, both[3:])
    with pytest.raises(ValueError, match=r"scores 'b' in rows where its mask hides it"):
        mm.certify(forgets, whole, rows=20, progress=False)


def test_training_refuses_a_model_that_scores_what_is_missing():
    """Its loss was 2.77 nats a row, and 2.38 with the mask, of an exact guide."""
    x = data(holes=3)
    loss, guide = (
        mm.Objective(max_plate_nesting=1),
        guide_with(lambda loc: loc + 0 * pyro.param("used", torch.zeros(()))),
    )
    scores_all = model_with(seen=lambda batch, name: torch.ones(batch.rows, dtype=torch.bool))
    with pytest.raises(ValueError, match="the model scores 'b' in rows where its mask hides it"):
        mm.fit(mm.Pair(scores_all.model, guide.guide), x, loss=loss, epochs=1, progress=False)
    whole = {name: value[3:] for name, value in x.items()}
    found = mm.fit(mm.Pair(scores_all.model, guide.guide), whole, loss=loss, epochs=1, progress=False).loss[0]
    p = dist.MultivariateNormal(torch.zeros(2), torch.ones(2, 2) + torch.eye(2))
    assert found == pytest.approx(-float(p.log_prob(torch.stack([*whole.values()], -1)).mean()))


def columns(score):
    """z ~ N(0, 1), and three columns of x that are N(z, 1) each, scored as `score` has it; the guide is the prior."""

    def model(batch):
        with pyro.plate("data", batch.rows, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            mask = batch.mask["x"]
            mask = mask if mask.dim() > 1 else mask.unsqueeze(-1).expand(batch.rows, 3)
            score(dist.Normal(z.unsqueeze(-1).expand(*z.shape, 3), 1.0), mask, batch["x"])

    def guide(batch):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", batch.rows, dim=-1):
            pyro.sample("z", dist.Normal(loc.expand(batch.rows), 1.0))

    return mm.Pair(of_batch(model), of_batch(guide))


def score_entries(p, mask, x):
    pyro.sample("x", p.mask(mask).to_event(1), obs=x)


def score_rows(p, mask, x):
    pyro.sample("x", p.to_event(1).mask(mask.any(-1)), obs=x)


def score_beside(p, mask, x):
    """What hangs on the data themselves and not on what their site returned."""
    score_entries(p, mask, x)
    pyro.factor("more", x.sum(-1))


@pytest.mark.parametrize("score", [score_rows, score_beside])
def test_single_entries_that_are_hidden_may_not_be_scored(score):
    """Of 1.0, hidden and 2.0 the first gave log p of 1.0, 0.0 and 2.0."""
    pyro.clear_param_store()
    x = {"x": torch.tensor([[1.0, torch.nan, 2.0], [0.5, -1.0, 3.0], [torch.nan] * 3])}
    seen = x["x"][0, [0, 2]]
    exact = dist.MultivariateNormal(torch.zeros(2), torch.ones(2, 2) + torch.eye(2)).log_prob(seen)
    found = mm.log_likelihood(columns(score_entries), x, num_particles=20_000)
    assert abs(found.value[0] - exact) < 5 * found.se[0] and found.value[2] == 0
    line = r"the model scores entries of 'x' that its mask hides, or goes on .*\.mask\(mask\['x'\]\) entry by entry"
    with pytest.raises(ValueError, match=line):
        mm.log_likelihood(columns(score), x, num_particles=10)
    loss, epoch = mm.Objective(max_plate_nesting=1), {"epochs": 1, "progress": False}
    with pytest.raises(ValueError, match=line):
        mm.fit(columns(score), x, loss=loss, **epoch)
    mm.fit(columns(score_entries), x, loss=loss, **epoch)
    late = {"x": torch.cat([x["x"][1:2].expand(9, 3), x["x"]])}
    with pytest.raises(ValueError, match=line):
        mm.fit(columns(score), late, loss=loss, **epoch)
    whole = {"x": x["x"][1:2].expand(4, 3)}
    assert mm.log_likelihood(columns(score), whole, num_particles=10).value.isfinite().all()


def test_noise_of_a_model_is_not_taken_for_hidden_entries():
    """N(z, 1) and noise of N(0, 1), of which a density is N(z, 1) somewhere else in every run."""
    noisy = columns(lambda p, mask, x: score_entries(dist.Normal(p.loc + torch.randn(p.loc.shape), 1.0), mask, x))
    x = {"x": torch.tensor([[1.0, torch.nan, 2.0], [0.5, -1.0, 3.0]])}
    pyro.clear_param_store()
    assert mm.log_likelihood(noisy, x, num_particles=10).value.isfinite().all()


def test_training_refuses_a_guide_that_counts_for_more_rows_than_the_batch_has():
    """Its density counted 125 times."""
    pair = guide_with(
        lambda loc: loc + 0 * pyro.param("used", torch.zeros(())), size=1000, subsample=torch.arange(ROWS)
    )
    with pytest.raises(ValueError, match="the plate 'data' has 1000 rows and scales the loss of a batch up to them"):
        mm.fit(pair, data(), loss=mm.Objective(max_plate_nesting=1), epochs=1, progress=False)


def test_zeros_that_a_model_writes_under_what_a_subset_hides_do_not_reach_the_next_subset():
    """It had the exact guide called over-confident, by simulated rows of which b was gone after the subset of a."""

    def program(x=None, mask=None):
        batch = mm.Batch.of(x, mask)
        if x is not None:
            filling(batch, None)
        model(None if x is None else batch)

    with pytest.raises(ValueError, match="writes into x of 'b', and what comes after goes on with that"):
        mm.certify(mm.Pair(program, exact), data(), rows=20, gap_rows=0, progress=False)


@pytest.mark.parametrize("rows", [1, 2, ROWS])
def test_programs_that_keep_the_contract_are_taken(rows):
    """Also those that write zeros into holes, which have them, draw noise of their own, or mask a code in both."""
    x = {name: value[:rows] for name, value in data(holes=3 if rows > 3 else 0).items()}
    alone, both = (
        dist.Normal(0.0, 2**0.5).log_prob(x["a"]),
        dist.Normal(x["a"] / 2, 1.5**0.5, validate_args=False).log_prob(x["b"]),
    )
    found = mm.log_likelihood(mm.Pair(model, exact), x, num_particles=5).value
    torch.testing.assert_close(found, alone + both.nan_to_num())

    torch.testing.assert_close(mm.log_likelihood(model_with(filling), x, num_particles=5).value, found)
    noisy = guide_with(lambda loc: loc + 0.1 * torch.randn(loc.shape[-1]))
    value = mm.log_likelihood(noisy, x, num_particles=20_000).value
    torch.testing.assert_close(value, found, atol=0.05, rtol=0)


class Centred(torch.nn.Module):
    """A decoder whose means add up to zero over the rows."""

    def __init__(self):
        super().__init__()
        self.net = mm.mlp(2, 3)

    def forward(self, z):
        loc = self.net(z)
        return dist.Normal(loc - loc.mean(-3, keepdim=True), 1.0).to_event(1)


def with_parts(decoder, prior):
    return mm.MultimodalVAE({"a": mm.Modality(decoder, mm.encoder(3, 8, dim=2))}, prior, mm.PoE()).double()


def test_a_network_that_mixes_rows_gets_no_certificate():
    vae = with_parts(Centred(), mm.StandardNormal(2))
    with pytest.raises(ValueError, match="of a row is another one with other rows beside it"):
        mm.certify(vae, {"a": torch.randn(ROWS, 3)}, rows=20, progress=False)


@pytest.mark.parametrize(
    "line, prior",
    [
        (r"batch \(\) and event \(1, 2\)", lambda: dist.Normal(torch.zeros(1, 2), 1.0).to_event(2)),
        (r"batch \(8, 1\) and event \(2,\)", lambda: dist.Normal(torch.zeros(ROWS, 1, 2), 1.0).to_event(1)),
    ],
)
def test_a_prior_of_other_axes_is_refused(line, prior):
    """The first made the loss of a batch of 20 four times as large; the second serves a batch of one size alone."""
    vae = with_parts(mm.NormalLikelihood(mm.mlp(2, 3)), prior)
    with pytest.raises(ValueError, match=f"the prior has {line}; it must have event"):
        mm.fit(vae, {"a": torch.randn(ROWS, 3)}, epochs=1, progress=False)


def test_imputations_are_not_scored_by_a_model_that_scores_all_there_is():
    """It had the log score of what was visible among that of what was hidden."""
    x, visible = data(), {"b": torch.arange(ROWS) >= 4}
    found = mm.imputation_error(mm.Pair(model, exact), x, visible=visible, num_draws=20_000)["b"]
    scored = dist.Normal(x["a"] / 2, 1.5**0.5).log_prob(x["b"])[:4].mean()
    assert found.log_score == pytest.approx(float(scored), abs=0.05)
    pair = model_with(seen=lambda batch, name: torch.ones(batch.rows, dtype=torch.bool))
    with pytest.raises(ValueError, match="the model scores 'b' in rows where its mask hides it"):
        mm.imputation_error(pair, x, visible=visible)
