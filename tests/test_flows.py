"""Flows as fusions, experts and priors: densities by change of variables, and what is kept, copied, saved and moved."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import drawn, known
from pyro.distributions.transforms import affine_autoregressive, permute, spline, spline_coupling
from torch import nn
from torch.distributions import AffineTransform, ComposeTransform

import pyro_mmvae as mm
from pyro_mmvae.flows import Transforms
from pyro_mmvae.recipes.products import couplings
from pyro_mmvae.weights import draw


@pytest.mark.parametrize("base", [mm.PoE(), mm.MoE()])
def test_a_flow_has_the_density_of_the_change_of_variables(base):
    transform = dist.transforms.spline(1, count_bins=4)
    vae, x = known(mm.Flow(base, [transform, dist.transforms.AffineTransform(0.3, 2.0)])), drawn(2)
    fine = torch.linspace(-20, 20, 200_001)
    q = vae.posterior(x)
    log_prob = q.log_prob(fine.reshape(-1, 1, 1).expand(-1, 2, 1))
    torch.testing.assert_close((log_prob.exp().sum(0) * (40 / 200_000)), torch.ones(2), rtol=1e-3, atol=0)
    inner = transform.inv((fine - 0.3).unsqueeze(-1) / 2)
    expected = known(base).posterior(x).log_prob(inner.unsqueeze(-2).expand(-1, 2, 1))
    jacobian = transform.log_abs_det_jacobian(inner, None if inner is None else transform(inner))
    torch.testing.assert_close(log_prob, expected - jacobian.reshape(-1, 1) - math.log(2))


def test_a_flow_does_not_score_with_the_parameters_of_the_step_before():
    transform = dist.transforms.affine_coupling(2, [4])
    vae, x = known(mm.Flow(mm.PoE(), [transform]), dim=2), drawn(3, dim=2)
    z = vae.posterior(x).sample()
    before = vae.posterior(x).log_prob(z)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.5)
    after = vae.posterior(x).log_prob(z)
    assert (after - before).abs().min() > 1e-3
    torch.testing.assert_close(after, vae.posterior(x).log_prob(z.clone()))


def test_a_flow_can_be_copied_and_saved_after_a_step():
    transforms = [affine_autoregressive(2, [4]), spline_coupling(2, hidden_dims=[4]), spline(2), permute(2)]
    vae, x, z = known(mm.Flow(mm.PoE(), transforms), dim=2), drawn(3, dim=2), torch.randn(3, 2)
    pyro.infer.Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    for twin in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        assert torch.equal(twin.posterior(x).log_prob(z), vae.posterior(x).log_prob(z))
        with torch.no_grad():
            next(twin.fusion.parameters()).add_(0.5)
        assert not torch.equal(twin.posterior(x).log_prob(z), vae.posterior(x).log_prob(z))


def test_what_a_transform_holds_is_saved_and_moved_with_the_model(tmp_path):
    """Pyro's permutation is no module, and `permute(dim)` draws another one in every program."""

    def build(order):
        moved = AffineTransform(torch.tensor(order) / 4, 1 + torch.rand(4), event_dim=1)
        transforms = [affine_autoregressive(4, [4]), permute(4, torch.tensor(order)), moved]
        return known(mm.Flow(mm.PoE(), transforms), dim=4)

    vae, other, x, z = build([2, 0, 3, 1]), build([1, 2, 3, 0]), drawn(3, dim=4), torch.randn(3, 4)
    assert not torch.allclose(vae.posterior(x).log_prob(z), other.posterior(x).log_prob(z))
    vae.save(tmp_path / "vae.pt")
    mm.load(tmp_path / "vae.pt", other)
    assert torch.equal(vae.posterior(x).log_prob(z), other.posterior(x).log_prob(z))
    draw = other.posterior(x).rsample()
    torch.testing.assert_close(other.posterior(x).log_prob(draw.clone()), vae.posterior(x).log_prob(draw.clone()))
    assert other.float().posterior(x).rsample().dtype == torch.float32


