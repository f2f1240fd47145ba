"""Pairs of programs: what tools ask of them, and guides and losses of Pyro's that go over no batches."""

import functools
import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import three, three_rows
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal

import pyro_mmvae as mm

torch.manual_seed(0)
X, PLANE = three_rows(12), torch.randn(12, 2, dtype=torch.float64)


def cells(vae):
    names = list("abcdefghijkl")
    body = SimpleNamespace(obs_names=names, X=X["body"].numpy(), layers={}, obsm={})
    whole = SimpleNamespace(obs_names=names, mod={"body": body}, obsm={})
    mm.to_mudata(vae, whole)
    return torch.as_tensor(whole.obsm["X_mmvae"])


ASKS = {
    "usage": lambda vae: mm.usage(vae, X).spread,
    "plot_latent": lambda vae: torch.as_tensor(mm.plot_latent(vae, X, ax=Figure().subplots()).lines[0].get_xydata()),
    "latent_similarity": lambda vae: mm.latent_similarity(vae, X, query=["body"], target=["counts"]),
    "to_mudata": cells,
}


def program(x, mask=None):
    with pyro.plate("data", 12, dim=-2):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_a_pair(ask):
    vae = three().eval()
    found = []
    for asked in (vae, mm.Pair(vae.model, vae.guide)):
        torch.manual_seed(0)
        found.append(ask(asked))
    assert torch.equal(*found)
    with pytest.raises(ValueError, match=r"a Pair can only be drawn from, and this asks for q.*; give a MultimodalVAE"):
        ask(mm.Pair(program, program))


def test_slots_in_another_form():
    with pytest.raises(ValueError, match="slots is 'X'; give a dictionary"):
        mm.from_mudata(SimpleNamespace(obs_names=["a"], X=[[1.0]], layers={}, obsm={}), "X")


def test_an_autoguide_of_rows_is_refused_and_left_as_it_was():
    vae = three()
    guide = AutoNormal(vae.model)
    with pytest.raises(ValueError, match="the guide is an AutoNormal, which keeps parameters of 'z' for the rows"):
        mm.fit(mm.Pair(vae.model, guide), X, progress=False)
    assert guide.prototype_trace is None
    SVI(vae.model, guide, mm.optim({"lr": 1e-2}), Trace_ELBO()).step(X)
    assert guide.locs.z.shape == (12, 1, 2)


@pytest.mark.parametrize("ask", [mm.log_likelihood, mm.impute, mm.importance], ids=lambda ask: ask.__name__)
def test_tools_refuse_an_autoguide_of_rows(ask):
    vae = three()
    guide = AutoNormal(vae.model)
    SVI(vae.model, guide, mm.optim({"lr": 1e-2}), Trace_ELBO()).step(X)
    with pytest.raises(ValueError, match="the guide is an AutoNormal, which keeps parameters of 'z' for the rows"):
        ask(mm.Pair(vae.model, guide), X)


def test_a_list_of_guides_with_one_that_looks_at_the_rows_is_taken():
    vae = three()

    def model(x, mask=None):
        pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        return vae.model(x, mask)

    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["tau"])))
    guide.append(lambda x, mask=None: {"z": vae.guide(x, mask)})
    history = mm.fit(mm.Pair(model, guide), X, epochs=30, batch_size=5, lr=1e-2, progress=False)
    assert history.loss[-1] < history.loss[0]
    assert mm.log_likelihood(mm.Pair(model, guide), X, num_particles=20).value.shape == (12,)


def test_a_model_of_the_users_that_has_a_posterior_is_asked_for_it():
    vae = three().eval()
    own = SimpleNamespace(model=vae.model, guide=vae.guide, posterior=lambda x, mask=None: dist.Normal(PLANE, 1.0))
    drawn = mm.plot_latent(own, X, ax=Figure().subplots()).lines[0].get_xydata()
    assert torch.allclose(torch.as_tensor(drawn), PLANE - PLANE.mean(0))


