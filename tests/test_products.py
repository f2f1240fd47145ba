"""The mixture of products in chunks is the stack of all products."""

import pytest
import torch

from pyro_mmvae.distributions import Mixture, ProductMixture, by_component, detached, mapped, products, stratum

DIM, ROWS = 3, 7


def experts(holes, prior):
    """loc, precision, given and the expert of every product, of four experts."""
    torch.manual_seed(1)
    loc = torch.randn(4, ROWS, 1, DIM, requires_grad=True)
    scale = (torch.rand(4, ROWS, 1, DIM) + 0.3).requires_grad_()
    given = torch.rand(4, ROWS, 1) < 0.5 if holes else torch.ones(4, ROWS, 1, dtype=torch.bool)
    given[:, 0] = True
    given[:, 1] = ~torch.tensor(holes)  # a row without any
    given[0, 2:] = True
    always = (torch.randn(ROWS, 1, DIM), torch.rand(ROWS, 1, DIM) + 0.5) if prior else None
    return loc, scale, given, always


def mixture(holes, prior):
    loc, scale, given, always = experts(holes, prior)
    precision = torch.where(given.unsqueeze(-1), scale**-2, 0)
    return ProductMixture(loc, precision, given, always, whole=not holes), (loc, scale)


CASES = [(holes, prior) for holes in (False, True) for prior in (False, True)]


@pytest.mark.parametrize("holes, prior", CASES)
@pytest.mark.parametrize("particles", [(), (5,), (2, 3)])
def test_density_and_gradients_are_those_of_the_stack(holes, prior, particles, monkeypatch):
    monkeypatch.setattr(products, "NUMBERS_AT_ONCE", 4 * ROWS * DIM)  # several chunks
    q, parameters = mixture(holes, prior)
    stack = Mixture(q.components, q.weights)
    value = torch.randn(*particles, ROWS, 1, DIM, requires_grad=True)
    found = []
    for one in (q, stack):
        log_prob = one.log_prob(value)
        there = torch.arange(ROWS) != 1 if holes and not prior else torch.ones(ROWS, dtype=torch.bool)
        log_prob = torch.where(there.unsqueeze(-1), log_prob, 0)
        found.append([log_prob, *torch.autograd.grad(log_prob.square().sum(), (*parameters, value), retain_graph=True)])
    for ours, theirs in zip(*found):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("holes, prior", CASES)
def test_draws_have_the_moments_of_the_stack(holes, prior):
    """Mean and variance of draws of a row, and every subset of what is given equally often."""
    q, _ = mixture(holes, prior)
    draws = q.rsample((20_000,)).detach()
    assert draws.requires_grad is False and q.rsample().requires_grad
    rows = torch.arange(ROWS) != 1
    mean, sd = q.mean.detach()[rows], q.variance.detach()[rows].sqrt()
    assert ((draws.mean(0)[rows] - mean).abs() < 5 * sd / 20_000**0.5).all()
    fourth = (draws - draws.mean(0)).pow(4).mean(0)[rows]
    assert ((draws.var(0)[rows] - sd**2).abs() < 5 * (fourth - sd**4).sqrt() / 20_000**0.5).all()


def test_subsets_are_drawn_evenly_from_what_is_given():
    given = torch.tensor([[True, True, False], [False, True, False], [True, True, False]])
    members = products.pick_members(given, torch.Size([40_000, 3]))
    code = (members.long() * torch.tensor([1, 2, 4]).unsqueeze(-1)).sum(1)
    for row, subsets in enumerate([(1, 4, 5), range(1, 8), range(1, 8)]):
        share = torch.bincount(code[:, row], minlength=8)[list(subsets)] / 40_000
        p = 1 / len(subsets)
        assert abs(share.sum() - 1) < 1e-6
        assert ((share - p).abs() < 4.5 * (p * (1 - p) / 40_000) ** 0.5).all()


def test_a_drawn_product_scores_itself():
    q, (loc, _) = mixture(True, False)
    own = by_component(q)
    value = own.rsample((6,))
    parts = q.components.log_prob(value.unsqueeze(-4)).detach()  # (6, subset, row, 1)
    distance = (parts - own.log_prob(value).detach().unsqueeze(1)).abs().amin(1)
    assert (distance < 1e-9).all()
    fixed = value.detach()
    assert torch.autograd.grad(own.log_prob(fixed).sum(), loc, retain_graph=True)[0].abs().sum() > 0
    assert not detached(own).log_prob(fixed).requires_grad
    assert torch.equal(detached(own).log_prob(fixed), own.log_prob(fixed))
    assert type(mapped(own, lambda value, _: value)) is ProductMixture


def test_it_is_mapped_and_looked_at_by_strata_as_a_mixture():
    q, _ = mixture(True, True)
    value = torch.randn(5, ROWS, 1, DIM)
    flat = mapped(q, lambda p, event_dims: p.squeeze(-1 - event_dims))
    assert flat.batch_shape == (ROWS,)
    torch.testing.assert_close(flat.log_prob(value.squeeze(2)), q.log_prob(value).squeeze(2))
    part, share = stratum(q, 5)
    torch.testing.assert_close(share, q.weights[5])
    torch.testing.assert_close(part.log_prob(value), q.log_prob(value))
    torch.manual_seed(0)
    assert part.rsample((4,)).shape == (4, ROWS, 1, DIM)


def test_points_far_out_keep_their_digits():
    """Sharp experts in single precision: no difference of large squares."""
    loc = torch.tensor([[30.0, 30.0], [30.001, 30.0]]).unsqueeze(1)
    precision = torch.full((2, 1, 2), 1e6)
    given, value = torch.ones(2, 1, dtype=torch.bool), torch.tensor([[30.0005, 30.0]])
    exact = ProductMixture(loc, precision, given).log_prob(value)
    rough = ProductMixture(loc.float(), precision.float(), given).log_prob(value.float())
    assert abs(rough - exact) < 2e-2  # the rounding of 30.0005 itself makes 1e-3 of a scale


def test_memory_for_backward_does_not_hold_the_stack():
    """Ten experts: bytes kept over what a stack of the 1,023 products alone would take."""
    loc = torch.randn(10, 64, 1, 16, requires_grad=True)
    q = ProductMixture(loc, torch.ones(10, 64, 1, 16), torch.ones(10, 64, 1, dtype=torch.bool), whole=True)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        q.log_prob(torch.zeros(64, 1, 16)).sum()
    assert sum(kept.values()) < 0.15 * 1023 * 64 * 16 * loc.element_size()
