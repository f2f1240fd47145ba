"""How many threads `fit` computes with: one where every operation is small, which shapes decide and nothing else."""

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, linear

import pyro_mmvae as mm
from pyro_mmvae.training.threads import ELEMENTS, PRODUCT, Largest


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "shapes, operation, share",
    [
        ([(8, 100), (100, 32)], torch.matmul, 2 * 8 * 100 * 32 / PRODUCT),
        ([(5, 8, 100), (5, 100, 32)], torch.matmul, 2 * 5 * 8 * 100 * 32 / PRODUCT),
        ([(3, 8, 100), (32, 100), (32,)], linear, 2 * 24 * 100 * 32 / PRODUCT),
        ([(7, 3, 9, 9), (4, 3, 5, 5)], conv2d, 2 * 7 * 25 * 4 * 75 / PRODUCT),
        ([(2, 30, 9, 9), (30, 4, 5, 5)], conv_transpose2d, 2 * 2 * 81 * 30 * 4 * 25 / PRODUCT),
        ([(100, 3)], torch.exp, 300 / ELEMENTS),
        ([(100, 1)], lambda x: x.expand(100, 1000).sum(), 1 / ELEMENTS),  # a view is no work
        ([(300,), (8, 100), (100, 32)], lambda x, a, b: (a @ b, x.exp(), a @ b), 2 * 8 * 100 * 32 / PRODUCT),
        ([(900,), (8, 100), (100, 32)], lambda x, a, b: (a @ b, x.exp(), a @ b), 900 / ELEMENTS),
    ],
)
def test_the_largest_operation_is_found(shapes, operation, share):
    given = [torch.zeros(shape) for shape in shapes]
    with Largest() as found:
        operation(*given)
    assert found.share == pytest.approx(share)


def model(width):
    parts = {
        name: mm.Modality(mm.NormalLikelihood(mm.mlp(4, width, width, 6)), mm.encoder(6, width, dim=4)) for name in "ab"
    }
    return mm.MultimodalVAE(parts, mm.StandardNormal(4), mm.PoE())


def data(rows):
    return {"a": torch.randn(rows, 6), "b": torch.randn(rows, 6)}


def threads_of(vae, x, mask=None, **options):
    """Those that its decoder ran on in each step of training."""
    found = []
    hook = vae.modalities["a"].decoder.register_forward_hook(
        lambda net, *_: found.append(torch.get_num_threads()) if net.training else None
    )
    mm.fit(vae, x, mask, epochs=1, progress=False, **options)
    hook.remove()
    return set(found)


MANY = Trace_ELBO(num_particles=64, vectorize_particles=True)


@pytest.mark.parametrize(
    "width, batch_size, loss, threads",
    [
        (32, 128, None, 1),
        (512, 128, None, 2),  # 67 million operations in the middle of a decoder
        (100, 128, None, 1),  # 2.6 million
        (100, 300, None, 2),  # 6.0 million
        (100, 1000, None, 2),  # as many rows as there are
        (64, 64, MANY, 2),
        (64, 64, mm.Objective([mm.objectives.strata]), 1),
    ],
)
def test_one_thread_trains_what_is_small(width, batch_size, loss, threads):
    vae, x = model(width), data(300)
    if isinstance(loss, mm.Objective):
        vae.fusion = mm.MoE()
    assert threads_of(vae, x, batch_size=batch_size, loss=loss) == {threads}
    assert torch.get_num_threads() == 2


def test_what_the_first_rows_lack_counts():
    x = data(256)
    mask = {"a": torch.arange(256) == 200, "b": torch.arange(256) < 100}
    assert threads_of(model(32), x, mask) == {1}
    assert threads_of(model(512), x, mask) == {2}


def test_rows_that_nobody_looked_at_together():
    """Each modality is seen in all rows but one, and in one of the two that are looked at."""
    mask = {"a": torch.arange(256) != 1, "b": torch.arange(256) != 0}
    assert threads_of(model(170), data(256), mask) == {2}  # 7.4 million operations for 128 rows


class Strict(nn.Module):
    """A decoder that refuses zeros, with which hidden entries are filled."""

    def __init__(self):
        super().__init__()
        self.net = mm.mlp(4, 6)

    def forward(self, z):
        return dist.LogNormal(self.net(z), 1.0, validate_args=True).to_event(1)


def test_a_look_that_fails_leaves_the_threads_as_they_are():
    parts = {
        "a": mm.Modality(Strict(), mm.encoder(6, 8, dim=4)),
        "b": mm.Modality(mm.NormalLikelihood(mm.mlp(4, 6)), mm.encoder(6, 8, dim=4)),
    }
    vae, mask = mm.MultimodalVAE(parts, mm.StandardNormal(4), mm.PoE()), {"a": torch.arange(64) > 9}
    x = {"a": data(64)["a"].exp() * mask["a"].unsqueeze(-1), "b": data(64)["b"]}
    assert threads_of(vae, x, mask) == {2}


class Counting(Trace_ELBO):
    """A loss of a user's, which counts its calls."""

    calls = 0

    def differentiable_loss(self, model, guide, *args, **kwargs):
        self.calls += 1
        return super().differentiable_loss(model, guide, *args, **kwargs)


def test_a_loss_of_the_users_is_called_once_a_step():
    loss = Counting()
    assert threads_of(model(8), data(64), batch_size=16, loss=loss) == {2}
    assert loss.calls == 4


def test_batches_of_the_user_and_data_on_disk():
    x = data(256)
    for width, threads in ((32, 1), (512, 2)):
        batches = [({k: v[i : i + 128] for k, v in x.items()}, None) for i in (0, 128)]
        assert threads_of(model(width), batches) == {threads}
        assert threads_of(model(width), mm.MultimodalDataset({k: v.numpy() for k, v in x.items()})) == {threads}


def test_threads_are_back_after_an_error():
    with pytest.raises(FloatingPointError):
        threads_of(model(8), data(64), batch_size=16, lr=1e300)
    assert torch.get_num_threads() == 2


def test_the_result_is_that_of_two_threads_and_the_same_again():
    found, x = [], data(64)
    for threads in (2, 2, 1):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        vae = model(32)
        found.append(mm.fit(vae, x, epochs=3, progress=False).loss)
    assert found[0] == found[1] == found[2]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile's own making
def test_what_torch_has_compiled_is_run_as_compiled_in_every_step_and_afterwards():
    """A look at the sizes of tensors under a mode of torch's made Dynamo give such code up for ever."""
    runs = []

    def backend(graph, _):
        return lambda *args: runs.append(True) or graph.forward(*args)

    net = torch.compile(mm.mlp(6, 8, 8), backend=backend)
    encoder = torch.nn.Sequential(net, mm.NormalHead(8, 2))
    parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 8, 6)), encoder)}
    vae, x = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE()), {"a": torch.randn(20, 6)}
    net(x["a"])
    runs.clear()
    mm.fit(vae, x, epochs=2, batch_size=10, progress=False)
    assert len(runs) >= 4
    runs.clear()
    net(x["a"])
    assert runs
