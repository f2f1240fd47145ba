"""Learning metrics against values that are known: perfect and blind models, closed forms, the oracle."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from matplotlib.figure import Figure
from test_gaps import broken
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.metrics.imputation import _ratio


def twins(noise=0.1):
    """Two modalities that both show z, so that the sign of its first entry is a label they share."""
    truth = LinearGaussian({"a": 2, "b": 2})
    for name in truth.names:
        truth.loading[name], truth.offset[name], truth.noise[name] = torch.eye(2), torch.zeros(2), noise
    return truth


def positive(x):
    return (x[:, 0] > 0).long()


def test_coherence_is_one_where_modalities_share_everything_and_a_half_where_the_guide_is_blind():
    truth = twins(0.01)
    x = truth.simulate(400)
    judges = {"a": positive, "b": positive}
    found = mm.coherence(truth.vae(), x, positive(x["a"]), judges)
    assert found.by_size[1] > 0.97 and set(found.share) == {(("a",), "b"), (("b",), "a")}
    assert "a" in str(found) and "1 given" in str(found)
    assert mm.joint_coherence(truth.vae(), judges) > 0.97
    blind = truth.vae(fusion=lambda experts: experts.prior)
    assert mm.coherence(blind, x, positive(x["a"]), judges).by_size[1] == pytest.approx(0.5, abs=0.08)
    with pytest.raises(ValueError, match="give one whole number a row"):
        mm.coherence(blind, x, [1, 0], judges)
    with pytest.raises(ValueError, match="give two"):
        mm.joint_coherence(blind, {"a": positive})


def test_coherence_of_the_oracle_is_that_of_the_bivariate_normal():
    """x_a and a draw of x_b | x_a have correlation r = 1 / (1 + s^2): same sign with 1/2 + asin(r) / pi."""
    truth = twins(1.0)
    x = truth.simulate(4000)
    expected = 0.5 + math.asin(0.5) / math.pi
    assert mm.coherence(truth.vae(), x, positive(x["a"]), {"b": positive}).share[("a",), "b"] == pytest.approx(
        expected, abs=4 * 0.5 / 4000**0.5
    )
    joint = mm.joint_coherence(truth.vae(), {"a": positive, "b": positive}, num_draws=4000)
    assert joint == pytest.approx(expected, abs=4 * 0.5 / 4000**0.5)


def test_coherence_is_of_draws_that_have_not_seen_what_they_are_compared_with():
    """The label is the sign of x_b: of a draw of x_b | x_a that has correlation 1 / (1 + s_a^2) / (1 + s_b^2) with it,
    where one from both would have nearly 1. No row has a and c, so that none is drawn from the two."""
    truth = LinearGaussian(dict.fromkeys("abc", 2))
    for name, noise in {"a": 1.0, "b": 0.1, "c": 1.0}.items():
        truth.loading[name], truth.offset[name], truth.noise[name] = torch.eye(2), torch.zeros(2), noise
    x, first = truth.simulate(4000), torch.arange(4000).unsqueeze(1) < 2000
    x["a"], x["c"] = torch.where(first, x["a"], torch.nan), torch.where(first, torch.nan, x["c"])
    found = mm.coherence(truth.vae(), x, positive(x["b"]), {"b": positive})
    expected = 0.5 + math.asin(0.5 / 1.01) / math.pi
    assert found.counts == {("a",): 2000, ("c",): 2000}
    for given in ("a", "c"):
        assert found.share[(given,), "b"] == pytest.approx(expected, abs=4 * 0.5 / 2000**0.5)


def test_frechet_distance_is_the_closed_form_of_normals():
    def sample(mean, root, rows=5):
        e = torch.linalg.qr(torch.randn(rows * 40, rows))[0]  # orthogonal columns: the covariance is exact
        e = torch.linalg.qr(e - e.mean(0))[0] * (rows * 40 - 1) ** 0.5
        return mean + e @ root.T

    one, two = torch.randn(5, 5), torch.randn(5, 5)
    mean = torch.randn(5)
    a, b = sample(torch.zeros(5), one), sample(mean, two)
    first, second = one @ one.T, two @ two.T
    values = torch.linalg.eigvals(first @ second).real.sqrt().sum()  # tr (AB)^1/2, another way
    expected = (mean**2).sum() + first.trace() + second.trace() - 2 * values
    assert mm.frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-8)
    assert mm.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)
    flat = a * torch.tensor([1.0, 0, 0, 0, 0])  # a singular covariance
    assert mm.frechet_distance(flat, flat + 1) == pytest.approx(5.0, abs=1e-5)
    few = torch.randn(3, 8).requires_grad_()  # most directions of which have no variance, or by rounding less
    assert mm.frechet_distance(few, few + 1) == pytest.approx(8.0, abs=1e-5)
    assert all(mm.frechet_distance(x, x) >= 0 for x in torch.randn(20, 10, 3))
    pair = mm.frechet_distance([[0.0], [2.0]], [[1.0], [5.0]])  # two rows are enough: (3 - 1)^2 + (8^1/2 - 2^1/2)^2
    assert pair == pytest.approx(4 + 2.0)
    for wrong in (b[:, :2], b[:, 0], b.unsqueeze(-1), b[:1]):
        for both in ((a, wrong), (wrong, a)):
            with pytest.raises(ValueError, match="give \\(row, feature\\) of both, two rows or more"):
                mm.frechet_distance(*both)
    with pytest.raises(ValueError, match=r"^features has shape \(\); give one entry a row, 1 rows or more$"):
        mm.frechet_distance(torch.tensor(1.0), a)


@pytest.mark.parametrize("features, rows", [(5, 500), (20, 2000)])
def test_frechet_distance_of_two_samples_of_one_distribution_is_as_far_above_zero_as_it_says(features, rows):
    found = torch.tensor([mm.frechet_distance(*torch.randn(2, rows, features, dtype=torch.float64)) for _ in range(20)])
    error = float(found.std()) / 20**0.5
    assert float(found.mean()) == pytest.approx(features * (features + 5) / (2 * rows), abs=4 * error, rel=0.03)


def test_a_judge_learns_a_ring_and_a_line_does_not():
    x = torch.randn(600, 2, 1)
    labels = 3 + (x.flatten(1).norm(dim=1) > 1.18).long()
    judge = mm.Judge(x[:400], labels[:400])
    assert (judge(x[400:]) == labels[400:]).double().mean() > 0.93
    assert judge.features(x).shape == (600, 64) and judge.classes.tolist() == [3, 4]
    assert torch.equal(judge(x.numpy()), judge(x)) and torch.equal(judge(x[:3].tolist()), judge(x[:3]))
    with pytest.raises(ValueError, match=r"^x has NaN in row 1; leave such rows out, or mend them$"):
        judge(torch.where(torch.arange(600).reshape(-1, 1, 1) == 1, torch.nan, x))
    share, score = mm.linear_probe(x[:400].flatten(1), labels[:400], x[400:].flatten(1), labels[400:])
    assert share < 0.65 and score == pytest.approx(-math.log(2), abs=0.03)
    with pytest.raises(ValueError, match="one whole number a row"):
        mm.Judge(x, labels[:5])


def test_a_probe_asks_nothing_of_codes_that_never_changed_in_training():
    """Such as a column of whole numbers that are all 0 in the training rows; and one test row is enough."""
    codes, labels = torch.randn(100, 2).mul(9).round().long(), torch.arange(100.0) % 2
    codes[:, 0] += (9 * labels).long()
    wider = torch.cat([codes, torch.zeros(100, 1, dtype=torch.long)], 1)
    wider[50:, 2] = 1
    for rows in (slice(50, 100), slice(50, 51)):
        share, score = mm.linear_probe(codes[:50], labels[:50], codes[rows], labels[rows])
        found = mm.linear_probe(wider[:50], labels[:50], wider[rows], labels[rows])
        assert found == (share, pytest.approx(score, abs=1e-3))
    judge = mm.Judge(codes[:50, 0], labels[:50], hidden=())  # of one number a row
    assert judge.classes.dtype == torch.int64 and (judge(codes[50:, 0]) == labels[50:]).double().mean() > 0.6


def test_a_judge_of_entries_that_never_change_measures_them_by_a_tenth_of_the_spread_of_all():
    """As pixels at the edge of pictures do; the others by their own spread."""
    x = 4 + torch.randn(60, 3) * torch.tensor([1.0, 3.0, 0.0])
    judge = mm.Judge(x, (x[:, 0] > 4).long(), hidden=())
    torch.testing.assert_close(judge.features(x).std(0), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(judge.features(x).mean(0), torch.zeros(3))
    moved = judge.features(x + torch.tensor([0.0, 0.0, 1.0])) - judge.features(x)
    torch.testing.assert_close(moved[:, 2], (10 / x.std()).expand(60))
    assert (judge(x) == (x[:, 0] > 4)).double().mean() > 0.95
    assert mm.Judge(torch.ones(4, 2), [0, 1, 1, 1])(torch.ones(1, 2)).tolist() == [1]  # of nothing to tell by


def test_a_linear_probe_is_scikit_learns_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    z = torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.2])
    labels = (z[:, 0] + 0.2 * z[:, 1] + torch.randn(500) > 0).long() + (z[:, 2] > 0.1).long()
    share, score = mm.linear_probe(z[:300], labels[:300], z[300:], labels[300:], ridge=1e-2)
    scaled = (z - z[:300].mean(0)) / z[:300].std(0)
    theirs = linear_model.LogisticRegression(C=1 / (300 * 1e-2), tol=1e-8).fit(scaled[:300], labels[:300])
    assert share == pytest.approx(theirs.score(scaled[300:], labels[300:]), abs=0.011)
    log = torch.as_tensor(theirs.predict_log_proba(scaled[300:]))
    assert score == pytest.approx(log.gather(1, labels[300:].unsqueeze(1)).mean().item(), abs=0.003)


def test_a_judge_is_where_the_slope_of_its_loss_is_none():
    """nll + ridge / 2 |weights|^2, of which biases are no part."""
    x = 3 + 2 * torch.randn(60, 4)
    labels = (x[:, 0] > 3).long() + 2 * (x[:, 1] > 4).long()
    judge = mm.Judge(x, labels, hidden=(), ridge=0.1).requires_grad_()
    nll = torch.nn.functional.nll_loss(judge.log_probabilities(x), labels)
    weight, bias = torch.autograd.grad(nll, (judge.head.weight, judge.head.bias))
    torch.testing.assert_close(weight, -0.1 * judge.head.weight, rtol=0, atol=1e-4)
    assert bias.abs().max() < 1e-4 and judge.head.weight.abs().max() > 0.1


def test_retrieval_counts_ranks():
    scores = torch.tensor([[3.0, 1, 0, 2], [5, 4, 1, 0], [0, 0, 0, 0], [9, 8, 7, 1]])
    found = mm.retrieval(scores, k=(1, 2, 3))  # ranks 1, 2, any of 1 to 4, 4
    assert found.recall == {1: 0.3125, 2: 0.625, 3: 0.6875} and found.median_rank == 2.25 and found.candidates == 4


def test_partners_are_found_in_the_codes_and_by_likelihood():
    truth = twins(0.05)
    x, vae = truth.simulate(60), truth.vae()
    by_code = mm.retrieval(mm.latent_similarity(vae, x, query=["a"], target=["b"]))
    likelihood = mm.predictive_similarity(vae, x, query=["a"], target="b", num_draws=2000)
    assert by_code.recall[10] > 0.9 and mm.retrieval(likelihood).recall[5] > 0.95
    blind = truth.vae(fusion=lambda experts: experts.prior)
    chance = mm.retrieval(mm.predictive_similarity(blind, x, query=["a"], target="b"))
    assert chance.recall[10] == pytest.approx(10 / 60, abs=0.2)


def test_similarity_in_the_codes_is_the_cosine_of_posterior_means_in_units_of_their_spread():
    truth = LinearGaussian()
    for rows in (40, 2):
        x = truth.simulate(rows)
        one, two = (truth.posterior(x, subset=names)[0].numpy() for names in (["a"], ["b", "c"]))
        one, two = ((v - v.mean(0)) / v.std(0, ddof=1) for v in (one, two))
        cosine = [[(a @ b) / ((a @ a) * (b @ b)) ** 0.5 for b in two] for a in one]
        found = mm.latent_similarity(truth.vae(), x, query=["a"], target=["b", "c"])
        torch.testing.assert_close(found.detach(), torch.tensor(cosine))


def test_what_cannot_be_a_candidate_says_why():
    truth = LinearGaussian({"a": 4, "b": 3}, repeated=["b"])
    x, vae = truth.simulate(6, repeats=2), truth.vae()
    with pytest.raises(ValueError, match=r"^modality 'b' is repeated, so that no entry is the row's; give another"):
        mm.predictive_similarity(vae, x, query=["a"], target="b")
    for lacking in ({"a": x["a"]}, {**x, "b": torch.where(torch.arange(6).reshape(-1, 1, 1) == 4, torch.nan, x["b"])}):
        with pytest.raises(ValueError, match=r"^modality 'b' is missing in some rows; give rows that have it$"):
            mm.predictive_similarity(vae, lacking, query=["a"], target="b")
    data = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
    parts, net = mm.guess_modalities(data, dim=2 + 2 + 1), mm.encoder(3 + 2 + 2, 8, dim=2)
    looks, _ = mm.recipes.cvae(parts, 2, "a", net, {"a": 3, "b": 2})
    with pytest.raises(ValueError, match=r"^modality 'b' has no decoder, so that it has no likelihood; give another"):
        mm.predictive_similarity(looks, data, query=["a"], target="b")
    with pytest.raises(ValueError, match=r"^1 of the scores are NaN; mend them, or leave their rows out$"):
        mm.retrieval(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]))
    for ask in (mm.latent_similarity, mm.predictive_similarity):
        for query in ("a", ["q"]):
            with pytest.raises(ValueError, match=r"'a'|unknown modality 'q'"):
                ask(vae, x, query=query, target="a" if ask is mm.predictive_similarity else ["a"])


def test_rows_with_nothing_to_ask_by_are_no_queries():
    """Their codes would be the prior's, and recall a share of the rows that have something."""
    truth = twins(0.05)
    x, vae = truth.simulate(30), truth.vae()
    x["a"] = torch.where(torch.arange(30).unsqueeze(1) == 7, torch.nan, x["a"])
    for ask in (
        lambda: mm.latent_similarity(vae, x, query=["a"], target=["b"]),
        lambda: mm.latent_similarity(vae, x, query=["b"], target=["a"]),
        lambda: mm.predictive_similarity(vae, x, query=["a"], target="b"),
    ):
        with pytest.raises(ValueError, match=r"^row 7 has nothing of a; give rows that have some of it$"):
            ask()
    both = mm.latent_similarity(vae, x, query=["a", "b"], target=["b"])
    assert mm.retrieval(both).recall[5] > 0.9
    full, mask = {**x, "a": x["a"].nan_to_num()}, {"a": torch.arange(30) != 7}
    torch.testing.assert_close(mm.latent_similarity(vae, full, mask, query=["a", "b"], target=["b"]), both)