@pytest.mark.parametrize("features", [False, True], ids=["alone", "in a plate of features"])
def test_an_autoguide_of_what_all_rows_share_goes_over_batches(features):
    def shared():
        if not features:
            return pyro.sample("loc", dist.Normal(torch.zeros(3), 10.0).to_event(1))
        with pyro.plate("features", 3, dim=-1):
            return pyro.sample("loc", dist.Normal(0.0, 10.0))

    def model(x, mask=None):
        loc = shared()
        with pyro.plate("data", len(x["body"]), dim=-2), pyro.plate("body_plate", 1, dim=-1):
            pyro.sample("body", dist.Normal(loc, 1.0).to_event(1), obs=x["body"].unsqueeze(1))

    torch.manual_seed(0)
    x = {"body": torch.randn(400, 3) + torch.tensor([1.0, -2.0, 5.0])}
    guide = AutoNormal(model)
    history = mm.fit(mm.Pair(model, guide), x, epochs=100, batch_size=100, lr=0.1, progress=False)
    assert history.loss[-1] < history.loss[0]
    assert torch.allclose(guide.median()["loc"], x["body"].mean(0), atol=0.05)


@pytest.mark.parametrize("fixed", [False, True], ids=["any rows", "a hundred rows"])
def test_codes_of_another_plate_count_in_every_batch_and_those_of_all_rows_once_an_epoch(fixed):
    """KLs of 1/2 for each entry of a plate as long as the rows, and of 2 for all of 400 in four batches."""

    def program(pixel, all_rows):
        def called(x, mask=None):
            if fixed and len(x["a"]) != 100:
                raise RuntimeError("made for a hundred rows")
            pyro.sample("g", dist.Normal(all_rows(), 1.0))
            with pyro.plate("pixels", len(x["a"]), dim=-1):
                pyro.sample("s", dist.Normal(pixel, 1.0))
            if pixel == 0:
                with pyro.plate("data", len(x["a"]), dim=-1):
                    pyro.sample("a", dist.Normal(0.0, 1.0), obs=x["a"])

        return called

    pair = mm.Pair(program(0.0, lambda: 0.0), program(1.0, lambda: pyro.param("loc", torch.tensor(2.0))))
    loss, x = TraceMeanField_ELBO(), {"a": torch.zeros(400, dtype=torch.float64)}
    data = [{"a": part} for part in x["a"].split(100)] if fixed else x
    history = mm.fit(pair, data, loss=loss, epochs=1, batch_size=100, lr=0.0, progress=False)
    assert history.loss[0] == pytest.approx(0.5 * math.log(2 * math.pi) + 0.5 + 2 / 400)


def dropping():
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
    parts = {"body": mm.Modality(mm.NormalLikelihood(net), mm.encoder(3, 8, dim=2))}
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE()).double()


def beside(vae):
    def called(x=None, mask=None):
        return vae.model(x, mask)

    return mm.Pair(lambda x=None, mask=None: called(x, mask), lambda x=None, mask=None: vae.guide(x, mask))


class Plain:
    """Networks that an object holds which is no module."""

    def __init__(self, vae):
        self.vae = vae

    def model(self, x=None, mask=None):
        return self.vae.model(x, mask)

    def guide(self, x=None, mask=None):
        return self.vae.guide(x, mask)


def of_parts(vae):
    nets = {"vae": vae}
    return mm.Pair(lambda x=None, mask=None: [nets["vae"].model(x, mask) for _ in "1"], vae.guide)


HOLDS = {
    "functions": beside,
    "methods of a plain object": lambda vae: Plain(vae),
    "under handlers": lambda vae: mm.Pair(poutine.scale(vae.model, scale=1.0), poutine.scale(vae.guide, scale=1.0)),
    "partial": lambda vae: mm.Pair(functools.partial(vae.model), functools.partial(vae.guide)),
    "a dictionary": of_parts,
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS)
def test_networks_drop_out_in_training_alone_whatever_holds_them(hold):
    vae, modes = dropping(), []
    pair, x = hold(vae), {"body": X["body"]}
    values = []
    for asked in (pair, vae):
        vae.train()
        pyro.set_rng_seed(0)
        values.append(mm.log_likelihood(asked, x, num_particles=10).value)
        assert vae.training
    assert torch.equal(*values)
    vae.modalities["body"].decoder.net[1].register_forward_hook(lambda module, *_: modes.append(module.training))
    vae.eval()
    mm.fit(pair, x, epochs=1, progress=False)
    assert modes[-1] and not vae.training


