"""Every recipe answers every question, of any data: rows of which nothing is known, a modality that nobody has, NaN."""

import pickle
from contextlib import nullcontext
from copy import deepcopy

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import DIM, NAMES, RECIPES, SIZES, From, of_tables
from exact import LinearGaussian
from matplotlib.figure import Figure
from pyro.infer import SVI

import pyro_mmvae as mm

ROWS = 12
A, B, C = NAMES


def rows_of_which_some_are_empty():
    x = {name: torch.randn(ROWS, size) for name, size in SIZES.items()}
    mask = {name: torch.rand(ROWS) > 0.4 for name in x}
    for value in mask.values():
        value[:2] = False
        value[2] = True
    return x, mask


def entries_that_are_nan(names=NAMES):
    x = {name: torch.randn(ROWS, SIZES[name]) for name in names}
    for value in x.values():
        value[torch.rand(value.shape) < 0.3] = torch.nan
        value[0] = torch.nan
    return x, None


def one_modality_that_nobody_has():
    """And NaN among the entries of the others."""
    return entries_that_are_nan((A, C))


def rows_with_all_kinds_of_holes():
    """Rows without anything, rows without some of the modalities, and single entries that are hidden of one."""
    x, mask = rows_of_which_some_are_empty()
    mask[B] = mask[B].unsqueeze(1) & (torch.rand(x[B].shape) > 0.3)
    return x, mask


DATA = [rows_with_all_kinds_of_holes, one_modality_that_nobody_has]


def few(part):
    """The first rows alone, as each takes a column of a picture: two without anything, and a whole one."""
    return part and {name: value[:3] for name, value in part.items()}


def having(x, *names):
    """The rows that have something of each name."""
    whole = torch.stack([~x[name].isnan().all(1) for name in names]).all(0)
    return {name: value[whole] for name, value in x.items()}


def axes():
    return Figure().subplots()


# name -> what may be asked: it gives numbers
QUESTIONS = {
    "fit": lambda vae, loss, x, mask: mm.fit(vae, x, mask, loss=loss, epochs=1, batch_size=5, progress=False).loss,
    "stock SVI": lambda vae, loss, x, mask: SVI(vae.model, vae.guide, mm.optim({"lr": 1e-3}), loss).step(x, mask),
    "impute": lambda vae, loss, x, mask: mm.impute(vae, x, mask, num_draws=2),
    "predict": lambda vae, loss, x, mask: mm.predict(vae, x, mask, num_draws=2),
    "predict from known codes": lambda vae, loss, x, mask: mm.predict(
        vae, x, mask, latents=mm.importance(vae, x, mask, num_draws=9).latents
    ),
    "translate": lambda vae, loss, x, mask: mm.translate(vae, x, mask, to=A),
    "translate to b": lambda vae, loss, x, mask: mm.translate(vae, x, mask, to=B),
    "importance": lambda vae, loss, x, mask: mm.importance(vae, x, mask, num_draws=9).mean(),
    "posterior": lambda vae, loss, x, mask: vae.posterior(x, mask).sample(),
    "usage": lambda vae, loss, x, mask: mm.usage(vae, x, mask, num_draws=3).kl,
    "retrieval": lambda vae, loss, x, mask: mm.latent_similarity(vae, having(x, A, C), query=[A], target=[C]),
    "conditional": lambda vae, loss, x, mask: (
        mm.conditional_log_likelihood(vae, x, mask, given=[C], targets=[A], num_particles=9).value
    ),
    "leave one out": lambda vae, loss, x, mask: [row.bias for row in mm.leave_one_out(vae, x, mask).rows],
    "gaps": lambda vae, loss, x, mask: mm.gaps(vae, x, mask, num_draws=9, steps=2).elbo,
    "ArviZ": lambda vae, loss, x, mask: mm.to_arviz(vae, x, mask, num_draws=5)["sample_stats"]["log_weight"].values,
    "plots": lambda vae, loss, x, mask: [
        len(mm.plot_reconstructions(vae, few(x), few(mask), ax=axes()).figure.axes),
        len(mm.plot_cross_modal(vae, {k: torch.zeros(1, SIZES[k]) for k in x}, ax=axes()).figure.axes),
    ],
    "plot of codes": lambda vae, loss, x, mask: [len(mm.plot_latent(vae, x, mask, ax=axes()).lines)],
}
NO_CODE = "no shared code z"
REFUSALS = {  # (recipe, question) -> why it cannot be answered
    ("mmvm", "importance"): "no code 'z' was drawn; there is a.w",
    **{("mmvm", question): NO_CODE for question in ("posterior", "usage", "retrieval", "plot of codes")},
    ("cvae", "translate to b"): "modality 'b' is only looked at",
}
LOOKING = {"alignment", "mvtcae", "jmvae", "mmjsd", "crmvae", "mmvm", "mmvm of pairs"}
REFUSALS |= {("mmvm of pairs", question): why for (recipe, question), why in REFUSALS.items() if recipe == "mmvm"}