def test_predictive_similarity_is_pointwise_mutual_information():
    truth = LinearGaussian({"a": 4, "b": 3})
    x, vae = truth.simulate(5), truth.vae()
    found = mm.predictive_similarity(vae, x, query=["a"], target="b", num_draws=20_000)
    exact = torch.zeros(5, 5)
    for j in range(5):
        both = {"a": x["a"], "b": x["b"][j].expand(5, -1)}
        exact[:, j] = truth.log_prob(both) - truth.log_prob(both, subset=["a"])
    exact = exact - (exact.logsumexp(0) - math.log(5))
    torch.testing.assert_close(found, exact, rtol=0, atol=0.08)


def test_padding_of_candidates_does_not_count():
    """Tokens (row, position), some of them hidden: log p of those that are there, whatever stands in the others."""
    tokens, seen = torch.randint(0, 6, (7, 4)), torch.arange(4) < torch.tensor([1, 4, 2, 3, 4, 1, 2]).unsqueeze(1)
    net = nn.Sequential(mm.mlp(2, 24), nn.Unflatten(-1, (4, 6)))
    parts = {
        "text": mm.Modality(mm.CategoricalLikelihood(net)),
        "a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2)),
    }
    vae, a = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE()), torch.randn(7, 3)
    x, mask = {"text": tokens, "a": a}, {"text": seen}
    found = mm.predictive_similarity(vae, x, mask, query=["a"], target="text", num_draws=20_000)
    with torch.no_grad():
        log_p = net(vae.posterior({"a": a}).sample((20_000,))).log_softmax(-1)  # (draw, row, position, token)
    each = [log_p[:, :, range(4), row][:, :, there].sum(-1) for row, there in zip(tokens, seen)]
    exact = torch.stack(each, -1).logsumexp(0)
    exact = exact - (exact.logsumexp(0) - math.log(7))
    torch.testing.assert_close(found, exact, rtol=0, atol=0.02)
    other = {**x, "text": torch.where(seen, tokens, 5)}
    torch.manual_seed(1)
    first = mm.predictive_similarity(vae, x, mask, query=["a"], target="text")
    torch.manual_seed(1)
    torch.testing.assert_close(mm.predictive_similarity(vae, other, mask, query=["a"], target="text"), first)