SHARED = torch.tensor([1.0, 3.0, 0.5]).repeat(20) + torch.randn(60)
FORMS = {
    "one batch": ({"a": SHARED}, 60),
    "batches": ({"a": SHARED}, 15),
    "a loader": ([({"a": part}, None) for part in SHARED.split(20)], 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_all_rows_share_counts_once_in_however_many_batches(form):
    """mu ~ N(0, 1), z ~ N(mu, 1), a ~ N(z, 1): the posterior of mu is known, and that of z given mu."""

    def model(x, mask=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Normal(mu, 1.0).expand(mu.shape or (1,)))
            pyro.sample("a", dist.Normal(z, 1.0), obs=x["a"])

    def guide(x, mask=None):
        scale = pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", dist.Normal((x["a"] + mu) / 2, 0.5**0.5))

    x, size = FORMS[form]
    loss = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    epochs = 120 if form == "one batch" else 40
    history = mm.fit(
        mm.Pair(model, guide), x, loss=loss, epochs=epochs, batch_size=size, lr=0.05, validation={"a": SHARED},
        progress=False,
    )  # fmt: skip
    variance = 1 / (1 + 60 / 2)
    assert pyro.param("loc").item() == pytest.approx(variance * SHARED.sum().item() / 2, abs=0.06)
    assert pyro.param("scale").item() == pytest.approx(variance**0.5, rel=0.1)
    covariance = torch.ones(60, 60) + 2 * torch.eye(60)
    evidence = dist.MultivariateNormal(torch.zeros(60), covariance).log_prob(SHARED).item() / 60
    for loss in (history.loss[-1], history.validation[-1]):
        assert loss == pytest.approx(-evidence, abs=0.02)


@pytest.mark.parametrize("size", [60, 15])
def test_a_factor_of_all_rows_counts_once_and_one_of_a_batch_for_its_rows(size):
    def model(x, mask=None):
        pyro.factor("decay", -60.0 * pyro.param("loc", torch.tensor(0.5)) ** 2)
        pyro.factor("of the batch", -x["a"].square().sum())
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("a", dist.Normal(0.0, 1.0), obs=x["a"])

    pair = mm.Pair(model, lambda x, mask=None: None)
    history = mm.fit(pair, {"a": SHARED}, epochs=1, batch_size=size, lr=0.0, progress=False)
    exact = 0.25 - (dist.Normal(0.0, 1.0).log_prob(SHARED) - SHARED**2).mean().item()
    assert history.loss[0] == pytest.approx(exact, rel=1e-5)


def test_what_all_rows_share_needs_their_number():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield X, None

    def model(x, mask=None):
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        program(x)

    def guide(x, mask=None):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        program(x)

    with pytest.raises(ValueError, match=r"all rows share the sites mu, and an iterable .* without a length"):
        mm.fit(mm.Pair(model, guide), Stream(), epochs=1, progress=False)


def test_a_code_that_is_summed_out_has_its_validation_loss():
    """c is one of two clusters with equal odds, a ~ N(+-loc, 1): the loss is exact, and of held-out rows as well."""

    def model(x, mask=None):
        loc = pyro.param("loc", torch.tensor(1.0))
        with pyro.plate("data", len(x["a"]), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("a", dist.Normal(loc * (2 * c - 1), 1.0), obs=x["a"])

    x = {"a": torch.randn(40) + 3 * (torch.arange(40) % 2 * 2 - 1)}
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    history = mm.fit(
        mm.Pair(model, lambda x, mask=None: None), x, loss=loss, epochs=20, lr=0.1, validation=x, progress=False
    )
    loc = pyro.param("loc").item()
    clusters = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-loc, loc]), 1.0))
    assert min(history.validation) == pytest.approx(-clusters.log_prob(x["a"]).mean().item(), rel=1e-5)


