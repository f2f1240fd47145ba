"""Tools ask a model in eval mode, whatever mode it is in, and leave it in that one."""

import inspect
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from cases import three, three_rows
from torch import nn

import pyro_mmvae as mm

NAMES = ["label", "counts", "body"]
ASKED = {"given": ["body"], "targets": ["label"]}


class Watch(nn.Module):
    """Passes on what it gets, and notes whether that happened in training."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen.append(self.training)
        return x


def moody():
    """A model with dropout and batch norm in both directions; one of its networks is in eval mode, as if frozen."""
    vae, seen = three().train(), []
    for part in vae.modalities.values():
        part.decoder.net = nn.Sequential(part.decoder.net, Watch(seen), nn.Dropout(0.5))
    body = vae.modalities["body"]
    body.trunk = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Watch(seen), nn.Dropout(0.5))
    vae.modalities["label"].decoder.eval()
    return vae, seen


TOOLS = {
    "annealed_log_likelihood": lambda vae, x: mm.annealed_log_likelihood(vae, x, chains=2, temperatures=3),
    "certify": lambda vae, x: mm.certify(vae, x, subsets=[["body"]], rows=20, num_particles=20),
    "coherence": lambda vae, x: mm.coherence(vae, x, [0] * 6, dict.fromkeys(NAMES, first_sign)),
    "conditional_log_likelihood": lambda vae, x: mm.conditional_log_likelihood(vae, x, **ASKED),
    "consistency": lambda vae, x: mm.consistency(vae, x, given=["body"], more=["body", "label"], num_draws=20),
    "gaps": lambda vae, x: mm.gaps(vae, x, num_draws=20, steps=2),
    "generate": lambda vae, x: mm.generate(vae, 3),
    "guide_predictive_log_likelihood": lambda vae, x: mm.guide_predictive_log_likelihood(vae, x, **ASKED),
    "importance": lambda vae, x: mm.importance(vae, x, num_draws=20),
    "imputation_error": lambda vae, x: mm.imputation_error(vae, x, visible={"body": torch.arange(6) < 3}, num_draws=5),
    "impute": lambda vae, x: mm.impute(vae, {"body": x["body"]}, num_draws=2),
    "iwae_curve": lambda vae, x: mm.iwae_curve(vae, x, num_particles=(1, 10)),
    "joint_coherence": lambda vae, x: mm.joint_coherence(vae, dict.fromkeys(NAMES, first_sign), num_draws=10),
    "latent_similarity": lambda vae, x: mm.latent_similarity(vae, x, query=["body"], target=NAMES[:1]),
    "leave_one_out": lambda vae, x: mm.leave_one_out(vae, x, num_draws=19),
    "log_likelihood": lambda vae, x: mm.log_likelihood(vae, x, num_particles=20),
    "plot_cross_modal": lambda vae, x: mm.plots.plot_cross_modal(vae, x),
    "plot_khat": lambda vae, x: mm.plots.plot_khat(vae, x, subsets=[["body"]], num_particles=20),
    "plot_latent": lambda vae, x: mm.plots.plot_latent(vae, x),
    "plot_reconstructions": lambda vae, x: mm.plots.plot_reconstructions(vae, x),
    "posterior_draws": lambda vae, x: mm.posterior_draws(vae, x, method="psis", num_draws=20, progress=False),
    "predict": lambda vae, x: mm.predict(vae, {"body": x["body"]}, num_draws=3),
    "predictive_similarity": lambda vae, x: mm.predictive_similarity(vae, x, query=["body"], target="counts"),
    "sandwich": lambda vae, x: mm.sandwich(vae, given=["body"], rows=2, chains=2, temperatures=3),
    "sbc": lambda vae, x: mm.sbc(vae, ["body"], rows=10, num_draws=9),
    "to_arviz": lambda vae, x: mm.to_arviz(vae, x, num_draws=5),
    "to_mudata": lambda vae, x: mm.to_mudata(vae, annotated(x["body"]), {"body": "X"}),
    "translate": lambda vae, x: mm.translate(vae, {"body": x["body"]}, to=NAMES[0]),
    "usage": lambda vae, x: mm.usage(vae, x, num_draws=5),
}


def annotated(values):
    """What AnnData is to `to_mudata`."""
    return SimpleNamespace(obs_names=[str(i) for i in range(len(values))], X=values.numpy(), layers={}, obsm={})


def first_sign(value):
    return (value.reshape(len(value), -1)[:, 0] > 0).long()


def state(vae):
    return [module.training for module in vae.modules()], [b.clone() for b in vae.buffers()]


def test_every_tool_is_asked_here():
    """Whatever is public and takes a model first."""
    public = {**vars(mm), **vars(mm.plots)}
    functions = {name: thing for name, thing in public.items() if inspect.isfunction(thing) and name[0] != "_"}
    first = {name: next(iter(inspect.signature(thing).parameters), "") for name, thing in functions.items()}
    assert {name for name in functions if first[name] == "vae"} == {"fit", *TOOLS}


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_asks_in_eval_mode_and_leaves_no_trace(name):
    vae, seen = moody()
    modes, buffers = state(vae)
    TOOLS[name](vae, three_rows(6))
    assert seen and not any(seen)
    assert state(vae)[0] == modes
    assert all(torch.equal(a, b) for a, b in zip(state(vae)[1], buffers))


def test_modes_are_back_after_an_error():
    vae, _ = moody()
    modes, _ = state(vae)
    with pytest.raises(ValueError, match="nose"):
        mm.log_likelihood(vae, {"nose": torch.zeros(3, 1)})
    assert state(vae)[0] == modes
    vae.modalities["body"].decoder.net.append(Broken())
    modes, _ = state(vae)
    with pytest.raises(ValueError, match="broken"):
        mm.log_likelihood(vae, three_rows(3))
    assert state(vae)[0] == modes


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken")


def test_a_pair_too():
    vae, seen = moody()
    mm.log_likelihood(mm.Pair(vae.model, vae.guide), three_rows(6), num_particles=5)
    assert seen and not any(seen) and vae.training
    seen.clear()
    vae.posterior(three_rows(6))
    assert any(seen)  # a method of the module itself, which is in the mode that the user chose


class First(nn.Module):
    """Says 1 where the first number is positive."""

    def __init__(self, seen):
        super().__init__()
        self.look = nn.Sequential(Watch(seen), nn.Dropout(0.5))

    def forward(self, x):
        return (self.look(x.reshape(len(x), -1).double())[:, 0] > 0).long()


def test_a_judge_is_asked_in_eval_mode_too():
    seen, (vae, _) = [], moody()
    judges = {name: First(seen).train() for name in NAMES}
    mm.coherence(vae, three_rows(6), [0] * 6, judges)
    mm.joint_coherence(vae, judges, num_draws=10)
    assert seen and not any(seen) and all(judge.look[1].training for judge in judges.values())


@pytest.mark.parametrize("thing, what", [(None, "None"), ({}, "a dict"), (mm.MultimodalVAE, "the class Multi")])
def test_what_is_no_model_is_refused_in_one_line(thing, what):
    for ask in (mm.fit, mm.log_likelihood, mm.impute):
        with pytest.raises(ValueError, match=f"^{what}.* stands where a model is asked for; give"):
            ask(thing, three_rows(3))


class Interrupted(nn.Module):
    """A network that is interrupted when its mode is set for the so many-th time."""

    at = -1

    def __setattr__(self, name, value):
        if name == "training":
            vars(self)["at"] = self.at - 1
            if self.at == 0:
                raise KeyboardInterrupt
        super().__setattr__(name, value)

    def forward(self, x):
        return x


@pytest.mark.parametrize("ask", [lambda vae: mm.log_likelihood(vae, three_rows(3)), lambda vae: vae.posterior(None)])
def test_modes_are_back_after_ctrl_c_while_they_are_changed(ask):
    vae, _ = moody()
    net = Interrupted()
    vae.modalities["body"].decoder.net.insert(0, net)
    modes, at = state(vae)[0], 0
    while net.at <= 0:  # as long as the call is interrupted
        at += 1
        net.at = at
        with suppress(KeyboardInterrupt):
            ask(vae)
        assert state(vae)[0] == modes
    assert at > 2
