"""What `fit` and questions do with convolutions meanwhile, and that nobody else notices."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from cases import pictures
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.convolutions import _ways, channels_last
from pyro_mmvae.images import Residual
from pyro_mmvae.subpixel import SubPixel

X = {"picture": torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float32)}


pytestmark = pytest.mark.usefixtures("single")


def train(vae, **options):
    return mm.fit(vae, X, epochs=1, progress=False, **options)


def seen_while_it_trains(vae, look, **options):
    """What `look` gives when a picture has been decoded."""
    found = []
    handle = vae.modalities["picture"].decoder.register_forward_hook(lambda *_: found.append(look()))
    train(vae, **options)
    handle.remove()
    return found[-1]


def transposed(vae):
    return [m for m in vae.modules() if type(m) is nn.ConvTranspose2d]


def is_last(x):
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@pytest.fixture
def laid(monkeypatch):
    """Whether the channels lay last of what each call of a `Conv2d` was given."""
    found, old = [], nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda m, x, *a: found.append(is_last(x)) or old(m, x, *a))
    return found


def conv(inner, outer, **options):
    return nn.Conv2d(inner, outer, 3, padding=1, **options)


def counted(net, laid, x=None, call=lambda net, x: net(x)):
    """How many convolutions had channels last inside, after a check of what comes out."""
    x = torch.randn(2, 3, 8, 8) if x is None else x
    plain = call(net, x)
    laid.clear()
    with channels_last([net]):
        out = call(net, x)
    assert out.stride() == plain.stride() and torch.allclose(out, plain, atol=1e-5)
    assert not any("forward" in vars(m) for m in net.modules())
    return sum(laid)


def test_between_two_convolutions_of_a_sequential_channels_lie_last(laid):
    assert counted(nn.Sequential(conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4), conv(4, 5), nn.ReLU()), laid) == 2
    nested = nn.Sequential(nn.Sequential(conv(3, 4), nn.ReLU()), nn.Sequential(nn.Sequential(conv(4, 5))), nn.Flatten())
    assert counted(nested, laid) == 2
    two = nn.Sequential(conv(3, 4), conv(4, 4), nn.Softmax2d(), conv(4, 4), nn.Unfold(2), nn.Unflatten(1, (4, 4)))
    assert counted(nn.Sequential(*two, conv(4, 4), conv(4, 4)), laid) == 4  # and not the one in the middle
    assert counted(nn.Sequential(conv(3, 4), Residual(4, 8), nn.AvgPool2d(2), Residual(8, 8)), laid) == 6


def test_in_bfloat16_they_lie_last_from_the_first_one_on(laid):
    net = nn.Sequential(conv(3, 4), conv(4, 4))
    with channels_last([net]), torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(2, 3, 8, 8).bfloat16())
    assert laid == [True, True]


def test_elsewhere_they_lie_as_ever(laid):
    assert counted(nn.Sequential(conv(3, 4), nn.ReLU()), laid) == 0  # a change of place on both sides
    assert counted(nn.Sequential(conv(3, 4), conv(4, 4)).double(), laid, torch.randn(2, 3, 8, 8).double()) == 0
    assert counted(nn.Sequential(conv(3, 4), conv(4, 4)), laid, torch.randn(3, 8, 8)) == 0  # a picture alone
    moved = nn.Sequential(conv(3, 4), conv(4, 4)).to(memory_format=torch.channels_last)  # by the user
    assert counted(moved, laid) == 1


class Encoder(nn.Module):
    """As many are written: pictures are viewed as vectors after the last convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.stack, self.head = nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8)), mm.NormalHead(32, 2)

    def forward(self, x):
        h = self.stack(torch.relu(self.second(torch.relu(self.first(x)))))
        return self.head(h.view(len(h), -1))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.parts = nn.Linear(2, 32), nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU())
        self.parts.append(nn.ConvTranspose2d(8, 3, 4, 2, 1))

    def forward(self, z):
        h = self.linear(z).view(-1, 8, 2, 2)
        for part in self.parts:  # one by one
            h = part(h)
            h = h.view(len(h), -1).view(h.shape)
        return self.parts(self.linear(z).view(-1, 8, 2, 2)).view(len(z), -1).view(h.shape)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_networks_that_view_pictures_as_vectors_train(autocast):
    parts = {"picture": mm.Modality(mm.NormalLikelihood(mm.batched(Decoder())), Encoder())}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    assert torch.isfinite(torch.tensor(train(vae, autocast=autocast).loss)).all()