def test_a_loss_that_traces_tensors_is_refused():
    with pytest.raises(ValueError, match=r"loss is a JitTrace_ELBO, .*; give Trace_ELBO\(\), and compile='eager'"):
        mm.fit(three(), X, loss=JitTrace_ELBO(), progress=False)
    with pytest.raises(
        ValueError, match=r"loss is a ReweightedWakeSleep, two losses .*; give mm.Objective\(bound=.*Sleep"
    ):
        mm.fit(three(), X, loss=ReweightedWakeSleep(num_particles=2), progress=False)


def of_code(name):
    """x ~ N(code, 1), code ~ N(0, 1), with its exact posterior for a guide; the code may have any name."""

    def model(x=None, mask=None):
        rows = 1 if x is None else len(x["body"])
        with pyro.plate("data", rows, dim=-1):
            code = pyro.sample(name, dist.Normal(torch.zeros(rows), 1.0))
            pyro.sample("body", dist.Normal(code, 1.0), obs=None if x is None else x["body"])

    def guide(x, mask=None):
        with pyro.plate("data", len(x["body"]), dim=-1):
            pyro.sample(name, dist.Normal(x["body"] / 2, 0.5**0.5))

    return mm.Pair(model, guide)


@pytest.mark.parametrize("name", ["z", "topic"])
def test_a_code_of_another_name_is_none_of_the_data(name):
    pair = of_code(name)
    assert mm.generate(pair, 5).keys() == {"body"}
    ranks = mm.sbc(pair, ["body"], rows=200).position
    assert f"{name}[0]" in ranks and all(float(mm.rank_ecdf(u).p) > 1e-3 for u in ranks.values())
    found = mm.sandwich(pair, given=["body"], rows=5, chains=4, temperatures=5)
    exact = dist.Normal(0.0, 2.0**0.5).log_prob(found.x["body"])
    assert torch.allclose(found.lower, exact, atol=1.0) and torch.allclose(found.upper, exact, atol=1.0)


def test_what_a_model_draws_is_not_moved_by_the_look_at_its_data():
    after = []
    for name in ("z", "topic"):
        torch.manual_seed(0)
        after.append((mm.generate(of_code(name), 5)["body"], torch.rand(())))
    assert torch.equal(after[0][0], after[1][0]) and after[0][1] == after[1][1]


def test_a_model_that_cannot_be_run_on_what_it_drew_calls_its_codes_z():
    def model(x=None, mask=None):
        with pyro.plate("data", 1 if x is None else x["body"].shape[2], dim=-1):  # in a layout of its own
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("body", dist.Normal(z, 1.0), obs=None if x is None else x["body"])

    assert mm.generate(mm.Pair(model, program), 5)["body"].shape == (5,)


def test_a_plate_by_another_name_is_named():
    def program(x=None, mask=None):
        with pyro.plate("rows", 3, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"neither .* has a plate named 'data'"):
        mm.log_likelihood(mm.Pair(program, program), {"a": torch.zeros(3, 1)})


def test_a_code_that_all_rows_share_is_refused_by_certificates():
    def model(x=None, mask=None):
        batch = mm.Batch.of(x, mask)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", batch.rows, dim=-1):
            z = pyro.sample("z", dist.Normal(mu.unsqueeze(-1), 1.0).to_event(1))
            pyro.sample("a", dist.Normal(z, 1.0).to_event(1), obs=None if x is None else batch["a"])

    def guide(x=None, mask=None):
        batch = mm.Batch.of(x, mask)
        pyro.sample("mu", dist.Normal(0.0, 0.1))
        with pyro.plate("data", batch.rows, dim=-1):
            pyro.sample("z", dist.Normal(batch["a"] / 2, 0.7).to_event(1))

    with pytest.raises(ValueError, match="site 'mu' stands outside the plate 'data'"):
        mm.certify(mm.Pair(model, guide), {"a": torch.randn(30, 1)}, rows=50, gap_rows=0, progress=False)


