"""Networks of every kind as parts of a model: what they do beside computing a value is done, or refused."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pyro_mmvae as mm
from pyro_mmvae.training.step import not_finite


def model(encoder, decoder=None):
    parts = {
        "p": mm.Modality(decoder or mm.NormalLikelihood(mm.mlp(2, 8, 6)), encoder),
        "q": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 8, 3)), mm.encoder(3, 8, dim=2)),
    }
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())


def rows(holes=True):
    torch.manual_seed(1)
    x = {"p": 3 + torch.randn(40, 6), "q": torch.randn(40, 3)}
    if holes:
        x["p"][::2] = torch.nan
    return x


def train(vae, holes=True, **options):
    mm.fit(vae, rows(holes), epochs=1, batch_size=20, lr=1e-2, progress=False, **options)


class Running(nn.Module):
    """Keeps a running mean that it needs in eval mode alone; its mask of -inf is a buffer that stays."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((6,), 100.0))
        self.register_buffer("far", torch.tensor([0.0, -torch.inf]))
        self.net = mm.encoder(6, 8, dim=2)

    def forward(self, x):
        if not self.training:
            return self.net(x - self.mean)
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.01)
        return self.net(x)


def test_a_graph_that_would_count_hidden_entries_into_a_buffer_is_refused():
    vae = model(Running())
    with pytest.raises(ValueError, match=r"^compile: .* or a network draws or counts where data are missing; leave"):
        train(vae, compile="eager")
    assert torch.equal(vae.modalities["p"].encoder.mean, torch.full((6,), 100.0))
    found = []
    for compile in (None, "eager"):
        torch.manual_seed(2)
        vae = model(Running())
        train(vae, holes=False, compile=compile)
        found.append(vae.modalities["p"].encoder.mean)
    expected = 100 * 0.99**2 + 3 * (1 - 0.99**2)
    assert torch.equal(*found) and found[0].mean() == pytest.approx(expected, abs=0.01)


class Checkpointed(nn.Module):
    """Computes its layer once more in backward, by a `backward` of its own."""

    def __init__(self):
        super().__init__()
        self.net, self.head = nn.Linear(6, 8), mm.NormalHead(8, 2)

    def forward(self, x):
        return self.head(checkpoint(self.net, x.detach().requires_grad_(), use_reentrant=True))


def frozen_afterwards():
    encoder = mm.encoder(6, 8, dim=2)
    next(encoder.parameters()).register_post_accumulate_grad_hook(lambda p: [p.grad.zero_()].clear())
    return encoder


def frozen_before():
    encoder = mm.encoder(6, 8, dim=2)
    next(encoder.parameters()).register_hook(lambda gradient: 0 * gradient)
    return encoder


@pytest.mark.parametrize(("made", "moves"), [(Checkpointed, True), (frozen_afterwards, False), (frozen_before, False)])
def test_gradients_that_a_graph_would_not_have_are_refused(made, moves):
    vae = model(made())
    weight = next(vae.modalities["p"].encoder.parameters())
    before = weight.detach().clone()
    with pytest.raises(
        ValueError, match=r"^compile: the programs get at the parameter 'modalities\.p\.encoder\..*hooks"
    ):
        train(vae, compile="eager")
    assert torch.equal(weight, before) and all(p.grad is None for p in vae.parameters())
    train(vae)
    assert torch.equal(weight, before) is not moves


