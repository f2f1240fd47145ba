"""The steps that a normal takes to a posterior, by closed forms."""

import math
from types import SimpleNamespace

import pytest
import torch

from pyro_mmvae.diagnostics import refine
from pyro_mmvae.diagnostics.refine import _better, _turn, climbed, diagonal, fit_normal, moments


def far(distance):
    """A posterior N(0, I), with a start as wide at a distance, in two coordinates of one row."""
    target = SimpleNamespace(size=2, shared=lambda k: {}, gradient=lambda z, shared: (None, -z))
    return target, diagonal(torch.full((1, 2), distance), torch.ones(1, 2))


def test_steps_halve_the_way_at_first_and_settle_and_go_no_further_than_their_reach():
    """By 1 - rate each, where the covariance is right; the last of 100 is a hundredth of a full step."""
    rates = [0.5] * 52 + [0.5 * (2.02 - 2 * step / 100) for step in range(52, 100)]
    for steps in (3, 100):
        target, start = far(3.0)
        some = rates[:steps] if steps == 100 else [0.5, 0.5, 0.5 * (2.02 - 4 / 3)]
        left = 3.0 * math.prod(1 - rate for rate in some[1:]) - math.prod(1 - rate for rate in some[1:])
        q = climbed(target, start, full_rank=True, steps=steps)  # first by 1, the reach of 2 at half the rate
        torch.testing.assert_close(q.loc, torch.full((1, 2), left))
        torch.testing.assert_close(q.covariance_matrix, torch.eye(2).expand(1, 2, 2))
    target, start = far(60.0)
    q = climbed(target, start, full_rank=True, steps=4, reach=10.0)
    torch.testing.assert_close(q.loc, torch.full((1, 2), 60.0 - 10 * 0.5 * (1 + 1 + 1 + 0.52)))


def test_covariances_wait_until_scales_have_settled(monkeypatch):
    said = []
    monkeypatch.setattr(refine, "_turn", lambda rate, tilt, covariances: said.append(covariances) or torch.eye(2))
    for full_rank in (True, False):
        climbed(*far(0.0), full_rank=full_rank, steps=10)
    assert said == [False] * 3 + [True] * 7 + [False] * 10


def test_no_steps_give_the_moments_of_the_guide():
    z = torch.randn(200, 3, 2).cumsum(-1)
    q = fit_normal(SimpleNamespace(guide=lambda k: (z, None)), full_rank=True, steps=0)
    torch.testing.assert_close(q.covariance_matrix, moments(z, True).covariance_matrix)


def test_steps_from_several_places_look_at_so_many_draws_of_each(monkeypatch):
    """Of a start twice as wide as N(0, I): the scales are asked to shrink by 1 - 2^2."""
    tilts, real = [], refine._turn
    monkeypatch.setattr(refine, "_turn", lambda rate, tilt, c: tilts.append(tilt) or real(rate, tilt, c))

    def gradient(z, shared):
        assert len(z) == shared == 3 * 20_000  # a draw of what all rows share for each
        return None, -z

    target = SimpleNamespace(shared=lambda k: k, gradient=gradient)
    q = climbed(
        target, diagonal(torch.zeros(3, 2, 2), 2 * torch.ones(3, 2, 2)), full_rank=True, steps=1, num_particles=20_000
    )
    assert q.batch_shape == (3, 2) and tilts[0].shape == (3, 2, 2, 2)
    assert (tilts[0] + 3 * torch.eye(2)).abs().max() < 4.5 * 3 * (2 / 10_000) ** 0.5


def test_a_factor_turns_by_half_newtons_step_of_its_scales_and_no_more_than_the_rate_of_the_rest():
    tilt = torch.tensor([[0.4, 7.0], [0.3, -5.0]])
    scales = torch.tensor([math.exp(0.5 * 0.2 * 0.4), math.exp(-0.5 * 0.2 * 2)])
    torch.testing.assert_close(_turn(0.2, tilt, False), scales.diag())
    torch.testing.assert_close(_turn(0.2, tilt, True), scales.diag() + torch.tensor([[0.0, 0], [0.2 * 0.3, 0]]))
    tilt = torch.tensor([[[9.0, 0, 0], [3.0, 0, 0], [4.0, 12.0, 0]], torch.zeros(3, 3).tolist()])
    below = torch.tensor([[0.0, 0, 0], [3 / 13, 0, 0], [4 / 13, 12 / 13, 0]])
    expected = torch.stack([torch.tensor([math.exp(0.2), 1, 1]).diag() + 0.2 * below, torch.eye(3)])
    torch.testing.assert_close(_turn(0.2, tilt, True), expected)


def test_a_row_keeps_its_start_only_if_that_is_better_by_more_than_four_standard_errors():
    """Of 64 pairs, of which a draw and its mirror image differ by what cancels."""
    truth, e = (diagonal(torch.full((3, 1), loc), torch.ones(3, 1)) for loc in (0.0, 1.0)), torch.randn(64, 1)
    old, new = truth
    e = (e - e.mean()) / e.std()
    gain = torch.tensor([-3.99, -4.01, 0.1]) / 8 + e

    def log_weights(z, q):
        assert torch.allclose(z[:64] + z[64:], 2 * q.loc.expand(64, 3, 1))
        return torch.cat([gain + 5, gain - 5]) if q is new else torch.zeros(128, 3)

    q = _better(SimpleNamespace(log_weights=log_weights), old, new)
    assert q.loc[:, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("size", "full_rank", "steps"), [(4, True, 60), (20, True, 60), (40, True, 120), (40, False, 60)]
)
def test_covariances_of_many_coordinates_take_three_steps_for_each(size, full_rank, steps, monkeypatch):
    taken = []
    monkeypatch.setattr(refine, "climbed", lambda *_, steps, **__: taken.append(steps))
    monkeypatch.setattr(refine, "_better", lambda *_: None)
    fit_normal(SimpleNamespace(size=size, guide=lambda k: (torch.randn(k, 1, size), None)), full_rank=full_rank)
    assert taken == [steps]