def numbers(answer):
    """All that it holds, in one tensor."""
    if isinstance(answer, torch.Tensor):
        return answer.double().flatten()
    values = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list) else [answer]
    return torch.cat([torch.as_tensor(value, dtype=torch.float64).flatten() for value in values])


@pytest.mark.filterwarnings("ignore:a prior of the model looks at the data")
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_question_is_answered_by_numbers_or_refused_in_a_line(recipe, question):
    for make in DATA:
        pyro.set_rng_seed(0)
        (vae, loss), (x, mask) = RECIPES[recipe](), make()
        if (recipe, question) in REFUSALS:
            with pytest.raises(ValueError, match=REFUSALS[recipe, question]) as caught:
                QUESTIONS[question](vae, loss, x, mask)
            assert "\n" not in str(caught.value)
        else:
            found = numbers(QUESTIONS[question](vae, loss, x, mask))
            assert len(found) and found.isfinite().all(), make.__name__


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_conditional_likelihood_under_a_prior_that_looks_at_the_data_is_said_to_be_none(recipe):
    (vae, _), (x, _) = RECIPES[recipe](), entries_that_are_nan()
    with pytest.warns(match="it explains, so that .* is no likelihood") if recipe in LOOKING else nullcontext():
        mm.conditional_log_likelihood(vae, x, given=[C], targets=[A], num_particles=9)


def test_probabilities_of_all_labels_sum_to_one_without_such_a_prior_and_not_with_it():
    truth = LinearGaussian({"a": 4})
    sides = From(lambda h: dist.Normal(2 * h - 1, 0.5).to_event(1))
    label = mm.Modality(mm.CategoricalLikelihood(From(lambda z: 2 * z)), sides, trunk=mm.OneHot(2))
    parts, sums, fusion = {**truth.vae().modalities, "label": label}, [], mm.PoE(prior_expert=False)
    for prior in (mm.StandardNormal(2), mm.Pooled(mm.StandardNormal(2), 0.4)):
        rows = {"a": truth.simulate(30)["a"].repeat(2, 1), "label": torch.arange(2).repeat_interleave(30)}
        with pytest.warns() if sums else nullcontext():
            found = mm.conditional_log_likelihood(
                mm.MultimodalVAE(parts, prior, fusion), rows, given=["a"], targets=["label"]
            )
        sums.append(found.value.exp().view(2, 30).sum(0))
    assert (sums[0] - 1).abs().max() < 0.1 and (sums[1] - 1).abs().mean() > 0.2