def test_imputation_of_the_oracle_has_the_error_that_its_covariance_says():
    truth = LinearGaussian()
    x, vae = truth.simulate(600), truth.vae()
    found = mm.imputation_error(vae, x, visible={"b": torch.zeros(600, dtype=torch.bool)}, num_draws=400)
    assert list(found) == ["b"] and found["b"].entries == 1800
    _, covariance = truth.posterior({k: v[:1] for k, v in x.items()}, subset=["a", "c"])
    predicted = truth.loading["b"] @ covariance[0] @ truth.loading["b"].T + truth.noise["b"] ** 2 * torch.eye(3)
    assert found["b"].rmse == pytest.approx((predicted.trace() / 3).sqrt().item(), rel=4 / (2 * 1800) ** 0.5 + 0.01)
    spread = x["b"].var(0, correction=0).mean().sqrt()  # no visible entry: the best constant, and not a guess of zero
    assert found["b"].baseline_rmse == pytest.approx(spread.item(), rel=1e-6)
    exact = truth.log_prob(x) - truth.log_prob(x, subset=["a", "c"])
    assert found["b"].log_score * 1800 / 600 == pytest.approx(exact.mean().item(), abs=0.02)
    assert found["b"].log_score_se == pytest.approx(exact.std().item() / 600**0.5 / 3, rel=0.02)
    assert math.isnan(found["b"].accuracy)