def test_what_is_held_is_found_in_other_transforms_and_a_learnt_tensor_is_left_to_its_owner(tmp_path):
    shift = nn.Parameter(torch.zeros(3))

    def build(order):
        inner = permute(3, torch.tensor(order))
        inner.inv(torch.randn(3))  # Pyro keeps the inverse order in the transform
        transforms = [ComposeTransform([inner]), permute(3, torch.tensor(order)).inv, AffineTransform(shift, 1.0)]
        return known(mm.Flow(mm.PoE(), transforms[:2]), dim=3), transforms

    (vae, transforms), (other, _), x, z = build([2, 0, 1]), build([1, 0, 2]), drawn(3, dim=3), torch.randn(3, 3)
    assert sorted(vae.fusion.state_dict()) == ["transforms.held_0", "transforms.held_1"]
    vae.save(tmp_path / "vae.pt")
    mm.load(tmp_path / "vae.pt", other)
    assert torch.equal(vae.posterior(x).log_prob(z), other.posterior(x).log_prob(z))
    owner = mm.Flow(mm.PoE(), transforms)
    assert len(owner.transforms.held) == 2 and not list(owner.float().parameters())
    assert transforms[2].loc is shift and shift.is_leaf


def test_scoring_a_drawn_sample_reaches_the_transforms():
    """-log q of a draw of q itself, held fixed: the gradient is that of the density, not of a remembered inverse."""
    transform = dist.transforms.affine_coupling(2, [4])
    vae, x = known(mm.Flow(mm.PoE(), [transform]), dim=2), drawn(3, dim=2)
    q = vae.posterior(x)
    z = q.sample()
    found = torch.autograd.grad(q.log_prob(z).sum(), list(transform.parameters()))
    expected = torch.autograd.grad(vae.posterior(x).log_prob(z.clone()).sum(), list(transform.parameters()))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


def flowing():
    """A model whose experts are flows, held against a mixture of them."""
    vae = known(mm.MoE(), names="ab", dim=2, prior=mm.MoE())
    for modality in vae.modalities.values():
        modality.encoder = nn.Sequential(modality.encoder, Transforms([AffineTransform(0.3, 2.0)]))
    return vae


def test_flows_as_experts_of_a_prior_cost_nothing_against_themselves():
    vae, x = flowing(), drawn(4, names="ab", dim=2)
    found = draw(vae, vae.check(x), 5)
    torch.testing.assert_close(found.log_weights, sum(found.log_likelihood.values()))
    prior = mm.FlowPrior(2, [dist.transforms.affine_coupling(2, [4])])
    assert mm.Conditioned(prior, {"a": 3})(None).event_shape == (2 + 3 + 1,)


def pushed(modality):
    modality.decoder = nn.Sequential(modality.decoder, Transforms([AffineTransform(0.3, 2.0)]))


def test_a_flow_says_where_its_mean_is_to_be_had():
    """And the tools that need a mean take it of draws."""
    vae, x = flowing(), drawn(4, names="ab", dim=2)
    for moment in ("mean", "variance", "stddev"):
        with pytest.raises(NotImplementedError, match=r"a flow knows neither .*; take those of draws, .*mm.importance"):
            getattr(vae.posterior(x), moment)
    assert mm.usage(vae, x).spread.shape == (2,)


def test_a_likelihood_without_a_mean_is_left_out_of_the_means_alone():
    vae, x = known(mm.PoE(), names="ab", dim=2), drawn(4, names="ab", dim=2)
    line = r"the likelihood of '{}', a Pushed, knows no mean; .*mm.translate\(vae, x, to='{}', num_draws=100\)\.median"
    whole = mm.predict(vae, x, num_draws=1)
    pushed(vae.modalities["b"])
    with pytest.warns(UserWarning, match=line.format("b", "b") + r"\(0\)\.values; it is left out here$"):
        assert mm.predict(vae, x, num_draws=1)["a"].shape == whole["a"].shape
    with pytest.warns(UserWarning, match="it is left out here"):
        words = [text.get_text() for cell in mm.plot_reconstructions(vae, x).child_axes for text in cell.texts]
    assert [word for word in words if word] == ["a", "reconstructed", "b"]
    hidden = torch.arange(4) < 2
    assert mm.imputation_error(vae, x, visible={"a": hidden})["a"].rmse > 0
    with pytest.warns(UserWarning, match=line.format("b", "b") + ".*; it is judged by its log score alone$"):
        scored = mm.imputation_error(vae, x, visible={"a": hidden, "b": hidden})
    assert scored["a"].rmse > 0 and torch.tensor(scored["b"][1:5]).isnan().all()
    pushed(vae.modalities["a"])
    with pytest.raises(ValueError, match=line.format("a", "a") + r"\(0\)\.values$"):
        mm.predict(vae, x)


class Heavy(nn.Module):
    """Student's t, whose mean is NaN from one degree of freedom down: in the rows that have a negative code."""

    def __init__(self, size, loc=0.0):
        super().__init__()
        self.loc = torch.full((size,), loc)

    def forward(self, z):
        df = torch.where(z[..., :1] < 0, 1.0, 3.0)
        return dist.StudentT(df, self.loc.expand(*z.shape[:-1], -1), 1.0, validate_args=False).to_event(1)


