"""What programs of the user's may get wrong of their contract without an error of Pyro's: refused in one line, or told by
numbers. z ~ N(0, 1), and a and b ~ N(z, 1)."""

import pyro
import pyro.distributions as dist
import pytest
import torch

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
