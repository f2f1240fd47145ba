"""Each fusion against its formula: closed forms, linear algebra and quadrature."""

import math

import pyro.distributions as dist
import pytest
import torch
from exact import Known, LinearGaussian, drawn, known
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.fusion.subsets import indicator, subsets

GRID = torch.linspace(-40, 40, 16001, dtype=torch.float64)
STEP = 80 / 16000


def densities(x, names, row, dim=0):
    """The experts' densities on the grid, (expert, point)."""
    half = next(iter(x.values())).shape[-1] // 2
    return torch.stack([dist.Normal(x[n][row, dim], x[n][row, half + dim].exp()).log_prob(GRID).exp() for n in names])


def assert_density(vae, x, names, row, unnormalised):
    """The posterior of one row is proportional to a density given on the grid."""
    q = vae.posterior(x, given=list(names))
    found = q.log_prob(GRID.reshape(-1, 1, 1).expand(-1, len(next(iter(x.values()))), 1))[:, row].exp()
    torch.testing.assert_close(found, unnormalised / (unnormalised.sum() * STEP), rtol=1e-6, atol=1e-9)


NORMAL = (-(GRID**2) / 2).exp() / (2 * math.pi) ** 0.5
POOLS = {  # fusion, and its density from those of the experts (expert, point)
    "PoE": (lambda: mm.PoE(), lambda p: NORMAL * p.prod(0)),
    "PoE without prior": (lambda: mm.PoE(prior_expert=False), lambda p: p.prod(0)),
    "GeneralizedPoE": (lambda: mm.GeneralizedPoE("abc", 1), lambda p: p.log().mean(0).exp()),
    "GeometricMean": (lambda: mm.GeometricMean(), lambda p: p.log().mean(0).exp()),
    "GeometricMean with prior": (
        lambda: mm.GeometricMean(prior_expert=True),
        lambda p: torch.cat([p, NORMAL.unsqueeze(0)]).log().mean(0).exp(),
    ),
    "MoE": (lambda: mm.MoE(), lambda p: p.mean(0)),
    "MoE with prior": (lambda: mm.MoE(prior_expert=True), lambda p: p.sum(0) + NORMAL),
    "HoelderMixture": (lambda: mm.HoelderMixture(), lambda p: p.sqrt().sum(0) ** 2),
    "HoelderMixture with prior": (
        lambda: mm.HoelderMixture(prior_expert=True),
        lambda p: (p.sqrt().sum(0) + NORMAL.sqrt()) ** 2,
    ),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("names", ["abc", "ca", "b"])
def test_pools_have_the_density_of_their_formula(name, names):
    fusion, formula = POOLS[name]
    vae, x = known(fusion()), drawn(4)
    for row in range(4):
        assert_density(vae, x, names, row, formula(densities(x, names, row)))


@pytest.mark.parametrize("names", ["abc", "ca", "b"])
def test_mopoe_is_the_mean_of_the_products_of_all_subsets(names):
    vae, x = known(mm.MoPoE()), drawn(3)
    for row in range(3):
        p, total = densities(x, names, row), 0
        for members in indicator(len(names)).bool():
            product = p[members].prod(0)
            total = total + product / (product.sum() * STEP)
        assert_density(vae, x, names, row, total)


def test_generalised_weights_are_powers_that_sum_to_one_over_what_is_given():
    fusion = mm.GeneralizedPoE("abc", 1, prior_expert=True)
    with torch.no_grad():
        for k, logit in enumerate(fusion.parameters()):
            logit.fill_(0.5 * k)
    logits = {name: fusion.logits[name].item() for name in "abc"}
    vae, x = known(fusion), drawn(2)
    for names in ("abc", "bc"):
        chosen = torch.tensor([*(logits[n] for n in names), fusion.prior_logits.item()]).softmax(0)
        p = torch.cat([densities(x, names, 1), NORMAL.unsqueeze(0)])
        assert_density(vae, x, names, 1, (chosen.unsqueeze(-1) * p.log()).sum(0).exp())


@pytest.mark.parametrize("prior", [False, True])
def test_the_wasserstein_mean_minimises_the_sum_of_squared_distances(prior):
    """W2^2 of normals = (difference of means)^2 + (difference of scales)^2."""
    vae, x = known(mm.WassersteinMean(prior_expert=prior), dim=2), drawn(5, dim=2)
    q = vae.posterior(x, given=["a", "c"]).base_dist
    others = [(x[n][:, :2], x[n][:, 2:].exp()) for n in "ac"] + [(torch.zeros(2), torch.ones(2))] * prior

    def distance(loc, scale):
        return sum((loc - m) ** 2 + (scale - s) ** 2 for m, s in others).sum()

    loc, scale = q.loc.detach().clone().requires_grad_(), q.scale.detach().clone().requires_grad_()
    for gradient in torch.autograd.grad(distance(loc, scale), (loc, scale)):
        assert gradient.abs().max() < 1e-12


def test_mixture_of_wasserstein_is_the_mean_over_subsets():
    vae, x = known(mm.MixtureOfWasserstein()), drawn(2)
    z = torch.randn(2, 1)
    singles = [known(mm.WassersteinMean()).posterior(x, given=list(s)).log_prob(z) for s in ("a", "c", "ac")]
    expected = torch.stack(singles).logsumexp(0) - math.log(3)
    torch.testing.assert_close(vae.posterior(x, given=["a", "c"]).log_prob(z), expected)


def test_hellinger_has_the_moments_of_the_exact_pool():
    x = drawn(3)
    q = known(mm.Hellinger()).posterior(x)
    for row in range(3):
        pool = densities(x, "abc", row).sqrt().sum(0) ** 2
        pool = pool / pool.sum()
        mean = (pool * GRID).sum()
        torch.testing.assert_close(q.mean[row, 0], mean, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(q.variance[row, 0], (pool * (GRID - mean) ** 2).sum(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_code_is_the_consensus_of_correlated_experts(rho):
    """Against the covariance matrix of the experts' errors, inverted, for every subset."""
    fusion = mm.CoDE("abc", rho=rho)
    with torch.no_grad():
        fusion.logits.copy_(torch.randn(7))
    vae, x, z = known(fusion, dim=2), drawn(4, dim=2), torch.randn(4, 2)
    for names in ("abc", "ca"):
        there = [all("abc"[m] in names for m in members.nonzero()[:, 0]) for members in indicator(3)]
        weights = fusion.logits.masked_fill(~torch.tensor(there), -torch.inf).softmax(0)
        for row in range(4):
            total = 0
            for members, weight in zip(indicator(3).bool(), weights):
                chosen = ["abc"[m] for m in members.nonzero()[:, 0]]
                if weight == 0:
                    continue
                density = 0
                for d in range(2):
                    loc = torch.stack([x[n][row, d] for n in chosen])
                    scale = torch.stack([x[n][row, 2 + d].exp() for n in chosen])
                    errors = (rho + (1 - rho) * torch.eye(len(chosen))) * scale.outer(scale)
                    inverse = torch.linalg.inv(errors)
                    precision = inverse.sum()
                    density = density + dist.Normal(inverse.sum(0) @ loc / precision, precision.rsqrt()).log_prob(
                        z[row, d]
                    )
                total = total + weight * density.exp()
            torch.testing.assert_close(vae.posterior(x, given=list(names)).log_prob(z)[row], total.log())


def test_code_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="127 subsets"):
        mm.CoDE("abcdefg")
    with pytest.raises(ValueError, match="rho is 1"):
        mm.CoDE("ab", rho=1.0)
    with pytest.raises(ValueError, match="modality 'c' has no weights"):
        known(mm.CoDE("ab")).posterior(drawn(2))


def test_every_mean_of_equal_experts_is_the_expert():
    x = drawn(3, dim=2)
    x = dict.fromkeys("abc", x["a"])
    z = torch.randn(3, 2)
    alone = known(mm.MoE(), dim=2).posterior(x).log_prob(z)
    for fusion in (
        mm.GeometricMean(),
        mm.WassersteinMean(),
        mm.HoelderMixture(),
        mm.Hellinger(),
        mm.MixtureOfWasserstein(),
    ):
        torch.testing.assert_close(known(fusion, dim=2).posterior(x).log_prob(z), alone)


def test_products_are_exact_for_the_linear_gaussian_model_and_their_geometric_mean_is_its_root():
    truth = LinearGaussian()
    x = truth.simulate(6)
    mean, covariance = truth.posterior(x)
    q = truth.vae(mm.PoE()).posterior(x).base_dist
    torch.testing.assert_close(q.loc, mean)
    torch.testing.assert_close(q.scale**2, covariance.diagonal(dim1=-2, dim2=-1))
    root = truth.vae(mm.GeometricMean(prior_expert=True)).posterior(x).base_dist
    torch.testing.assert_close(root.loc, mean)
    torch.testing.assert_close(root.scale, 2 * q.scale)
    independent = truth.vae(mm.CoDE("abc", rho=0.0), expert="factor")
    with torch.no_grad():
        independent.fusion.logits[-1] = 50.0  # the subset of all three
    full = independent.posterior(x)
    bare = truth.vae(mm.PoE(prior_expert=False)).posterior(x)
    torch.testing.assert_close(full.mean, bare.mean, rtol=1e-8, atol=1e-8)


REPEATS = {
    "PoE": lambda names: mm.PoE(),
    "MoE": lambda names: mm.MoE(),
    "GeometricMean": lambda names: mm.GeometricMean(),
    "WassersteinMean": lambda names: mm.WassersteinMean(),
    "HoelderMixture": lambda names: mm.HoelderMixture(),
}


@pytest.mark.parametrize("name", REPEATS)
def test_repeats_are_experts_of_their_own(name):
    """One modality measured three times fuses as three modalities do."""
    x, z = drawn(5), torch.randn(5, 1)
    mask = {n: torch.rand(5) > 0.3 for n in "abc"}
    apart = known(REPEATS[name]("abc")).posterior(x, mask).log_prob(z)
    together = {"r": torch.stack([x[n] for n in "abc"], 1)}
    seen = {"r": torch.stack([mask[n] for n in "abc"], 1)}
    found = known(REPEATS[name]("r"), "r", repeated="r").posterior(together, seen).log_prob(z)
    torch.testing.assert_close(found, apart)


@pytest.mark.parametrize("fusion", [mm.MoPoE(), mm.CoDE("ab", rho=0.0)])
def test_repeats_enter_a_subset_together(fusion):
    x, z = drawn(4), torch.randn(4, 1)
    doubled = {"a": torch.stack([x["a"], x["b"]], 1), "b": x["c"]}
    found = known(fusion, "ab", repeated="a").posterior(doubled).log_prob(z)
    bare = known(mm.PoE(prior_expert=False))
    expected = torch.stack([bare.posterior(x, given=list(s)).log_prob(z) for s in ("ab", "c", "abc")]).logsumexp(0)
    torch.testing.assert_close(found, expected - math.log(3))


def test_subsets_of_rows_with_many_modalities_are_drawn_uniformly():
    given = torch.ones(4, 20_000, 1, dtype=torch.bool)
    given[0, 10_000:] = False
    members, there = subsets(given, 7)
    code = (members.long() * torch.tensor([1, 2, 4, 8]).reshape(1, 4, 1, 1)).sum(1).squeeze(-1)
    assert there.all()
    share = torch.bincount(code[:, :10_000].flatten(), minlength=16).double() / 70_000
    assert share[0] == 0
    assert ((share[1:] - 1 / 15).abs() < 4.5 * (1 / 15 / 70_000) ** 0.5).all()
    assert torch.equal(code[:, 10_000:].sort(0).values, torch.arange(2, 15, 2).unsqueeze(1).expand(-1, 10_000))


def test_mopoe_beyond_its_components_is_unbiased_for_the_full_mixture():
    """E over the drawn subsets of the density is the density of all subsets."""
    x, z = drawn(1, "abcde"), torch.randn(1, 1)
    full = known(mm.MoPoE(), "abcde").posterior(x).log_prob(z).exp()
    rows = 4000
    many = {name: value.expand(rows, -1) for name, value in x.items()}
    some = known(mm.MoPoE(components=4), "abcde").posterior(many).log_prob(z.expand(rows, -1)).exp()
    assert abs(some.mean() - full) < 4.5 * some.std() / rows**0.5


def experts(vae, x):
    """What the programs hand to priors and fusions."""
    return vae._experts(*vae.open(x, None), mm.EVERYTHING)


def test_mopoe_at_twelve_modalities_holds_its_components_and_no_more():
    names = "abcdefghijkl"
    vae = known(mm.MoPoE(), names, dim=2)
    assert vae.fusion(experts(vae, drawn(8, names, dim=2))).components.batch_shape == (63, 8, 1)


def test_the_prior_of_mmjsd_is_the_geometric_mean_of_experts_and_prior():
    """Against precisions and means averaged by hand, and N(0, I) where nothing is given."""
    prior = mm.DynamicPrior(mm.GeometricMean(prior_expert=True), otherwise=mm.StandardNormal(2))
    vae, x = known(mm.MoE(prior_expert=True), dim=2, prior=prior), drawn(3, dim=2)
    found = vae.prior(experts(vae, x)).base_dist
    precision = {n: x[n][:, 2:].exp() ** -2 for n in "abc"}
    mean = (1 + sum(precision.values())) / 4
    torch.testing.assert_close(found.scale.squeeze(1), mean.rsqrt())
    torch.testing.assert_close(found.loc.squeeze(1), sum(precision[n] * x[n][:, :2] for n in "abc") / 4 / mean)
    assert torch.equal(vae.prior(None).mean, torch.zeros(2))
    assert mm.generate(vae, 3)["a"].shape == (3, 4)


def test_a_product_beside_conditions_is_the_product():
    """The prior expert has the size of z, where the prior has that of z and the conditions."""
    x, parts = drawn(4, "ab", dim=2), {name: mm.Modality(None, Known()) for name in "ab"}
    prior, fusion = (mm.Conditioned(part, {"b": 4}) for part in (mm.StandardNormal(2), mm.PoE()))
    found = mm.MultimodalVAE(parts, prior, fusion).posterior(x).mean
    torch.testing.assert_close(found[:, :2], mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE()).posterior(x).mean)
    torch.testing.assert_close(found[:, 2:], torch.cat([x["b"], torch.ones(4, 1)], 1))


def learned(names="abc", size=2, dim=1):
    def embed():
        return {n: nn.Sequential(nn.Linear(size, 8), nn.Tanh()) for n in names}

    return {
        "DeepSets": mm.DeepSets(embed(), mm.NormalHead(8, dim)),
        "Attention": mm.Attention(embed(), mm.NormalHead(8, dim), 8, heads=2, layers=2),
        "JointEncoder": mm.JointEncoder(mm.encoder(len(names) * (size + 1), 8, dim=dim), dict.fromkeys(names, size)),
    }


@pytest.mark.parametrize("name", ["DeepSets", "Attention", "JointEncoder"])
def test_learned_fusions_treat_each_row_alone(name):
    """A row of a batch with holes gets what it gets alone, with only what it has."""
    vae, x, z = known(learned()[name]), drawn(7), torch.randn(7, 1)
    mask = {n: torch.rand(7) > 0.4 for n in "abc"}
    whole = vae.posterior(x, mask).log_prob(z)
    for row in range(7):
        seen = {n: v[row : row + 1] for n, v in x.items() if mask[n][row]}
        expected = vae.posterior(seen).log_prob(z[row : row + 1])[0] if seen else vae.prior(None).log_prob(z[row])
        torch.testing.assert_close(whole[row], expected)


def test_a_joint_encoder_serves_complete_rows_and_the_other_fusion_the_rest():
    joint = mm.JointEncoder(mm.encoder(9, 8, dim=1), dict.fromkeys("abc", 2), otherwise=mm.PoE())
    vae, x, z = known(joint), drawn(6), torch.randn(6, 1)
    mask = {n: torch.ones(6, dtype=torch.bool) for n in "abc"}
    mask["b"][3:] = False
    found = vae.posterior(x, mask).log_prob(z)
    inputs = torch.cat([*x.values(), torch.ones(6, 3)], 1)
    torch.testing.assert_close(found[:3], joint.net(inputs).log_prob(z)[:3])
    torch.testing.assert_close(found[3:], known(mm.PoE()).posterior(x, mask).log_prob(z)[3:])
    mask["a"][:3] = False  # now no row is complete, though no modality is missing everywhere
    found = vae.posterior(x, mask).log_prob(z)
    torch.testing.assert_close(found, known(mm.PoE()).posterior(x, mask).log_prob(z))


def test_learned_fusions_say_what_is_wrong():
    wrong = mm.JointEncoder(mm.encoder(6, 8, dim=1), {"a": 3, "b": 1})
    with pytest.raises(ValueError, match="modality 'a' has 2 features, 3 were stated; mend sizes"):
        known(wrong).posterior({"a": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="modality 'c' has no network in the fusion"):
        known(learned("ab")["DeepSets"]).posterior({"c": torch.zeros(2, 2)})


def embeds(*sizes):
    return {"a": nn.Linear(sizes[0], sizes[1]), "b": nn.Linear(2, sizes[2])}


MISFITS = {
    "the network in embed of 'a' fails on .*mend its sizes": lambda: mm.DeepSets(embeds(5, 8, 8), mm.NormalHead(8, 1)),
    r"embed of 'b' gives shape \(3, 7\); let it give \(3, 8\)": lambda: mm.DeepSets(
        embeds(2, 8, 7), mm.NormalHead(8, 1)
    ),
    r"embed of 'a' gives shape \(3, 7\); let": lambda: mm.Attention(embeds(2, 7, 7), mm.NormalHead(8, 1), 8),
    "embed of 'a' gives a Independent": lambda: mm.DeepSets({"a": Known()}, mm.NormalHead(8, 1)),
    "the head of 'DeepSets' fails on .*mend its sizes": lambda: mm.DeepSets(embeds(2, 8, 8), mm.NormalHead(9, 1)),
    "the head of 'Attention' fails on .*mend its sizes": lambda: mm.Attention(embeds(2, 8, 8), mm.NormalHead(9, 1), 8),
    "size is 6, with 4 heads; give a multiple": lambda: mm.Attention(embeds(2, 6, 6), mm.NormalHead(6, 1), 6),
    r"the head of 'DeepSets' has batch \(3, 1\) .*add .to_event": lambda: mm.DeepSets(
        embeds(2, 8, 8), nn.Sequential(nn.Linear(8, 2), Loose())
    ),
    "GeneralizedPoE has dim 3 for codes of 1; mend": lambda: mm.GeneralizedPoE("ab", 3),
}


class Loose(nn.Module):
    """Without an event."""

    def forward(self, h):
        return dist.Normal(h[:, :1], 1.0)


@pytest.mark.parametrize("line", MISFITS)
def test_parts_of_a_wrong_size_are_named_in_one_line(line):
    with pytest.raises(ValueError, match=line) as caught:
        known(MISFITS[line](), "ab").posterior(drawn(3, "ab"))
    assert "\n" not in str(caught.value)


def test_what_returns_no_distribution_is_named():
    for fusion, line in {
        mm.DeepSets(embeds(2, 8, 8), nn.Linear(8, 1)): "the head of 'DeepSets' returned Tensor",
        mm.JointEncoder(nn.Linear(6, 1), {"a": 2, "b": 2}): "the network of 'JointEncoder' returned Tensor",
        (lambda experts: torch.zeros(3, 1, 1)): "the fusion returned Tensor",
    }.items():
        with pytest.raises(TypeError, match=f"{line}; it must return a Pyro distribution"):
            known(fusion, "ab").posterior(drawn(3, "ab"))
    with pytest.raises(TypeError, match="the prior returned Tensor; it must"):
        mm.MultimodalVAE(dict(known(mm.PoE()).modalities), lambda: torch.zeros(1), mm.PoE()).check(drawn(3))


def test_experts_of_codes_of_different_sizes_are_named():
    vae, x = known(mm.MoE(), "ab"), drawn(3, "a") | drawn(3, "b", dim=2)
    with pytest.raises(ValueError, match=r"encoder of 'b' gives codes \(2,\), that of 'a' \(1,\); give all of them"):
        vae.guide(x)


def test_deep_sets_average_what_is_given_repeats_one_by_one():
    embed, head = {name: nn.Linear(3, 4) for name in "ab"}, mm.NormalHead(4, 2)
    parts = {name: mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), nn.Identity(), repeated=name == "b") for name in "ab"}
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.DeepSets(embed, head, average=True))
    x = {"a": torch.randn(3, 3), "b": torch.randn(3, 2, 3)}
    mask = {"a": torch.tensor([True, True, False]), "b": torch.tensor([[True, True], [False, False], [True, True]])}
    a, b = embed["a"](x["a"]), embed["b"](x["b"]).sum(1)
    expected = head(torch.stack([(a[0] + b[0]) / 3, a[1], b[2] / 2]))
    q = vae.posterior(x, mask)
    torch.testing.assert_close(q.mean, expected.mean)
    torch.testing.assert_close(q.variance, expected.variance)
