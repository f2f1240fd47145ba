"""What a reader finds under `help(mm.name)`: a summary, and an example that the doctests run."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest

import pyro_mmvae as mm

NAMES = [name for name in mm.__all__ if not inspect.ismodule(getattr(mm, name))]
RECIPES = [f"recipes.{name}" for name in mm.recipes.__all__]


def document(name):
    thing = mm
    for part in name.split("."):
        thing = getattr(thing, part)
    return inspect.getdoc(thing) or ""


@pytest.mark.parametrize("name", NAMES + RECIPES)
def test_every_public_name_is_documented_with_an_example(name):
    text = document(name)
    assert ">>> " in text, name
    assert text.splitlines()[0].strip().endswith((".", ":", ",", "]", ")")) or len(text.splitlines()) > 1, name


@pytest.mark.parametrize("name", [name for name in RECIPES if name.split(".")[1].islower()])
def test_every_published_method_names_its_paper(name):
    ways = ("recipes.alignment", "recipes.feature_fusion", "recipes.shared_representation")  # of the field, no paper's
    assert name in ways or "https://" in document(name)


def test_the_package_reads_as_a_table_of_contents():
    """Every public name stands in the package's own docstring."""
    words = set(re.findall(r"\w+", inspect.getdoc(mm)))
    assert not [name for name in mm.__all__ if name not in words]


def test_what_is_shipped_has_its_licence_beside_it():
    folder = Path(mm.__file__).parent / "datasets"
    text = (folder / "NOTICES.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+\.npz)` \|(.*)\|$", text, re.M))
    assert set(rows) == {file.name for file in folder.glob("*.npz")}
    assert all(re.search("licence|CC0|CC BY|notice", row) for row in rows.values())
    assert "Apache License" in (folder / re.search(r"`(\S+\.txt)`", text)[1]).read_text()
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for file in project["license-files"]:
        assert (Path(__file__).parents[1] / file).stat().st_size > 1000
    assert (Path(__file__).parents[1] / "LICENSE").read_text().startswith(project["license"])
