"""Every recipe against an independent transcription of its paper's formula, in plain torch.

The transcriptions know the networks and nothing else of the package: experts (loc, scale), decoders, and masks a_m.
Values agree within four Monte-Carlo standard errors, complete and with holes; K-sample losses also draw by draw.
"""

import math
from itertools import combinations

import pyro
import pytest
import torch
from cases import DIM, NAMES, PRIVATE, RECIPES, SIZES, for_target, joint_net, of_tables
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import Normal, kl_divergence

import pyro_mmvae as mm

ROWS, COUNT = 120, len(NAMES)  # a call costs as much as for a tenth of them


def rows():
    return {name: torch.randn(ROWS, SIZES[name]) for name in NAMES}


COMPLETE = {name: torch.ones(ROWS) for name in NAMES}
HOLES = {
    "a": torch.tensor([1.0, 0, 1] * 40),
    "b": torch.tensor([1.0, 1, 0] * 40),
    "c": torch.tensor([1.0, 0, 0, 1] * 30),
}
HOLES["a"][HOLES["a"] + HOLES["b"] + HOLES["c"] == 0] = 1.0
MASKS = {"complete": COMPLETE, "holes": HOLES, "one lacking": {**HOLES, "a": COMPLETE["a"], "c": torch.zeros(ROWS)}}
N = Normal(torch.zeros(DIM), torch.ones(DIM))


class Paper:
    """What a formula needs: q_m, p(x_m | z) and the masks of a batch, for one draw of everything."""

    def __init__(self, vae, x, a):
        self.vae, self.x, self.a = vae, x, a
        self.q = {}
        for name in NAMES:
            q = vae.modalities[name].encoder(x[name]) if vae.modalities[name].encoder is not None else None
            if hasattr(getattr(q, "base_dist", None), "scale"):
                self.q[name] = Normal(q.base_dist.loc, q.base_dist.scale)

    def nll(self, name, z, w=None):
        """-log p(x_m | z, w), zero where missing, (..., row)."""
        code = z if w is None else torch.cat([z, w], -1)
        p = Normal(self.vae.modalities[name].decoder.net(code), 0.8)
        return -p.log_prob(self.x[name]).sum(-1) * self.a[name]

    def poe(self, names, prior, row_wise=True):
        """Product of the available experts among names; (row,)."""
        precision = torch.full((ROWS, DIM), 1.0 if prior else 0.0)
        shift = torch.zeros(ROWS, DIM)
        for name in names:
            there = self.a[name].unsqueeze(-1) if row_wise else 1.0
            precision = precision + there / self.q[name].scale ** 2
            shift = shift + there * self.q[name].loc / self.q[name].scale ** 2
        safe = precision.clamp(min=1e-12)
        return Normal(shift / safe, safe.rsqrt())

    def kl(self, q, p):
        return kl_divergence(q, p).sum(-1)

    @property
    def given(self):
        return sum(self.a.values())


def mvae(p):
    q = p.poe(NAMES, prior=True)
    z = q.rsample()
    total = sum(p.nll(n, z) for n in NAMES) + p.kl(q, N)
    for name in NAMES:
        single = p.poe([name], prior=True)
        total = total + p.nll(name, single.rsample()) + p.kl(single, N) * p.a[name]
    return total.sum()


def mvtcae(p, alpha=0.9, beta=1.0):
    q = p.poe(NAMES, prior=False)
    z = q.rsample()
    available = sum(p.a[n] for n in NAMES)
    own = sum(p.a[n] * p.kl(q, p.q[n]) for n in NAMES) * alpha / COUNT
    prior = (1 - alpha * available / COUNT) * p.kl(q, N)  # the weight of missing experts goes to the prior
    total = (COUNT - alpha) / COUNT * sum(p.nll(n, z) for n in NAMES) + beta * (prior + own)
    return (total * COUNT / (COUNT - alpha)).sum()


