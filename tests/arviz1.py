"""The ArviZ adapter under ArviZ 1.x, where torch is not installed: `python tests/arviz1.py` on Python 3.12 or newer."""

import importlib.util
import sys
import tempfile
from pathlib import Path

import numpy as np


def load():
    path = Path(__file__).parent.parent / "pyro_mmvae" / "arviz_adapter.py"
    spec = importlib.util.spec_from_file_location("arviz_adapter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def round_trip(module):
    """What goes in comes back from a file: values, dims and labels."""
    import xarray

    z, x = np.random.default_rng(0).normal(size=(1, 7, 3, 2)), np.arange(6.0).reshape(3, 2)
    groups = {
        "posterior": {"z": (("chain", "draw", "row", "latent"), z)},
        "observed_data": {"body": (("body_row", "body_feature"), x)},
        "log_likelihood": {"body": (("chain", "draw", "body_row"), z[..., 0])},
        "sample_stats": {
            "log_weight": (("chain", "draw", "row"), z[..., 1]),
            "khat": (("row",), np.array([0.1, -np.inf, 2.0])),
        },
        "constant_data": {"body_observed": (("row",), np.array([True, False, True]))},
        "prior": {},
    }
    built = module.build(groups, {"row": list("abc"), "body_feature": ["mass", "length"]})
    with tempfile.TemporaryDirectory() as folder:
        built.to_netcdf(str(Path(folder) / "posterior.nc"))
        engine = {"engine": "h5netcdf"}
        for group, variables in groups.items():
            for name, (axes, values) in variables.items():
                stored = xarray.open_dataset(Path(folder) / "posterior.nc", group=group, **engine).load()
                np.testing.assert_array_equal(stored[name].values, values)
                assert stored[name].dims == axes, (group, stored[name].dims)
        posterior = xarray.open_dataset(Path(folder) / "posterior.nc", group="posterior", **engine).load()
        assert posterior["row"].values.tolist() == ["a", "b", "c"]
    return built


if __name__ == "__main__":
    import arviz

    adapter = load()
    assert "torch" not in sys.modules
    tree = round_trip(adapter)
    print(f"ArviZ {arviz.__version__}: {type(tree).__name__} with {', '.join(tree.children)}: 1 passed, 0 failed")
