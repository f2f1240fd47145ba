"""`fit`: what it learns, what it keeps, when it stops."""

import math

import pyro
import pytest
import torch
from cases import DIM, SIZES, Explodes, joint_net, of_tables, rows_of_tables, three, three_holes, three_rows
from exact import LinearGaussian, maximum_likelihood
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from torch import nn

import pyro_mmvae as mm


class Learning:
    """Three modalities of a linear-Gaussian truth: data to learn from, and how far what was learnt is from the truth.

    Args:
        share: of the modalities that are missing.
        seed: of truth and data.
    """

    def __init__(self, share, seed=0):
        torch.set_default_dtype(torch.float32)
        generator = torch.Generator().manual_seed(seed)
        self.loadings = [0.8 * torch.randn(10, 3, generator=generator) for _ in range(3)]

        def draw(rows):
            z = torch.randn(rows, 3, generator=generator)
            return {f"m{i}": z @ w.T + torch.randn(rows, 10, generator=generator) for i, w in enumerate(self.loadings)}

        self.x, self.test = draw(2000), draw(1000)
        self.mask = {name: torch.rand(2000, generator=generator) > share for name in self.x} if share else None

    def nll(self, loadings, offsets):
        w, b = torch.cat(loadings).double(), torch.cat(offsets).double()
        p = torch.distributions.MultivariateNormal(b, w @ w.T + torch.eye(30).double())
        return -p.log_prob(torch.cat(list(self.test.values()), 1).double()).mean().item()

    def gap(self, loadings, offsets):
        """Of the exact test likelihood to the truth's, nats a row."""
        return self.nll(loadings, offsets) - self.nll(self.loadings, [torch.zeros(10)] * 3)

    def gap_of_fit(self, head=mm.NormalHead):
        parts = {
            name: mm.Modality(mm.NormalLikelihood(nn.Linear(3, 10), scale=1.0), mm.encoder(10, 512, dim=3, head=head))
            for name in self.x
        }
        vae = mm.MultimodalVAE(parts, mm.StandardNormal(3), mm.PoE())
        mm.fit(vae, self.x, self.mask, epochs=200, batch_size=128, lr=5e-3, progress=False)
        nets = [part.decoder.net for part in vae.modalities.values()]
        return self.gap([net.weight.detach() for net in nets], [net.bias.detach() for net in nets])

    def gap_of_maximum_likelihood(self):
        mask = self.mask or {name: torch.ones(2000, dtype=torch.bool) for name in self.x}
        return self.gap(*maximum_likelihood(self.x, mask, self.loadings))


def test_it_learns_the_truth_from_complete_data():
    assert Learning(0.0).gap_of_fit() <= 0.06


def test_it_learns_the_truth_from_half_of_the_data():
    assert Learning(0.5).gap_of_fit() <= 0.10


def test_experts_with_covariances_learn_what_there_is_to_learn():
    """On a truth that is harder, half missing: 0.21 with diagonal experts, 0.11 here, 0.10 by EM."""
    learning = Learning(0.5, seed=1)
    assert learning.gap_of_fit(mm.FullRankHead) <= learning.gap_of_maximum_likelihood() + 0.02


def trained(seed=0, **options):
    torch.manual_seed(5)
    vae, x, mask = three(), three_rows(50), three_holes(50)
    history = mm.fit(vae, x, mask, epochs=4, batch_size=16, lr=1e-2, seed=seed, progress=False, **options)
    return vae, history


def test_one_seed_gives_one_result_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    first, history = trained()
    torch.set_rng_state(before)
    second, again = trained()
    assert history.loss == again.loss
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert trained(seed=1)[1].loss != history.loss
    state = torch.get_rng_state()
    mm.fit(three(), three_rows(5), epochs=1, progress=False)  # building the model draws, fitting does not
    torch.set_rng_state(state)
    vae = three()
    state = torch.get_rng_state()
    mm.fit(vae, {"body": torch.zeros(5, 3)}, epochs=1, progress=False)
    assert torch.equal(state, torch.get_rng_state())


def test_history_is_the_loss_in_nats_a_row():
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(64)
    history = mm.fit(vae, x, epochs=1, lr=0.0, batch_size=20, progress=False)
    assert history.loss[0] == pytest.approx(-truth.log_prob(x).mean().item(), abs=1e-9)
    assert len(history.lr) == len(history.seconds) == 1


