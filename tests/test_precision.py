"""bfloat16 networks: what is lowered, what is not, and that training ends where it does in float32."""

import math

import pytest
import torch
from cases import LIKELIHOODS, RECIPES, SIZES, data, modality, three, three_rows
from exact import LinearGaussian
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_mmvae as mm


@pytest.fixture(autouse=True)
def single(settled):
    torch.set_default_dtype(torch.float32)


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


def pictures():
    parts = {
        "picture": mm.Modality(
            mm.NormalLikelihood(mm.conv_decoder(2, (3, 8, 8), (4, 4))), mm.conv_encoder((3, 8, 8), (4, 4), dim=2)
        )
    }
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_convolutions_have_their_channels_last_while_they_train_and_lie_as_before_afterwards(autocast):
    vae, layouts = pictures(), []
    weights = [m.weight for m in vae.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    weights[0].data = torch.randn(*weights[0].shape[:3], 8)[..., ::2]  # whatever it was
    before = [(p.data_ptr(), p.stride(), p.detach().clone()) for p in weights]

    def look(*_):
        layouts.extend(p.is_contiguous(memory_format=torch.channels_last) for p in weights)

    x = {"picture": torch.randn(20, 3, 8, 8)}
    vae.modalities["picture"].decoder.register_forward_hook(look)
    mm.fit(vae, x, epochs=1, autocast=autocast, progress=False)
    assert layouts[-4:] == [True] * 4
    assert [(p.data_ptr(), p.stride()) for p in weights] == [(place, stride) for place, stride, _ in before]
    assert all(0 < (p - old).abs().max() < 0.1 for p, (_, _, old) in zip(weights, before))
    with pytest.raises(FloatingPointError):
        mm.fit(vae, x, epochs=1, lr=1e38, autocast=autocast, progress=False)
    assert [p.data_ptr() for p in weights] == [place for place, _, _ in before]


class Lasso(mm.objectives.Loss):
    """A loss of a user's, which looks at the weights as they lie."""

    def __init__(self, vae):
        self.vae = vae

    def differentiable_loss(self, model, guide, *args, **kwargs):
        penalty = nn.utils.parameters_to_vector(self.vae.parameters()).abs().sum()
        return Trace_ELBO().differentiable_loss(model, guide, *args, **kwargs) + penalty


class Tied(nn.Module):
    """Looks at the weight of a convolution as it lies."""

    def __init__(self, conv, net):
        super().__init__()
        self.weight, self.net = conv.weight, net

    def forward(self, z):
        return self.net(z) + self.weight.view(-1).sum()


def test_whoever_looks_at_weights_as_they_lie_finds_them_there():
    x, vae = {"picture": torch.randn(20, 3, 8, 8)}, pictures()
    mm.fit(vae, x, epochs=1, loss=Lasso(vae), progress=False)
    net = vae.modalities["picture"].decoder.net
    vae.modalities["picture"].decoder.net = Tied(next(m for m in net.modules() if type(m) is nn.ConvTranspose2d), net)
    mm.fit(vae, x, epochs=1, progress=False)


def test_convolutions_in_double_precision_stay_where_they_are():
    """Kernels of another kind compute those."""
    vae, layouts = pictures().double(), []
    vae.modalities["picture"].decoder.register_forward_hook(
        lambda *_: layouts.extend(p.is_contiguous() for p in vae.parameters())
    )
    mm.fit(vae, {"picture": torch.randn(20, 3, 8, 8)}, epochs=1, progress=False)
    assert layouts and all(layouts)


class Standardised(nn.Conv2d):
    """Looks at its weight as it lies."""

    def forward(self, x):
        spread = self.weight.view(len(self.weight), -1).std(1)
        return nn.functional.conv2d(x, self.weight / spread.view(-1, 1, 1, 1), self.bias, padding=1)


def test_layers_of_other_classes_and_other_optimisers_keep_their_weights_where_they_are():
    """torch's fused optimisers go by places in memory, and one may be kept from an earlier run."""
    x, found = {"picture": torch.randn(20, 3, 8, 8)}, []
    for fused in (True, False):
        torch.manual_seed(0)
        vae = pictures()
        vae.modalities["picture"].encoder.insert(0, Standardised(3, 3, 3))
        kept = torch.optim.AdamW(vae.parameters(), lr=1e-2, fused=fused)
        for autocast in (torch.bfloat16, None):
            mm.fit(
                vae, x, epochs=2, lr=1e-2, optimizer=lambda p, lr, kept=kept: kept, autocast=autocast, progress=False
            )
        mm.fit(vae, x, epochs=1, autocast=torch.bfloat16, progress=False)
        found.append([p.detach().clone() for p in vae.parameters()])
    assert all(torch.allclose(a, b, atol=5e-3) for a, b in zip(*found))


def test_what_processes_share_stays_shared():
    vae, shared = pictures().share_memory(), []
    vae.modalities["picture"].decoder.register_forward_hook(
        lambda *_: shared.append(all(p.is_shared() for p in vae.parameters()))
    )
    mm.fit(vae, {"picture": torch.randn(20, 3, 8, 8)}, epochs=1, autocast=torch.bfloat16, progress=False)
    assert shared and all(shared)


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
    with pytest.raises(ValueError, match=r"autocast is torch\.float16; give torch\.bfloat16"):
        mm.fit(vae, x, autocast=torch.float16, progress=False)
    with pytest.raises(ValueError, match=r"in float32, this one has torch\.float64; call vae\.float\(\)"):
        mm.fit(vae.double(), x, autocast=torch.bfloat16, progress=False)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile's own making
def test_a_compiled_network_takes_it():
    torch.manual_seed(0)
    decoder = mm.BernoulliLikelihood(torch.compile(mm.mlp(2, 8, 3), backend="eager"))
    vae = mm.MultimodalVAE({"x": mm.Modality(decoder, mm.encoder(3, 8, dim=2))}, mm.StandardNormal(2), mm.PoE())
    history = mm.fit(vae, {"x": torch.ones(40, 3)}, epochs=20, lr=3e-2, autocast=torch.bfloat16, progress=False)
    assert history.loss[-1] < history.loss[0] - 0.5