def test_the_baseline_of_large_numbers_that_differ_by_little_is_theirs(single):
    x, visible = 1e6 + torch.randn(20_000, 3), torch.rand(20_000, 3) > 0.5
    vae = mm.MultimodalVAE(mm.guess_modalities({"a": x}, dim=1, hidden=4), mm.StandardNormal(1), mm.PoE())
    found = mm.imputation_error(vae, {"a": x}, visible={"a": visible}, num_draws=1)["a"].baseline_rmse
    middle = torch.where(visible, x.double(), 0).sum(0) / visible.sum(0)
    exact = (x - middle)[~visible].square().mean().sqrt()
    assert found == pytest.approx(float(exact), rel=5e-4)  # by a sum in single precision 1.6e-3


def test_single_hidden_entries_and_categories():
    truth = LinearGaussian({"a": 4})
    x = truth.simulate(800)
    visible = torch.ones(800, 4, dtype=torch.bool)
    visible[:, 0] = torch.arange(800) % 2 == 0
    found = mm.imputation_error(truth.vae(), x, visible={"a": visible})["a"]
    shown = x["a"][visible[:, 0], 0].mean()
    assert found.baseline_rmse == pytest.approx((x["a"][1::2, 0] - shown).pow(2).mean().sqrt().item())
    assert found.rmse < 1.1 * found.baseline_rmse and found.entries == 400

    class Sure(nn.Module):  # says category 2 whatever z
        def forward(self, z):
            return torch.tensor([0.0, 1.0, 5.0]).expand(*z.shape[:-1], 3)

    parts = {"label": mm.Modality(mm.CategoricalLikelihood(Sure()), nn.Sequential(mm.OneHot(3), mm.encoder(3, dim=2)))}
    labels = torch.tensor([0, 0, 0, 2, 2, 1])
    seen = torch.tensor([True, True, True, False, False, False])
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    found = mm.imputation_error(vae, {"label": labels}, visible={"label": seen})["label"]
    assert found.accuracy == pytest.approx(2 / 3) and found.baseline_accuracy == 0.0 and math.isnan(found.rmse)
    log = torch.tensor([0.0, 1.0, 5.0]).log_softmax(-1)
    assert found.log_score == pytest.approx((2 * log[2] + log[1]).item() / 3)
    assert found.log_score_se == pytest.approx((log[1] - log[2]).abs().item() / 3)  # sd of three / sqrt(3)
    found = mm.imputation_error(vae, {"label": labels[3:]}, visible={"label": seen[3:]})["label"]
    assert found.baseline_accuracy == pytest.approx(2 / 3)  # 2, where none is visible
    with pytest.raises(ValueError, match="no entry is hidden"):
        mm.imputation_error(vae, {"label": labels}, visible={})


