"""Laws of questions, whatever the model: rows answer for themselves, units cancel, what is hidden is not there."""

import math

import pyro.distributions as dist
import pytest
import torch
from cases import NAMES, RECIPES, SIZES
from torch import nn
from torch.overrides import TorchFunctionMode

import pyro_mmvae as mm

ROWS, FIRST, DRAWS = 23, 9, 30  # numbers that no other axis has
A, B, C = NAMES


class OfRows(TorchFunctionMode):
    """Random numbers that belong to a row, wherever it stands; those of one shape are always the same.

    Args:
        rows: a number of rows -> which ones they are.
    """

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def noise(self, draw, shape, dtype):
        shape = list(shape)
        axis = next((axis for axis, size in enumerate(shape) if size in self.rows), None)
        rows = None if axis is None else torch.tensor(self.rows[shape[axis]])
        if axis is not None:
            shape[axis] = ROWS
        values = draw(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)
        return values if rows is None else values.index_select(axis, rows)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        draw = torch.rand if name in ("rand", "rand_like") else torch.randn
        if name in ("rand", "randn"):
            return self.noise(draw, args if isinstance(args[0], int) else args[0], kwargs.get("dtype"))
        if name in ("rand_like", "randn_like"):
            return self.noise(draw, args[0].shape, args[0].dtype)
        if name == "normal_":
            return args[0].copy_(self.noise(draw, args[0].shape, args[0].dtype))
        if name == "normal":
            return args[0] + args[1] * self.noise(draw, args[0].shape, args[0].dtype)
        return function(*args, **kwargs)


def weighted(vae, x, mask=None):
    found = mm.importance(vae, x, mask, num_draws=DRAWS)
    return {**found.latents, "raw": found.raw}, 1


def curve(vae, x, mask=None):
    return {"bound": mm.iwae_curve(vae, x, mask, num_particles=[1, 5, DRAWS]).value}, 1


def gaps(vae, x, mask=None):
    found = vars(mm.gaps(vae, x, mask, num_draws=DRAWS, steps=4))
    return {name: value for name, value in found.items() if name != "num_draws"}, 0


# name -> (vae, x, mask) -> (name -> numbers, their axis of rows)
QUESTIONS = {
    "log_likelihood": lambda *ask: (mm.log_likelihood(*ask, num_particles=DRAWS)._asdict(), 0),
    "importance": weighted,
    "impute": lambda *ask: (mm.impute(*ask, num_draws=DRAWS), 1),
    "predict": lambda *ask: (mm.predict(*ask, num_draws=DRAWS), 0),
    "curve": curve,
    "gaps": gaps,
}


def asked(question, *ask, seed=0):
    torch.manual_seed(seed)
    return QUESTIONS[question](*ask)


def made(recipe):
    """A model, and data with single entries hidden and whole rows of one modality."""
    vae, loss = RECIPES[recipe]()
    x = {name: torch.randn(ROWS, size) for name, size in SIZES.items()}
    mask = {name: torch.rand(value.shape) > 0.3 for name, value in x.items()}
    mask[B] = torch.rand(ROWS) > 0.4
    return vae.eval(), loss, x, mask


def rows_of(data, index):
    return {name: value[index] for name, value in data.items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_row_is_answered_for_itself(recipe):
    """With the random numbers of its own: of gaps, torch's multinomial draws some for all rows in one."""
    vae, _, x, mask = made(recipe)
    order = torch.randperm(ROWS).tolist()
    for question in QUESTIONS.keys() - {"gaps"}:
        with OfRows({ROWS: list(range(ROWS))}):
            whole, axis = asked(question, vae, x, mask)
        with OfRows({ROWS: order}):
            turned, _ = asked(question, vae, rows_of(x, order), rows_of(mask, order))
        parts = []
        for some in (order[:FIRST], order[FIRST:]):
            with OfRows({len(some): some}):
                parts.append(asked(question, vae, rows_of(x, some), rows_of(mask, some))[0])
        for name, value in whole.items():
            expected = value.index_select(axis, torch.tensor(order))
            for found in (turned[name], torch.cat([part[name] for part in parts], axis)):
                torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_loss_is_the_sum_of_those_of_its_rows(recipe):
    vae, loss, x, mask = made(recipe)

    def value(some):
        with OfRows({len(some): some}):
            total = loss.differentiable_loss(vae.model, vae.guide, rows_of(x, some), rows_of(mask, some))
        return [total, *torch.autograd.grad(total, list(vae.parameters()), allow_unused=True, materialize_grads=True)]

    whole, *parts = (value(some) for some in (list(range(ROWS)), list(range(FIRST)), list(range(FIRST, ROWS))))
    for all_rows, first, rest in zip(whole, *parts):
        torch.testing.assert_close(first + rest, all_rows, rtol=1e-9, atol=1e-9)


class Shrunk(nn.Module):
    """A network on x in other units."""

    def __init__(self, net, scale, shift):
        super().__init__()
        self.net, self.scale, self.shift = net, scale, shift

    def forward(self, x):
        return self.net((x - self.shift) / self.scale)


class Grown(Shrunk):
    """A likelihood of x in other units."""

    def forward(self, z):
        p = self.net(z).base_dist
        return dist.Normal(self.scale * p.loc + self.shift, self.scale * p.scale).to_event(1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_units_move_the_log_likelihood_by_their_logarithm_and_nothing_else(recipe):
    vae, _, x, _ = made(recipe)
    before = {question: asked(question, vae, x)[0] for question in QUESTIONS}
    scales, jacobian = {A: 1e4, B: 1e-4, C: 50.0}, 0.0
    for name, scale in scales.items():
        part = vae.modalities[name]
        part.trunk = Shrunk(part.trunk or nn.Identity(), scale, 3 * scale)
        if part.decoder is not None:
            part.decoder = Grown(part.decoder, scale, 3 * scale)
            jacobian += SIZES[name] * math.log(scale)
    moved = {"value", "raw", "bound", "log_likelihood", "refined", "elbo"}
    for question, old in before.items():
        new, _ = asked(question, vae, {name: scales[name] * (value + 3) for name, value in x.items()})
        for name, value in old.items():
            found = new[name] + jacobian if name in moved else new[name]
            found = found / scales[name] - 3 if question in ("impute", "predict") else found
            torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_hidden_is_not_there(recipe):
    """To the bit, whatever stands in its place; a modality hidden throughout is one that x lacks."""
    vae, _, x, mask = made(recipe)
    fine = {name: seen if seen.dim() > 1 else seen.unsqueeze(1).expand(x[name].shape) for name, seen in mask.items()}
    never = {**mask, B: torch.zeros(ROWS, dtype=torch.bool)}
    without = {name: value for name, value in x.items() if name != B}, {A: mask[A], C: mask[C]}
    for question in QUESTIONS:
        first, _ = asked(question, vae, x, mask)
        for filler in (torch.nan, 1e30):
            other = {name: torch.where(fine[name], value, filler) for name, value in x.items()}
            again, _ = asked(question, vae, other, mask)
            assert all(again[name].equal(v) for name, v in first.items() if not v.isnan().any()), (question, filler)
        whole, _ = asked(question, vae, x, fine)
        lost, lacking = (asked(question, vae, *ask)[0] for ask in ((x, never), without))
        for name, value in first.items():
            torch.testing.assert_close(whole[name], value, rtol=1e-9, atol=1e-9, equal_nan=True)
        for name, value in lacking.items():
            torch.testing.assert_close(lost[name], value, rtol=0, atol=0, equal_nan=True)