def test_a_pair_with_a_model_of_ours_fills_in_all_of_its_modalities():
    vae, x = three(), three_rows(6)
    pair, few = mm.Pair(vae.model, vae.guide), {"body": x["body"]}
    assert set(mm.impute(pair, few)) == set(x)
    assert mm.translate(pair, few, to="label").shape == (1, 6)


def hiding(likelihood):
    """Programs that hide rows by the likelihood's own `mask`."""

    def model(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(z, 1.0), obs=x["a"])
            pyro.sample("b", likelihood(z).mask(mask["b"]), obs=x["b"])

    def guide(x, mask):
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", dist.Delta(torch.full((len(x["a"]),), 2.0)))

    return mm.Pair(model, guide)


def test_categories_that_a_program_hides_itself_have_probabilities():
    """z = 2 in every row, so b is yes with sigmoid(2); its mean would be NaN, as categories have none."""
    pair = hiding(lambda z: dist.Categorical(logits=torch.stack([0 * z, z], -1)))
    x, mask = {"a": torch.zeros(5), "b": torch.zeros(5)}, {"b": torch.arange(5) < 2}
    torch.testing.assert_close(mm.predict(pair, x, mask)["b"][:, 1], torch.tensor(2.0).sigmoid().expand(5))
    pair = hiding(lambda z: dist.Bernoulli(logits=z))
    torch.testing.assert_close(mm.predict(pair, x, mask)["b"], torch.tensor(2.0).sigmoid().expand(5))


def test_a_program_is_not_asked_for_what_it_cannot_know_of():
    pair = hiding(lambda z: dist.Normal(z, 1e-6))
    with pytest.raises(
        ValueError, match=r"x lacks 'b', and programs of the user's do not say .*; write obs=x.get\('b'\), or give"
    ):
        mm.translate(pair, {"a": torch.zeros(5)}, to="b")
    found = mm.translate(pair, {"a": torch.zeros(5), "b": torch.zeros(5)}, to="b", num_draws=3)
    torch.testing.assert_close(found, torch.full((3, 5), 2.0), rtol=0, atol=1e-4)


def test_networks_that_pyro_was_not_told_of_are_asked_for():
    net = torch.nn.Linear(1, 1)

    def model(x, mask=None):
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("a", dist.Normal(net(z).squeeze(-1), 1.0), obs=x["a"])

    def guide(x, mask=None):
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", dist.Normal(x["a"].unsqueeze(-1), 1.0).to_event(1))

    x = {"a": torch.randn(8)}
    with pytest.raises(ValueError, match=r"nothing to train: .* to Pyro by pyro\.module"):
        mm.fit(mm.Pair(model, guide), x, epochs=1, progress=False)

    def told(x, mask=None):
        pyro.module("net", net)
        model(x)

    before = net.weight.item()
    mm.fit(mm.Pair(told, guide), x, epochs=1, progress=False)
    assert net.weight.item() != before


def test_programs_that_take_one_draw_at_a_time_and_batches_of_one_size_train_to_the_end():
    enc, dec = torch.nn.Linear(3, 4), torch.nn.Linear(2, 3)

    def model(x, mask):
        pyro.module("dec", dec)
        with pyro.plate("data", 50, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(50, 2), 1.0).to_event(1))
            pyro.sample("a", dist.Normal(dec(z.reshape(50, 2)), 1.0).to_event(1), obs=x["a"])

    def guide(x, mask):
        pyro.module("enc", enc)
        h = enc(x["a"].reshape(50, 3))
        with pyro.plate("data", 50, dim=-1):
            pyro.sample("z", dist.Normal(h[:, :2], h[:, 2:].exp()).to_event(1))

    batches = [({"a": torch.randn(50, 1) + 0.1 * torch.randn(50, 3)}, None) for _ in range(10)]
    history = mm.fit(mm.Pair(model, guide), batches, epochs=20, lr=1e-2, progress=False)
    assert history.loss[-1] < history.loss[0] - 0.5