def test_mapping_with_nan_pair_and_loader_are_the_same_data():
    x, mask = (
        three_rows(40),
        {"body": torch.rand(40) > 0.5, "label": torch.ones(40, dtype=torch.bool), "counts": torch.rand(40) > 0.5},
    )
    holes = {k: torch.where(mask[k].reshape(-1, *[1] * (v.dim() - 1)), v.double(), torch.nan) for k, v in x.items()}
    losses = []
    for data in (holes, (x, mask), [(x, mask)], [(holes, None)]):
        torch.manual_seed(5)
        losses.append(mm.fit(three(), data, epochs=1, batch_size=40, lr=0.0, progress=False).loss[0])
    # the same rows in another order meet other draws: equal within the Monte-Carlo error of the ELBO
    assert losses[2] == losses[3]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[0] == pytest.approx(losses[2], rel=0.1)


def test_a_data_loader_is_walked_once_an_epoch():
    x = three_rows(40)
    rows = [({k: v[i : i + 10] for k, v in x.items()}, None) for i in range(0, 40, 10)]
    loader = torch.utils.data.DataLoader(rows, batch_size=None)
    history = mm.fit(three(), loader, epochs=30, lr=1e-2, progress=False)
    assert len(history.loss) == 30 and history.loss[-1] < history.loss[0] - 0.3
    with pytest.raises(ValueError, match="gave none"):
        mm.fit(three(), [], epochs=1, progress=False)
    with pytest.raises(ValueError, match="generator, which cannot be walked once an epoch"):
        mm.fit(three(), (row for row in rows), epochs=1, progress=False)


def test_the_weights_of_the_best_epoch_are_kept_and_patience_stops():
    torch.manual_seed(0)
    x = three_rows(12)
    held_out = three_rows(60)
    vae = three()
    history = mm.fit(vae, x, validation=held_out, patience=5, epochs=400, lr=3e-2, progress=False)
    best = history.best_epoch
    assert history.validation[best] == min(history.validation)
    assert len(history.validation) == best + 6 < 400
    again = mm.fit(vae, x, validation=held_out, epochs=1, lr=0.0, progress=False)
    assert again.validation[0] == pytest.approx(history.validation[best], rel=1e-12)


def test_defaults_fill_in_a_small_table_nearly_as_its_truth_does():
    """Two factors, each seen in six columns, three of each modality; 150 rows are two steps an epoch."""
    torch.manual_seed(1)
    columns = 0.8**0.5 * torch.randn(150, 2, 1) + 0.2**0.5 * torch.randn(150, 2, 6)
    shown = torch.rand(150, 2, 6) > 0.2
    exact = 4 * (columns * shown).sum(-1, keepdim=True) / (1 + 4 * shown.sum(-1, keepdim=True))
    best = (exact - columns)[~shown].square().mean().sqrt().item()
    x, visible = ({"a": v[..., :3].flatten(1), "b": v[..., 3:].flatten(1)} for v in (columns, shown))
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
    mm.fit(vae, x, visible, progress=False)
    found = mm.imputation_error(vae, x, visible=visible).values()
    rmse = math.sqrt(sum(e.entries * e.rmse**2 for e in found) / sum(e.entries for e in found))
    assert best < rmse < 1.12 * best


def test_warmup_weights_the_kl_from_zero():
    """With lr 0 the loss of an epoch is reconstruction + beta KL, beta the epoch's share of the warm-up."""
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(500)
    kl = torch.distributions.kl_divergence(vae.posterior(x), vae.prior(None)).mean().item()
    history = mm.fit(vae, x, epochs=6, warmup=4, lr=0.0, batch_size=500, validation=x, progress=False)
    full = -truth.log_prob(x).mean().item()
    for epoch, loss in enumerate(history.loss):
        assert loss == pytest.approx(full - (1 - min(1, epoch / 4)) * kl, abs=0.25)
    assert history.loss[4:] == pytest.approx([full, full], abs=1e-9)
    assert history.validation == pytest.approx([full] * 6, abs=1e-9)  # with the KL at its own weight


@pytest.mark.parametrize("loss", [None, TraceGraph_ELBO()], ids=["differentiable", "with gradients"])
def test_any_course_of_the_kls_weight(loss):
    """With lr 0 the loss of an epoch is reconstruction + beta KL, beta that of the epoch's one step."""
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(500)
    kl = torch.distributions.kl_divergence(vae.posterior(x), vae.prior(None)).mean().item()
    full = -truth.log_prob(x).mean().item()
    course = [2.0, 0.0, 1.0, 0.5]
    beta = lambda p: course[int(4 * p)]  # noqa: E731
    found = mm.fit(vae, x, loss=loss, epochs=4, beta=beta, lr=0.0, batch_size=500, progress=False)
    for beta, loss in zip(course, found.loss):
        assert loss == pytest.approx(full + (beta - 1) * kl, abs=0.25)
    assert found.loss[2] == pytest.approx(full, abs=1e-9)