def crmvae(p, beta=1.0):
    q = p.poe(NAMES, prior=False)
    z = q.rsample()
    rebuilt = sum(p.nll(n, z) + p.nll(n, p.poe([n], prior=False).rsample()) for n in NAMES)
    missing = COUNT - sum(p.a[n] for n in NAMES)
    kl = (1 + missing) * p.kl(q, N) + sum(p.a[n] * p.kl(q, p.q[n]) for n in NAMES)
    total = rebuilt / (2 * (COUNT + 1)) + beta / (COUNT + 1) * kl
    return (total * 2 * (COUNT + 1)).sum()


def mopoe(p):
    family = [s for size in (1, 2, 3) for s in combinations(NAMES, size)]
    there = {s: torch.stack([p.a[n] for n in s]).amin(0) for s in family}
    count = sum(there.values())
    total = torch.zeros(ROWS)
    for subset in family:
        q = p.poe(subset, prior=False, row_wise=False)
        z = q.rsample()
        total = total + there[subset] / count * (sum(p.nll(n, z) for n in NAMES) + p.kl(q, N))
    return total.sum()


def mmjsd(p):
    precision = 1.0 + sum(p.a[n].unsqueeze(-1) / p.q[n].scale ** 2 for n in NAMES)
    shift = sum(p.a[n].unsqueeze(-1) * p.q[n].loc / p.q[n].scale ** 2 for n in NAMES)
    experts = (1 + p.given).unsqueeze(-1)
    pool = Normal(shift / precision, (precision / experts).rsqrt())
    total = torch.zeros(ROWS)
    for source in NAMES:
        z = p.q[source].rsample()
        part = sum(p.nll(n, z) for n in NAMES) + COUNT / (COUNT + 1) * p.kl(p.q[source], pool)
        total = total + p.a[source] / p.given * part
    return total.sum()


def shared(p):
    q = p.poe(NAMES, prior=True)
    return (sum(p.nll(n, z) for z in [q.rsample()] for n in NAMES) + p.kl(q, N)).sum()


def alignment(p, alpha=0.9):
    total = torch.zeros(ROWS)
    for source in NAMES:
        q, z = p.q[source], p.q[source].rsample()
        kl = (1 - alpha * p.given / COUNT) * p.kl(q, N) + alpha / COUNT * sum(p.a[n] * p.kl(q, p.q[n]) for n in NAMES)
        total = total + p.a[source] / p.given * (sum(p.nll(n, z) for n in NAMES) + kl)
    return total.sum()


def log_mixture(p, z):
    parts = torch.stack([p.q[n].log_prob(z).sum(-1) + p.a[n].log() for n in NAMES])
    return parts.logsumexp(0) - p.given.log()


def mmvae(p, particles=10):
    prior = Normal(p.vae.prior.loc, p.vae.prior.log_scale.exp())
    total = torch.zeros(ROWS)
    for source in NAMES:
        z = p.q[source].rsample((particles,))
        log_w = prior.log_prob(z).sum(-1) - log_mixture(p, z) - sum(p.nll(n, z) for n in NAMES)
        total = total - p.a[source] / p.given * (log_w.logsumexp(0) - math.log(particles))
    return total.sum()


def private_posterior(p, name):
    normal = p.vae.modalities[name].private(p.x[name]).base_dist
    return Normal(normal.loc, normal.scale)


def mmvaeplus(p, particles=10, log_prior=None):
    log_prior = log_prior or (lambda z: N.log_prob(z).sum(-1))
    w_prior = Normal(torch.zeros(PRIVATE), torch.ones(PRIVATE))
    total = torch.zeros(ROWS)
    for source in NAMES:
        z, q_w = p.q[source].rsample((particles,)), private_posterior(p, source)
        w = q_w.rsample((particles,))
        log_w = log_prior(z) + (w_prior.log_prob(w) - q_w.log_prob(w)).sum(-1) - log_mixture(p, z)
        for name in NAMES:
            auxiliary = p.vae.auxiliary_prior[name]
            borrowed = Normal(auxiliary.loc, auxiliary.log_scale.exp()).rsample((particles, ROWS))
            log_w = log_w - p.nll(name, z, w if name == source else borrowed)
        total = total - p.a[source] / p.given * (log_w.logsumexp(0) - math.log(particles))
    return total.sum()


