"""Lightning on one device: the modes in which it trains, what a checkpoint gives to whom, and what its loaders give."""

import pytest
import torch
from cases import three, three_rows
from exact import LinearGaussian
from torch import nn
from torch.utils.data import DataLoader

import pyro_mmvae as mm

lightning = pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, of itself and of this torch


class Look(lightning.Callback):
    """How the generator stands when a run begins."""

    def on_fit_start(self, trainer, module):
        self.state = torch.get_rng_state()

    on_validation_start = on_fit_start


def run(module, loader, validation=None, resume=None, callbacks=()):
    """A trainer after one epoch more than the checkpoint has, if there is one."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=1 if resume is None else 2,
        accelerator="cpu",
        enable_checkpointing=False,
        callbacks=list(callbacks),
        **quiet,
    )
    trainer.fit(module, loader, validation, ckpt_path=resume)
    return trainer


def of_jnf(x):
    """JNF whose joint encoder has batch norm."""
    net = nn.Sequential(nn.Linear(5 + 3 + 2, 8), nn.BatchNorm1d(8), mm.encoder(8, 8, dim=2))
    return mm.recipes.jnf(mm.guess_modalities(x, dim=2), 2, net, {"a": 5, "b": 3})


def test_what_a_second_phase_freezes_stays_and_what_came_in_eval_mode_is_trained():
    from pyro_mmvae.lightning import LightningVAE

    x = {"a": torch.randn(24, 5), "b": torch.randn(24, 3)}
    vae, _, second = of_jnf(x)
    vae.eval()  # as `fit` and `load` leave it
    loss, seen = second(), []
    vae.modalities["a"].encoder.register_forward_hook(lambda net, *_: seen.append(net.training))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    run(LightningVAE(vae, loss, lr=1e-2), DataLoader(mm.MultimodalDataset(x), 12))
    changed = {name for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(".encoder." in name for name in changed)
    assert seen == [True, True]


def test_a_checkpoint_sets_the_generator_of_a_run_and_of_nothing_else(tmp_path):
    from pyro_mmvae.lightning import LightningVAE

    loader, vae, path = DataLoader(mm.MultimodalDataset(three_rows(20)), 10), three(), tmp_path / "run.ckpt"
    run(LightningVAE(vae, lr=1e-2), loader).save_checkpoint(path)
    saved, again = torch.get_rng_state(), three()
    torch.manual_seed(7)
    state, look = torch.get_rng_state(), Look()
    module = LightningVAE.load_from_checkpoint(path, vae=again)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[look])
    looks = []
    for resume in (None, path):
        torch.manual_seed(7)
        trainer.validate(module, loader, ckpt_path=resume, verbose=False)
        looks.append(look.state)
    assert torch.equal(*looks)
    run(LightningVAE(three(), lr=1e-2), loader, resume=path, callbacks=[look])
    assert torch.equal(look.state, saved)


def test_a_loader_may_give_x_alone():
    from pyro_mmvae.lightning import LightningVAE

    truth = LinearGaussian()
    x = truth.simulate(20)
    rows = DataLoader([{name: value[row] for name, value in x.items()} for row in range(20)], 20)
    trainer = run(LightningVAE(truth.vae(), lr=0.0), rows, rows)
    for name in ("loss", "validation"):
        assert float(trainer.callback_metrics[name]) == pytest.approx(-float(truth.log_prob(x).mean()), rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [lambda: mm.MeanLoss(3), lambda: mm.MeanLoss(mm.MultimodalVAE), lambda: mm.MeanLoss(three(), mm.Objective)],
)
def test_what_is_no_model_and_a_loss_that_is_a_class_are_refused_in_one_line(make):
    with pytest.raises(ValueError, match=r"stands where a model is asked for|class Objective; give") as refused:
        make()
    assert "\n" not in str(refused.value)