class Differentiable:
    """Half the square of all parameters, for every row."""

    def __init__(self, parameters):
        self.parameters = parameters

    def differentiable_loss(self, model, guide, x, mask=None):
        return x.rows * sum(p.square().sum() for p in self.parameters) / 2


class WithGradients:
    """The same, as a loss that runs backward itself."""

    def __init__(self, parameters):
        self.of = Differentiable(parameters)

    def loss_and_grads(self, *args):
        loss = self.of.differentiable_loss(*args)
        loss.backward()
        return loss.item()


@pytest.mark.parametrize("make", [Differentiable, WithGradients])
def test_steps_go_down_the_gradient_of_the_mean_however_many_rows_there_are(make):
    vae, x = three(), three_rows(30)  # two batches, of 20 and of 10
    before = [p.detach().clone() for p in vae.parameters()]
    how = {"epochs": 1, "batch_size": 20, "lr": 0.1, "schedule": mm.constant, "optimizer": torch.optim.SGD}
    history = mm.fit(vae, x, loss=make(list(vae.parameters())), progress=False, **how)
    for old, new in zip(before, vae.parameters()):
        torch.testing.assert_close(new.detach(), 0.81 * old)
    start = sum(p.square().sum().item() for p in before) / 2
    assert history.loss == pytest.approx([start * (2 + 0.81) / 3])


def test_clipping_bounds_the_step():
    vae, x = three(), three_rows(20)
    before = [p.detach().clone() for p in vae.parameters()]
    make = lambda parameters, lr: torch.optim.SGD(parameters, lr=lr)  # noqa: E731
    mm.fit(vae, x, epochs=1, batch_size=20, lr=1.0, clip=0.01, optimizer=make, progress=False)
    moved = torch.cat([(a - b).detach().flatten() for a, b in zip(before, vae.parameters())]).norm().item()
    assert moved == pytest.approx(0.01, rel=1e-6)


def test_the_schedule_is_a_cosine_unless_told_otherwise():
    vae, x = three(), three_rows(40)
    history = mm.fit(
        vae,
        x,
        epochs=8,
        batch_size=10,
        lr=1.0,
        optimizer=lambda p, lr: torch.optim.SGD([p[0]], lr=lr),
        clip=1e-9,
        progress=False,
    )
    expected = [0.5 * (1 + math.cos(math.pi * (epoch + 0.75) / 8)) for epoch in range(8)]
    assert history.lr == pytest.approx(expected)
    history = mm.fit(vae, x, epochs=2, lr=0.5, schedule=mm.constant, clip=1e-9, progress=False)
    assert history.lr == [0.5, 0.5]


def test_a_loss_that_is_not_finite_stops_with_the_modality_and_keeps_the_last_good_weights():
    x = three_rows(40)
    vae = three()
    vae.modalities["counts"].decoder.net = Explodes(vae.modalities["counts"].decoder.net, after=11)
    with pytest.raises(FloatingPointError, match=r"epoch 2, step 3, from modality 'counts'"):
        mm.fit(vae, x, epochs=9, batch_size=10, lr=1e-2, progress=False)
    assert all(p.isfinite().all() for p in vae.parameters())
    assert not vae.training


def test_a_list_of_arrays_and_masks_is_no_list_of_two_batches():
    vae, x = LinearGaussian().vae(), LinearGaussian().simulate(20)
    mask = {name: torch.ones(20, dtype=torch.bool) for name in x}
    with pytest.raises(
        ValueError, match=r"a list of arrays and masks, which would be two batches; give them as \(x, m"
    ):
        mm.fit(vae, [x, mask], epochs=1, progress=False)
    assert len(mm.fit(vae, [(x, mask), x, x], epochs=1, progress=False).loss) == 1


def test_bad_input_changes_nothing():
    vae = three()
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    with pytest.raises(ValueError, match="'body'"):
        mm.fit(vae, {"body": torch.zeros(4, 7)}, progress=False)
    with pytest.raises(ValueError, match="nothing to train"):
        mm.fit(vae.requires_grad_(False), three_rows(4), progress=False)
    assert all(torch.equal(before[k], v) for k, v in vae.state_dict().items())