def cmvae(p):
    prior = p.vae.prior

    def log_prior(z):
        """E_{q(c | z)} [log pi_c + log p(z | c) - log q(c | z)], q(c | z) the exact responsibilities."""
        joint = prior.logits.log_softmax(0) + Normal(prior.loc, prior.log_scale.exp()).log_prob(z.unsqueeze(-2)).sum(-1)
        responsibility = joint.softmax(-1)
        return (responsibility * (joint - joint.log_softmax(-1))).sum(-1)

    return mmvaeplus(p, log_prior=log_prior)


def dmvae(p):
    w_prior = Normal(torch.zeros(PRIVATE), torch.ones(PRIVATE))

    def negative_elbo(q):
        z, total = q.rsample(), p.kl(q, N)
        for name in NAMES:
            q_w = private_posterior(p, name)
            total = total + p.nll(name, z, q_w.rsample()) + p.a[name] * kl_divergence(q_w, w_prior).sum(-1)
        return total

    total = negative_elbo(p.poe(NAMES, prior=True)).sum()
    for name in NAMES:
        total = total + (p.a[name] * negative_elbo(p.poe([name], prior=True))).sum()
    return total


def joint_posterior(p):
    """The joint encoder's where a row is complete, elsewhere the product of what is there, without the prior."""
    full = torch.cat([*(p.x[n] for n in NAMES), torch.ones(ROWS, COUNT)], -1)
    normal, whole = p.vae.fusion.net(full).base_dist, (p.given == COUNT).unsqueeze(-1)
    if whole.all():
        return Normal(normal.loc, normal.scale)
    rest = p.poe(NAMES, prior=False)
    return Normal(torch.where(whole, normal.loc, rest.loc), torch.where(whole, normal.scale, rest.scale))


def jmvae(p, alpha=0.1):
    q = joint_posterior(p)
    z, missing = q.rsample(), COUNT - p.given
    kl = (1 + alpha * missing) * p.kl(q, N) + alpha * sum(p.a[n] * p.kl(q, p.q[n]) for n in NAMES)
    return (sum(p.nll(n, z) for n in NAMES) + kl).sum()


def telbo_first(p):
    q = joint_posterior(p)
    z = q.rsample()
    return (sum(p.nll(n, z) for n in NAMES) + p.kl(q, N)).sum()


def single_elbos(p):
    """TELBO's second phase: the ELBO of every modality with its own expert alone."""
    return sum((p.nll(n, p.q[n].rsample()) + p.a[n] * p.kl(p.q[n], N)).sum() for n in NAMES)


def mmvm(p):
    """The mixture form: KL(q_m || 1/|S| sum_n q_n), by one draw."""
    codes = {n: private_posterior(p, n) for n in NAMES}
    total = torch.zeros(ROWS)
    for name in NAMES:
        w = codes[name].rsample()
        logs = torch.stack([codes[n].log_prob(w).sum(-1) + p.a[n].log() for n in NAMES])
        mixture = logs.logsumexp(0) - p.given.log()
        total = total + p.nll(name, w) + p.a[name] * (codes[name].log_prob(w).sum(-1) - mixture)
    return total.sum()


def mmvm_of_pairs(p):
    """The bound of the authors' code at the end of its course; the weight of a missing modality goes to N(0, I)."""
    codes = {n: private_posterior(p, n) for n in NAMES}
    total = torch.zeros(ROWS)
    for name in NAMES:
        apart = sum(p.a[n] * p.kl(codes[name], codes[n]) for n in NAMES) + (COUNT - p.given) * p.kl(codes[name], N)
        total = total + p.nll(name, codes[name].rsample()) + p.a[name] * apart / COUNT
    return total.sum()