class Same(nn.Module):
    """A likelihood that says one thing whatever z."""

    def __init__(self, build):
        super().__init__()
        self.build = build

    def forward(self, z):
        return self.build(z.shape[:-1])


def test_every_column_of_categories_has_its_own_most_frequent_one():
    """Words of three places: the model says 2, 0, 1; those seen are mostly 0, 2 and, of the last, none."""
    logits = 9.0 * nn.functional.one_hot(torch.tensor([2, 0, 1]), 3)
    net = Same(lambda lead: logits.expand(*lead, 3, 3))
    part = mm.Modality(mm.CategoricalLikelihood(net), nn.Sequential(mm.OneHot(3), nn.Flatten(), mm.encoder(9, dim=2)))
    vae = mm.MultimodalVAE({"words": part}, mm.StandardNormal(2), mm.PoE())
    words = torch.tensor([[0, 2, 1], [0, 2, 1], [1, 0, 2], [0, 2, 1], [2, 1, 1], [0, 0, 1], [0, 2, 0]])
    seen = torch.arange(7).unsqueeze(1) < torch.tensor([4, 4, 0])
    found = mm.imputation_error(vae, {"words": words}, visible={"words": seen})["words"]
    assert found.entries == 3 + 3 + 7
    assert found.accuracy == pytest.approx((1 + 1 + 5) / 13)
    assert found.baseline_accuracy == pytest.approx((2 + 1 + 5) / 13)  # and of the last 1, the best of the hidden


def test_what_is_missing_is_neither_seen_nor_scored_whatever_visible_says_of_it():
    """By entries and by rows, on either side."""
    truth = LinearGaussian({"a": 4, "b": 3})
    x, vae = truth.simulate(40), truth.vae(expert="full rank")
    there, rows = torch.rand(40, 4) > 0.3, torch.rand(40) > 0.5
    for mask, visible in ((there, rows), (rows, there), (there, torch.rand(40, 4) > 0.5)):
        fine = [m.reshape(40, -1).expand(40, 4) for m in (mask, visible)]
        shown, hidden = fine[0] & fine[1], fine[0] & ~fine[1]
        broken_up = {**x, "a": torch.where(fine[0], x["a"], 1e3)}  # a filler that would be seen
        found = mm.imputation_error(vae, broken_up, {"a": mask}, visible={"a": visible}, num_draws=400)["a"]
        exact = truth.log_prob(x, {"a": fine[0]}) - truth.log_prob(x, {"a": shown})
        assert found.entries == int(hidden.sum())
        assert found.log_score == pytest.approx(float(exact.sum() / hidden.sum()), abs=0.02)
        middle = torch.where(shown, x["a"], 0).sum(0) / shown.sum(0)
        assert found.baseline_rmse == pytest.approx((x["a"] - middle)[hidden].square().mean().sqrt().item())