def hook_a_layer(net):
    net[1].register_forward_hook(lambda *_: None)


def hook_what_comes_into_a_layer(net):
    net[1].register_forward_pre_hook(lambda *_: None)


def hook_gradients_of_a_layer(net):
    net[2].register_full_backward_hook(lambda *_: None)


def hook_gradients_that_come_into_a_layer(net):
    net[2].register_full_backward_pre_hook(lambda *_: None)


def hook_gradients_of_a_weight(net):
    net[2].weight.register_hook(lambda g: g / g.view(-1).norm())


def put_a_class_in(net):
    net[1] = Relu()


class Relu(nn.ReLU):
    pass


@pytest.mark.parametrize(
    "how",
    [
        *(hook_a_layer, hook_what_comes_into_a_layer, hook_gradients_of_a_layer, hook_gradients_that_come_into_a_layer),
        *(hook_gradients_of_a_weight, put_a_class_in),
    ],
    ids=lambda f: f.__name__,
)
def test_where_somebody_looks_in_pictures_lie_as_ever(how, laid):
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), conv(4, 4))
    assert counted(net, laid) == 3
    how(net)
    assert counted(net, laid) == 0
    with channels_last([net]):
        net(torch.randn(2, 3, 8, 8)).sum().backward()


def test_in_a_module_of_the_users_pictures_lie_as_ever(laid):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.up = nn.Sequential(conv(3, 4), conv(4, 4)), nn.ConvTranspose2d(4, 3, 4, 2, 1)

        def forward(self, x):
            return self.up(input=self.net(input=x))  # by torch's own name

    own = Own()
    assert counted(own, laid) == counted(nn.Sequential(own, conv(3, 4), conv(4, 4)), laid) == 0
    shared = nn.ModuleDict({"net": own.net, "own": own})
    assert counted(shared, laid, call=lambda net, x: net["net"](x)) == 0


def test_pictures_of_one_channel(laid):
    net = nn.Sequential(conv(1, 4), nn.ReLU(), conv(4, 4))
    for x in (torch.randn(2, 1, 8, 8), torch.randn(2, 1, 5, 8)[..., ::2]):
        assert counted(net, laid, x) == 1  # and the first: one channel lies last and first


@pytest.mark.parametrize("change", [lambda n: n.__setitem__(1, nn.Tanh()), lambda n: n[2].append(nn.Sigmoid())])
def test_layers_that_change_meanwhile_are_the_ones_that_compute(change):
    net, x = nn.Sequential(conv(3, 4), nn.ReLU(), nn.Sequential(conv(4, 4))), torch.randn(2, 3, 8, 8)
    with channels_last([net]):
        change(net)
        inside = net(x)
    torch.testing.assert_close(inside, net(x))


FEW, BY_USER = nn.ConvTranspose2d(8, 3, 4, 2, 1).float(), {"memory_format": torch.channels_last}
TRANSPOSED = {
    "alone": (FEW, (8, 4, 4), torch.float32),
    "double": (copy.deepcopy(FEW).double(), (2, 8, 4, 4), torch.float64),
    "lowered": (FEW, (2, 8, 4, 4), torch.float32),
    "moved": (copy.deepcopy(FEW).to(**BY_USER), (2, 8, 4, 4), torch.float32),
    "sized": (nn.ConvTranspose2d(8, 3, 3, 2, 1, output_padding=1).float(), (2, 8, 4, 4), torch.float32),
    "many": (nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=2, dilation=2).float(), (2, 8, 4, 4), torch.float32),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolutions_give_what_they_give_without_whatever_comes_in(case):
    layer, shape, dtype = TRANSPOSED[case]
    net, x = nn.Sequential(layer, layer) if case == "many" else layer, torch.randn(shape).to(dtype)
    size, found = {"output_size": (7, 8)} if case == "sized" else {}, []
    for way in (nullcontext(), channels_last([net])):
        with way, torch.autocast("cpu", torch.bfloat16, enabled=case == "lowered"):
            found.append(net(x, **size))
    assert found[0].stride() == found[1].stride()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_weights_stay_where_they_are_and_everything_is_as_before_afterwards(autocast, laid):
    vae = pictures()
    weights = [m.weight for m in vae.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    before, members = [(p.data_ptr(), p.stride()) for p in weights], [set(vars(m)) for m in vae.modules()]

    def look():
        return [(p.data_ptr(), p.stride()) for p in weights], sum("forward" in vars(m) for m in vae.modules())

    places, changed = seen_while_it_trains(vae, look, autocast=autocast)
    assert places == before and changed == 5  # the encoder and its trunk, the decoder, two transposed convolutions
    assert laid and laid[-2:] == [True, True]
    with pytest.raises(FloatingPointError):
        mm.fit(vae, X, epochs=2, lr=1e38, autocast=autocast, progress=False)
    assert [set(vars(m)) for m in vae.modules()] == members


def test_questions_lay_pictures_out_as_well_and_answer_as_ever(laid, monkeypatch):
    vae, found = pictures().eval(), []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(mm.log_likelihood(vae, X, num_particles=50).value)
        assert all(laid) == (len(found) == 1)
        laid.clear()
        monkeypatch.setattr("pyro_mmvae.modes.channels_last", nullcontext)
    assert not any("forward" in vars(m) for m in vae.modules())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="picture"):
        mm.log_likelihood(vae, {"picture": torch.zeros(2, 3, 9, 9)})
    assert not any("forward" in vars(m) for m in vae.modules())