def cvae(p):
    """-E log p(a | z, c) + KL(q(z | a, c) || N), c = (b, c) with indicators, over the rows that have a."""
    seen = {n: p.x[n] * p.a[n].unsqueeze(-1) for n in NAMES}
    full = torch.cat([*(seen[n] for n in NAMES), torch.stack([p.a[n] for n in NAMES], -1)], -1)
    normal = p.vae.fusion.part.fusion.net(full).base_dist
    q = Normal(normal.loc, normal.scale)
    c = torch.cat([seen["b"], seen["c"], torch.stack([p.a["b"], p.a["c"]], -1)], -1)
    return (p.nll("a", q.rsample(), c) + p.a["a"] * p.kl(q, N)).sum()


def normal_of(network, x):
    base = network(x).base_dist
    return Normal(base.loc, base.scale)


def mhvae(p):
    """The mean over subsets of -E log p(x | z_1) + sum_l KL(q_S(z_l | above) || p(z_l | above))."""
    prior, guide = p.vae.prior, p.vae.fusion
    family = [s for size in (1, 2, 3) for s in combinations(NAMES, size)]
    total = torch.zeros(ROWS)
    for subset in family:
        above, kl = torch.zeros(ROWS, 0), torch.zeros(ROWS)
        for level in range(2):
            r = N if level == 0 else normal_of(prior.levels[level - 1], above)
            precision, shift = r.scale**-2 * torch.ones(ROWS, DIM), r.loc / r.scale**2 * torch.ones(ROWS, DIM)
            for name in subset:
                says = normal_of(guide.levels[level][name], torch.cat([p.x[name], above], -1))
                precision = precision + p.a[name].unsqueeze(-1) / says.scale**2
                shift = shift + p.a[name].unsqueeze(-1) * says.loc / says.scale**2
            q = Normal(shift / precision, precision.rsqrt())
            kl = kl + p.kl(q, r)
            above = torch.cat([above, q.rsample()], -1)
        some = torch.stack([p.a[n] for n in subset]).amax(0)
        total = total + some * (sum(p.nll(n, above) for n in NAMES) + kl)
    return total.sum() / len(family)


def nexus(p):
    """Bottom: a VAE each. Top: averaged messages of detached codes, -gamma log N(code; top decoder(z), 1) + KL."""
    bottom, top = p.vae.bottom, p.vae.top
    w_prior = Normal(torch.zeros(PRIVATE), torch.ones(PRIVATE))
    total, codes = torch.zeros(ROWS), {}
    for name in NAMES:
        q = normal_of(bottom.modalities[name].private, p.x[name])
        w = q.rsample()
        nll = -Normal(bottom.modalities[name].decoder.net(w), 0.8).log_prob(p.x[name]).sum(-1)
        total = total + p.a[name] * (nll + kl_divergence(q, w_prior).sum(-1))
        codes[name] = w.detach()
    messages = sum(p.a[n].unsqueeze(-1) * top.fusion.embed[n](codes[n]) for n in NAMES) / p.given.unsqueeze(-1)
    q = normal_of(top.fusion.head, messages)
    z = q.rsample()
    for name in NAMES:
        code = Normal(top.modalities[name].decoder.net(z), 1.0)
        total = total - {"b": 3.0}.get(name, 1.0) * p.a[name] * code.log_prob(codes[name]).sum(-1)
    return (total + p.kl(q, N)).sum()


R = mm.recipes
# name -> the formula, and whether it is one for incomplete rows
CASES = {
    "mmvm": (mmvm, True),
    "mmvm of pairs": (mmvm_of_pairs, True),
    "cvae": (cvae, True),
    "mhvae": (mhvae, True),
    "nexus": (nexus, True),
    "jnf": (telbo_first, False),
    "shared_representation": (shared, True),
    "alignment": (alignment, True),
    "mvae": (mvae, True),
    "mmvae": (mmvae, True),
    "mopoe": (mopoe, True),
    "mvtcae": (mvtcae, True),
    "mmjsd": (mmjsd, True),
    "crmvae": (crmvae, True),
    "jmvae": (jmvae, True),
    "telbo": (telbo_first, True),
    "dmvae": (dmvae, True),
    "mmvaeplus": (mmvaeplus, True),
    "cmvae": (cmvae, True),
}