def test_the_error_of_a_log_score_is_its_deviation_over_data_sets():
    """Of rows with one to five hidden entries, or none, which are worth a nat less the more there are."""
    entries = torch.randint(0, 6, (4000, 60))
    total = (entries * (torch.randn(4000, 60) - 0.2 * entries)).double()
    value, se = torch.tensor([_ratio(*rows) for rows in zip(total, entries)]).T
    assert se.mean().item() == pytest.approx(value.std().item(), rel=0.05)
    assert value.mean().item() == pytest.approx(-0.2 * 55 / 15, abs=0.01)
    assert math.isnan(_ratio(torch.tensor([1.0, 0.0]), torch.tensor([2, 0]))[1])  # of one row alone


def test_whole_rows_of_a_likelihood_whose_entries_hang_together_are_hidden_whole():
    """z = 0 and x given it is N(0, [[1, 0.8], [0.8, 1]]), which has no mask of single entries."""

    class Together(nn.Module):
        def forward(self, z):
            covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
            return dist.MultivariateNormal(0 * z[..., :2], covariance)

    vae = mm.MultimodalVAE({"a": mm.Modality(Together(), mm.encoder(2, 8, dim=2))}, mm.StandardNormal(2), mm.PoE())
    x, seen = torch.randn(30, 2), torch.arange(30) < 20
    found = mm.imputation_error(vae, {"a": x}, visible={"a": seen})["a"]
    exact = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]])).log_prob(x[20:]).sum() / 20
    assert found.entries == 20 and found.log_score == pytest.approx(exact.item())
    assert found.rmse == pytest.approx(x[20:].square().mean().sqrt().item())


def test_categories_in_a_table_are_counted_and_its_numbers_measured():
    """The network says 1.5 and category 2 whatever z; categories as far from the truth as can be are no distance."""

    class Sure(nn.Module):
        def forward(self, z):
            return torch.tensor([1.5, 0.0, 1.0, 5.0]).expand(*z.shape[:-1], 4)

    columns = [mm.RealColumn(), mm.CategoryColumn(3)]
    part = mm.Modality(mm.TableLikelihood(Sure(), columns), mm.NormalHead(8, 2), trunk=mm.TableTrunk(columns, 8))
    vae = mm.MultimodalVAE({"table": part}, mm.StandardNormal(2), mm.PoE())
    table = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 1.0], [0.5, 2.0], [1.0, 0.0], [2.0, 0.0]])
    seen = torch.tensor([[True, True], [True, True], [True, True], [False, False], [False, False], [True, False]])
    found = mm.imputation_error(vae, {"table": table}, visible={"table": seen})["table"]
    assert found.rmse == pytest.approx(math.sqrt((1.0**2 + 0.5**2) / 2), rel=1e-6)
    assert found.baseline_rmse == pytest.approx(math.sqrt((1.5**2 + 1.0**2) / 2), rel=1e-6)
    assert (found.accuracy, found.baseline_accuracy) == pytest.approx((1 / 3, 2 / 3))  # 2 and 0 of 2, 0, 0
    seen[:, 0] = True
    found = mm.imputation_error(vae, {"table": table}, visible={"table": seen})["table"]
    assert math.isnan(found.rmse) and math.isnan(found.baseline_rmse) and found.accuracy == pytest.approx(1 / 3)


def test_metrics_and_plots_take_arrays():
    """The same answer as for tensors."""
    x, labels = torch.randn(60, 3), torch.arange(60) % 2
    x[:, 0] += 4.0 * labels
    few, right = x.numpy(), labels.numpy()
    assert mm.frechet_distance(few, few + 2) == mm.frechet_distance(x, x + 2)
    assert torch.equal(mm.Judge(few, right)(x), mm.Judge(x, labels)(x))
    halves = [
        (x[:30], labels[:30], x[30:], labels[30:]),
        (few[:30], right[:30].tolist(), few[30:].tolist(), right[30:]),
    ]
    assert mm.linear_probe(*halves[0]) == mm.linear_probe(*halves[1])
    data = {"a": few, "b": few[:, :2]}
    vae = mm.MultimodalVAE(mm.guess_modalities(data, dim=2), mm.StandardNormal(2), mm.PoE())
    ax = mm.plots.plot_cross_modal(vae, {name: value[:4] for name, value in data.items()}, ax=Figure().subplots())
    assert "What is given" in ax.get_title()
    with pytest.raises(ValueError, match="no modality"):
        mm.plots.plot_missingness(None)
    with pytest.raises(ValueError, match="give rows with two modalities"):
        mm.coherence(vae, {"a": few}, labels, {"a": positive})
    with pytest.raises(ValueError, match="x has 1 row"):
        mm.latent_similarity(vae, {name: value[:1] for name, value in data.items()}, query=["a"], target=["b"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(bad):
    x = torch.randn(20, 2)
    holes = x.clone()
    holes[3, 1] = bad
    found = "NaN" if math.isnan(bad) else "an infinity"
    with pytest.raises(ValueError, match=f"^features has {found} in row 3; leave such rows out, or mend them$"):
        mm.frechet_distance(holes, x)
    with pytest.raises(ValueError, match=f"^others has {found} in row 3"):
        mm.frechet_distance(x, holes)
    labels = torch.arange(20) % 2
    with pytest.raises(ValueError, match=f"^x has {found} in row 3"):
        mm.Judge(holes, labels)
    with pytest.raises(ValueError, match=f"^codes has {found} in row 3"):
        mm.linear_probe(holes, labels, x, labels)
    with pytest.raises(ValueError, match=f"^test_codes has {found} in row 3"):
        mm.linear_probe(x, labels, holes, labels)


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([0.0, math.nan, 1.0], "^labels have nan in row 1; give whole numbers, and leave other rows out$"),
        ([0.0, 0.5, 1.0], "^labels have 0.5 in row 1"),
        ([0.0, math.inf, 1.0], "^labels have inf in row 1"),
        (["u", "v", "u"], "^labels are no numbers; give one whole number a row, such as the codes of names$"),
        ([[0], [1], [0]], r"^labels are torch.int64 \(3, 1\) for 3 rows; give one whole number a row$"),
    ],
)
def test_labels_that_are_not_one_whole_number_a_row_are_refused(labels, why):
    x = {"a": torch.randn(3, 2), "b": torch.randn(3, 2)}
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
    for ask in (
        lambda: mm.coherence(vae, x, labels, {"a": positive}),
        lambda: mm.Judge(x["a"], labels),
        lambda: mm.linear_probe(x["a"], labels, x["a"], [0, 1, 0]),
    ):
        with pytest.raises(ValueError, match=why):
            ask()
    with pytest.raises(ValueError, match=why.replace("labels", "test_labels", 1)):
        mm.linear_probe(x["a"], [0, 1, 0], x["a"], labels)