def state_of(vae):
    """All that a question could change besides the random generator."""
    parameters = list(vae.parameters())
    return [
        pickle.dumps(dict(vae.state_dict())),
        [(id(p), p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in parameters],
        [(id(module), module.training, list(vars(module))) for module in vae.modules()],
        list(pyro.get_param_store().keys()),
        (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()),
        [pyro.settings.get(f"validate_{what}") for what in ("poutine", "infer", "distributions_pyro")],
    ]


@pytest.mark.parametrize("question", [name for name in QUESTIONS if name not in ("fit", "stock SVI")])
@pytest.mark.parametrize("recipe", ["mmvaeplus", "nexus"])
def test_a_question_leaves_all_as_it_was_and_copies_answer_alike(recipe, question):
    """Also one that fails midway."""
    (vae, loss), (x, mask) = RECIPES[recipe](), rows_with_all_kinds_of_holes()
    first, *_, last = vae.train().parameters()
    vae.modalities[B].eval()
    first.requires_grad_(False)
    last.grad = torch.ones_like(last)
    before, found = state_of(vae), []
    for model in (vae, vae, pickle.loads(pickle.dumps(vae)), deepcopy(vae)):
        pyro.set_rng_seed(1)
        found.append(numbers(QUESTIONS[question](model, loss, x, mask)))
    assert state_of(vae) == before and all(torch.equal(one, found[0]) for one in found)
    for module in vae.modules():
        if isinstance(module, mm.NormalHead):
            module.register_forward_hook(lambda *_: 1 / 0)
    before = state_of(vae)
    with pytest.raises(ZeroDivisionError):
        QUESTIONS[question](vae, loss, x, mask)
    assert state_of(vae) == before


@pytest.mark.parametrize("recipe", RECIPES)
def test_of_rows_without_anything_the_log_likelihood_is_that_of_nothing(recipe):
    (vae, _), (x, mask) = RECIPES[recipe](), rows_of_which_some_are_empty()
    found = mm.log_likelihood(vae, x, mask, num_particles=20)
    assert found.value[:2].tolist() == [0, 0] and (found.value[2:] != 0).any()
    everything = mm.impute(vae, x, mask, num_draws=2)
    for name, value in everything.items():
        shown = mask[name].expand(2, ROWS)
        assert torch.equal(value[shown], x[name].expand(2, ROWS, -1)[shown])


def test_which_plates_there_are_is_asked_of_rows_that_have_something():
    """A model of private codes alone has no site at all in a row without anything."""
    (vae, _), (x, mask) = RECIPES["mmvm"](), rows_of_which_some_are_empty()
    alone = {name: value[2:] for name, value in x.items()}, {name: value[2:] for name, value in mask.items()}
    with pyro.poutine.trace() as trace:
        vae.guide({name: value[:2] for name, value in x.items()}, {name: value[:2] for name, value in mask.items()})
    assert not [name for name in trace.trace.stochastic_nodes if name.endswith(".w")]
    both, some = (mm.log_likelihood(vae, *rows, num_particles=4000).value for rows in ((x, mask), alone))
    assert both[2:].tolist() == pytest.approx(some.tolist(), abs=0.3)


def test_chunks_in_which_no_row_has_anything_keep_their_rows(monkeypatch):
    """Their private codes are NaN; the chunks are of one row here."""
    monkeypatch.setattr(mm.weights, "NUMBERS_AT_ONCE", 1)
    (vae, _), (x, mask) = RECIPES["mmvm"](), rows_of_which_some_are_empty()
    found = mm.importance(vae, x, mask, num_draws=5)
    for name in NAMES:
        assert found.latents[f"{name}.w"].shape[:2] == (5, ROWS)
        assert found.latents[f"{name}.w"].isfinite().all(-1).all(0).tolist() == mask[name].tolist()


def test_a_check_of_no_modality_prints_its_heading():
    (vae, _), (x, _) = RECIPES["mvae"](), rows_of_which_some_are_empty()
    found = mm.leave_one_out(vae, x, {name: torch.zeros(ROWS).bool() for name in x})
    assert found.rows == [] and str(found).startswith("left out")


def test_what_looks_at_the_data_is_never_the_best():
    """Its "likelihood" is larger for every encoder that says something; methods that have one are told from it."""
    x, _ = entries_that_are_nan()
    found = mm.compare({name: make()[0] for name, make in RECIPES.items()}, x, num_particles=9)
    starred = {row.name for row in found.rows if row.looks}
    assert starred == LOOKING
    assert [row.looks for row in found.rows] == [False] * 15 + [True] * 7 and found.rows[0].difference == 0
    assert [row.name for row in found.rows if row.fewer] == ["cvae"] == [found.rows[14].name]  # the likelihood of less
    assert all(row.difference <= 0 for row in found.rows[:14]) and found.rows[14].difference > 0
    lines = [line for line in str(found).splitlines() if "mvtcae" in line]
    assert lines[0].startswith("mvtcae *") and "this is no" in str(found) and "no\nlike" in str(found)
    assert "\ncvae +" in str(found) and "the likelihood of less" in str(found)


def test_what_would_win_by_looking_at_the_data_comes_last():
    truth = LinearGaussian()
    own = truth.vae()
    looking = mm.MultimodalVAE(own.modalities, mm.DynamicPrior(mm.PoE(), otherwise=mm.StandardNormal(2)), mm.PoE())
    found = mm.compare({"looks": looking, "truth": own}, truth.simulate(50), num_particles=100)
    assert [row.name for row in found.rows] == ["truth", "looks"] and found.rows[1].difference > 1


def test_a_mixture_of_the_experts_as_a_prior_is_looked_at_where_rows_have_nothing():
    truth = LinearGaussian()
    prior = mm.DynamicPrior(mm.MoE(), otherwise=mm.StandardNormal(2))
    x, nothing = truth.simulate(9), torch.arange(9) > 0
    found = mm.compare({"looks": truth.vae(prior=prior)}, x, dict.fromkeys(x, nothing), num_particles=10)
    assert found.rows[0].looks


def test_a_prior_that_is_any_function_is_looked_at_as_well():
    parts, x = of_tables(), entries_that_are_nan()[0]

    def follows(experts):
        centre = 0.0 if experts is None or "a" not in experts else experts["a"].mean
        return dist.Normal(centre + torch.zeros(DIM), 1.0).to_event(1)

    vaes = {
        "pool": mm.MultimodalVAE(parts, follows, mm.PoE()),
        "plain": mm.MultimodalVAE(parts, mm.StandardNormal(DIM), mm.PoE()),
    }
    assert {row.name: row.looks for row in mm.compare(vaes, x, num_particles=9).rows} == {"pool": True, "plain": False}