@pytest.mark.parametrize("which", MASKS)
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_papers(name, which):
    formula, takes_holes = CASES[name]
    if which != "complete" and not takes_holes:
        pytest.skip("the paper's formula is for complete rows")
    vae, loss = RECIPES[name]()
    x, a = rows(), MASKS[which]
    mask = {k: v.bool() for k, v in a.items()}
    paper, repeats = Paper(vae, x, a), 40
    with torch.no_grad(), pyro.validation_enabled(False):
        ours = torch.tensor([loss.loss(vae.model, vae.guide, x, mask) for _ in range(repeats)])
        theirs = torch.stack([formula(paper) for _ in range(repeats)])
    se = ((ours.var() + theirs.var()) / repeats).sqrt()
    assert (ours.mean() - theirs.mean()).abs() < 4 * se
    assert se < 0.01 * theirs.mean().abs()  # or the test could not fail


@pytest.mark.parametrize("name", ["mmvae", "mmvaeplus", "cmvae"])
def test_k_sample_gradients_are_the_papers(name):
    formula, _ = CASES[name]
    vae, loss = RECIPES[name]()
    x, mask = rows(), {k: v.bool() for k, v in HOLES.items()}
    parameters, repeats = list(vae.parameters()), 40

    def mean(draw):
        found = []
        for _ in range(repeats):
            gradients = torch.autograd.grad(draw(), parameters, allow_unused=True)
            found.append(
                torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(gradients, parameters)])
            )
        found = torch.stack(found)
        return found.mean(0), found.var(0) / repeats

    ours, a = mean(lambda: loss.differentiable_loss(vae.model, vae.guide, x, mask))
    theirs, b = mean(lambda: formula(Paper(vae, x, HOLES)))
    assert ((ours - theirs).abs() <= 4.5 * (a + b).sqrt() + 1e-9).all()


@pytest.mark.parametrize("holes", [False, True], ids=["complete", "holes"])
@pytest.mark.parametrize("name", CASES)
def test_every_parameter_learns_and_every_tool_works(name, holes):
    vae, loss = RECIPES[name]()
    x, mask = rows(), {k: v.bool() for k, v in (HOLES if holes else COMPLETE).items()}
    value = loss.differentiable_loss(vae.model, vae.guide, x, mask)
    gradients = torch.autograd.grad(value, list(vae.parameters()), allow_unused=True)
    for parameter, gradient in zip(dict(vae.named_parameters()), gradients):
        idle = name in ("telbo", "jnf") and ("encoder" in parameter or (holes and "fusion.net" in parameter))
        idle = idle or (name == "jmvae" and holes and gradient is None)
        assert idle or (gradient is not None and gradient.isfinite().all()), parameter
    history = mm.fit(vae, x, mask, loss=loss, epochs=3, progress=False)
    assert len(history.loss) == 3
    assert mm.log_likelihood(vae, x, mask, num_particles=20).value.isfinite().all()
    if name == "mmvm":
        with pytest.raises(ValueError, match="depends on the data and cannot be drawn from without"):
            mm.generate(vae, 4)
    else:
        assert mm.generate(vae, 4)["a"].shape == (4, 3)
    assert mm.impute(vae, x, mask)["a"].shape == (1, ROWS, 3)
    assert mm.translate(vae, {"b": x["b"], "c": x["c"]}, to="a").shape == (1, ROWS, 3)