def test_coherence_refuses_one_answer_for_all_rows_and_subsets_of_none():
    x = {"a": torch.randn(20, 2), "b": torch.randn(20, 2)}
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
    for one in (lambda value: torch.tensor(1), lambda value: torch.tensor([1])):
        with pytest.raises(ValueError, match=r"^labels by the classifier of 'b' are .* for 20 rows; give one whole"):
            mm.coherence(vae, x, positive(x["a"]), {"b": one})
        with pytest.raises(ValueError, match=r"^labels by the classifier of 'b' are .* for 20 rows; give one whole"):
            mm.joint_coherence(vae, {"a": positive, "b": one}, num_draws=20)
    with pytest.raises(ValueError, match=r"^most_given is 0; give a whole number from 1 on$"):
        mm.coherence(vae, x, positive(x["a"]), {"b": positive}, most_given=0)


def test_coherence_says_of_how_many_rows_each_share_is():
    x = {"a": torch.randn(100, 2), "b": torch.randn(100, 2)}
    x["b"][1:] = math.nan
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
    found = mm.coherence(vae, x, positive(x["a"]).double(), {"a": positive, "b": positive})
    assert found.counts == {("a",): 100, ("b",): 1} and found.rows == 100
    _, first, second, last = str(found).splitlines()
    assert first.split()[:3] == ["a", "100", "5.0%"] and second.split()[:3] == ["b", "1", "50.0%"]
    assert "5.0%" not in last.partition(";")[2]


def test_coherence_of_many_subsets_shows_the_small_ones_and_counts_the_others():
    names = [f"a modality with a long name, number {number}" for number in range(9)]
    subsets = [given for size in (1, 2, 3) for given in itertools.combinations(names[1:], size)]
    found = mm.Coherence({(given, names[0]): 0.5 for given in subsets}, 9, dict.fromkeys(subsets, 9))
    lines = str(found).splitlines()
    assert "and 28 more subsets, all of them in .share" in lines and sum("50.0%" in line for line in lines) == 64 + 1
    assert max(map(len, lines)) <= 140


def test_coherence_of_many_targets_stays_readable():
    names = [f"sensor {number}" for number in range(30)]
    found = mm.Coherence({((a,), b): 0.5 for a in names for b in names if a != b}, 9, {(name,): 9 for name in names})
    assert max(map(len, str(found).splitlines())) <= 120
    assert str(found).count(" 50.0%") == 30 * 29 + 1 and "\n" not in str(found).partition("sensor 29 50.0%")[1]


def test_retrieval_takes_arrays_and_refuses_queries_without_a_partner():
    scores = torch.randn(4, 6)
    assert mm.retrieval(scores.numpy()) == mm.retrieval(scores)
    for bad in (torch.randn(6, 4), torch.randn(4), torch.zeros(0, 0)):
        with pytest.raises(ValueError, match=r"^scores have shape .*; give \(query, candidate\), with candidate i the"):
            mm.retrieval(bad)