def test_losses_without_a_differentiable_form_train_too():
    vae, x = three(fusion="MoE"), three_rows(60)
    loss = RenyiELBO(alpha=0.0, num_particles=4, vectorize_particles=True)
    history = mm.fit(vae, x, epochs=40, lr=1e-2, loss=loss, progress=False)
    assert history.loss[-1] < history.loss[0] - 0.5
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("recipe", [mm.recipes.telbo, mm.recipes.jnf])
def test_a_phase_that_trains_nothing_is_warned_of(recipe):
    """The second one freezes all that the first trains, and it may have been made too early."""
    x = rows_of_tables()[0]
    vae, first, second = recipe(of_tables(), DIM, joint_net(), SIZES)
    second()
    with pytest.warns(UserWarning, match=r"nothing is trained: .* vae.requires_grad_\(True\) unfreezes all"):
        mm.fit(vae, x, loss=first, epochs=2, progress=False)
    vae.requires_grad_(True)
    before = vae.fusion.net[-1].linear.weight.detach().clone()
    mm.fit(vae, x, loss=first, epochs=2, progress=False)
    assert not torch.equal(before, vae.fusion.net[-1].linear.weight)
    mm.fit(vae, x, loss=second(), epochs=2, progress=False)


def test_validation_data_of_which_no_row_counts_are_refused_and_such_data_are_warned_of():
    """Of incomplete rows there is no joint posterior to match: the first epoch would be the best one."""
    x = rows_of_tables()[0]
    vae, _, second = mm.recipes.jnf(of_tables(), DIM, joint_net(), SIZES)
    loss, before = second(), {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(ValueError, match=r"validation: no row of it counts in this loss, which is 0; give .* complete"):
        mm.fit(vae, x, loss=loss, validation={"a": x["a"], "b": x["b"]}, epochs=2, progress=False)
    with pytest.warns(UserWarning, match="x: no row of it counts in this loss, which is 0; give .* complete ones"):
        mm.fit(vae, {"a": x["a"], "b": x["b"]}, loss=loss, epochs=1, progress=False)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    history = mm.fit(vae, x, loss=loss, validation=rows_of_tables(60), epochs=2, progress=False)
    assert 0 not in history.validation


def test_a_batch_in_which_nothing_was_seen_teaches_nothing():
    vae, x = three(), three_rows(4)
    nothing = {name: torch.zeros(4, dtype=torch.bool) for name in x}
    before = [p.detach().clone() for p in vae.parameters()]
    with pytest.warns(UserWarning, match="x: no row of it counts in this loss, which is 0"):
        assert mm.fit(vae, x, nothing, epochs=1, progress=False).loss == [0.0]
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters()))


def test_an_own_model_and_an_own_guide_train():
    """A model function with a global parameter, on our guide; then our model with a guide of plain pyro.param."""
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(200)

    def model(x, mask):
        shift = pyro.param("shift", torch.zeros(4))
        with pyro.plate("data", len(x["a"]), dim=-2):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("a_plate", 1, dim=-1):
                loc = z @ truth.loading["a"].T + shift
                pyro.sample("a", pyro.distributions.Normal(loc, truth.noise["a"]).to_event(1), obs=x["a"].unsqueeze(1))

    x = {"a": x["a"]}
    mm.fit(mm.Pair(model, vae.guide), x, epochs=150, lr=5e-2, progress=False)
    assert (pyro.param("shift") - x["a"].mean(0)).abs().max() < 0.1

    def guide(x, mask):
        loc = pyro.param("loc", torch.zeros(200, 1, 2))
        scale = pyro.param("scale", torch.ones(2), constraint=torch.distributions.constraints.positive)
        with pyro.plate("data", 200, dim=-2):
            pyro.sample("z", pyro.distributions.Normal(loc, scale).to_event(1))

    vae.requires_grad_(False)
    many = Trace_ELBO(num_particles=16, vectorize_particles=True)
    mm.fit(mm.Pair(vae.model, guide), [(x, None)], epochs=400, lr=5e-2, loss=many, progress=False)
    mean, covariance = truth.posterior(x)
    assert (pyro.param("loc").detach().squeeze(1) - mean).abs().max() < 0.1
    sd = covariance[0].diagonal().sqrt()
    torch.testing.assert_close(pyro.param("scale").detach(), sd, rtol=0.05, atol=0)
    assert -Trace_ELBO().loss(vae.model, guide, x, None) == pytest.approx(truth.log_prob(x).sum().item(), abs=3.0)