def test_data_are_not_rounded_to_the_precision_of_a_pretrained_network():
    class Pretrained(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mm.mlp(2, 8, 6).bfloat16().requires_grad_(False)

        def forward(self, z):
            return dist.Poisson(self.net(z.bfloat16()).to(z.dtype).exp()).to_event(1)

    vae = model(mm.encoder(6, 8, dim=2), Pretrained())
    x = {"p": torch.full((4, 6), 1001.0), "q": torch.full((4, 3), 1001.0)}  # 1000 in bfloat16
    assert all(torch.equal(value, x[name]) for name, value in vae.check(x).items())
    assert vae.bfloat16().check(x)["q"].dtype == torch.bfloat16


def bound():
    return mm.encoder(6, 8, dim=2).forward


def closed():
    net = mm.encoder(6, 8, dim=2)
    return lambda x: net(x)


def filled():
    return functools.partial(lambda net, x: net(x), mm.encoder(6, 8, dim=2))


@pytest.mark.parametrize("made", [bound, closed, filled])
def test_a_function_that_hides_what_is_to_be_trained_is_refused(made):
    vae = model(made())
    with pytest.raises(
        ValueError, match=r"^'modalities\.p\.encoder' is a function of a network whose parameters nobody"
    ):
        train(vae)
    loc = nn.Parameter(torch.zeros(2))
    vae = mm.MultimodalVAE(
        model(mm.encoder(6, 8, dim=2)).modalities, lambda: dist.Normal(loc, 1.0).to_event(1), mm.PoE()
    )
    with pytest.raises(ValueError, match=r"^'prior' is a function of a network whose parameters nobody"):
        train(vae)
    assert vae.training
    loc.requires_grad_(False)
    train(vae)


def test_a_function_of_what_is_trained_by_its_name_is_none_that_hides():
    net = mm.encoder(6, 8, dim=2)
    vae = model(lambda x: net(x))
    vae.modalities["q"].held = net
    before = net.state_dict()["1.0.weight"].clone()
    train(vae)
    assert not torch.equal(before, net.state_dict()["1.0.weight"])
    loc = torch.zeros(2)

    def prior():
        return dist.Normal(pyro.param("loc", loc), 1.0).to_event(1)

    train(mm.MultimodalVAE(vae.modalities, prior, mm.PoE()))
    assert pyro.param("loc").abs().min() > 1e-4


class Spectrum(nn.Module):
    """Weighs frequencies by complex parameters."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=torch.complex128))
        self.head = mm.NormalHead(6, 2)

    def forward(self, x):
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=6))


def test_complex_parameters_are_trained_and_looked_through():
    with pytest.raises(ValueError, match=r"^mm\.Adam takes no complex parameters; use torch\.optim\.Adam$"):
        train(model(Spectrum()))
    vae = model(Spectrum())
    train(vae, optimizer=torch.optim.Adam, clip=1.0)
    weight = vae.modalities["p"].encoder.weight
    assert (weight.detach() - 1).abs().min() > 1e-4
    assert not_finite(dict(vae.named_parameters())) is None
    with torch.no_grad():
        weight[1] = complex(1.0, torch.nan)
    assert not_finite(dict(vae.named_parameters())) == "the gradient of modality 'p'"


def test_an_optimiser_that_asks_for_the_loss_is_refused():
    class Twice(torch.optim.SGD):
        def step(self, closure):
            return super().step(closure)

    for optimizer in (Twice, torch.optim.LBFGS):
        with pytest.raises(
            ValueError, match=r"^optimizer gives an object of .*, not what takes a step by itself; give"
        ):
            train(model(mm.encoder(6, 8, dim=2)), optimizer=optimizer)


def test_a_network_with_inference_mode_inside_is_told_of_no_grad():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head = nn.Linear(6, 8), mm.NormalHead(8, 2)

        def forward(self, x):
            with torch.inference_mode():
                h = self.net(x)
            return self.head(h)

    with pytest.raises(ValueError, match=r"the encoder of 'p' fails .*; compute what is frozen in torch\.no_grad\(\)$"):
        train(model(Features()))


def test_attention_that_wants_other_axes_fails_in_one_line():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(2, 1, batch_first=True), nn.Linear(2, 6)

        def forward(self, z):
            return dist.Normal(self.out(self.attention(z, z, z)[0]), 1.0).to_event(1)

    vae = model(mm.encoder(6, 8, dim=2), Attending())
    with pytest.raises(
        ValueError, match=r"^the decoder of 'p' fails on .* received 4-D .*; .* mm\.batched gives [^\n]*$"
    ):
        mm.log_likelihood(vae, rows(), num_particles=5)