@pytest.mark.parametrize("layout", ["an event", "a plate of features", "of whole rows"])
def test_a_modality_that_hangs_on_another_is_drawn_given_the_data_of_that(layout):
    """z ~ N(0, 1), a ~ N(0, 3), b ~ N(2 a + z, 0.1), and a guide that knows nothing of a."""

    def sites(batch, x):
        z = pyro.sample("z", dist.Normal(torch.zeros(batch.rows, 1), 1.0))
        if layout == "a plate of features":
            with pyro.plate("features", 2, dim=-1):
                a = pyro.sample("a", dist.Normal(0.0, 3.0), obs=x and batch["a"])
                return pyro.sample("b", dist.Normal(2 * a + z, 0.1), obs=x and batch["b"])
        if layout == "an event":
            a = dist.Normal(torch.zeros(batch.rows, 1, 2), 3.0).to_event(1)
            a = pyro.sample("a", a, obs=x and batch["a"].unsqueeze(1))
        else:  # of the sum alone
            a = pyro.sample("a", dist.Normal(0.0, 3.0).expand([batch.rows, 1]), obs=x and batch["a"].sum(-1, True))
            a = a.unsqueeze(-1).expand(*a.shape, 2)
        pyro.sample("b", dist.Normal(2 * a + z.unsqueeze(-1), 0.1).to_event(1), obs=x and batch["b"].unsqueeze(1))

    def model(x=None, mask=None):
        batch = mm.Batch.of(x, mask)
        with pyro.plate("data", batch.rows, dim=-2):
            sites(batch, x)

    def guide(x=None, mask=None):
        batch = mm.Batch.of(x, mask)
        with pyro.plate("data", batch.rows, dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(batch.rows, 1), 1.0))

    torch.manual_seed(0)
    x = {"a": 3 * torch.randn(20, 2), "b": torch.zeros(20, 2)}
    seen = torch.ones(20, 2, dtype=torch.bool)
    seen[:5], seen[5:10, 0] = False, False
    mask = {"a": seen, "b": torch.zeros(20, dtype=torch.bool)}
    known = x["a"].sum(-1, keepdim=True).expand(20, 2) if layout == "of whole rows" else x["a"]
    seen = seen.all(-1, keepdim=True).expand(20, 2) if layout == "of whole rows" else seen
    for drawn in (mm.impute(mm.Pair(model, guide), x, mask, num_draws=4000)["b"],
                  mm.translate(mm.Pair(model, guide), x, {"a": mask["a"]}, to="b", num_draws=4000)):  # fmt: skip
        assert torch.allclose(drawn.mean(0), torch.where(seen, 2 * known, 0), atol=0.5)
        assert torch.allclose(drawn.std(0), torch.where(seen, 1.01**0.5, 37.01**0.5), rtol=0.06)
    means = mm.predict(mm.Pair(model, guide), x, mask, num_draws=4000)
    assert torch.allclose(means["b"][10:], 2 * known[10:], atol=0.08) and not means["a"].any()


def test_codes_that_hang_together_over_rows_are_refused():
    """A Gaussian process over the rows: one batch of them has a bound, parts of them and single rows have none."""

    def model(x=None, mask=None):
        rows = mm.Batch.of(x, mask).rows
        z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(rows), 0.5 * torch.ones(rows, rows) + torch.eye(rows)))
        with pyro.plate("data", rows, dim=-1):
            pyro.sample("a", dist.Normal(z, 1.0), obs=x and x["a"])

    def guide(x=None, mask=None):
        shift = pyro.param("shift", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(x["a"] / 2 + shift, 0.7).to_event(1))

    pair, x = mm.Pair(model, guide), {"a": torch.randn(12) + 2}
    mm.fit(pair, x, epochs=2, batch_size=12, progress=False)
    assert pyro.param("shift").item() != 0
    with pytest.raises(ValueError, match="the site 'z' has all rows in one value, outside of the plate 'data'"):
        mm.fit(pair, x, epochs=1, batch_size=6, progress=False)
    for ask in (mm.log_likelihood, mm.impute, mm.importance):
        with pytest.raises(ValueError, match="the site 'z' has all rows in one value, outside of the plate 'data'"):
            ask(pair, x)
    with pytest.raises(ValueError, match=r"the site 'a' has values .*, more axes than its plates"):
        mm.generate(pair, 5)
