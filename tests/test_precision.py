"""bfloat16 networks: what is lowered, what is not, and that training ends where it does in float32."""

import math
from contextlib import suppress

import pytest
import torch
from cases import LIKELIHOODS, RECIPES, SIZES, data, modality, pictures, three, three_rows
from exact import LinearGaussian
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.training.precision import lowered

pytestmark = pytest.mark.usefixtures("single")


class Seen(nn.Module):
    """Passes on what it gets, and notes in which precision, in training."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        if self.training:
            self.seen.add(x.dtype)
        return x


class Watched(Trace_ELBO):
    """Notes the precision of every log-probability."""

    seen: set

    def differentiable_loss(self, model, guide, *args, **kwargs):
        q = poutine.trace(guide).get_trace(*args)
        p = poutine.trace(poutine.replay(model, q)).get_trace(*args)
        for trace in (q, p):
            trace.compute_log_prob()
            self.seen |= {site["log_prob"].dtype for site in trace.nodes.values() if "log_prob" in site}
        return super().differentiable_loss(model, guide, *args, **kwargs)


def test_networks_are_lowered_and_sums_are_not():
    inside, outside = set(), set()
    vae = three(fusion="MoPoE", prior="GaussianMixture")
    for part in vae.modalities.values():
        part.decoder.net = nn.Sequential(part.decoder.net, Seen(inside))
    vae.modalities["body"].trunk = nn.Sequential(nn.Linear(3, 3), Seen(inside))
    loss = Watched()
    loss.seen = outside
    mm.fit(vae, three_rows(20), epochs=1, loss=loss, autocast=torch.bfloat16, progress=False)
    assert inside == {torch.bfloat16} and outside == {torch.float32}
    inside.clear()
    vae.train().posterior(three_rows(4))
    assert inside == {torch.float32}  # it is over


@pytest.mark.parametrize("where", ["trunk", "encoder", "private", "decoder"])
def test_each_network_of_a_modality_is_lowered(where):
    seen = set()
    sizes = {"trunk": 3, "encoder": 3, "private": 3, "decoder": 4}
    look = {k: nn.Sequential(nn.Linear(n, n), Seen(seen if k == where else set())) for k, n in sizes.items()}
    encoder, private = (nn.Sequential(look[k], mm.encoder(3, 8, dim=2)) for k in ("encoder", "private"))
    decoder = mm.NormalLikelihood(nn.Sequential(look["decoder"], mm.mlp(4, 8, 3)))
    parts = {"x": mm.Modality(decoder, encoder, private=private, trunk=look["trunk"])}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE(), private_prior={"x": mm.StandardNormal(2)})
    mm.fit(vae, {"x": torch.randn(8, 3)}, epochs=1, autocast=torch.bfloat16, progress=False)
    assert seen == {torch.bfloat16}


class Twice(nn.Module):
    def forward(self, x, again=True):
        return self(x, False) if again else x


@pytest.mark.parametrize("trunk", [nn.Linear(3, 3), Twice(), nn.Linear(4, 3)], ids=["shared", "calls itself", "fails"])
def test_after_a_network_everything_else_is_in_its_own_precision(trunk):
    vae = three()
    vae.modalities["body"].trunk = vae.modalities["counts"].trunk = trunk.float()
    with lowered([vae], torch.bfloat16):
        with suppress(ValueError):
            vae.guide(three_rows(8))
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


class Scales(Trace_ELBO):
    """Notes the scale of every likelihood."""

    seen: list

    def differentiable_loss(self, model, guide, *args, **kwargs):
        trace = poutine.trace(model).get_trace(*args)
        bases = [trace.nodes[name]["fn"].base_dist for name in ("fixed", "learnt", "table")]
        assert bases[0].narrow.dim() == 0  # and one number is not spread over all entries
        self.seen += [part.scale for base in bases for part in getattr(base, "parts", [base])]
        return super().differentiable_loss(model, guide, *args, **kwargs)


class Densities(Trace_ELBO):
    """Notes the log-probabilities of x given a code that the guide draws."""

    seen: list

    def differentiable_loss(self, model, guide, *args, **kwargs):
        q = poutine.trace(guide).get_trace(*args)
        trace = poutine.trace(poutine.replay(model, q)).get_trace(*args)
        trace.compute_log_prob()
        self.seen.append(trace.nodes["x"]["log_prob"].detach())
        return super().differentiable_loss(model, guide, *args, **kwargs)


def test_the_scale_of_a_likelihood_is_not_rounded():
    """0.1 is 0.10009766 to the 8 bits of bfloat16."""
    learnt, columns = mm.LearnedScale(3), [mm.RealColumn(), mm.PositiveColumn(), mm.RealColumn()]
    decoders = {
        "fixed": mm.NormalLikelihood(mm.mlp(2, 8, 3), 0.1),
        "learnt": mm.NormalLikelihood(mm.mlp(2, 8, 3), learnt),
        "table": mm.TableLikelihood(mm.mlp(2, 8, mm.outputs_of(columns)), columns),
    }
    parts = {name: mm.Modality(decoder, mm.encoder(3, 8, dim=2)) for name, decoder in decoders.items()}
    with torch.no_grad():
        for parameter in (*learnt.parameters(), decoders["table"].tenth):
            parameter.add_(0.01 * torch.rand_like(parameter))
    scales = [p.scale.flatten()[0] for p in decoders["table"](torch.zeros(1, 2)).base_dist.parts]
    vae, loss = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE()), Scales()
    loss.seen, want = [], [torch.tensor(0.1), learnt(torch.zeros(1, 2)).detach(), *scales]
    x = {name: torch.rand(20, 3) + 0.1 for name in parts}
    mm.fit(vae, x, epochs=1, lr=0.0, loss=loss, autocast=torch.bfloat16, progress=False)
    assert len(loss.seen) == len(want) == 5
    assert all(bool((seen == scale).all()) for seen, scale in zip(loss.seen, want, strict=True))


@pytest.mark.parametrize("missing", [False, True])
def test_pictures_give_the_loss_that_they_give_in_float32(missing):
    x, losses = {"picture": torch.randn(40, 3, 8, 8)}, []
    mask = {"picture": torch.rand(40) > 0.5} if missing else None
    for autocast in (None, torch.bfloat16):
        torch.manual_seed(0)
        losses.append(mm.fit(pictures(), x, mask, epochs=3, lr=1e-3, autocast=autocast, progress=False).loss[-1])
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.01)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_takes_it(likelihood):
    """The loss in bfloat16 is that in float32 to the precision of what a network gives: about 1 in 2^8."""
    x = {"x": data(likelihood, 200)}
    losses = []
    for autocast in (None, torch.bfloat16):
        torch.manual_seed(0)
        vae = mm.MultimodalVAE({"x": modality(likelihood)}, mm.StandardNormal(2), mm.PoE())
        losses.append(mm.fit(vae, x, epochs=1, batch_size=200, lr=0.0, autocast=autocast, progress=False).loss[0])
    assert math.isfinite(losses[1]) and losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


ROUNDED_WITHIN = "residual picture", "tokens, attention", "tokens, recurrent"  # by layers that normalise or remember


@pytest.mark.parametrize("likelihood", sorted({*LIKELIHOODS, "large numbers"} - {*ROUNDED_WITHIN}))
def test_networks_alone_are_lowered(likelihood):
    """Where networks give numbers of 8 bits, densities are those of float32: nothing that comes after is rounded."""
    torch.manual_seed(1)
    if likelihood == "large numbers":
        columns, x = [mm.RealColumn(1000.0, 3.0), mm.CountColumn(900.0)], 1000 + torch.randn(20, 2).round()
        decoder = mm.TableLikelihood(mm.mlp(2, 8, mm.outputs_of(columns)), columns)
        part = mm.Modality(decoder, nn.Sequential(mm.Standardize(1000.0, 3.0), mm.encoder(2, 8, dim=2)))
    else:
        part, x = modality(likelihood), data(likelihood, 20)
    with torch.no_grad():
        for layer in part.decoder.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                layer.weight.zero_()
                layer.bias.copy_(layer.bias.bfloat16())
    vae, found = mm.MultimodalVAE({"x": part}, mm.StandardNormal(2), mm.MoE()), []  # z as the head gives it
    for autocast in (None, torch.bfloat16):
        loss = Densities()
        loss.seen = found
        mm.fit(vae, {"x": x}, epochs=1, lr=0.0, loss=loss, autocast=autocast, progress=False)
    with torch.autocast("cpu", torch.bfloat16):  # as Lightning's bf16-mixed does, around all of it
        loss.differentiable_loss(vae.model, vae.guide, {"x": x})
    for other in found[1:]:
        torch.testing.assert_close(other.sort(0)[0], found[0].sort(0)[0], rtol=1e-6, atol=1e-6)  # rows in any order


@pytest.mark.parametrize("recipe", ["mmvaeplus", "nexus", "mhvae", "jnf"])
def test_recipes_take_it(recipe):
    x = {name: torch.randn(100, size) for name, size in SIZES.items()}
    losses = []
    for autocast in (None, torch.bfloat16):
        torch.manual_seed(0)
        vae, loss = RECIPES[recipe]()
        losses.append(
            mm.fit(vae, x, epochs=1, batch_size=100, lr=0.0, loss=loss, autocast=autocast, progress=False).loss[0]
        )
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.01)


def held_out_nll(autocast, seed):
    """The exact held-out -log p(x) of the decoders that were learnt, nats a row."""
    truth = LinearGaussian({"a": 10, "b": 10, "c": 10}, dim=3, orthogonal=False)
    torch.manual_seed(100)
    x, test = ({k: v.float() for k, v in truth.simulate(rows).items()} for rows in (400, 2000))
    parts = {k: mm.Modality(mm.NormalLikelihood(nn.Linear(3, 10), 0.7), mm.encoder(10, 64, dim=3)) for k in x}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(3), mm.PoE())
    mm.fit(vae, x, epochs=50, batch_size=100, lr=1e-2, seed=seed, autocast=autocast, progress=False)
    nets = [part.decoder.net for part in vae.modalities.values()]
    w, b = torch.cat([n.weight for n in nets]).double(), torch.cat([n.bias for n in nets]).double()
    p = torch.distributions.MultivariateNormal(b, w @ w.T + 0.49 * torch.eye(30).double())
    return -p.log_prob(torch.cat(list(test.values()), 1).double()).mean().item()


def test_it_trains_to_within_noise_of_float32():
    """Noise is what another order of the batches and other draws do to float32, .02 nats a row of log p(x)."""
    full = torch.tensor([held_out_nll(None, seed) for seed in range(3)])
    low = torch.tensor([held_out_nll(torch.bfloat16, seed) for seed in range(3)])
    assert (low - full).abs().mean() < full.std() and (low - full).mean().abs() < 0.02


def test_another_dtype_and_a_model_in_double_precision_are_refused():
    vae, x = three(), three_rows(4)
    for dtype in (torch.float16, torch.float32):
        with pytest.raises(ValueError, match=rf"autocast is {dtype}; give torch\.bfloat16"):
            mm.fit(vae, x, autocast=dtype, progress=False)
    with pytest.raises(ValueError, match="for the networks of modalities, and there are none; put it into"):
        mm.fit(mm.Pair(vae.prior, vae.prior), x, autocast=torch.bfloat16, progress=False)
    for other in (torch.float64, torch.bfloat16):
        with pytest.raises(ValueError, match=rf"in float32, this one has {other}; call vae\.float\(\)"):
            mm.fit(vae.to(other), x, autocast=torch.bfloat16, progress=False)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile's own making
def test_a_compiled_network_takes_it():
    torch.manual_seed(0)
    decoder = mm.BernoulliLikelihood(torch.compile(mm.mlp(2, 8, 3), backend="eager"))
    vae = mm.MultimodalVAE({"x": mm.Modality(decoder, mm.encoder(3, 8, dim=2))}, mm.StandardNormal(2), mm.PoE())
    history = mm.fit(vae, {"x": torch.ones(40, 3)}, epochs=20, lr=3e-2, autocast=torch.bfloat16, progress=False)
    assert history.loss[-1] < history.loss[0] - 0.5
