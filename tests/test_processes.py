"""Engines that there are already, in two processes: torchrun's DistributedDataParallel, and Lightning."""

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exact import LinearGaussian
from pyro.infer import RenyiELBO

import pyro_mmvae as mm

HERE = Path(__file__).parent


def launch(*command):
    """Runs a worker of this folder to its end; what it said is shown if it failed."""
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


def test_two_processes_under_torchrun_take_the_steps_of_one(tmp_path):
    """Uneven batches; modalities absent in one process, in both; nothing at all in one of them."""
    out = tmp_path / "found.json"
    launch("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HERE / "ddp_worker.py"), str(out))
    for name, found in json.loads(out.read_text()).items():
        assert max(found["gradients"]) < 1e-12, name
        assert found["weights"] < 1e-12, name
        assert min(found["sizes"]) > 1e-2, name


def test_alone_it_is_the_mean_of_the_rows():
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.simulate(9)
    loss = mm.MeanLoss(vae)
    assert float(loss(x).detach()) == pytest.approx(-float(truth.log_prob(x).mean()), rel=1e-12)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in vae.parameters()}
    pair = mm.MeanLoss(mm.Pair(vae.model, vae.guide))
    assert {id(p) for p in pair.parameters()} == {id(p) for p in vae.parameters()}
    assert float(pair(x).detach()) == pytest.approx(float(loss(x).detach()), rel=1e-12)
    nothing = {name: torch.zeros(9, dtype=torch.bool) for name in x}
    loss(x, nothing).backward()
    assert all(p.grad is None or not p.grad.any() for p in vae.parameters())
    with pytest.raises(ValueError, match="RenyiELBO has no differentiable_loss"):
        mm.MeanLoss(vae, RenyiELBO(num_particles=2))


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of itself and of this torch
class TestLightning:
    def test_on_two_devices(self, tmp_path):
        pytest.importorskip("lightning")
        launch(str(HERE / "lightning_worker.py"), str(tmp_path))
        for rank in (0, 1):
            found = json.loads((tmp_path / f"{rank}.json").read_text())
            assert found["loss"] == pytest.approx(found["exact"], rel=1e-6)  # it is logged in float32
            assert found["resumed"] == 0
            assert found["moved"] > 1e-2

    def test_a_run_that_goes_on_is_a_run_that_never_stopped(self, tmp_path):
        pytest.importorskip("lightning")
        from lightning_worker import interrupted

        found = interrupted(tmp_path, devices=1)
        assert found["resumed"] == 0
        assert found["moved"] > 1e-2

    def test_its_example(self):
        pytest.importorskip("lightning")
        import pyro_mmvae.lightning

        found = doctest.testmod(pyro_mmvae.lightning, optionflags=doctest.ELLIPSIS)
        assert found.attempted > 5 and found.failed == 0