@pytest.mark.parametrize("name", ["jmvae", "telbo"])
def test_one_modality_is_encoded_by_the_expert_that_the_loss_teaches(name):
    vae, _ = RECIPES[name]()
    paper = Paper(vae, rows(), COMPLETE)
    for given in NAMES:
        q = vae.posterior(paper.x, given=[given])
        torch.testing.assert_close(q.mean, paper.q[given].loc)
        torch.testing.assert_close(q.variance, paper.q[given].variance)


def test_the_second_phase_of_telbo_changes_only_the_unimodal_encoders():
    vae, first, second = R.telbo(of_tables(), DIM, joint_net(), SIZES)
    x = rows()
    mm.fit(vae, x, loss=first, epochs=5, progress=False)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    loss = second()
    paper, repeats = Paper(vae, x, COMPLETE), 40
    with torch.no_grad():
        ours = torch.tensor([loss.loss(vae.model, vae.guide, x) for _ in range(repeats)])
        theirs = torch.stack([single_elbos(paper) for _ in range(repeats)])
    assert (ours.mean() - theirs.mean()).abs() < 4 * ((ours.var() + theirs.var()) / repeats).sqrt()
    mm.fit(vae, x, loss=loss, epochs=5, lr=1e-2, progress=False)
    for key, value in vae.state_dict().items():
        moved = not torch.equal(before[key], value)
        learns = ".encoder." in key and not key.endswith((".0.loc", ".0.scale"))
        assert moved == learns, key


def test_feature_fusion_takes_any_subset_and_code_learns_its_weights():
    x, mask = rows(), {k: v.bool() for k, v in HOLES.items()}
    vae, loss = R.feature_fusion(of_tables(), DIM, joint_net(), SIZES)
    mm.fit(vae, x, mask, loss=loss, epochs=3, progress=False)
    full = torch.cat([*(x[n] * HOLES[n].unsqueeze(-1) for n in NAMES), torch.stack([HOLES[n] for n in NAMES], -1)], -1)
    torch.testing.assert_close(vae.posterior(x, mask).mean, vae.fusion.net(full).mean)
    vae, loss = R.code(of_tables(), DIM)
    before = vae.fusion.logits.detach().clone()
    mm.fit(vae, x, mask, loss=loss, epochs=3, progress=False)
    assert not torch.equal(before, vae.fusion.logits)
    vae, loss = R.wasserstein(of_tables(), DIM)
    assert mm.fit(vae, x, mask, loss=loss, epochs=3, progress=False).loss[-1] < 1e6


def test_the_second_phase_of_jnf_teaches_the_flows_alone_and_they_come_closer():
    vae, first, second = R.jnf(of_tables(), DIM, joint_net(), SIZES)
    x = rows()
    mm.fit(vae, x, loss=first, epochs=20, lr=1e-2, progress=False)
    loss, before = second(), {k: v.clone() for k, v in vae.state_dict().items()}
    draws = torch.tensor([loss.loss(vae.model, vae.guide, x) for _ in range(40)])
    flows = {n: vae.modalities[n].encoder(x[n]) for n in NAMES}
    q = joint_posterior(Paper(vae, x, COMPLETE))
    transcribed = -torch.stack([sum(flows[n].log_prob(q.sample()).sum() for n in NAMES) for _ in range(40)]).detach()
    assert (draws.mean() - transcribed.mean()).abs() < 4 * ((draws.var() + transcribed.var()) / 40).sqrt()
    history = mm.fit(vae, x, loss=loss, epochs=60, lr=1e-2, progress=False)
    assert history.loss[-1] < history.loss[0] - 0.1
    for key, value in vae.state_dict().items():
        assert torch.equal(before[key], value) or ".encoder." in key, key
    moved = [k for k, v in vae.state_dict().items() if not torch.equal(before[k], v)]
    assert any(".encoder.1." in key for key in moved)  # the flow itself


