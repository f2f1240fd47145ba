"""The floors of the package: a file imports from lower floors only, and files of one floor leave each other alone."""

import ast
from pathlib import Path

import pytest

import pyro_mmvae

ROOT = Path(pyro_mmvae.__file__).parent
FLOORS = [
    {"arrays", "chance", "warn", "buffers", "errors", "titles"},
    {"distributions"},
    {"heads", "memory", "accelerator", "checks", "view", "announce", "subpixel", "sites"},
    {
        "networks",
        "data",
        "programs",
        "psis",
        "datasets",
        "optim",
        "arviz_adapter",
        "storage",
        "plates",
    },
    {"images", "owners", "contract"},
    {"convolutions"},
    {"modes", "questions"},
    {
        "modality",
        "support",
        "seen",
        "likelihoods",
        "weights",
        "direct",
        "flows",
        "sequences",
        "columns",
        "counts",
        "dataset",
        "holes",
    },
    {"stack", "tables", "guess", "guess_columns", "observe", "processes", "told"},
    {"experts", "predictive", "frames"},
    {"fusion", "priors"},
    {"codes"},
    {"assembly"},
    {"vae"},
    {"objectives"},
    {"levels", "training", "evidence", "generation", "inference", "mudata"},
    {"recipes", "diagnostics", "export"},
    {"metrics"},
    {"plots"},
    {"sleep"},
    {"demo", "demo_figure", "__init__"},
    {"__main__", "lightning"},
]
OPTIONAL = ("arviz", "matplotlib", "sklearn", "zuko", "lightning", "xarray", "pandas", "h5py", "zarr")
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def parts():
    return sorted({path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")})


def imports(part):
    """The parts of the package that a part imports, anywhere in its files."""
    files = [ROOT / f"{part}.py"] if (ROOT / f"{part}.py").exists() else list((ROOT / part).rglob("*.py"))
    found = set()
    for node in (n for file in files for n in ast.walk(ast.parse(file.read_text()))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{part} imports relatively"
            names = [node.module] if node.module != "pyro_mmvae" else [f"pyro_mmvae.{a.name}" for a in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("pyro_mmvae.")}
    return found - {part}


def test_every_part_has_a_floor():
    assert set(parts()) <= set(FLOOR)


@pytest.mark.parametrize("part", parts())
def test_imports_go_down(part):
    for other in imports(part):
        if other in FLOOR:
            assert FLOOR[other] < FLOOR[part], f"{part} (floor {FLOOR[part]}) imports {other} (floor {FLOOR[other]})"


@pytest.mark.parametrize("part", parts())
def test_optional_packages_are_imported_when_used(part):
    """Nothing but torch, pyro, tqdm and NumPy at the top of a file."""
    for file in ROOT.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                own = top == file.stem == "lightning"  # its one class is a LightningModule; nobody imports the file
                assert own or top not in OPTIONAL, (file, name)
