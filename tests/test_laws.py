"""Laws that every fusion, prior and likelihood in cases.py keeps."""

import pyro
import pytest
import torch
from cases import (
    DIM,
    FUSIONS,
    LIKELIHOODS,
    NAMES,
    PRIORS,
    RECIPES,
    SIZES,
    blind,
    correlated,
    data,
    modality,
    three,
    three_holes,
    three_rows,
)
from pyro.infer import Trace_ELBO

import pyro_mmvae as mm

ROWS = 9


def loss_and_gradients(vae, x, mask, seed=3):
    pyro.set_rng_seed(seed)
    loss = torch.as_tensor(Trace_ELBO().differentiable_loss(vae.model, vae.guide, x, mask))
    if not loss.requires_grad:  # nothing was observed at all
        return loss, [torch.zeros(()) for _ in vae.parameters()]
    gradients = torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)
    return loss.detach(), [torch.zeros(()) if g is None else g for g in gradients]


def assert_same(first, second):
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def filled(x, mask, filler):
    """x with the filler under every hidden entry; where a dtype cannot hold it, the nearest it can."""
    found = {}
    for name, value in x.items():
        fine = mask[name].reshape(*mask[name].shape, *[1] * (value.dim() - mask[name].dim()))
        found[name] = torch.where(fine, value.double(), torch.tensor(filler))
    return found


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_is_hidden_changes_nothing_to_the_bit(fusion, prior):
    vae, x, mask = three(prior, fusion), three_rows(ROWS), three_holes(ROWS)
    reference = loss_and_gradients(vae, filled(x, mask, 0.0), mask)
    for filler in (1e6, float("nan"), float("inf")):
        assert_same(reference, loss_and_gradients(vae, filled(x, mask, filler), mask))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_ignores_what_is_hidden(name):
    vae = mm.MultimodalVAE({"x": modality(name)}, mm.StandardNormal(DIM), mm.PoE())
    x = {"x": data(name, ROWS)}
    masks = [{"x": torch.rand(ROWS) > 0.4}]
    if x["x"].dim() > 1:
        masks.append({"x": torch.rand(x["x"].shape) > 0.4})
    for mask in masks:
        reference = loss_and_gradients(vae, filled(x, mask, 0.0), mask)
        assert reference[0].isfinite()
        for filler in (1e6, -1.5, float("nan")):
            assert_same(reference, loss_and_gradients(vae, filled(x, mask, filler), mask))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_single_entries_add_up_to_the_whole(name):
    """log p(x | z) = log p(entries shown | z) + log p(entries hidden | z), independent given z."""
    if data(name, 1).dim() == 1:
        pytest.skip("one entry a row")
    vae = mm.MultimodalVAE({"x": modality(name)}, mm.StandardNormal(DIM), mm.PoE())
    x, shown = {"x": data(name, ROWS)}, torch.rand(data(name, ROWS).shape) > 0.5
    z = torch.randn(ROWS, 1, DIM)

    def score(mask):
        model = pyro.poutine.condition(vae.model, {"z": z})
        trace = pyro.poutine.trace(model).get_trace(x, {"x": mask})
        return trace.nodes["x"]["fn"].log_prob(trace.nodes["x"]["value"])

    whole = score(torch.ones(ROWS, dtype=torch.bool))
    torch.testing.assert_close(score(shown) + score(~shown), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_missing_expert_equals_an_absent_one(fusion):
    vae, x = three(fusion=fusion), three_rows(ROWS)
    never = {"label": torch.zeros(ROWS, dtype=torch.bool)}
    assert_same(loss_and_gradients(vae, x, never), loss_and_gradients(vae, {k: x[k] for k in ("body", "counts")}, None))
    z = torch.randn(ROWS, DIM)
    assert torch.equal(vae.posterior(x, never).log_prob(z), vae.posterior(x, given=["body", "counts"]).log_prob(z))


class SaysNothing(torch.nn.Module):
    """A likelihood that does not look at the code."""

    def forward(self, z):
        return pyro.distributions.Normal(z.new_full((*z.shape[:-1], 2), 0.3), 1.7).to_event(1)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_modality_that_says_nothing_of_the_code_adds_its_own_density_alone(fusion):
    vae, x, mask = three(fusion=fusion), three_rows(ROWS), three_holes(ROWS)
    parts = {**vae.modalities, "noise": mm.Modality(SaysNothing())}
    more = mm.MultimodalVAE(parts, vae.prior, vae.fusion)
    noise, seen = torch.randn(ROWS, 2), torch.rand(ROWS, 2) > 0.3
    own = (pyro.distributions.Normal(0.3, 1.7).log_prob(noise) * seen).sum(1)
    found = []
    for ask in ((vae, x, mask), (more, {**x, "noise": noise}, {**mask, "noise": seen})):
        pyro.set_rng_seed(1)
        found.append((mm.log_likelihood(*ask, num_particles=40), mm.predict(*ask)["body"]))
    (alone, body), (both, again) = found
    torch.testing.assert_close(both.value, alone.value + own, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((both.se, both.khat, again), (alone.se, alone.khat, body), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_all_missing_is_the_prior_and_contributes_zero(fusion, prior):
    vae, x = three(prior, fusion), three_rows(ROWS)
    nothing = {name: torch.zeros(ROWS, dtype=torch.bool) for name in x}
    loss, gradients = loss_and_gradients(vae, x, nothing)
    assert loss == 0
    assert all(g.abs().max() < 1e-14 for g in gradients)  # zero, but for the order of sums in a flow's backward pass
    z = torch.randn(ROWS, DIM)
    assert torch.equal(vae.posterior(x, nothing).log_prob(z), vae.prior(None).log_prob(z))
    some = {name: mask.clone() for name, mask in nothing.items()}
    for mask in some.values():
        mask[1] = True
    torch.testing.assert_close(
        vae.posterior(x, some).log_prob(z)[0], vae.prior(None).log_prob(z)[0], rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("prior", ["StandardNormal", "GaussianMixture"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_point_is_scored_in_every_row(fusion, prior):
    vae, x, z = three(prior, fusion), three_rows(ROWS), torch.randn(DIM)
    for mask in (None, three_holes(ROWS)):
        q = vae.posterior(x, mask)
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.expand(ROWS, -1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_order_of_modalities_does_not_matter(fusion):
    vae, x, mask = three(fusion=fusion), three_rows(ROWS), three_holes(ROWS)
    turned = mm.MultimodalVAE(dict(reversed(vae.modalities.items())), vae.prior, vae.fusion)
    z = torch.randn(ROWS, DIM)
    a, b = vae.posterior(x, mask).log_prob(z), turned.posterior(dict(reversed(x.items())), mask).log_prob(z)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_gets_a_finite_gradient(fusion, prior):
    vae, x, mask = three(prior, fusion), three_rows(24), three_holes(24)
    loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x, mask)
    for name, gradient in zip(dict(vae.named_parameters()), torch.autograd.grad(loss, list(vae.parameters()))):
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, name


def one_dimensional(fusion):
    """A model with a z of one dimension, whose ELBO a grid integrates."""
    parts = {
        name: mm.Modality(
            mm.NormalLikelihood(mm.mlp(1, 4, 2, activation=torch.nn.Tanh), scale=0.8), mm.encoder(2, 4, dim=1)
        )
        for name in "abc"
    }
    blind(parts, fusion), correlated(parts, fusion)
    return mm.MultimodalVAE(parts, mm.StandardNormal(1), FUSIONS[fusion](dict.fromkeys("abc", 2), 1))


def elbo_by_quadrature(vae, x, mask, points=4001):
    grid = torch.linspace(-12, 12, points).reshape(points, 1, 1)
    log_q = vae.posterior(x, mask).log_prob(grid)
    log_p = vae.prior(None).log_prob(grid)
    for name, part in vae.modalities.items():
        log_p = log_p + part.decoder(grid).log_prob(x[name]) * mask[name]
    return (log_q.exp() * (log_p - log_q)).sum() * (24 / (points - 1))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("particles", [1, 5])
def test_gradients_are_unbiased(fusion, particles):
    """|z| < 4 for every parameter's gradient, against quadrature."""
    vae, rows = one_dimensional(fusion), 3
    x = {name: torch.randn(rows, 2) for name in "abc"}
    mask = {
        "a": torch.tensor([True, True, False]),
        "b": torch.tensor([True, False, True]),
        "c": torch.tensor([True] * 3),
    }
    parameters = list(vae.parameters())
    exact = torch.autograd.grad(-elbo_by_quadrature(vae, x, mask), parameters)
    exact = torch.cat([g.flatten() for g in exact])
    batch, repeats = 40, 30  # each estimate: the rows 40 times over, so that one pass gives the mean of 40
    many = {k: v.repeat(batch, 1) for k, v in x.items()}, {k: v.repeat(batch) for k, v in mask.items()}
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=2)
    found = []
    for _ in range(repeats):
        loss = elbo.differentiable_loss(vae.model, vae.guide, *many) / batch
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    found = torch.stack(found)
    se = found.std(0) / repeats**0.5
    assert ((found.mean(0) - exact).abs() <= 4.5 * se + 1e-7).all()  # 4.5: t with 29 degrees of freedom


@pytest.mark.parametrize("fusion", ["MoE", "MoPoE"])
def test_draws_choose_experts_as_often_as_stated(fusion):
    """Experts far apart: the share of draws near each is its weight, for every pattern of missing modalities."""

    class Far(torch.nn.Module):
        def forward(self, x):
            return pyro.distributions.Normal(x, 0.01).to_event(1)

    parts = {name: mm.Modality(mm.NormalLikelihood(mm.mlp(1, 1)), Far()) for name in "abc"}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(1), FUSIONS[fusion](dict.fromkeys("abc", 1), 1))
    x = {name: torch.full((2, 1), value) for name, value in zip("abc", (-10.0, 0.0, 7.0))}
    mask = {"a": torch.tensor([True, True]), "b": torch.tensor([True, False]), "c": torch.tensor([True, True])}
    draws = 20_000
    z = vae.posterior(x, mask).sample((draws,)).squeeze(-1)
    singles = {0: (-10.0, 0.0, 7.0), 1: (-10.0, 7.0)}
    pairs = {0: (-5.0, 3.5, -1.5, -1.0), 1: (-1.5,)} if fusion == "MoPoE" else {0: (), 1: ()}
    for row in (0, 1):
        centres = (*singles[row], *pairs[row])
        for centre in centres:
            share, expected = ((z[:, row] - centre).abs() < 0.1).double().mean(), 1 / len(centres)
            assert abs(share - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5, (row, centre)


class Counter(torch.nn.Module):
    """Counts the rows that pass through a network."""

    def __init__(self, net):
        super().__init__()
        self.net, self.rows = net, 0

    def forward(self, value):
        self.rows += value[..., 0].numel()
        return self.net(value)


def test_networks_see_observed_rows_only():
    vae, x = three(), three_rows(100)
    mask = {
        "body": torch.arange(100) < 30,
        "label": torch.arange(100) >= 80,
        "counts": torch.zeros(100, dtype=torch.bool),
    }
    for part in vae.modalities.values():
        part.encoder, part.decoder.net = Counter(part.encoder), Counter(part.decoder.net)
    vae.modalities["label"].encoder = vae.modalities["label"].encoder.net  # labels have no feature axis to count by
    Trace_ELBO().loss(vae.model, vae.guide, x, mask)
    parts = vae.modalities
    assert (parts["body"].encoder.rows, parts["body"].decoder.net.rows) == (30, 30)
    assert parts["label"].decoder.net.rows == 20
    assert (parts["counts"].encoder.rows, parts["counts"].decoder.net.rows) == (0, 0)
    Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=2).loss(vae.model, vae.guide, x, mask)
    assert (parts["body"].encoder.rows, parts["body"].decoder.net.rows) == (60, 30 + 5 * 30)


def tables(holes, rows=ROWS):
    x = {name: torch.randn(rows, SIZES[name]) for name in NAMES}
    mask = {name: torch.ones(rows, dtype=torch.bool) for name in NAMES}
    if holes:
        for position, seen in enumerate(mask.values()):
            seen[position::4] = False
    return x, mask


def recipe_loss(vae, loss, x, mask, seed=5):
    pyro.set_rng_seed(seed)
    value = loss.differentiable_loss(vae.model, vae.guide, x, mask)
    gradients = torch.autograd.grad(value, list(vae.parameters()), allow_unused=True)
    return value.detach(), [torch.zeros(()) if g is None else g for g in gradients]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_does_not_see_what_is_hidden(name):
    (vae, loss), (x, mask) = RECIPES[name](), tables(holes=True)
    reference = recipe_loss(vae, loss, filled(x, mask, 0.0), mask)
    for filler in (1e6, float("nan")):
        assert_same(reference, recipe_loss(vae, loss, filled(x, mask, filler), mask))


@pytest.mark.parametrize("holes", [False, True], ids=["complete", "holes"])
@pytest.mark.parametrize("name", RECIPES)
def test_stock_trace_elbo_accepts_every_recipe(name, holes):
    (vae, _), (x, mask) = RECIPES[name](), tables(holes)
    loss, gradients = loss_and_gradients(vae, x, mask)
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    before = [p.detach().clone() for p in vae.parameters()]
    assert svi.step(x, mask) < 1e6
    assert any(not torch.equal(a, b) for a, b in zip(before, vae.parameters()))


def assert_same_mean(vae, loss, *both):
    """The losses of two batches differ by no more than their Monte-Carlo error."""
    with torch.no_grad(), pyro.validation_enabled(False):
        a, b = (torch.stack([loss.differentiable_loss(vae.model, vae.guide, *one) for _ in range(10)]) for one in both)
    assert (a.mean() - b.mean()).abs() < 4.5 * ((a.var() + b.var()) / 10).sqrt()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns_nothing_from_a_row_without_data(name):
    (vae, loss), (x, mask) = RECIPES[name](), tables(holes=False, rows=5 * ROWS)
    more = {k: torch.cat([v, torch.full_like(v[: 2 * ROWS], 7.0)]) for k, v in x.items()}
    seen = {k: torch.cat([v, v.new_zeros(2 * ROWS)]) for k, v in mask.items()}
    assert_same_mean(vae, loss, (x, mask), (more, seen))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_its_modalities_in_any_order(name):
    (vae, loss), (x, mask) = RECIPES[name](), tables(holes=True, rows=5 * ROWS)
    turned = [{name: part[name] for name in NAMES[::-1]} for part in (x, mask)]
    assert_same_mean(vae, loss, (x, mask), turned)
