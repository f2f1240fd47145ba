"""What `fit` does with convolutions meanwhile, and that nobody else notices."""

import copy
import pickle

import pytest
import torch
from cases import pictures
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.training.subpixel import SubPixel


@pytest.fixture(autouse=True)
def single(settled):
    torch.set_default_dtype(torch.float32)


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


def transposed(vae):
    return [m for m in vae.modules() if type(m) is nn.ConvTranspose2d]


def seen_while_it_trains(vae, look, **options):
    """What `look` gives when a picture has been decoded."""
    found = []
    handle = vae.modalities["picture"].decoder.register_forward_hook(lambda *_: found.append(look()))
    mm.fit(vae, {"picture": torch.randn(20, 3, 8, 8)}, epochs=1, progress=False, **options)
    handle.remove()
    return found[-1]


@pytest.mark.parametrize("biased", [True, False])
def test_what_is_computed_in_parts_gives_the_numbers_and_gradients_that_it_gives_whole(biased):
    vae, z = pictures(), torch.randn(7, 2)
    net = vae.modalities["picture"].decoder.net
    for conv in [] if biased else transposed(vae):
        conv.bias = None
    followed = transposed(vae)[0].weight, *(conv.bias for conv in transposed(vae) if biased)

    def gradients():
        vae.zero_grad()
        with torch.enable_grad():
            out = net(z)
            out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in net.parameters())]

    outside = gradients()
    inside = seen_while_it_trains(vae, gradients, lr=0.0)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(outside, inside))
    assert all(p.grad.abs().max() > 0 for p in followed)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_few_channels_are_computed_spot_by_spot_where_precision_is_single(autocast, monkeypatch):
    vae, calls = pictures(), []
    net = vae.modalities["picture"].decoder.net
    few, many = nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.ConvTranspose2d(4, 6, 4, 2, 1)
    net.net = nn.Sequential(*list(net.net)[:5], many, nn.ReLU(), few)
    monkeypatch.setattr(SubPixel, "compute", lambda way, x, w, old=SubPixel.compute: calls.append(w) or old(way, x, w))
    mm.fit(vae, {"picture": torch.randn(20, 3, 8, 8)}, epochs=1, autocast=autocast, progress=False)
    assert [w.shape for w in calls] == ([] if autocast else [few.weight.shape] * len(calls))
    assert autocast or calls


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_biases_come_after_while_it_trains_and_within_afterwards(autocast):
    vae = pictures()
    before = [dict(vars(m)) for m in transposed(vae)]
    inside = seen_while_it_trains(vae, lambda: [vars(m).get("forward") for m in transposed(vae)], autocast=autocast)
    assert [forward.args[0] for forward in inside] == transposed(vae)
    assert [vars(m).keys() for m in transposed(vae)] == [old.keys() for old in before]
    with pytest.raises(FloatingPointError):
        mm.fit(vae, {"picture": torch.randn(20, 3, 8, 8)}, epochs=1, lr=1e38, autocast=autocast, progress=False)
    assert [vars(m).keys() for m in transposed(vae)] == [old.keys() for old in before]


def test_a_copy_that_is_made_while_it_trains_computes_by_itself():
    vae, z = pictures(), torch.randn(7, 2)
    for copied in (copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))):
        other = seen_while_it_trains(vae, lambda copied=copied: copied(vae.modalities["picture"].decoder.net), lr=0.0)
        assert torch.allclose(other(z), vae.modalities["picture"].decoder.net(z), atol=1e-6)
        with torch.no_grad():
            for p in other.parameters():
                p.zero_()
            assert float(other(z).abs().max()) == 0 < float(vae.modalities["picture"].decoder.net(z).abs().max())


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
    mm.fit(vae, {"picture": torch.randn(20, 3, 8, 8)}, epochs=1, progress=False)
    vae, calls = pictures(), []
    for conv in transposed(vae):
        conv.forward = lambda x, conv=conv: calls.append(conv) or nn.ConvTranspose2d.forward(conv, x)
    own = [conv.forward for conv in transposed(vae)]
    assert seen_while_it_trains(vae, lambda: len(calls)) > 0
    assert [conv.forward for conv in transposed(vae)] == own


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile's own making
def test_what_torch_has_compiled_is_left_as_it_was_compiled():
    """Else it is compiled anew for weights that lie elsewhere, until torch gives up, and gradients lie otherwise."""
    compiled, vae = [], pictures()

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    vae.modalities["picture"].decoder.net = torch.compile(vae.modalities["picture"].decoder.net, backend=backend)
    convolutions = transposed(vae)
    weights = [m.weight for m in convolutions]

    def look():
        return [p.is_contiguous() for p in weights], [m for m in convolutions if "forward" in vars(m)]

    assert seen_while_it_trains(vae, look) == ([True, True], [])
    assert compiled
