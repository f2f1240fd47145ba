"""Likelihoods of any family of Pyro's or of the user's: their holes, bounds, edges and means."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import From
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import mixture_same_family

import pyro_mmvae as mm
from pyro_mmvae.distributions import feasible

ONES = torch.ones(3, dtype=torch.float64)


class Bare(dist.TorchDistribution):
    """A logistic density as a user writes it: it names no support, knows no mean, and does not expand."""

    arg_constraints = {}

    def __init__(self, loc, drawn=True):
        self.loc, self.drawn = loc, drawn
        super().__init__(loc.shape, validate_args=False)

    def sample(self, sample_shape=()):
        if not self.drawn:
            raise NotImplementedError
        u = torch.rand(self._extended_shape(sample_shape))
        return self.loc + (u / (1 - u)).log()

    def log_prob(self, value):
        return self.loc - value - 2 * nn.functional.softplus(self.loc - value)


def model(family, *, repeated=False):
    """Of a family of what the code, repeated three times, is: (..., 3) -> distribution; the guide is the prior."""
    prior, look = mm.StandardNormal(1), From(lambda x: dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
    decoder = nn.Sequential(nn.Linear(1, 1), From(lambda z: family(z.expand(*z.shape[:-1], 3))))
    part = mm.Modality(decoder, look, repeated=repeated)
    return mm.MultimodalVAE({"a": part}, prior, lambda _: prior())


WHOLE = {  # whatever the code, so that log p(x) is known
    "Dirichlet": lambda z: dist.Dirichlet((0 * z).exp() + ONES),
    "relaxed one-hot": lambda z: dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=0 * z + ONES),
    "LogisticNormal": lambda z: dist.LogisticNormal(0 * z, (0 * z).exp()),
    "OneHotCategorical": lambda z: dist.OneHotCategorical(logits=0 * z),
    "Multinomial": lambda z: dist.Multinomial(5, logits=0 * z),
    "ProjectedNormal": lambda z: dist.ProjectedNormal(0 * z + ONES),
    "MultivariateNormal": lambda z: dist.MultivariateNormal(0 * z, torch.eye(3)),
    "LKJCholesky": lambda z: dist.LKJCholesky(3, 2 + 0 * z[..., 0]),
    "Wishart": lambda z: dist.Wishart((9 + 0 * z[..., 0]), torch.eye(3).expand(*z.shape[:-1], 3, 3)),
}
ENTRIES = {
    "Uniform": lambda z: dist.Uniform(0 * z + 1, 0 * z + 3),
    "Pareto": lambda z: dist.Pareto(0 * z + 2, 0 * z + 3),
    "MaskedMixture": lambda z: dist.MaskedMixture(ONES > 0, dist.Normal(0 * z, 1.0), dist.HalfNormal(1 + 0 * z)),
    "Binomial": lambda z: dist.Binomial(torch.tensor([0.0, 3.0, 9.0]), logits=0 * z),
    "Bare": lambda z: Bare(0 * z),
    "LogNormal": lambda z: dist.LogNormal(0 * z, 1.0),
}


@pytest.mark.filterwarnings("ignore:Singular sample")  # torch's Wishart draws again then
@pytest.mark.parametrize("family", WHOLE.values(), ids=WHOLE)
def test_a_repeat_that_is_missing_has_a_value_on_the_support(family):
    vae, p = model(family, repeated=True), family(torch.zeros(3))
    x, mask = p.sample((6, 2)), torch.arange(12).reshape(6, 2) % 3 > 0
    mask[4] = False
    exact = torch.where(mask, p.log_prob(x), 0).sum(1)
    x[~mask] = 0
    found = mm.log_likelihood(vae, {"a": x}, {"a": mask}, num_particles=3).value
    torch.testing.assert_close(found, exact)
    loss = Trace_ELBO().loss(vae.model, vae.guide, {"a": x}, {"a": mask})  # under validation
    assert loss == pytest.approx(-float(exact.sum()))
    value = feasible(p, x)
    assert bool(p.support.check(value.expand(p.event_shape)).all())


@pytest.mark.parametrize("family", ENTRIES.values(), ids=ENTRIES)
def test_single_entries_of_any_family_are_hidden_beside_rows_that_are_missing(family):
    """Bounds and draws of the decoded rows are not laid over all rows."""
    vae, p = model(lambda z: family(z).to_event(1)), family(torch.zeros(3))
    x, mask = p.sample((6,)), torch.rand(6, 3) > 0.4
    mask[2], mask[4:] = False, True
    exact = torch.where(mask, p.log_prob(x), 0).sum(1)
    x[~mask] = 0
    found = mm.log_likelihood(vae, {"a": x}, {"a": mask}, num_particles=3).value
    torch.testing.assert_close(found, exact)
    assert Trace_ELBO().loss(vae.model, vae.guide, {"a": x}, {"a": mask}) == pytest.approx(-float(exact.sum()))
    scores = mm.predictive_similarity(vae, {"a": x[4:]}, query=[], target="a", num_draws=2)
    torch.testing.assert_close(scores, torch.zeros(2, 2))


def test_a_candidate_is_scored_as_far_as_it_was_seen_within_bounds_of_its_own():
    parts = {
        "a": mm.Modality(From(lambda z: dist.Uniform(0 * z, 2 + z.tanh()).to_event(1))),
        "b": mm.Modality(mm.NormalLikelihood(nn.Identity()), From(lambda x: dist.Normal(x, 1e-6).to_event(1))),
    }
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(3), mm.PoE(prior_expert=False))
    x, seen = {"a": torch.full((4, 3), 0.4), "b": torch.randn(4, 3)}, torch.rand(4, 3) > 0.5
    seen[:, 0] = True
    found = mm.predictive_similarity(vae, x, {"a": seen}, query=["b"], target="a", num_draws=2)
    logs = -((2 + x["b"].tanh()).log() @ seen.double().T)
    torch.testing.assert_close(found, logs - logs.logsumexp(0) + math.log(4), rtol=0, atol=1e-4)


def test_what_can_neither_be_drawn_nor_has_a_support_is_named():
    vae, mask = model(lambda z: Bare(z, drawn=False).to_event(1)), {"a": torch.tensor([[True, True, False]])}
    line = "^modality 'a' has hidden entries, and its likelihood Independent has neither a support nor draws to put"
    with pytest.raises(ValueError, match=line) as caught:
        mm.log_likelihood(vae, {"a": torch.zeros(1, 3)}, mask)
    assert "\n" not in str(caught.value)


TOGETHER = {name: WHOLE[name] for name in ("MultivariateNormal", "Multinomial", "Dirichlet")}


@pytest.mark.parametrize("family", TOGETHER.values(), ids=TOGETHER)
def test_entries_that_hang_together_are_filled_in_whole_or_not_at_all(family):
    """Draws given the code alone would have nothing to do with the entries beside them."""
    vae, p = model(family), family(torch.zeros(3))
    x, mask = p.sample((4,)), torch.ones(4, 3, dtype=torch.bool)
    mask[1] = False  # a mask of entries that hides whole rows
    exact = torch.where(mask[:, 0], p.log_prob(x), 0)
    torch.testing.assert_close(mm.log_likelihood(vae, {"a": x}, {"a": mask}, num_particles=3).value, exact)
    assert torch.equal(mm.impute(vae, {"a": x}, {"a": mask})["a"][0, 2:], x[2:])
    mask[3, 1] = False
    for ask in (mm.impute, mm.predict, mm.log_likelihood):
        with pytest.raises(ValueError, match=r"^modality 'a' has rows with single entries missing: .* has no indep"):
            ask(vae, {"a": x}, {"a": mask})
    assert mm.impute(vae, {"a": x}, {"a": mask}, given=[])["a"].shape == (1, 4, 3)


MIXED = dist.Categorical(torch.tensor([0.3, 0.7]))
NO_MEAN = {
    "HalfCauchy": lambda z: dist.HalfCauchy(z.exp()),
    "Pareto": lambda z: dist.Pareto(ONES, 0.9 + 0 * z),
    "InverseGamma": lambda z: dist.InverseGamma(0.9 + 0 * z, z.exp()),
    "a mixture": lambda z: dist.MixtureSameFamily(
        MIXED.expand(z.shape), dist.Cauchy(z.unsqueeze(-1).expand(*z.shape, 2), 1.0)
    ),
    "a masked mixture": lambda z: dist.MaskedMixture(ONES > 0, dist.Normal(z, 1.0), dist.Cauchy(z, 1.0)),
    "a mixture of categories": lambda z: dist.MixtureSameFamily(
        MIXED.expand(z.shape), dist.Categorical(logits=torch.zeros(*z.shape, 2, 4))
    ),
}


@pytest.mark.parametrize("family", NO_MEAN.values(), ids=NO_MEAN)
def test_a_mean_that_is_infinite_or_none_is_said_to_be_none(family):
    """And not that what is drawn is not finite, and the data are to be standardised."""
    vae = model(lambda z: family(z).to_event(1))
    x = mm.generate(vae, 5)
    with pytest.raises(ValueError, match=r"^the likelihood of 'a', a .*, knows no mean; take a median of draws"):
        mm.predict(vae, x)
    assert mm.translate(vae, x, to="a", num_draws=3).isfinite().all()


def test_what_has_no_mean_is_scored_by_its_density():
    vae = model(lambda z: dist.Cauchy(torch.zeros_like(z), 2.0).to_event(1))
    x = mm.generate(vae, 7)
    visible = torch.arange(x["a"].numel()).reshape(x["a"].shape) % 3 > 0
    with pytest.warns(UserWarning, match="a Cauchy, knows no mean; .*; it is judged by its log score alone$"):
        found = mm.imputation_error(vae, x, visible={"a": visible})["a"]
    assert found.log_score == pytest.approx(float(dist.Cauchy(0.0, 2.0).log_prob(x["a"][~visible]).mean()))
    assert found.entries == int((~visible).sum()) and torch.tensor(found[1:5]).isnan().all()


def test_a_mixture_of_angles_is_predicted_and_scored_around_the_circle():
    """Two lobes near pi, on either side of where the circle is cut, and one of them is twice as likely."""

    def family(z):
        loc = torch.tensor([3.0, -2.8])
        return dist.MixtureSameFamily(MIXED, dist.VonMises(loc.expand(*z.shape, 2), torch.tensor(9.0)))

    vae = model(lambda z: family(z).to_event(1))
    draws = family(torch.zeros(())).sample((40_000,))
    way = math.atan2(float(draws.sin().mean()), float(draws.cos().mean()))
    x = {"a": draws[:6].reshape(2, 3)}
    predicted = mm.predict(vae, x)["a"]
    torch.testing.assert_close(predicted, torch.full((2, 3), way), rtol=0, atol=0.01)
    off = torch.remainder(x["a"] - predicted + math.pi, math.tau) - math.pi
    found = mm.imputation_error(vae, x, visible={"a": torch.zeros(2, 3, dtype=torch.bool)})["a"]
    assert found.rmse == pytest.approx(float(off.square().mean().sqrt())) and found.rmse < 2


def test_programs_of_the_users_may_mask_angles_and_categories_inside_of_an_event():
    """The rmse of angles is around the circle, and categories have probabilities, as with a model of ours."""
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])

    def program(x=None, mask=None):
        rows = 1 if x is None else len(x["way"])
        with pyro.plate("data", rows):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            mask = mask or dict.fromkeys(("way", "kind"), torch.ones(rows, 2, dtype=torch.bool))
            for name, p in (
                ("way", dist.VonMises(torch.full((2,), 3.0), 9.0)),
                ("kind", dist.Categorical(logits=logits)),
            ):
                p = p.expand((rows, 2)).mask(mask[name]).to_event(1)
                pyro.sample(name, p, obs=None if x is None else x[name])

    def guide(x, mask=None):
        with pyro.plate("data", len(x["way"])):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    pair = mm.Pair(program, guide)
    x = {"way": torch.tensor([[3.1, -3.0], [2.9, -2.9]]), "kind": torch.tensor([[1, 0], [2, 0]])}
    hidden = {name: torch.zeros(2, 2, dtype=torch.bool) for name in x}
    assert torch.allclose(mm.predict(pair, x)["kind"], logits.softmax(-1))
    found = mm.imputation_error(pair, x, visible=hidden, num_draws=3)
    off = torch.tensor([0.1, math.tau - 6.0, 0.1, math.tau - 5.9])
    assert found["way"].rmse == pytest.approx(float(off.square().mean().sqrt()))
    assert found["kind"].accuracy == 0.75


def test_angles_in_a_table_are_around_the_circle_and_the_rest_is_not():
    columns = [
        dist.VonMises(torch.tensor(3.1), 50.0),
        dist.Normal(0.5, 1.0),
        dist.Categorical(torch.tensor([0.2, 0.8])),
    ]
    vae = model(lambda z: mm.Columnwise([p.expand(z.shape[:-1]) for p in columns]).to_event(1))
    x = {"a": torch.tensor([[-3.1, 4.5, 1.0], [-3.0, 0.5, 0.0], [3.1, 8.5, 1.0]])}
    torch.testing.assert_close(mm.predict(vae, x)["a"], torch.tensor([[3.1, 0.5, 1.0]]).expand(3, 3))
    found = mm.imputation_error(vae, x, visible={"a": torch.zeros(3, 3, dtype=torch.bool)})["a"]
    off = torch.tensor([math.tau - 6.2, math.tau - 6.1, 0.0, 4.0, 0.0, 8.0])
    assert found.rmse == pytest.approx(float(off.square().mean().sqrt())) and found.accuracy == pytest.approx(2 / 3)


def test_angles_of_two_that_hang_together_have_no_mean_on_the_line():
    two = dist.SineBivariateVonMises(*map(torch.tensor, (3.1, -3.1, 2.0, 2.0)), correlation=torch.tensor(0.3))
    vae = model(lambda z: two.expand(z.shape[:-1]))
    with pytest.raises(ValueError, match=r"^the likelihood of 'a', a SineBivariateVonMises, knows no mean"):
        mm.predict(vae, {"a": torch.zeros(2, 2)})


EDGES = {
    "Beta": (lambda z: dist.Beta(z.exp() + 1, 2 * ONES).to_event(1), [0.2, 0.5, 1.0], "1"),
    "Beta, infinite": (lambda z: dist.Beta(z.exp() / 9, 2 * ONES).to_event(1), [0.2, 0.5, 0.0], "0"),
    "Gamma": (lambda z: dist.Gamma(z.exp() + 1, ONES).to_event(1), [1, 0, 3], "0"),
    "Kumaraswamy": (lambda z: dist.Kumaraswamy(z.exp() + 1, 2 * ONES).to_event(1), [0.0, 0.5, 0.2], "0"),
    "Uniform": (lambda z: dist.Uniform(0 * z, ONES).to_event(1), [0.2, 1.0, 0.3], "1"),
    "Dirichlet": (lambda z: dist.Dirichlet(z.exp() + 1), [0.2, 0.8, 0.0], r"\[0.2, 0.8, 0.0\]"),
}


@pytest.mark.parametrize(("family", "row", "value"), EDGES.values(), ids=EDGES)
def test_a_value_on_the_edge_where_there_is_no_density_is_named(family, row, value):
    vae = model(family)
    x = {"a": torch.tensor([[0.2, 0.5, 0.3], row, [0.3, 0.3, 0.4]])}
    line = rf"^modality 'a' has the value {value} in row 1, where its likelihood \w+ has an infinite density or none;"
    for ask in (mm.log_likelihood, lambda *data: mm.fit(*data, epochs=1, progress=False)):
        with pytest.raises(ValueError, match=line):
            ask(vae, x)
    seen = {"a": torch.tensor([True, False, True])}
    assert mm.log_likelihood(vae, x, seen, num_particles=3).value.isfinite().all()


@pytest.mark.parametrize("family", [dist.Multinomial, lambda n, logits: dist.DirichletMultinomial(logits.exp(), n)])
def test_shares_are_no_counts(family):
    vae = model(lambda z: family(1, logits=z))
    with pytest.raises(ValueError, match=r"^modality 'a' has the value \[0.5, 0.2, 0.3\] in row 1, off the support of"):
        mm.log_likelihood(vae, {"a": torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.2, 0.3]])}, num_particles=3)


def test_an_edge_that_has_a_density_is_no_error():
    """Also beside entries that are hidden, which have zeros."""
    vae = model(lambda z: dist.Exponential(2 + 0 * z).to_event(1))
    x, seen = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]), torch.tensor([[True] * 3, [True, True, False]])
    found = mm.log_likelihood(vae, {"a": x}, {"a": seen}, num_particles=3).value
    torch.testing.assert_close(found, torch.tensor([3 * math.log(2) - 6, 2 * math.log(2) - 6]))
    vae = model(lambda z: dist.Gamma(3 + 0 * z, ONES).to_event(1))
    mm.log_likelihood(vae, {"a": x}, {"a": x > 0}, num_particles=3)


class Survival(dist.TorchDistribution):
    """Times of events, exponential, and whether they were seen: (..., 2)."""

    arg_constraints = {}
    support = dist.constraints.independent(dist.constraints.nonnegative, 1)

    def __init__(self, rate):
        self.rate = rate
        super().__init__(rate.shape, torch.Size([2]), validate_args=False)

    def log_prob(self, value):
        time, seen = value.unbind(-1)
        return torch.where(seen == 1, self.rate.log(), 0) - self.rate * time


@pytest.mark.parametrize("repeated", [False, True])
def test_an_edge_of_some_of_a_vector_that_is_scored_whole_is_looked_at(repeated):
    vae = model(lambda z: Survival(0 * z[..., 0] + 2), repeated=repeated)
    x = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 1.0], [2.0, 0.0]])
    found = mm.log_likelihood(vae, {"a": x.unsqueeze(1) if repeated else x}, num_particles=3).value
    torch.testing.assert_close(found, torch.tensor([-6.0, math.log(2) - 2, math.log(2), -4.0]))
    endless = model(lambda z: Survival((0 * z[..., 0] + 2) / 0), repeated=repeated)
    with pytest.raises(ValueError, match=r"^modality 'a' has the value 0 in row 0, where its likelihood Survival has"):
        mm.log_likelihood(endless, {"a": x.unsqueeze(1) if repeated else x}, num_particles=3)


def test_bounds_of_many_entries_are_told_in_one_line():
    top = torch.arange(1.0, 785.0).reshape(28, 28)
    vae = model(lambda z: dist.Binomial(top, logits=0 * z[..., :1, None].expand(*z.shape[:-1], 28, 28)).to_event(2))
    x = torch.zeros(3, 28, 28)
    x[2, 1, 0] = 30
    line = (
        r"has the value 30 in row 2, off the support of its likelihood Binomial \(IntegerInterval\(lower_bound=0, upp"
    )
    with pytest.raises(ValueError, match=line + r"er_bound=29\)\); mend or mask it, or use another likelihood$"):
        mm.log_likelihood(vae, {"a": x})


@pytest.mark.skipif(not hasattr(mixture_same_family, "MixtureSameFamilyConstraint"), reason="a newer torch")
def test_bounds_of_mixtures_are_told_in_one_line():
    mixed = model(
        lambda z: dist.MixtureSameFamily(
            MIXED, dist.Binomial(4 * ONES[:2], logits=0 * z[..., :2].unsqueeze(-2).expand(*z.shape, 2))
        ).to_event(1)
    )
    with pytest.raises(ValueError, match="has the value 5 in row 0, off the support") as caught:
        mm.log_likelihood(mixed, {"a": torch.tensor([[1.0, 5.0, 2.0]])})
    assert "\n" not in str(caught.value)


def test_a_likelihood_without_draws_is_scored_and_the_rest_says_so():
    vae, x = model(lambda z: Bare(0 * z, drawn=False).to_event(1)), {"a": torch.randn(4, 3)}
    exact = Bare(torch.zeros(3)).log_prob(x["a"]).sum(1)
    torch.testing.assert_close(mm.log_likelihood(vae, x, num_particles=3).value, exact)
    asks = (lambda: mm.generate(vae), lambda: mm.impute(vae, x), lambda: mm.leave_one_out(vae, x))
    for ask in asks:
        with pytest.raises(ValueError, match=r"^the likelihood of 'a', a Bare, can be scored, not drawn; give it") as e:
            ask()
        assert "\n" not in str(e.value)


def test_why_a_likelihood_cannot_be_drawn_is_told():
    improper = model(lambda z: dist.ImproperUniform(dist.constraints.real, z.shape, ()).to_event(1))
    line = r"^the likelihood of 'a', a ImproperUniform, can be scored, not drawn \(.* not support sampling\); give it a"
    with pytest.raises(ValueError, match=line):
        mm.generate(improper)


def test_mixtures_may_have_weights_that_are_the_same_for_all():
    """Which torch scores, and does not draw."""
    vae = model(lambda z: dist.MixtureSameFamily(MIXED, dist.Normal(ONES[:2] * z.unsqueeze(-1), 1.0)).to_event(1))
    assert float((mm.generate(vae, 4)["a"]).isfinite().double().mean()) == 1
    far = torch.tensor([-9.0, 9.0])
    vae = model(lambda z: dist.MixtureSameFamily(MIXED, dist.Normal(far + 0 * z.unsqueeze(-1), 1.0)).to_event(1))
    above = (mm.generate(vae, 3000)["a"] > 0).double()
    assert abs(float(above.mean()) - 0.7) < 4.5 * (0.21 / 9000) ** 0.5
    assert abs(float((above[:, 0] * above[:, 1]).mean()) - 0.49) < 4.5 * (0.25 / 3000) ** 0.5


@pytest.mark.parametrize("turn", [0.0, math.pi])
def test_angles_are_left_out_and_found_wherever_their_circle_is_cut(turn):
    """The data from 0 to 2 pi, and from -pi to pi as torch draws them: the model is right of both."""
    vae = model(lambda z: dist.VonMises(2.5 + 0 * z, 3 * ONES).to_event(1))
    angles = dist.VonMises(2.5 * ONES, 3.0).sample((2000,))
    found = mm.leave_one_out(vae, {"a": torch.remainder(angles + math.pi - turn, math.tau) - math.pi + turn}).rows[0]
    assert abs(found.bias) < 4.5 / (12 * 6000) ** 0.5 and abs(found.coverage90 - 0.9) < 4.5 * (0.09 / 6000) ** 0.5


def test_densities_and_probabilities_are_not_compared_without_a_word():
    counts = model(lambda z: dist.Poisson(z.exp()).to_event(1))
    mixed = model(
        lambda z: mm.Columnwise(
            [dist.Normal(z[..., 0], 1.0), *map(dist.Poisson, z[..., 1:].exp().unbind(-1))]
        ).to_event(1)
    )
    real = model(lambda z: dist.Normal(z, 1.0).to_event(1))
    other = model(lambda z: dist.Laplace(z, 1.0).to_event(1))
    x = {"a": torch.ones(5, 3)}
    line = r"^modality 'a' has probabilities in 'counts' and a density, per unit of the data, in 'real': their log p"
    with pytest.warns(UserWarning, match=line):
        mm.compare({"real": real, "counts": counts}, x, num_particles=5)
    with pytest.warns(UserWarning, match=r"has probabilities in 'mixed' and a density, .* in 'real'"):
        mm.compare({"real": real, "mixed": mixed}, x, num_particles=5)
    for same in ({"real": real, "other": other}, {"counts": counts, "again": counts}, {"one": mixed, "two": mixed}):
        mm.compare(same, x, num_particles=5)


class Summed(dist.TorchDistribution):
    """Normals of a vector, of which the user sums the log-probabilities in some way."""

    arg_constraints = {}
    support = dist.constraints.independent(dist.constraints.real, 1)

    def __init__(self, loc, way):
        self.loc, self.way = loc, way
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def log_prob(self, value):
        return self.way(dist.Normal(self.loc, 1.0).log_prob(value))


WAYS = {"all": torch.Tensor.sum, "none": lambda v: v, "kept": lambda v: v.sum(-1, True), "lost": lambda v: v.sum(-1)[0]}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_density_of_the_users_is_one_number_an_entry(way):
    """By the sum over all that there is, every row of 20 had the log-probability of all of them, without a word."""
    x = {"a": torch.randn(20, 3)}
    right = model(lambda z: Summed(0 * z, lambda v: v.sum(-1)))
    exact = dist.Normal(0.0, 1.0).log_prob(x["a"]).sum(1)
    torch.testing.assert_close(mm.log_likelihood(right, x, num_particles=3).value, exact)
    line = r"^the likelihood of 'a', a Summed, has log-probabilities \(.*\) for one entry, where its batch is \(1, 1\);"
    for ask in (mm.log_likelihood, lambda *data: mm.fit(*data, epochs=1, progress=False)):
        with pytest.raises(ValueError, match=line) as caught:
            ask(model(lambda z: Summed(0 * z, way)), x, {"a": torch.arange(20) > 3})
        assert "\n" not in str(caught.value)


NET = nn.Identity()
NO_SCALES = {
    "zero": lambda: mm.NormalLikelihood(NET, 0.0),
    "below": lambda: mm.LaplaceLikelihood(NET, torch.tensor([1.0, -2.0])),
    "NaN": lambda: mm.StudentTLikelihood(NET, 1.0, df=math.nan),
    "endless": lambda: mm.NegativeBinomialLikelihood(NET, math.inf),
    "a start": lambda: mm.LearnedScale(3, start=0.0),
    "a function": lambda: mm.NormalLikelihood(NET, lambda z: 1.0),
    "text": lambda: mm.StudentTLikelihood(NET, df="3"),
}


@pytest.mark.parametrize("make", NO_SCALES.values(), ids=NO_SCALES)
def test_what_is_no_scale_is_refused_where_it_is_given(make):
    with pytest.raises(ValueError, match=r"^a scale, dispersion or df is .*; give a number above 0, a tensor or a mod"):
        make()


@pytest.mark.parametrize("count", [-1, 2.5, True, torch.tensor([2, 3]), None])
def test_what_is_no_count_is_refused_where_it_is_given(count):
    with pytest.raises(ValueError, match=r"^total_count is .*; give a whole number from 0 on$"):
        mm.BinomialLikelihood(NET, count)
