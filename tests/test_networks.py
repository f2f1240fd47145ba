"""Networks for pictures, tokens, counts and tables: invariances, closed forms, and learning."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import COLUMNS, LIKELIHOODS, data, modality, table
from torch import nn

import pyro_mmvae as mm


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 16, 9)])
def test_residual_networks_take_pictures_of_any_size_and_treat_each_row_alone(shape):
    trunk = mm.residual_trunk(shape, channels=(4, 8), size=6)
    decoder = mm.residual_decoder(3, shape, channels=(8, 4), size=6)
    x, z = torch.randn(4, *shape), torch.randn(4, 2, 3)
    torch.testing.assert_close(trunk(x)[2:3], trunk(x[2:3]))
    assert decoder(z).shape == (4, 2, *shape)
    torch.testing.assert_close(decoder(z)[1, 1], decoder(z[1, 1]))


TRUNKS = {
    "attention": lambda: mm.AttentionTrunk(9, 12, 8, heads=2),
    "recurrent": lambda: mm.RecurrentTrunk(9, 8, layers=2),
}


@pytest.mark.parametrize("name", TRUNKS)
def test_padding_changes_nothing(name):
    trunk, x = TRUNKS[name](), torch.randint(0, 9, (6, 12))
    lengths = torch.tensor([1, 4, 12, 7, 7, 3])
    mask = torch.arange(12) < lengths.unsqueeze(1)
    found = trunk(x, mask)
    torch.testing.assert_close(found, trunk(torch.where(mask, x, 0), mask))
    for row, length in enumerate(lengths):
        short = x[row : row + 1, :length]
        torch.testing.assert_close(found[row : row + 1], trunk(short, torch.ones_like(short, dtype=torch.bool)))


@pytest.mark.parametrize("kind", [partial(mm.AttentionTrunk, 9, 12), partial(mm.RecurrentTrunk, 9)])
def test_every_layer_of_a_trunk_has_a_say(kind):
    trunks = [kind(8, layers=layers) for layers in (1, 2, 3)]
    one, two, three = (sum(p.numel() for p in trunk.parameters()) for trunk in trunks)
    assert three - two == two - one > 0
    trunks[2](torch.arange(9).unsqueeze(0), torch.ones(1, 9, dtype=torch.bool)).square().sum().backward()
    assert all(bool(p.grad.any()) for p in trunks[2].parameters())


@pytest.mark.parametrize("name", TRUNKS)
def test_the_order_of_tokens_matters(name):
    trunk, x = TRUNKS[name](), torch.arange(9).unsqueeze(0)
    seen = torch.ones_like(x, dtype=torch.bool)
    assert (trunk(x, seen) - trunk(x.flip(1), seen)).abs().max() > 1e-3


def test_a_recurrent_trunk_skips_holes_in_the_middle():
    trunk = mm.RecurrentTrunk(9, 8)
    mask = torch.tensor([[True, False, True, True, False]])
    whole = torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(trunk(torch.tensor([[3, 0, 5, 1, 0]]), mask), trunk(torch.tensor([[3, 5, 1]]), whole))


def test_a_vae_of_sequences_learns_which_token_starts_and_fills_in_the_rest():
    """Two kinds of sequence, padded: from the first token, the others are predicted."""
    patterns = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    kind = torch.randint(0, 2, (200,))
    x, mask = {"t": patterns[kind]}, {"t": torch.arange(4) < torch.randint(1, 5, (200,)).unsqueeze(1)}
    part = mm.Modality(
        mm.CategoricalLikelihood(mm.TokenDecoder(2, 4, 4, 16)),
        mm.NormalHead(16, 2),
        trunk=mm.AttentionTrunk(4, 4, 16, heads=2, layers=1),
    )
    vae = mm.MultimodalVAE({"t": part}, mm.StandardNormal(2), mm.PoE(prior_expert=False))
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO())
    for _ in range(200):
        svi.step(x, mask)
    only_first = {"t": torch.arange(4).expand(200, 4) < 1}
    found = mm.predict(vae, x, only_first, num_draws=20)["t"].argmax(-1)
    assert (found == x["t"]).double().mean() > 0.95


def test_rates_with_a_total_are_a_poisson_total_and_multinomial_shares():
    net, total = mm.mlp(2, 5), mm.mlp(2, 1)
    p = mm.PoissonLikelihood(mm.LogRates(net, total, start=20.0))(z := torch.randn(6, 1, 2))
    x = torch.randint(0, 9, (6, 1, 5)).double()
    whole = dist.Poisson(20 * total(z).exp().squeeze(-1)).log_prob(x.sum(-1))
    shares = torch.stack(
        [dist.Multinomial(int(row.sum()), logits=net(c)).log_prob(row) for row, c in zip(x[:, 0], z[:, 0])]
    )
    torch.testing.assert_close(p.log_prob(x), whole + shares.unsqueeze(1))


def test_a_total_can_be_a_private_code():
    """The private code holds the log total: rows that differ in depth alone differ in w, and the mean follows it."""
    net = mm.LogRates(nn.Sequential(First(1), mm.mlp(1, 4)), mm.Last(1), start=50.0)
    part = mm.Modality(mm.PoissonLikelihood(net), mm.encoder(4, 8, dim=1), private=mm.encoder(4, 8, dim=1))
    vae = mm.MultimodalVAE({"c": part}, mm.StandardNormal(1), mm.PoE(), private_prior={"c": mm.LearnedNormal(1)})
    code = torch.tensor([[[0.3, 0.0]], [[0.3, 1.0]]])
    totals = part.decoder(code).mean.sum(-1).squeeze(-1)
    torch.testing.assert_close(totals, 50 * torch.tensor([0.0, 1.0]).exp())
    assert mm.generate(vae, 5)["c"].shape == (5, 4)


class First(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, z):
        return z[..., : self.size]


def test_a_table_is_its_columns_one_by_one():
    part, x, z = modality("table"), table(20), torch.randn(20, 1, 2)
    p, out = part.decoder(z), part.decoder.net(z)
    real, positive, count, first, second, third = (10 * part.decoder.tenth).unbind()[:6]
    thresholds = torch.stack([first, first + second.exp(), first + second.exp() + third.exp()])
    levels = torch.cat([torch.zeros(20, 1, 1), (thresholds - out[..., 3:4]).sigmoid(), torch.ones(20, 1, 1)], -1).diff()
    mean = 4 * out[..., 2].exp()
    expected = [
        dist.Normal(2 + 3 * out[..., 0], 3 * (real.exp() + 1e-5)).log_prob(x[:, None, 0]),
        dist.LogNormal(torch.tensor(1.5).log() + out[..., 1], positive.exp() + 1e-5).log_prob(x[:, None, 1]),
        dist.GammaPoisson(count.exp(), count.exp() / mean).log_prob(x[:, None, 2]),
        levels.gather(-1, x[:, None, 3:4].long()).squeeze(-1).log(),
        out[..., 4:].log_softmax(-1).gather(-1, x[:, None, 4:5].long()).squeeze(-1),
    ]
    torch.testing.assert_close(p.log_prob(x.unsqueeze(1)), sum(expected))


def test_a_table_of_real_numbers_learns_as_they_do_outside_of_one():
    """Also the scales, which go from 1 to 0.2: with small steps they would lag behind."""
    x, found = {"t": torch.randn(60, 1) + 0.2 * torch.randn(60, 3)}, []
    for likelihood in (
        lambda net: mm.NormalLikelihood(net, mm.LearnedScale(3)),
        lambda net: mm.TableLikelihood(net, [mm.RealColumn()] * 3),
    ):
        torch.manual_seed(0)
        parts = {"t": mm.Modality(likelihood(mm.mlp(1, 8, 3)), mm.encoder(3, 8, dim=1))}
        vae = mm.MultimodalVAE(parts, mm.StandardNormal(1), mm.PoE())
        found.append(mm.fit(vae, x, epochs=150, lr=1e-2, progress=False).loss)
    torch.testing.assert_close(*map(torch.tensor, found), atol=5e-3, rtol=0)


def test_draws_from_a_table_are_on_the_support_of_every_column():
    vae = mm.MultimodalVAE({"t": modality("table")}, mm.StandardNormal(2), mm.PoE())
    draws = mm.generate(vae, 500)["t"]
    assert vae.likelihoods()["t"].base_dist.support.check(draws).all()
    x, hidden = table(30), torch.rand(30, 5) > 0.5
    found = mm.impute(vae, {"t": x}, {"t": hidden}, num_draws=3)["t"]
    assert torch.equal(found[:, hidden], x[hidden].expand(3, -1))
    mean = mm.predict(vae, {"t": x}, {"t": hidden}, num_draws=5)["t"]
    assert mean.shape == (30, 5) and mean.isfinite().all()


def test_a_table_with_a_value_off_the_support_is_refused_in_one_line():
    vae = mm.MultimodalVAE({"t": modality("table")}, mm.StandardNormal(2), mm.PoE())
    x = table(4)
    x[2, 1] = -1.0
    with pytest.raises(ValueError, match="modality 't' has the value -1 in column 1 in row 2"):
        vae.check({"t": x})


@pytest.mark.parametrize("name", ["table", "measurements and their pattern"])
def test_the_encoder_sees_the_pattern_of_holes_and_not_what_is_below(name):
    """A hidden entry and an observed zero are told apart; what is hidden is not looked at."""
    vae = mm.MultimodalVAE({"t": modality(name)}, mm.StandardNormal(2), mm.PoE())
    x = data(name, 6)
    x[:, 0] = 0.0
    shown, mask = torch.ones(x.shape, dtype=torch.bool), torch.ones(x.shape, dtype=torch.bool)
    mask[:, 0] = False
    with_zero, with_hole = vae.posterior({"t": x}, {"t": shown}).mean, vae.posterior({"t": x}, {"t": mask}).mean
    assert (with_zero - with_hole).abs().min(1).values.max() > 1e-4
    x[:, 0] = 7.0
    assert torch.equal(vae.posterior({"t": x}, {"t": mask}).mean, with_hole)


def test_features_of_columns_are_finite_whatever_is_below_a_hole():
    trunk = mm.TableTrunk(COLUMNS, 8)
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    found = trunk(torch.zeros(3, 5), nothing)
    gradients = torch.autograd.grad(found.sum(), list(trunk.parameters()))
    assert found.isfinite().all() and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", [n for n, case in LIKELIHOODS.items() if len(case) == 4 or "picture" in n])
def test_every_parameter_learns(name):
    vae = mm.MultimodalVAE({"x": modality(name)}, mm.StandardNormal(2), mm.PoE())
    x = {"x": data(name, 40)}
    mask = {"x": torch.rand(x["x"].shape) > 0.2} if x["x"].dim() == 2 else None
    loss = pyro.infer.Trace_ELBO().differentiable_loss(vae.model, vae.guide, x, mask)
    for key, gradient in zip(dict(vae.named_parameters()), torch.autograd.grad(loss, list(vae.parameters()))):
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, key


def test_the_network_of_a_likelihood_sees_one_leading_axis():
    """Whatever stands before: layers that want a batch of rows need not be wrapped."""
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 6), nn.Unflatten(1, (2, 3)))
    shapes = []
    net.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    likelihood, z = mm.NormalLikelihood(net), torch.randn(4, 5, 1, 2)
    p = likelihood(z)
    assert shapes == [(20, 2)] and (p.batch_shape, p.event_shape) == ((4, 5, 1), (2, 3))
    expected = net.eval()(z.flatten(0, 2)).reshape(4, 5, 1, 2, 3)
    torch.testing.assert_close(likelihood(z).mean, expected)


def test_attention_gives_zeros_without_any_token_and_other_rows_do_not_notice():
    trunk = mm.AttentionTrunk(9, 12, 8, heads=2)
    tokens, mask = torch.randint(9, (4, 12)), torch.rand(4, 12) < 0.5
    mask[:, 0], mask[2] = True, False
    found, rest = trunk(tokens, mask), torch.tensor([0, 1, 3])
    assert bool((found[2] == 0).all())
    torch.testing.assert_close(found[rest], trunk(tokens[rest], mask[rest]))
    found.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in trunk.parameters())