def test_a_mean_of_nan_is_none_where_the_parameters_are_fine_and_a_fault_where_they_are_not():
    vae, x = known(mm.PoE(), names="ab", dim=2), drawn(8, names="ab", dim=2)
    vae.modalities["b"].decoder = Heavy(x["b"].shape[1])
    with pytest.warns(UserWarning, match=r"^the likelihood of 'b', a StudentT, knows no mean"):
        assert list(mm.predict(vae, x, num_draws=20)) == ["a"]
    vae.modalities["b"].decoder = Heavy(x["b"].shape[1], math.nan)
    with pytest.raises(ValueError, match="what is drawn of 'b' is not finite in row 0"):
        mm.predict(vae, x)


def test_zuko_flows_are_transforms_and_importing_zuko_keeps_validation_on():
    pytest.importorskip("zuko")
    torch.distributions.Distribution.set_default_validate_args(True)
    transform = mm.ZukoTransform(lambda zuko: zuko.flows.NSF(2, transforms=2, hidden_features=(8,), passes=2))
    assert torch.distributions.Distribution._validate_args
    vae, x = known(mm.Flow(mm.PoE(), [transform]), dim=2), drawn(3, dim=2)
    q = vae.posterior(x)
    z = q.rsample((5,))
    base = known(mm.PoE(), dim=2).posterior(x)
    inner = transform.inv(z)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v).sum((0, 1)), inner).movedim(0, -2)
    expected = base.log_prob(inner) - torch.linalg.det(jacobian).abs().log()
    torch.testing.assert_close(q.log_prob(z.clone()), expected, rtol=1e-5, atol=1e-5)
    loss = pyro.infer.Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(transform.parameters())))


def test_a_flow_without_zuko_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zuko", None)
    with pytest.raises(ImportError, match=r"install pyro_mmvae\[zuko\]"):
        mm.ZukoTransform(lambda zuko: zuko.flows.NSF(2))
    assert torch.distributions.Distribution._validate_args


def test_the_couplings_of_jnf_change_every_coordinate():
    z, flow = torch.randn(7, 5), ComposeTransform(couplings(5))
    with torch.no_grad():
        changed = flow(z)
    assert (changed.unsqueeze(-1) - z.unsqueeze(-2)).abs().min() > 1e-9  # none is where it was, or elsewhere
    torch.testing.assert_close(flow.inv(changed), z)


class FlowOfCode(nn.Module):
    """x given z by a conditional flow of Pyro's, whose density is exact."""

    def __init__(self):
        super().__init__()
        self.coupling = dist.transforms.conditional_affine_coupling(3, 2, hidden_dims=[8])

    def forward(self, z):
        base = dist.Normal(z.new_zeros(*z.shape[:-1], 3), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [self.coupling.condition(z)])


@pytest.mark.parametrize("mask", [None, {"a": torch.arange(6) % 3 > 0}])
def test_a_likelihood_that_is_a_flow_is_scored_at_many_draws(mask):
    torch.manual_seed(0)
    x, prior = {"a": torch.randn(6, 3), "b": torch.randn(6, 2)}, mm.StandardNormal(2)
    parts = {"a": mm.Modality(FlowOfCode(), mm.encoder(3, 8, dim=2)), **mm.guess_modalities({"b": x["b"]}, dim=2)}
    vae = mm.MultimodalVAE(parts, prior, mm.PoE()).to(x["a"].dtype).eval()
    found = mm.importance(vae, x, mask, num_draws=4, given=["a", "b"])
    seen = torch.ones(6, dtype=torch.bool) if mask is None else mask["a"]
    decoders = {name: modality.decoder for name, modality in vae.modalities.items()}
    with torch.no_grad():
        q = vae.posterior(x, mask)
        for z, weight in zip(found.latents["z"], found.raw):
            wanted = prior(None).log_prob(z) - q.log_prob(z) + decoders["b"](z).log_prob(x["b"])
            wanted = wanted + torch.where(seen, decoders["a"](z).log_prob(x["a"]), 0)
            torch.testing.assert_close(weight, wanted)
    loss = mm.Objective(bound=mm.objectives.iwae, num_particles=3)
    assert torch.isfinite(torch.tensor(mm.fit(vae, x, mask, loss=loss, epochs=2, progress=False).loss)).all()