@pytest.mark.parametrize("biased", [True, False])
def test_numbers_and_gradients_are_the_same(biased):
    vae, z = pictures(), torch.randn(7, 2)
    net, look = vae.modalities["picture"].decoder.net, vae.modalities["picture"].encoder
    for layer in [] if biased else transposed(vae):
        layer.bias = None

    def gradients():
        vae.zero_grad()
        with torch.enable_grad():
            (net(z).square().sum() + look(X["picture"]).mean.square().sum()).backward()
        parts = net(z), look(X["picture"]).mean, *(p.grad.clone() for p in vae.parameters() if p.grad is not None)
        return [part.detach() for part in parts]

    outside = gradients()
    inside = seen_while_it_trains(vae, gradients, lr=0.0)
    assert len(outside) == len(inside) and all(part.abs().max() > 0 for part in outside)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(outside, inside))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_few_channels_are_computed_spot_by_spot_in_single_precision_and_in_bfloat16(autocast, monkeypatch):
    vae, calls = pictures(), []
    net = vae.modalities["picture"].decoder.net
    few, many = nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.ConvTranspose2d(4, 6, 4, 2, 1)
    net.net = nn.Sequential(*list(net.net)[:5], many, nn.ReLU(), few)
    monkeypatch.setattr(SubPixel, "compute", lambda way, x, w, old=SubPixel.compute: calls.append(w) or old(way, x, w))
    train(vae, autocast=autocast)
    assert calls and {(w.shape, w.dtype) for w in calls} == {(few.weight.shape, autocast or torch.float32)}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_a_copy_that_is_made_while_it_trains_computes_by_itself(copied):
    vae, z = pictures(), torch.randn(7, 2)
    net = vae.modalities["picture"].decoder.net
    other = seen_while_it_trains(vae, lambda: copied(net), lr=0.0)
    assert torch.allclose(other(z), net(z), atol=1e-6)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
        assert float(other(z).abs().max()) == 0 < float(net(z).abs().max())
    other.net.append(nn.Flatten())
    assert other(z).shape == (7, 3 * 8 * 8)
    assert [m for m in other.modules() if "forward" in vars(m)] and _ways(dict.fromkeys(other.modules()))


class Sized(nn.Module):
    """Asks a transposed convolution for a picture of a size."""

    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(2, 3 * 4 * 4), nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1)

    def forward(self, z):
        return self.conv(self.linear(z).view(-1, 3, 4, 4), output_size=[8, 8])


def test_a_size_that_is_asked_for_and_a_forward_of_the_users_own_are_kept():
    vae = pictures()
    vae.modalities["picture"].decoder.net = mm.batched(Sized())
    train(vae)
    vae, calls = pictures(), []
    for layer in transposed(vae):
        layer.forward = lambda x, layer=layer: calls.append(layer) or nn.ConvTranspose2d.forward(layer, x)
    own = [layer.forward for layer in transposed(vae)]
    assert seen_while_it_trains(vae, lambda: len(calls)) > 0
    assert [layer.forward for layer in transposed(vae)] == own


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile's own making
def test_what_torch_has_compiled_is_left_as_it_was_compiled():
    """Else it is compiled anew for pictures that lie elsewhere, until torch gives up."""
    compiled, vae = [], pictures()

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    net = vae.modalities["picture"].decoder.net
    vae.modalities["picture"].decoder.net = torch.compile(net, backend=backend)
    assert not seen_while_it_trains(vae, lambda: [m for m in net.modules() if "forward" in vars(m)])
    assert compiled
