"""What `fit` is given besides data: one line for what is none of it, and nothing changed."""

import numpy as np
import pyro
import pytest
import torch
from cases import three, three_rows
from pyro.infer import Trace_ELBO

import pyro_mmvae as mm

WRONG = [
    ({"loss": "elbo"}, "loss is 'elbo'; give a Pyro ELBO"),
    ({"loss": Trace_ELBO}, r"loss is the class Trace_ELBO; give an object of it, such as Trace_ELBO\(\)"),
    ({"loss": mm.Objective}, r"loss is the class Objective; give an object of it, such as Objective\(\)"),
    ({"schedule": 0.5}, "schedule is 0.5; give a function"),
    (
        {"schedule": torch.optim.lr_scheduler.StepLR},
        "schedule fails on the progress 0.0: .*step_size.*; give a function",
    ),
    ({"beta": lambda progress: None}, "beta fails on the progress 0.0: .*NoneType.*; give a function"),
    ({"beta": lambda progress: float("nan")}, "beta gives nan for the progress 0.0; give a function"),
    ({"beta": [0.5] * 100}, "beta is an object of builtins.list; give a function"),
    ({"every": None}, "every is None; give seconds"),
    ({"every": "1"}, "every is '1'; give seconds"),
    ({"every": -1}, "every is -1; give seconds"),
    ({"every": float("nan")}, "every is nan; give seconds"),
    ({"optimizer": 3}, "optimizer is 3; give a function"),
    ({"optimizer": pyro.optim.Adam({"lr": 1e-3})}, "optimizer is an object of pyro.PyroOptim; give a function"),
    ({"optimizer": torch.optim.LBFGS}, "optimizer gives an object of torch.LBFGS, not what takes a step"),
    ({"optimizer": lambda parameters, lr: None}, "optimizer gives None, not what takes a step"),
    ({"optimizer": lambda parameters: None}, "optimizer fails on .*, lr.: .*unexpected keyword argument 'lr'; give a"),
    ({"optimizer": lambda parameters, lr: torch.optim.SGD(three().parameters(), lr)}, "optimizer gives .* holds none"),
    ({"schedule": lambda progress: 1 - 1.5 * progress}, "schedule gives -0.125 for the progress 0.75; give a function"),
    ({"beta": lambda progress: -1.0}, "beta gives -1 for the progress 0.0; give a function"),
    ({"validation": "x"}, "validation: x is a str; give a dictionary"),
    ({"validation": {"body": torch.zeros(4, 9)}}, "validation: modality 'body' has entries of shape"),
]


@pytest.mark.parametrize(("given", "line"), WRONG)
def test_what_is_none_is_refused_in_one_line_and_nothing_is_changed(given, line):
    vae = three().train()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(ValueError, match=line) as error:
        mm.fit(vae, three_rows(8), epochs=1, progress=False, **given)
    assert "\n" not in str(error.value)
    assert all(module.training for module in vae.modules())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_a_refusal_by_what_was_traced_changes_no_mode(tmp_path):
    """Neither that of a loss that cannot be compiled, nor that of a file of another run, nor that of a network."""
    vae, rows, path = three().train(), three_rows(8), tmp_path / "run"
    vae.modalities["body"].encoder.eval()
    before = [module.training for module in vae.modules()]
    mm.fit(three(), rows, epochs=2, progress=False, checkpoint=path)
    for given, line in (
        ({"loss": Own(), "compile": "eager"}, "compile: Own has no differentiable_loss"),
        ({"checkpoint": path}, "is of a run with epochs 2"),
    ):
        with pytest.raises(ValueError, match=line):
            mm.fit(vae, rows, epochs=1, progress=False, **given)
        assert [module.training for module in vae.modules()] == before
    vae = mm.MultimodalVAE(vae.modalities, vae.prior, lambda experts: torch.zeros(8, 1, 2))
    before = [module.training for module in vae.modules()]
    with pytest.raises(TypeError, match="the fusion returned Tensor"):
        mm.fit(vae, rows, epochs=1, progress=False)
    assert [module.training for module in vae.modules()] == before


def test_an_optimizer_that_was_made_already_is_refused():
    vae = three()
    with pytest.raises(ValueError, match=r"optimizer is an object of torch.SGD; give a function \(parameters, lr\)"):
        mm.fit(vae, three_rows(8), epochs=1, progress=False, optimizer=torch.optim.SGD(vae.parameters(), lr=1.0))


class Own:
    """Neither of Pyro nor of ours, and without a loss that can be differentiated."""

    def __init__(self):
        self.calls = 0

    def loss_and_grads(self, model, guide, *args, **kwargs):
        self.calls += 1
        return Trace_ELBO().loss_and_grads(model, guide, *args, **kwargs)


@pytest.mark.parametrize("every", [0, 1e9, float("inf"), np.float32(5)])
def test_what_is_one_is_taken(every, tmp_path):
    given = {"loss": Own(), "every": every, "optimizer": torch.optim.SGD, "checkpoint": tmp_path / "run"}
    mm.fit(three(), three_rows(8), epochs=2, batch_size=4, progress=False, **given)
    assert given["loss"].calls == 4


def test_a_share_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"share is \[0.1, 0.2\]; give the share"):
        mm.hide(three_rows(8), share=[0.1, 0.2])