def test_the_second_phase_of_jnf_teaches_all_of_the_encoders_where_some_rows_are_incomplete():
    """The posterior of an incomplete row is the experts' own; that must not keep them from learning of the others."""
    vae, _, second = R.jnf(of_tables(), DIM, joint_net(), SIZES)
    x, mask, loss = rows(), {k: v.bool() for k, v in HOLES.items()}, second()
    whole, free = torch.stack(list(mask.values())).all(0), [p for p in vae.parameters() if p.requires_grad]
    torch.manual_seed(1)
    found = loss.differentiable_loss(vae.model, vae.guide, x, mask)
    torch.manual_seed(1)
    experts = vae.experts(x, mask)
    z = vae.fusion(experts).sample().squeeze(1)
    wanted = -sum(experts.entries(name).log_prob(z[mask[name]])[whole[mask[name]]].sum() for name in NAMES)
    slopes = [torch.autograd.grad(value, free, allow_unused=True) for value in (found, wanted)]
    torch.testing.assert_close((found, slopes[0]), (wanted, slopes[1]))
    assert all(slope.any() for slope in slopes[0])


def test_a_row_without_a_joint_posterior_has_no_part_in_the_second_phase_of_jnf():
    vae, _, second = R.jnf(of_tables(), DIM, joint_net(), SIZES)
    x, mask, loss = rows(), {k: v.bool() for k, v in HOLES.items()}, second()
    whole = torch.stack(list(mask.values())).all(0)
    torch.manual_seed(1)
    some = loss.differentiable_loss(vae.model, vae.guide, x, mask)
    for name in NAMES:  # what else stands in incomplete rows does not matter
        x[name][~whole] += 1.0
    torch.manual_seed(1)
    torch.testing.assert_close(some, loss.differentiable_loss(vae.model, vae.guide, x, mask))
    assert not loss.differentiable_loss(vae.model, vae.guide, {"a": x["a"]}).any()


def test_nexus_levels_share_no_gradient():
    vae, loss = R.nexus(of_tables(), DIM, dict.fromkeys(NAMES, PRIVATE), 6, 5)
    x = rows()
    torch.manual_seed(0)
    a = loss.differentiable_loss(vae.model, vae.guide, x)
    g = torch.autograd.grad(a, list(vae.bottom.parameters()), allow_unused=True)
    torch.manual_seed(0)
    b = loss.bottom.differentiable_loss(vae.bottom.model, vae.bottom.guide, x)
    h = torch.autograd.grad(b, list(vae.bottom.parameters()), allow_unused=True)
    assert all(one.abs().sum() > 0 for one in h)
    assert all(torch.equal(one, other) for one, other in zip(g, h))


def test_stock_svi_trains_the_two_levels_of_nexus_as_one_model():
    vae, _ = R.nexus(of_tables(), DIM, dict.fromkeys(NAMES, PRIVATE), 6, 5)
    x, mask = rows(), {k: v.bool() for k, v in HOLES.items()}
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x, mask) for _ in range(60)]
    assert sum(losses[-20:]) < sum(losses[:20])


@pytest.mark.filterwarnings("ignore:the codes say nothing")  # which is so: KL is about a hundredth of a nat
def test_a_conditional_vae_weighs_the_target_given_its_conditions():
    """log p(a | b, c) is weighed: it falls when the conditions are another row's. To the code they leave nothing."""
    vae, loss = R.cvae(for_target(), DIM, "a", joint_net(), SIZES)
    torch.manual_seed(3)
    x = {n: torch.randn(400, SIZES[n]) for n in NAMES}
    x["a"] = x["b"][:, :1] + 0.3 * torch.randn(400, 3)
    mm.fit(vae, x, loss=loss, epochs=60, lr=5e-3, progress=False)
    wrong = {**x, "b": x["b"].roll(1, 0)}
    right = mm.log_likelihood(vae, x, num_particles=200)
    assert right.value.mean() > mm.log_likelihood(vae, wrong, num_particles=200).value.mean() + 0.5
    drawn = mm.translate(vae, {"b": x["b"], "c": x["c"]}, to="a", num_draws=50).mean(0)
    assert torch.corrcoef(torch.stack([drawn[:, 0], x["b"][:, 0]]))[0, 1] > 0.8
