"""Programs of a user's with parts that are easily passed over, against quadrature, sums and closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import tensor

import pyro_mmvae as mm

ROWS = 4
X = {
    "a": tensor([-0.6, 0.1, 0.9, 1.4], dtype=torch.float64),
    "b": tensor([0.8, -1.2, 0.3, -0.4], dtype=torch.float64),
}


def pair_of(code, likelihoods, proposal):
    """Programs of one code a row, z.

    Args:
        code: () -> prior.
        likelihoods: z -> name -> distribution.
        proposal: () -> the distribution of z in the guide.
    """

    def model(x=None, mask=None):
        batch = mm.Batch.of(x, mask)
        with pyro.plate("data", batch.rows, dim=-1):
            z = pyro.sample("z", code())
            for name, p in likelihoods(z).items():
                hidden = name not in batch
                pyro.sample(name, p if hidden else p.mask(batch.mask[name]), obs=None if hidden else batch[name])

    def guide(x=None, mask=None):
        with pyro.plate("data", len(next(iter(x.values()))), dim=-1):
            pyro.sample("z", proposal())

    return mm.Pair(model, guide)


def on_grid(code, likelihoods, low, high, points=4000):
    """The grid (point, 1) and the logarithm of the joint on it, (point, row), by name of what is observed."""
    z = torch.linspace(low, high, points + 1)[:-1, None] + (high - low) / points / 2
    prior = code().log_prob(z) + math.log((high - low) / points)
    return z, {name: prior + p.log_prob(X[name]) for name, p in likelihoods(z).items()}, prior


def angle():
    return dist.VonMises(tensor(0.3), tensor(0.5))


def around(z):
    return {"a": dist.Normal(z.cos(), 0.5), "b": dist.Normal(z.sin(), 0.8)}


def test_an_angle_has_one_turn():
    """Its density repeats along the line; with several turns of it the evidence would be as many times as large."""
    torch.manual_seed(0)
    pair = pair_of(angle, around, lambda: dist.VonMises(tensor(0.3), tensor(0.6)))
    z, joint, prior = on_grid(angle, around, -math.pi, math.pi)
    both = joint["a"] + joint["b"] - prior
    exact, alone = both.logsumexp(0), joint["a"].logsumexp(0)
    found = mm.gaps(pair, X, full_rank=True, num_draws=2000)
    torch.testing.assert_close(found.log_likelihood, exact, rtol=0, atol=0.1)
    assert (found.approximation > -0.05).all()
    annealed = mm.annealed_log_likelihood(pair, X, chains=16, temperatures=30)
    assert ((annealed.value - exact).abs() < 4.5 * annealed.se).all()
    told = mm.conditional_log_likelihood(pair, X, given=["a"], targets=["b"], num_particles=2000)
    assert ((told.value - exact + alone).abs() < 4.5 * told.se).all()
    drawn = mm.posterior_draws(pair, X, method="psis", num_draws=3000, progress=False).latents["z"]
    share = both.softmax(0)
    torch.testing.assert_close(drawn.sin().mean(0), (share * z.sin()).sum(0), rtol=0, atol=0.05)
    assert drawn.abs().max() <= math.pi


@pytest.mark.parametrize("low", [-1.0, tensor([-1.0], dtype=torch.float64)], ids=["number", "tensor"])
def test_a_code_between_bounds_is_refined(low):
    torch.manual_seed(0)

    def near(z):
        return {"a": dist.Normal(z, 0.7), "b": dist.Normal(2 * z, 1.5)}

    pair = pair_of(lambda: dist.Uniform(low, 2.0 + 0 * low), near, lambda: dist.Uniform(-1.0, 2.0))
    _, joint, prior = on_grid(lambda: dist.Uniform(-1.0, 2.0), near, -1.0, 2.0)
    exact = (joint["a"] + joint["b"] - prior).logsumexp(0)
    found = mm.gaps(pair, X, full_rank=True, num_draws=4000)
    torch.testing.assert_close(found.log_likelihood, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("rows", [1, ROWS])
def test_bounds_that_hang_on_other_codes_are_refused(rows):
    """One set of bounds would stand for all draws, and what lies outside of it be lost."""

    def program(x, observes):
        with pyro.plate("data", len(x["a"]), dim=-1):
            u = pyro.sample("u", dist.LogNormal(torch.zeros(len(x["a"])), 0.5))
            v = pyro.sample("v", dist.Uniform(torch.zeros_like(u), u))
            if observes:
                pyro.sample("a", dist.Normal(v, 0.5), obs=x["a"])

    pair = mm.Pair(lambda x, mask=None: program(x, True), lambda x, mask=None: program(x, False))
    with pytest.raises(
        ValueError, match="the site 'v' cannot be refined: its bounds hang on the row, or on other codes"
    ):
        mm.gaps(pair, {"a": X["a"][:rows]})


@pytest.mark.parametrize("by", ["factor", "delta"])
def test_the_volume_of_a_transform_belongs_to_the_guide(by):
    """Noise becomes an exact draw of p(z | x); its density is that of the noise over the volume, a factor."""
    scale = 0.5**0.5

    def model(x, mask=None):
        with pyro.plate("data", ROWS, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(z, 1.0), obs=x["a"])

    def guide(x, mask=None):
        with pyro.plate("data", ROWS, dim=-1):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            z = x["a"] / 2 + scale * noise
            volume = torch.full_like(z, -math.log(scale))
            pyro.sample("z", dist.Delta(z, log_density=volume if by == "delta" else 0.0))
            if by == "factor":
                pyro.factor("volume", volume, has_rsample=True)

    pair, exact = mm.Pair(model, guide), dist.Normal(0.0, 2**0.5).log_prob(X["a"])
    for found in (mm.log_likelihood(pair, {"a": X["a"]}, num_particles=9), mm.importance(pair, {"a": X["a"]})):
        value = found.value if hasattr(found, "value") else found.raw.logsumexp(0) - math.log(1000)
        torch.testing.assert_close(value, exact)


CODES = tensor([0.6, 0.4], dtype=torch.float64)
MIDDLE = tensor([-1.0, 2.0], dtype=torch.float64)


def clusters(logit, shift):
    """c ~ Bernoulli(0.4), z ~ N(-1 or 2, 1), a ~ N(z, 1); the guide draws c by its odds, and z around c."""

    def model(x, mask=None):
        with pyro.plate("data", len(x["a"]), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(CODES[1]))
            z = pyro.sample("z", dist.Normal(MIDDLE[c.long()], 1.0))
            pyro.sample("a", dist.Normal(z, 1.0), obs=x["a"])

    def guide(x, mask=None):
        with pyro.plate("data", len(x["a"]), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(logits=logit.expand(len(x["a"]))))
            pyro.sample("z", dist.Normal(shift + c, 0.8))

    return model, guide


def exact_loss(logit, shift, particles):
    """By sums over c and Gauss-Hermite quadrature over z, (): of the ELBO, or of IWAE with two particles."""
    odds = torch.stack([1 - logit.sigmoid(), logit.sigmoid()])
    steps = torch.linspace(-7, 7, 141)
    share = dist.Normal(0.0, 1.0).log_prob(steps).softmax(0)

    def log_weight(c):
        z = (shift + c + 0.8 * steps)[:, None]
        joint = CODES[c].log() + dist.Normal(MIDDLE[c], 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(X["a"])
        return joint - odds[c].log() - dist.Normal(shift + c, 0.8).log_prob(z)

    if particles == 1:
        return -sum(odds[c] * (share[:, None] * log_weight(c)).sum() for c in (0, 1))
    total = torch.zeros(())
    for c, d in ((0, 0), (0, 1), (1, 0), (1, 1)):
        both = torch.logaddexp(log_weight(c)[:, None], log_weight(d)[None]) - math.log(2)
        total = total - odds[c] * odds[d] * (share[:, None, None] * share[None, :, None] * both).sum()
    return total


@pytest.mark.parametrize(
    "bound, particles",
    [(mm.objectives.elbo, 1), (mm.objectives.elbo, 3), (mm.objectives.stl, 1), (mm.objectives.iwae, 2)],
    ids=["elbo", "elbo of three", "stl", "iwae"],
)
def test_draws_of_categories_have_the_gradient_of_their_odds(bound, particles):
    torch.manual_seed(0)
    parameters = tensor(0.3, requires_grad=True), tensor(0.2, requires_grad=True)
    exact = exact_loss(*parameters, 2 if bound is mm.objectives.iwae else 1)
    wanted = torch.stack(torch.autograd.grad(exact, parameters))
    loss = mm.Objective(bound=bound, num_particles=particles, max_plate_nesting=1)
    many, found, values = {"a": X["a"].repeat(400)}, [], []
    for _ in range(30):
        value = loss.differentiable_loss(*clusters(*parameters), many) / 400
        values.append(value.detach())
        found.append(torch.stack(torch.autograd.grad(value, parameters)))
    for drawn, truth in ((torch.stack(found), wanted), (torch.stack(values), exact.detach())):
        assert ((drawn.mean(0) - truth).abs() < 4.5 * drawn.std(0) / 30**0.5).all()


def halves(scale, how):
    """z ~ N(0, 1), a ~ N(z, 1), and guides of z ~ N(a / 3, scale), or of something that z hangs on."""

    def program(x, observes):
        with pyro.plate("data", len(x["a"]), dim=-1):
            if observes or how == "hang on other draws":
                y = pyro.sample("y", dist.Normal(0.0, 1.0 if observes else scale))
            base = dist.Normal(torch.zeros_like(x["a"]), 1.0)
            if observes:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                return pyro.sample("a", dist.Normal(z, 1.0), obs=x["a"])
            if how == "carry no gradient":
                return pyro.sample("z", dist.Normal(x["a"] / 3, scale).has_rsample_(False))
            if how == "hang on other draws":
                return pyro.sample("z", dist.Normal(x["a"] / 3 + y, 0.5))
            if how == "pass through transforms that learn":
                affine = dist.transforms.AffineTransform(x["a"] / 3, scale)
                return pyro.sample("z", dist.TransformedDistribution(base, [affine]))
            z = x["a"] / 3 + scale * pyro.sample("noise", base, infer={"is_auxiliary": True})
            return pyro.sample("z", dist.Delta(z, log_density=-scale.log().expand(z.shape)))

    return lambda x, mask=None: program(x, True), lambda x, mask=None: program(x, False)


HOWS = [
    "carry no gradient",
    "hang on other draws",
    "pass through transforms that learn",
    "have no density of their own",
]


@pytest.mark.parametrize("how", HOWS)
def test_dreg_refuses_guides_whose_gradient_it_would_get_wrong(how):
    """Through a learnt transform it had the wrong sign, and for codes of two levels it was off by a third."""
    loss = mm.Objective(bound=mm.objectives.dreg, num_particles=2, max_plate_nesting=1)
    with pytest.raises(
        ValueError, match=f"draws of 'z' {how}, and so the gradient of .*dreg would be wrong; give .*iwae"
    ):
        loss.differentiable_loss(*halves(tensor(0.8, requires_grad=True), how), {"a": X["a"]})


@pytest.mark.parametrize("how", ["pass through transforms that learn", "have no density of their own"])
def test_stl_has_the_gradient_of_the_elbo_however_a_draw_is_written(how):
    torch.manual_seed(0)
    scale, a = tensor(0.8, requires_grad=True), X["a"]
    second = (a / 3) ** 2 + scale**2
    exact = (0.5 * (second + (a * 2 / 3) ** 2 + scale**2) - scale.log()).sum()
    (wanted,) = torch.autograd.grad(exact, scale)
    loss, found = mm.Objective(bound=mm.objectives.stl, max_plate_nesting=1), []
    for _ in range(30):
        value = loss.differentiable_loss(*halves(scale, how), {"a": a.repeat(400)}) / 400
        found.append(torch.autograd.grad(value, scale)[0])
    drawn = torch.stack(found)
    assert (drawn.mean() - wanted).abs() < 4.5 * drawn.std() / 30**0.5


def told_of(what):
    """z ~ N(0, 1) and a ~ N(z, 1), and besides an observation of z that no data are needed for."""

    def model(x=None, mask=None):
        rows = mm.Batch.of(x, mask).rows
        with pyro.plate("data", rows, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(rows), 1.0))
            if what == "factor":
                pyro.factor("s", dist.Normal(z, 1.0).log_prob(tensor(1.0)))
            elif what == "observation":
                pyro.sample("s", dist.Normal(z, 1.0), obs=torch.ones(rows))
            pyro.deterministic("twice", 2 * z)
            pyro.deterministic("one", torch.ones(rows))
            pyro.sample("a", dist.Normal(z, 1.0), obs=x["a"] if x else torch.zeros(1) if what == "default" else None)

    def guide(x=None, mask=None):
        precision = 3.0 if what in ("factor", "observation") else 2.0
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", dist.Normal((x["a"] + precision - 2) / precision, precision**-0.5))

    return mm.Pair(model, guide)


@pytest.mark.parametrize("what", ["nothing", "default", "factor", "observation"])
def test_what_is_known_besides_the_data_counts_and_is_not_simulated(what):
    """An exact guide of such a model would be called biased by rows from its prior."""
    pair, x = told_of(what), {"a": X["a"]}
    covariance = torch.ones(2, 2) + torch.eye(2)
    both = torch.stack([X["a"], torch.ones(ROWS)], 1)
    exact = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(both)
    exact = exact if what in ("factor", "observation") else dist.Normal(0.0, 2**0.5).log_prob(X["a"])
    torch.testing.assert_close(mm.log_likelihood(pair, x, num_particles=9).value, exact)
    asks = [
        lambda: mm.sbc(pair, ["a"], rows=9),
        lambda: mm.sandwich(pair, given=["a"], rows=2, chains=2, temperatures=2),
        lambda: mm.certify(pair, x, rows=9, gap_rows=0, progress=False),
        lambda: mm.Sleep().loss(pair.model, pair.guide, x),
    ]
    for ask in asks:
        if what in ("nothing", "default"):
            ask()
        else:
            says = {"factor": "has the factor", "observation": "observes, whatever the data,"}[what]
            with pytest.raises(
                ValueError, match=f"the model {says} 's', which rows drawn from its prior know nothing of"
            ):
                ask()


def test_data_that_a_model_has_by_default_are_drawn_and_not_given_back():
    drawn = mm.generate(told_of("default"), 2000)["a"]
    assert float(drawn.var()) == pytest.approx(2.0, abs=4.5 * 2 * (2 / 2000) ** 0.5)


def test_a_plate_that_weighs_a_batch_itself_is_refused_by_fit():
    """What all rows share would count far too little beside rows that are scaled up."""

    def program(x, mask=None):
        pyro.sample("mu", dist.Normal(pyro.param("loc", tensor(0.0)), 1.0))
        with pyro.plate("data", 100, subsample=torch.arange(len(x["a"]))):
            pyro.sample("a", dist.Normal(0.0, 1.0), obs=x["a"])

    with pytest.raises(ValueError, match="the plate 'data' has 100 rows and scales the loss of a batch up to them"):
        mm.fit(mm.Pair(program, lambda x, mask=None: None), {"a": torch.zeros(100)}, batch_size=20, progress=False)


@pytest.mark.parametrize("bound", [mm.objectives.elbo, mm.objectives.iwae], ids=["elbo", "iwae"])
@pytest.mark.parametrize("site", ["mu", "extra", "a"])
def test_what_no_bound_of_a_row_has_is_refused_by_objectives(site, bound):
    """A code of all rows, an observation of it, or a plate by another name: the loss would lack it without a word."""

    def program(x, observes):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0)) if site == "mu" else tensor(0.0)
        if site == "extra" and observes:
            pyro.sample("extra", dist.Normal(0.0, 1.0), obs=tensor(1.0))
        with pyro.plate("rows" if site == "a" else "data", ROWS):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.deterministic("twice", 2 * z)
            if observes:
                pyro.sample("a", dist.Normal(z, 1.0), obs=x["a"])
        pyro.deterministic("none of a row", mu)

    loss = mm.Objective(bound=bound, num_particles=2, max_plate_nesting=1)
    with pytest.raises(ValueError, match=f"the site '{site}' stands outside of the plate 'data', and no row's bound"):
        loss.loss(lambda x, mask=None: program(x, True), lambda x, mask=None: program(x, False), {"a": X["a"]})