def kl_weighted(order, source, compile=None, far=4.0):
    """The loss at the start without and with the KL, of rows in that order, the first two of which lack a modality."""
    pyro.set_rng_seed(0)
    parts = {
        name: mm.Modality(mm.NormalLikelihood(mm.mlp(4, 3)), mm.encoder(3, 4, dim=2), private=mm.encoder(3, 4, dim=2))
        for name in ("a", "b")
    }
    priors = {name: mm.LearnedNormal(2) for name in parts}
    for prior in priors.values():
        torch.nn.init.constant_(next(prior.parameters()), far)
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE(), private_prior=priors)
    x = {name: torch.randn(400, 3) for name in parts}
    mask = {"a": torch.ones(400).bool(), "b": torch.arange(400) >= 2}
    x, mask = ({name: value[order] for name, value in part.items()} for part in (x, mask))
    if source == "loader":
        data = (
            [({k: v[i : i + 2] for k, v in x.items()}, {k: v[i : i + 2] for k, v in mask.items()}) for i in (0, 398)],
        )
    else:
        data = (mm.MultimodalDataset(x, mask),) if source == "disk" else (x, mask)
    options = {"epochs": 1, "lr": 0.0, "batch_size": 400, "progress": False, "compile": compile}
    return [mm.fit(vae, *data, beta=lambda progress, beta=beta: beta, **options).loss[0] for beta in (0.0, 1.0)]


@pytest.mark.parametrize("source, compile", [("memory", None), ("disk", None), ("memory", "eager")])
def test_the_weight_of_the_kl_reaches_codes_that_the_first_rows_do_not_have(source, compile):
    first, last = (kl_weighted(order, source, compile) for order in (torch.arange(400), torch.arange(400).flip(0)))
    assert first == pytest.approx(last, rel=0.05) and first[1] - first[0] > 10
    further = kl_weighted(torch.arange(400), source, compile, far=8.0)
    assert further[0] == first[0] and further[1] > first[1] + 10  # without the KL no prior has a say


def test_the_weight_of_the_kl_reaches_codes_that_the_first_batch_of_a_loader_does_not_have():
    """Half of the rows have b: without the KL the loss is the same in both orders, but for noise."""
    first, last = (kl_weighted(order, "loader") for order in (torch.arange(400), torch.arange(400).flip(0)))
    assert first[0] == pytest.approx(last[0], abs=4) and first[1] - first[0] > 10


def test_a_history_prints_as_a_line_and_says_which_epoch_was_kept():
    history = mm.History(loss=[3.0, 2.0, 1.0], validation=[4.0, 2.5, 2.75], seconds=[0.5, 1.0, 1.54], best_epoch=1)
    line = "3 epochs in 1.5 s: loss 1.00, held out 2.75 nats a row; kept epoch 1 (from 0), held out 2.50"
    assert str(history) == line and str(mm.History()) == "no epoch"
    assert str(mm.History(loss=[3.0], seconds=[0.25])) == "1 epoch in 0.2 s: loss 3.00 nats a row"


def test_a_history_tells_what_the_later_half_of_the_learning_gained():
    """A loss that falls with the sum of the learning rates looks flat at the end, and was not."""
    lr = [mm.cosine((epoch + 1) / 100) for epoch in range(100)]
    loss = [20 - 4 * sum(lr[: epoch + 1]) / sum(lr) for epoch in range(100)]
    seconds = [1.0] * 100
    history = mm.History(loss, lr=lr, seconds=seconds)
    assert loss[-10] - loss[-1] < 0.01 and history.gained == pytest.approx(2, abs=4 / sum(lr))  # to an epoch
    assert repr(history).endswith(
        "\nit fell by 1.97 in the second half of all learning: twice the epochs may gain as much"
    )
    found_early = mm.History(loss, [9.0] * 50 + [8.0] * 50, lr, seconds, best_epoch=10)
    assert abs(found_early.gained) < 1e-9 and "fell" not in repr(found_early)  # held out, up to what was kept
    assert math.isnan(mm.History(loss[:9], lr=lr[:9], seconds=seconds).gained)
    assert math.isnan(mm.History(loss, seconds=seconds).gained)


def test_a_learnt_scale_comes_to_the_spread_of_the_data_in_time():
    """From 1 to a twentieth, while no other weight can go further than 0.5."""
    net = nn.Linear(1, 20)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    part = mm.Modality(mm.NormalLikelihood(net), mm.encoder(20, 8, dim=1))
    vae = mm.MultimodalVAE({"a": part}, mm.StandardNormal(1), mm.PoE())
    mm.fit(vae, {"a": 0.05 * torch.randn(500, 20)}, epochs=20, batch_size=50, lr=5e-3, progress=False)
    assert part.decoder(torch.zeros(1)).stddev[0].item() == pytest.approx(0.05, rel=0.1)
