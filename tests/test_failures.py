"""What networks raise, in one line that says whose network it is and what helps."""

import re

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_mmvae as mm


class Chunks(nn.Linear):
    """Returns two tensors."""

    def forward(self, x):
        return super().forward(x).chunk(2, -1)


class Forwardless(nn.Module):
    """Somebody forgot its forward."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)


def model(look=None, decoder=None, trunk=None):
    look, decoder = look or mm.encoder(6, 8, dim=2), decoder or mm.mlp(2, 6)
    part = mm.Modality(mm.NormalLikelihood(decoder), look, trunk=trunk)
    return mm.MultimodalVAE({"p": part}, mm.StandardNormal(2), mm.PoE())


def encoded(*make):
    """A model whose encoder has those layers, made in the precision of the test."""
    return lambda: model(look=nn.Sequential(*[layer() for layer in make], mm.NormalHead(8, 2)))


TYPES = r"call vae\.float\(\) or vae\.double\(\)"
CASES = {
    "one row": (
        encoded(lambda: nn.Linear(6, 8), lambda: nn.BatchNorm1d(8)),
        "the encoder of 'p'.*more than 1 value.*; give another batch_size, or leave batch norm out",
    ),
    "types": (lambda: model(decoder=mm.mlp(2, 6).half()), f"the decoder of 'p'.*same dtype.*; {TYPES}"),
    "types of convolutions": (
        encoded(lambda: nn.Unflatten(1, (1, 6)), lambda: nn.Conv1d(1, 2, 3).half(), nn.Flatten),
        f"the encoder of 'p'.*should be the same.*; {TYPES}",
    ),
    "types of recurrent layers": (
        encoded(lambda: nn.LSTM(6, 8).half()),
        f"the encoder of 'p'.*type.*; {TYPES}",
    ),
    "numbers as indices": (
        encoded(lambda: nn.Embedding(6, 8)),
        "'p'.*scalar types.*; convert .* x.float.. or x.long..$",
    ),
    "no forward": (
        lambda: model(look=Forwardless()),
        "'p'.*missing the required .forward. function; write its forward",
    ),
    "a decoder's tuple": (
        lambda: model(decoder=Chunks(2, 12)),
        "the decoder of 'p'.*: the network of NormalLikelihood gives a tuple, not one tensor; let it return one tensor",
    ),
    "an encoder's tuple": (
        encoded(lambda: Chunks(6, 16)),
        "the encoder of 'p'.*: the network of NormalHead gives a tuple, not one tensor; let it return one tensor",
    ),
    "a trunk's tuple": (
        lambda: model(look=mm.NormalHead(8, 2), trunk=nn.GRU(6, 8)),
        "the trunk of 'p' gives a tuple; let it return one tensor",
    ),
    "sizes": (
        encoded(lambda: nn.Linear(5, 8)),
        "the encoder of 'p'.*shapes.*; mend its sizes, or standardise the data",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_failing_network_says_what_helps(case):
    build, says = CASES[case]
    with pytest.raises(ValueError, match=f"{says}$") as caught:
        mm.fit(build(), {"p": torch.randn(9, 6)}, epochs=1, batch_size=8, progress=False)
    assert "\n" not in str(caught.value)


def test_stock_svi_is_told_of_layers_without_sizes():
    vae, x = model(decoder=nn.LazyLinear(6)), {"p": torch.randn(9, 6)}
    step = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step
    says = "'modalities.p.decoder.net.weight' has no shape yet; run mm.log_likelihood(vae, x) on a batch first"
    with pytest.raises(ValueError, match=f"^{re.escape(says)}"):
        step(x)
    mm.log_likelihood(vae, x)
    before = vae.modalities["p"].decoder.net.weight.detach().clone()
    step(x)
    assert not torch.equal(before, vae.modalities["p"].decoder.net.weight)


class OfTorch(nn.Linear):
    """Forgot that Pyro has distributions of the same names."""

    def forward(self, x):
        return torch.distributions.Independent(torch.distributions.Normal(super().forward(x), 1.0), 1)


def test_a_distribution_of_torch_is_told_from_one_of_pyro():
    says = (
        "the encoder of 'p' returned Independent, one of torch's own; it must return a Pyro distribution, as from pyro"
    )
    with pytest.raises(TypeError, match=f"^{says}"):
        mm.fit(model(look=OfTorch(6, 2)), {"p": torch.randn(9, 6)}, epochs=1, progress=False)
