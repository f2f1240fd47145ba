"""Every Python block of the README runs, one after the other, as a reader would paste them."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

import pyro_mmvae as mm

README = Path(__file__).parent.parent / "README.md"


def blocks():
    found = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    alone = [block for block in found if "init_process_group" not in block]  # that one runs under torchrun
    return [block for block in alone if "abridged" not in block.splitlines()[0]]


def test_every_block_runs():
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    names: dict = {}
    for block in blocks():
        exec(compile(block, "README.md", "exec"), names)
    angles = {"angle": torch.rand(500) * 6 - 3}
    history = mm.fit(names["vae"], {**names["x"], **angles}, epochs=10, progress=False)
    assert history.loss[-1] < history.loss[0]
    assert torch.isfinite(mm.log_likelihood(names["vae"], names["x"], num_particles=50).value).all()


@pytest.mark.parametrize("table", ["Parts", "Published methods"])
def test_the_tables_name_what_there_is(table):
    text = README.read_text().split(f"## {table}")[1].split("\n## ")[0]
    wanted = [n for n in mm.recipes.__all__ if n.islower()] if table != "Parts" else fusions_and_priors()
    assert all(f"`{name}`" in text or f"`{name}(" in text for name in wanted)


def test_the_lowest_versions_are_those_that_were_tried():
    """Of torch 2.4 for one, `fit` never chose one thread, as what it asks torch was not there yet."""
    told = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    tried = (README.parent / "tests" / "oldest.txt").read_text().splitlines()
    assert {each.replace(">=", "==") for each in told} == {line for line in tried if "==" in line}


def fusions_and_priors():
    abstract = {"Fusion", "LooksAt", "WhereGiven"}
    kinds = ("pyro_mmvae.fusion", "pyro_mmvae.priors")
    return [n for n in mm.__all__ if n not in abstract and getattr(getattr(mm, n), "__module__", "").startswith(kinds)]
