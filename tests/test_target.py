"""The posterior of every row in real coordinates, against densities written out by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_mmvae as mm
from pyro_mmvae.diagnostics.coordinates import _with_bounds_of_all
from pyro_mmvae.diagnostics.target import Target
from pyro_mmvae.distributions import LogPool, Mixture
from pyro_mmvae.questions import opened

ROWS, LOADING = 4, torch.arange(6, dtype=torch.float64).reshape(2, 3)


def target_of(model, guide):
    x, pair = {"a": torch.randn(ROWS)}, mm.Pair(model, guide)
    return x["a"], Target(pair, opened(pair, x))


def test_positive_codes_in_plates_on_the_left_have_the_volume_of_their_logarithm():
    def model(x, mask=None, observed=True):
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(()), 1.0))
            with pyro.plate("one", 2, dim=-4), pyro.plate("alone", 1, dim=-3), pyro.plate("two", 3, dim=-2):
                w = pyro.sample("w", dist.Gamma(2.0, torch.full((), 3.0)))
            loc = z + (LOADING[:, None, :, None] * w).sum((-4, -2), keepdim=True)
            observed and pyro.sample("a", dist.Normal(loc, 0.5), obs=x["a"])

    a, target = target_of(model, lambda x, mask=None: model(x, observed=False))
    assert target.columns(["w"]).tolist() == [1, 2, 3, 4, 5, 6] and target.columns(["z"]).tolist() == [0]
    u = torch.randn(5, ROWS, 7).requires_grad_()
    z, w = u[..., 0].exp(), u[..., 1:].exp()
    exact = dist.LogNormal(0.0, 1.0).log_prob(z) + dist.Gamma(2.0, 3.0).log_prob(w).sum(-1) + u.sum(-1)
    exact = exact + dist.Normal(z + w @ LOADING.flatten(), 0.5).log_prob(a)
    value, slope = target.gradient(u, {})
    torch.testing.assert_close(value, exact.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(exact.sum(), u)[0])
    torch.testing.assert_close(target.latents(u.detach())["w"], w.detach().reshape(5, ROWS, 2, 3))
    torch.testing.assert_close(target.coordinates(target.latents(u.detach())), u.detach())


def test_draws_of_the_prior_are_conditional_on_the_guides_draws_of_what_all_rows_share():
    def model(x, mask=None):
        g = pyro.sample("g", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("a", dist.Normal(z + g, 1.0), obs=x["a"])
            pyro.sample("b", dist.Normal(z + g, 1.0), obs=x.get("b"))  # which is missing, and nothing hangs on it

    def guide(x, mask=None):
        pyro.sample("g", dist.Normal(9.0, 1e-6))
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    a, target = target_of(model, guide)
    z, weights = target.prior(50)
    torch.testing.assert_close(weights, dist.Normal(z[..., 0] + 9, 1.0).log_prob(a), rtol=0, atol=1e-3)
    assert target.outside == ["g"] and target.sites.keys() == {"z"} and len(target.shared(50)["g"].unique()) == 50


def test_the_weights_of_draws_of_a_pool_have_the_constant_that_it_leaves_out():
    def pool(rows):
        parts = [dist.Normal(torch.full((rows, 1), loc), scale).to_event(1) for loc, scale in ((0.0, 1.0), (3.0, 0.5))]
        return LogPool(parts, [torch.full((rows,), 0.5)] * 2)

    def model(x, mask=None):
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", pool(len(x["a"])))
            pyro.sample("a", dist.Normal(z[..., 0], 1.0), obs=x["a"])

    def guide(x, mask=None):
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    a, target = target_of(model, guide)
    z, weights = target.prior(50)
    torch.testing.assert_close(weights, target.log_prob(z, {}) - pool(ROWS).normalized().log_prob(z))
    constant = -(9 / 1.25 + math.log(1.5625)) / 4  # the logarithm of the integral of sqrt(N(0, 1) N(3, 0.5))
    torch.testing.assert_close(weights, dist.Normal(z[..., 0], 1.0).log_prob(a) + constant)


def test_where_a_density_is_no_number_there_is_no_mass_and_no_slope():
    """The root of a negative code; and of zero, where its slope is infinite."""

    def program(x, loc, observed):
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.full((), loc), 0.1))
            observed and pyro.sample("a", dist.Normal(z.sqrt(), 1.0), obs=x["a"])

    a, target = target_of(lambda x, mask=None: program(x, 0.0, True), lambda x, mask=None: program(x, 4.0, False))
    z = torch.tensor([-1.0, 0.0, 4.0]).reshape(3, 1, 1).expand(3, ROWS, 1)
    value, slope = target.gradient(z, {})
    assert (value[0] == -torch.inf).all() and value[1:].isfinite().all() and (slope[:2] == 0).all()
    torch.testing.assert_close(value[2], dist.Normal(0.0, 0.1).log_prob(z[2, :, 0]) + dist.Normal(2.0, 1.0).log_prob(a))
    torch.testing.assert_close(slope[2, :, 0], -400 + (a - 2) / 4)


def test_bounds_of_each_coordinate_and_of_angles():
    """A uniform is flat between its own bounds, and a mixture of angles goes once round."""
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 5.0])
    angles = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.VonMises(torch.tensor([0.0, 1.0]), 3.0))

    def program(x, observed):
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Uniform(low, high).to_event(1))
            t = pyro.sample("t", angles)
            observed and pyro.sample("a", dist.Normal(z.sum(-1) + t, 1.0), obs=x["a"])

    a, target = target_of(lambda x, mask=None: program(x, True), lambda x, mask=None: program(x, False))
    u = torch.randn(5, ROWS, 3)
    z, t = low + (high - low) * u[..., :2].sigmoid(), 2 * math.pi * u[..., 2].sigmoid() - math.pi
    found = target.latents(u)
    torch.testing.assert_close(found["z"], z)
    torch.testing.assert_close(found["t"], t)
    volume = (u.sigmoid() * (-u).sigmoid()).log().sum(-1) + math.log(2 * math.pi)  # the spans of z are its densities
    exact = volume + angles.log_prob(t) + dist.Normal(z.sum(-1) + t, 1.0).log_prob(a)
    torch.testing.assert_close(target.log_prob(u, {}), exact)
    torch.testing.assert_close(target.coordinates(found), u)


ANGLES = {
    "mixture": lambda: Mixture(dist.VonMises(torch.tensor([[0.0], [2.0]]), 3.0).to_event(1), torch.full((2,), 0.5)),
    "pairs": lambda: dist.SineBivariateVonMises(0.3, -2.0, 2.0, 3.0, correlation=1.0),
    "skewed": lambda: dist.SineSkewed(dist.VonMises(torch.tensor([0.5]), 2.0).to_event(1), torch.tensor([0.7])),
    "cardioid": lambda: dist.SineSkewed(dist.Uniform(-math.pi, math.pi).expand([1]).to_event(1), torch.tensor([0.7])),
}


@pytest.mark.parametrize("angles", ANGLES)
def test_the_density_of_angles_sums_to_one_over_their_real_coordinates(angles):
    angles = ANGLES[angles]()

    def program(x, observed):
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("t", angles)
            observed and pyro.sample("a", dist.Normal(0.0, 1.0), obs=x["a"])

    a, target = target_of(lambda x, mask=None: program(x, True), lambda x, mask=None: program(x, False))
    line = torch.arange(-20, 20, 0.25)
    u = torch.cartesian_prod(*[line] * angles.event_shape.numel()).reshape(-1, 1, angles.event_shape.numel())
    total = target.log_prob(u.expand(-1, ROWS, -1), {}).logsumexp(0) + u.shape[-1] * math.log(0.25)
    torch.testing.assert_close(total, dist.Normal(0.0, 1.0).log_prob(a), rtol=0, atol=1e-4)


def test_shares_that_sum_to_one_have_a_coordinate_less():
    """Dirichlet(1, 1, 1) has the density 2 by the first two shares, of which stick-breaking has the volume."""

    def program(x, observed):
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Dirichlet(torch.ones(3)))
            pyro.sample("next", dist.Normal(0.0, 1.0))
            observed and pyro.sample("a", dist.Normal(z[..., 0], 1.0), obs=x["a"])

    a, target = target_of(lambda x, mask=None: program(x, True), lambda x, mask=None: program(x, False))
    assert target.columns(["next"]).tolist() == [2]
    u = torch.randn(1, ROWS, 3)
    z = target.latents(u)["z"]
    slopes = torch.autograd.functional.jacobian(lambda v: target.latents(v)["z"][0, :, :2], u)[:, :, 0, :, :2]
    volume = torch.stack([slopes[row, :, row].det().abs() for row in range(ROWS)])
    exact = math.log(2) + volume.log() + dist.Normal(z[0, :, 0], 1.0).log_prob(a)
    exact = exact + dist.Normal(0.0, 1.0).log_prob(u[0, :, 2])
    torch.testing.assert_close(target.log_prob(u, {})[0], exact)


def test_bounds_of_all_rows_become_those_of_an_event_be_they_numbers_or_tensors():
    """And what is said of the last axes stays: one log-determinant for each event."""
    high = torch.tensor([2.0, 4.0])
    support = constraints.independent(constraints.interval(0.0, high.expand(5, 1, 2)), 1)
    found = _with_bounds_of_all("z", support, 1)
    assert torch.equal(found.base_constraint.upper_bound, high) and found.base_constraint.lower_bound == 0
    transform, z = torch.distributions.biject_to(found), torch.zeros(5, 2)
    torch.testing.assert_close(transform(z), high.expand(5, 2) / 2)
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, transform(z)), (high / 4).log().sum().expand(5))
    with pytest.raises(ValueError, match="its bounds hang on the row"):
        _with_bounds_of_all("z", constraints.interval(0.0, torch.tensor([[1.0], [2.0]])), 0)