def test_coherence_of_the_model_is_told_from_that_of_its_guide():
    """The share of exact draws with the sign of what they stand for; a guide that is far off has another."""
    truth = LinearGaussian({"a": 4, "c": 5})
    truth.noise = {"a": 0.3, "c": 0.1}
    x, loud = truth.simulate(150), lambda value: (value[:, 0] > truth.offset["c"][0]).long()
    mean, covariance = truth.posterior(x, subset=["a"])
    w = truth.loading["c"][0]
    sd = (w @ covariance @ w + truth.noise["c"] ** 2).sqrt()
    up = torch.special.ndtr(mean @ w / sd)
    right = loud(x["c"]).double()
    exact = (right * up + (1 - right) * (1 - up)).mean()
    astray = broken(truth, 5, 0.5)
    by_guide, by_model = (
        mm.coherence(astray, x, right.long(), {"c": loud}, most_given=1, method=method) for method in ("guide", "psis")
    )
    found = by_model.share[("a",), "c"]
    assert abs(found - exact) < 4 * 0.5 / 150**0.5 and by_guide.share[("a",), "c"] < found - 0.1
    assert by_model.certified == {("a",): 1.0} and "own posterior (psis; at least 100% certified)" in str(by_model)
    assert by_guide.certified == {} and "posterior" not in str(by_guide)


def test_what_a_model_only_looks_at_cannot_be_imputed_nor_judged():
    x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
    parts, net = mm.guess_modalities(x, dim=2 + 2 + 1), mm.encoder(3 + 2 + 2, 8, dim=2)
    vae, _ = mm.recipes.cvae(parts, 2, "a", net, {"a": 3, "b": 2})
    with pytest.raises(
        ValueError, match=r"^modality 'b' has no decoder, so that nothing fills it in; leave it visible$"
    ):
        mm.imputation_error(vae, x, visible={"b": torch.arange(20) < 5})
    judges = dict.fromkeys(x, lambda drawn: torch.zeros(len(drawn)))
    for ask in (lambda: mm.coherence(vae, x, torch.zeros(20), judges), lambda: mm.joint_coherence(vae, judges)):
        with pytest.raises(
            ValueError, match=r"^modality 'b' has no decoder, so that no classifier sees a draw of it; "
        ):
            ask()


def test_judges_take_yes_and_no_as_labels_and_refuse_single_rows():
    x = torch.randn(40, 2)
    yes = x[:, 0] > 0
    assert torch.equal(mm.Judge(x, yes)(x), mm.Judge(x, yes.long())(x))
    with pytest.raises(ValueError, match=r"^x has shape \(1, 2\); give one entry a row, 2 rows or more$"):
        mm.Judge(x[:1], yes[:1])
    with pytest.raises(ValueError, match=r"^codes has shape \(1, 2\)"):
        mm.linear_probe(x[:1], yes[:1], x, yes)
    with pytest.raises(ValueError, match=r"^test_codes has shape \(0, 2\)"):
        mm.linear_probe(x, yes, x[:0], yes[:0])


class Angle(nn.Module):
    """Angles around pi, where the circle is cut."""

    def forward(self, z):
        loc = math.pi + 0.3 * z[..., 0]
        return dist.VonMises(torch.atan2(loc.sin(), loc.cos()), torch.tensor(4.0))


def test_angles_are_predicted_and_scored_around_the_circle():
    prior = mm.StandardNormal(1)
    parts = {"angle": mm.Modality(Angle(), nn.Sequential(nn.Unflatten(0, (-1, 1)), mm.encoder(1, 8, dim=1)))}
    vae = mm.MultimodalVAE(parts, prior, lambda _: prior())
    x, visible = {"angle": torch.tensor([2.9, -2.9, 2.9, -2.9])}, {"angle": torch.arange(4) > 1}
    predicted = mm.predict(vae, x, num_draws=2000)["angle"]
    assert ((torch.remainder(predicted, math.tau) - math.pi).abs() < 4.5 * 0.3 / 2000**0.5).all()
    found = mm.imputation_error(vae, x, visible=visible, num_draws=2000)["angle"]
    assert found.rmse == pytest.approx(math.pi - 2.9, abs=4.5 * 0.3 / 2000**0.5)
    assert found.baseline_rmse == pytest.approx(math.pi - 2.9)
    assert math.isnan(found.accuracy)
    x = {"angle": torch.tensor([2.9, -2.9, 0.5, 0.7])}  # of those that are visible alone, or of all if none is
    found = mm.imputation_error(vae, x, visible={"angle": torch.arange(4) > 1}, num_draws=9)["angle"]
    assert found.baseline_rmse == pytest.approx(((2.3**2 + (math.tau - 3.5) ** 2) / 2) ** 0.5)
    none = mm.imputation_error(vae, x, visible={"angle": torch.arange(4) > 3}, num_draws=9)["angle"]
    middle = math.atan2(sum(map(math.sin, (0.5, 0.7))), 2 * math.cos(2.9) + math.cos(0.5) + math.cos(0.7))
    ways = [min(abs(v - middle), math.tau - abs(v - middle)) for v in x["angle"].tolist()]
    assert none.baseline_rmse == pytest.approx((sum(w**2 for w in ways) / 4) ** 0.5)
